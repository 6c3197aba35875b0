"""What a server takes, read from headers."""

from pathlib import Path

import pytest
from videos import encode, moving_block

from vtlvlm.app import limits
from vtlvlm.app.limits import measured
from vtlvlm.errors import DataError


def test_length_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = encode(tmp_path / "a.mp4", moving_block(50, falls=True, shade=60))
    assert measured(file, 2.0).frames == 50
    with pytest.raises(DataError, match="longer than"):
        measured(file, 1.9)
    monkeypatch.setattr(limits, "FASTEST", 24)
    with pytest.raises(DataError, match="50 frames"):
        measured(file, 2.0)
    monkeypatch.setattr(limits, "MOST_PIXELS", 64 * 64 - 1)
    with pytest.raises(DataError, match="64 x 64 pixels"):
        measured(file, 2.0)
