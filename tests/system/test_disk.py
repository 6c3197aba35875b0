import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtlvlm.errors import DataError
from vtlvlm.system.disk import readable, require_space


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (999_600, "1 MB"), (29e9, "29 GB"), (3.7e14, "370 TB")]
)
def test_sizes_are_readable(size: float, text: str) -> None:
    assert readable(size) == text


def test_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert require_space(tmp_path / "a" / "b", 2e6, "3 clips").startswith(f"{tmp_path}/a/b: about 2 MB to write for 3 clips, ")


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(DataError, match=r"about 2 MB to write for 3 clips, 1 MB free; make room, or name a folder on another disk"):
        require_space(tmp_path / "cache", 2e6, "3 clips")
    assert not (tmp_path / "cache").exists()
