"""Recordings of an .npz file under paths of their own."""

from pathlib import Path

import numpy as np
import pytest
from moves import write_moves

from vtlvlm.errors import DataError
from vtlvlm.recognizers.recordings import PackedFiles, packed_in, paths_in


def write(file: Path, *names: str) -> Path:
    """One recording of 20 joints a name, of 2 frames, whose coordinates are its number."""
    joints = np.repeat(np.arange(len(names), dtype=np.float32), 2)[:, None, None] * np.ones((1, 20, 3), np.float32)
    np.savez(file, joints=joints, frames=np.full(len(names), 2), name=np.array(names))
    return file


def test_a_path_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    file = tmp_path / "folder.npz" / "a.npz"
    for path, expected in ((file, file), (file / "b", file), (file / "b.npz", file), (file / "b" / "c", file), (tmp_path / "a.mp4", None)):
        assert packed_in(path) == expected, path  # the file need not exist; a folder is none
    assert packed_in(tmp_path / "folder.npz" / "x.skeleton") is None


def test_every_recording_is_found_by_its_path(tmp_path: Path) -> None:
    file = write_moves(tmp_path / "moves.npz", repetitions=1)
    found, paths = PackedFiles(), paths_in(file)
    assert len(paths) == 36
    assert paths[:2] == [file / "S001C001P001R001A001", file / "S001C002P001R001A001"]
    joints = np.load(file)["joints"]
    for row, path in enumerate(paths):
        recordings, at = found.find(path)
        assert at == row
        np.testing.assert_array_equal(recordings.values(at)[0], joints[8 * row : 8 * row + 8])
    assert found.find(paths[0])[0] is found.find(paths[-1])[0]  # read once


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file, found = write(tmp_path / "a.npz", "one"), PackedFiles()
    assert found.find(file)[0].paths == ("one",)  # the only one needs no name
    write(file, "two", "three")
    assert found.find(file / "three")[1] == 1


def test_names_stay_within_their_file(tmp_path: Path) -> None:
    """Names are a stranger's: none of them leads to another file."""
    (tmp_path / "other.skeleton").write_text("not to be opened")
    names = (str(tmp_path / "other.skeleton"), "../other.skeleton", "b.npz", "x" * 5_000, "tab\t", "n\0l")
    file = write(tmp_path / "a.npz", *names)
    found, paths = PackedFiles(), paths_in(file)
    assert all(packed_in(path) == file for path in paths)
    for row, path in enumerate(paths):
        recordings, at = found.find(path)
        assert recordings.values(at)[0, 0, 0, 0] == row


@pytest.mark.parametrize("names", [("a", "./a"), ("a/b", "a//b"), (".", "a")])
def test_names_that_are_one_path_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"a\.npz: the names of its recordings are no different file names"):
        paths_in(write(tmp_path / "a.npz", *names))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    file, found = write(tmp_path / "a.npz", "one", "two"), PackedFiles()
    with pytest.raises(DataError, match=r"a\.npz: holds 2 recordings; name one, such as .*a\.npz/one"):
        found.find(file)
    with pytest.raises(DataError, match=r"a\.npz/three: .*a\.npz has no recording of this name, but such as .*a\.npz/one"):
        found.find(file / "three")
    with pytest.raises(DataError, match=r"b\.npz: no such file or folder of recordings"):
        found.find(tmp_path / "b.npz" / "one")
    file.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.npz: not an \.npz file of recordings, or damaged"):
        found.find(file / "one")
