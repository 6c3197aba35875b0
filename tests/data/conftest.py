"""Small real video files whose pictures say which frame they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from videos import encode

MakeVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def encode_video() -> MakeVideo:
    """``encode``, for tests with pictures of their own."""
    return encode


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    """``make_video(path, frames=12, size=32)``: frame i is grey of brightness ``30 + 10 i``."""

    def make(path: Path, *, frames: int = 12, size: int = 32, codec: str = "libx264", rate: int = 25) -> Path:
        grey = np.repeat(30 + 10 * (np.arange(frames) % 20), size * size * 3).astype(np.uint8).reshape(frames, size, size, 3)
        return encode(path, grey, codec=codec, rate=rate)

    return make


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of read-only folders go to a temporary place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture(scope="session")
def ntu_tree(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    """12 clips: people 1 to 6, actions 7 and 9, one take; 10 + person frames; classes.txt. Read only: copy it before changing it."""
    root = tmp_path_factory.mktemp("tree")
    for person in range(1, 7):
        for action in (7, 9):
            make_video(root / f"s1/S001C001P{person:03}R001A{action:03}_rgb.avi", frames=10 + person)
    (root / "classes.txt").write_text("A009 wave\nA007 walk\n")
    return root
