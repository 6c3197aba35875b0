"""A folder of ``.skeleton`` files becomes shards: the same numbers, whole or not at all, read once."""

import json
from pathlib import Path

import numpy as np
import pytest
from skeletons import moving_body, of_bodies

from vtlvlm.data.shards import FolderLock
from vtlvlm.errors import DataError
from vtlvlm.skeleton import packing
from vtlvlm.skeleton.packed import META, open_recordings, shard_files
from vtlvlm.skeleton.packing import pack, pack_folder, skeleton_files
from vtlvlm.skeleton.reading import read_skeleton

NAMES = [f"part{1 + number // 4}/S001C{1 + number // 2:03}P{1 + number:03}R001A001.skeleton" for number in range(6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six files in two folders: one body of ten frames more for each, and two bodies in the last; and other things."""
    folder = tmp_path / "set"
    for number, name in enumerate(NAMES):
        random = np.random.default_rng(number)
        frames = 10 * (number + 1)
        bodies = {str(body): (0, moving_body(random, frames)) for body in range(2 if number == 5 else 1)}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(of_bodies(bodies, frames))
    (folder / ".hidden").mkdir()
    (folder / ".hidden/S001C001P009R001A001.skeleton").write_text("1\n0\n")
    (folder / "readme.txt").write_text("x")
    return folder


def require_all(found, root: Path, names: list[str]) -> None:
    assert list(found.paths) == names
    for row, name in enumerate(names):
        for ours, theirs in zip(found.skeletons(row), read_skeleton(root / name), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_shards_hold_what_the_files_hold(root, tmp_path):
    found = pack(root, tmp_path / "packed", progress=False)
    require_all(found, root, NAMES)
    assert found.bodies.tolist() == [1, 1, 1, 1, 1, 2]
    assert found.layout.name == "ntu25"
    require_all(open_recordings(tmp_path / "packed"), root, NAMES)


def test_the_folder_of_a_set_lies_inside_it(root, monkeypatch, tmp_path):
    assert pack_folder(root) == root / ".vtlvlm/skeletons"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root.chmod(0o555)
    assert pack_folder(root).parent == tmp_path / "cache/vtlvlm"
    assert pack_folder(root).name.startswith("skeletons-")
    root.chmod(0o755)


def test_a_second_run_reads_only_what_changed(root, tmp_path, monkeypatch):
    pack(root, tmp_path / "packed", progress=False)
    (root / NAMES[1]).write_text((root / NAMES[2]).read_text())
    (root / NAMES[3]).unlink()
    read = []
    monkeypatch.setattr(packing, "read_skeleton", lambda file: read.append(str(file.relative_to(root))) or read_skeleton(file))
    found = pack(root, tmp_path / "packed", progress=False)
    assert read == [NAMES[1]]
    require_all(found, root, [name for name in NAMES if name != NAMES[3]])


def test_an_interrupted_run_continues(root, tmp_path, monkeypatch):
    read = []

    def interrupted(file: Path):
        read.append(file)
        if len(read) == 4:
            raise KeyboardInterrupt
        return read_skeleton(file)

    monkeypatch.setattr(packing, "read_skeleton", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(root, tmp_path / "packed", workers=1, progress=False)
    with pytest.raises(DataError, match="its making was interrupted; run `vtlvlm prepare` again"):
        open_recordings(tmp_path / "packed")
    read.clear()
    monkeypatch.setattr(packing, "read_skeleton", lambda file: read.append(file) or read_skeleton(file))
    require_all(pack(root, tmp_path / "packed", progress=False), root, NAMES)
    assert len(read) == 3


def test_a_changed_bit_is_found_and_made_good(root, tmp_path):
    pack(root, tmp_path / "packed", progress=False)
    (file,) = shard_files(tmp_path / "packed")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(AssertionError):  # the bit is one of a number
        require_all(open_recordings(tmp_path / "packed"), root, NAMES)
    require_all(pack(root, tmp_path / "packed", verify=True, progress=False), root, NAMES)


def test_many_shards(root, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_SHARD_BYTES", 1)
    found = pack(root, tmp_path / "packed", progress=False)
    assert len(shard_files(tmp_path / "packed")) == 6
    require_all(found, root, NAMES)
    shard_files(tmp_path / "packed")[2].unlink()
    with pytest.raises(DataError, match=r"lacks part1/S001C002P003R001A001\.skeleton, a shard is missing"):
        open_recordings(tmp_path / "packed")


def test_files_that_cannot_be_used_are_left_out_by_name(root, tmp_path):
    (root / NAMES[0]).write_text("2\n0\n0\n")
    (root / NAMES[1]).write_text("\x89PNG")
    (root / NAMES[2]).unlink()
    (root / NAMES[2]).symlink_to("nowhere")
    found = pack(root, tmp_path / "packed", progress=False)
    require_all(found, root, NAMES[3:])
    assert list(found.left_out) == NAMES[:3]
    assert found.left_out[NAMES[0]] == "holds no body in any frame; leave the recording out"
    assert found.left_out[NAMES[2]] == "cannot be read (No such file or directory)"
    for name in NAMES:
        (root / name).unlink(missing_ok=True)
        (root / name).write_text("0\n")
    with pytest.raises(DataError, match=r"none of its 6 files can be used, the first being part1/.*holds no body"):
        pack(root, tmp_path / "packed", progress=False)


def test_trainings_may_start_at_once(root, tmp_path, monkeypatch):
    """A folder that is up to date is opened although another process holds its lock, and no file is read or written."""
    (root / NAMES[0]).write_text("0\n")
    pack(root, tmp_path / "packed", progress=False)
    lock = FolderLock(tmp_path / "packed", 0)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "packed").iterdir()}
    monkeypatch.setattr(packing, "read_skeleton", None)
    require_all(pack(root, tmp_path / "packed", progress=False), root, NAMES[1:])
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "packed").iterdir()} == before
    (root / NAMES[1]).touch()
    with pytest.raises(DataError, match="this process already writes to it"):
        pack(root, tmp_path / "packed", progress=False)
    lock.release()


def test_a_file_made_good_is_found_by_prepare(root, tmp_path):
    good = (root / NAMES[0]).read_text()
    (root / NAMES[0]).write_text("0\n")
    pack(root, tmp_path / "packed", progress=False)
    (root / NAMES[0]).write_text(good)
    require_all(pack(root, tmp_path / "packed", verify=True, progress=False), root, NAMES)


def test_recordings_of_another_set_are_not_replaced(root, tmp_path):
    pack(root, tmp_path / "packed", progress=False)
    (tmp_path / "other").mkdir()
    (root / NAMES[0]).rename(tmp_path / "other/S009C001P001R001A001.skeleton")
    with pytest.raises(DataError, match="holds recordings of other files than"):
        pack(tmp_path / "other", tmp_path / "packed", progress=False)
    assert len(open_recordings(tmp_path / "packed")) == 6


def test_a_folder_of_other_files_is_left_alone(root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds other files; name a new folder"):
        pack(root, tmp_path / "mine", progress=False)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match=r"holds no \.skeleton files"):
        skeleton_files(tmp_path / "mine")
    with pytest.raises(DataError, match="no such folder"):
        skeleton_files(tmp_path / "none")


def test_links_that_lead_back_are_searched_once(root):
    (root / "part2/again").symlink_to(root)
    assert skeleton_files(root).paths == NAMES


@pytest.mark.parametrize(
    ("key", "value"),
    [("recordings", []), ("recordings", ["a", "a"]), ("recordings", [1]), ("layout", "x"), ("version", 9), ("left_out", 3)],
)
def test_a_damaged_list(root, tmp_path, key, value):
    pack(root, tmp_path / "packed", progress=False)
    meta = tmp_path / "packed" / META
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {key: value}))
    with pytest.raises(DataError, match=r"meta\.json: not the list of a folder of recordings"):
        open_recordings(tmp_path / "packed")


def test_a_cut_shard(root, tmp_path):
    pack(root, tmp_path / "packed", progress=False)
    (file,) = shard_files(tmp_path / "packed")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"damaged cache file"):
        open_recordings(tmp_path / "packed")
    require_all(pack(root, tmp_path / "packed", progress=False), root, NAMES)
