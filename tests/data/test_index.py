import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vtlvlm.data.index import ClipIndex, default_store, stores
from vtlvlm.errors import DataError, UsageError


def scan(root: Path, **options: object) -> ClipIndex:
    return ClipIndex.scan(root, progress=False, **options)  # type: ignore[arg-type]


def test_ntu_tree(ntu_tree: Path) -> None:
    index = scan(ntu_tree)
    assert (index.layout, index.classes, index.official, len(index)) == ("ntu", ("wave", "walk"), False, 12)
    row = index.name.tolist().index("S001C001P003R001A007")
    assert index.label[row] == 1  # second line of classes.txt
    assert (index.subject[row], index.camera[row], index.setup[row], index.replication[row], index.group[row]) == (3, 1, 1, 1, "P003")
    assert (index.frames[row], index.fps[row], index.duration[row]) == (13, 25.0, pytest.approx(13 / 25))
    assert index.identity[row].startswith(f"{index.size[row]}-")
    assert len(set(index.identity)) == 6  # the two actions of a person have the same pictures
    assert index.usable.tolist() == list(range(12))
    assert index.excluded() == ""


def test_official_names_without_a_classes_file(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_video(tmp_path / "S001C001P001R001A008_rgb.avi")
    index = scan(tmp_path)
    assert (len(index.classes), index.classes[index.label[0]], index.official) == (60, "sitting down", True)
    make_video(tmp_path / "S020C001P050R001A120_rgb.avi")
    assert len(scan(tmp_path).classes) == 120


def test_bad_clips_are_named_counted_and_left_out(ntu_tree: Path, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root)
    make_video(root / "foo_rgb.avi")
    make_video(root / "S001C001P001R001A050_rgb.avi")
    make_video(root / "again" / "S001C001P001R001A007_rgb.mp4")
    (root / "S001C001P009R001A007_rgb.avi").touch()
    index = scan(root)
    problems = {str(path): problem for path, problem in zip(index.path, index.problem, strict=True) if problem}
    assert problems == {
        "foo_rgb.avi": "not an NTU clip name such as S001C001P001R001A001_rgb.avi",
        "S001C001P001R001A050_rgb.avi": f"label outside the classes: A050 is not in {root / 'classes.txt'}",
        "s1/S001C001P001R001A007_rgb.avi": "the same clip as again/S001C001P001R001A007_rgb.mp4",
        "S001C001P009R001A007_rgb.avi": "empty file (0 bytes)",
    }
    assert len(index.usable) == 12
    with pytest.warns(UserWarning, match=r"4 of 16 clips are left out: .*foo_rgb\.avi \(not an NTU clip name"):
        index.warn_excluded()


@pytest.mark.parametrize("name", ["foo_rgb.avi", "S1C1P1R1A1_rgb.avi"])
def test_no_usable_clip_is_an_error(name: str, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_video(tmp_path / "nturgb+d_rgb" / name)
    with pytest.raises(DataError, match=r"none of its 1 clips is usable.*not an NTU clip name"):
        scan(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no video files"):
        scan(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path / "absent")


def test_folder_for_each_class(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    for name in ("run/a.mp4", "jump/deep/b.mkv", "run/c.avi", "stray.mp4"):
        make_video(tmp_path / name)
    index = scan(tmp_path)
    assert index.classes == ("jump", "run")
    assert dict(zip(index.path, index.label, strict=True)) == {"jump/deep/b.mkv": 0, "run/a.mp4": 1, "run/c.avi": 1, "stray.mp4": -1}
    assert index.problem.tolist()[-1].startswith("in no class folder")


def test_a_folder_around_the_class_folders_that_a_list_of_one_class_does_not_name(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    for name in ("videos/walk/a.mp4", "videos/run/b.mp4"):
        make_video(tmp_path / name)
    (tmp_path / "classes.txt").write_text("walk\n")
    with pytest.raises(DataError, match=r"none of its 2 clips is usable.*its folder videos is not in .*classes\.txt"):
        scan(tmp_path)


def test_csv(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_video(tmp_path / "v" / "a.mp4")
    make_video(tmp_path / "v" / "b.mp4")
    table = tmp_path / "clips.csv"
    table.write_text(
        "path,label,split,group\nv/a.mp4,run,train,ann\nv/b.mp4,jump,test,007\nv/c.mp4,run,train,ann\nv/a.mp4,,,\nv/b.mp4,run,dev,x\n"
    )
    index = scan(tmp_path, csv="clips.csv")
    assert index.classes == ("jump", "run")
    assert index.label.tolist() == [1, 0, -1, -1, -1]
    assert index.problem.tolist() == ["", "", "no such file", "no label", "split 'dev' is not train, val or test"]
    assert index.split.tolist()[:2] == ["train", "test"]
    assert index.group.tolist()[:2] == ["ann", "007"]


def test_bad_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label\nx,y\n")
    with pytest.raises(DataError, match="no column path"):
        scan(tmp_path, csv="a.csv")
    (tmp_path / "b.csv").write_text("path,label\nx,y,z\n")
    with pytest.raises(DataError, match=r"b\.csv: not a CSV table"):
        scan(tmp_path, csv="b.csv")
    with pytest.raises(DataError, match="no such CSV"):
        scan(tmp_path, csv="c.csv")
    with pytest.raises(UsageError, match="not both"):
        scan(tmp_path, csv="a.csv", classes="c.txt")


def test_known_files_are_not_opened_again_and_changed_ones_are(ntu_tree: Path, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    assert scan(root, fast=True).checked.tolist() == [0] * 12
    first = scan(root)
    assert first.checked.tolist() == [1] * 12
    store = root / ".vtlvlm" / "index.parquet"
    written = store.stat().st_mtime_ns
    kept = root / first.path[0]
    stamp = kept.stat().st_mtime_ns
    kept.write_bytes(bytes(kept.stat().st_size))
    os.utime(kept, ns=(stamp, stamp))  # same size and time: taken as known
    make_video(root / first.path[1], frames=30)
    assert scan(root, fast=True).frames.tolist()[2:] == first.frames.tolist()[2:]
    second = scan(root)
    assert second.problem[0] == ""
    assert second.frames.tolist() == [first.frames[0], 30, *first.frames[2:]]
    assert store.stat().st_mtime_ns > written
    written = store.stat().st_mtime_ns
    scan(root)
    assert store.stat().st_mtime_ns == written
    assert scan(root, verify=True).problem[0].startswith("not a readable video")


def test_read_only_root_keeps_its_index_elsewhere(ntu_tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    os.chmod(root, 0o555)  # noqa: PTH101
    inside, outside = stores(root)
    assert default_store(root) == outside
    scan(root)
    assert outside.is_file()
    assert not inside.parent.exists()
    assert scan(root, fast=True).frames.min() == 11


def test_the_index_of_another_root_is_neither_believed_nor_overwritten(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_video(tmp_path / "a" / "S001C001P001R001A008_rgb.avi")
    make_video(tmp_path / "b" / "S001C001P001R001A008_rgb.avi")
    store = tmp_path / "index.parquet"
    before = scan(tmp_path / "a", store=store), store.read_bytes()
    with pytest.raises(DataError, match=rf"index\.parquet: is the index of {tmp_path}/a, not of {tmp_path}/b; name another file"):
        scan(tmp_path / "b", store=store)
    assert store.read_bytes() == before[1]
    scan(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "c")  # the index inside the folder moves with it
    moved = scan(tmp_path / "c", fast=True)
    assert moved.root == tmp_path / "c"
    assert moved.frames.tolist() == before[0].frames.tolist()


def test_file_round_trip_and_damage(ntu_tree: Path, tmp_path: Path) -> None:
    index = scan(ntu_tree)
    file = tmp_path / "i.parquet"
    index.write(file)
    again = ClipIndex.read(file)
    for column in vars(index):
        before, after = getattr(index, column), getattr(again, column)
        np.testing.assert_array_equal(before, after)
        assert getattr(before, "dtype", None) == getattr(after, "dtype", None)
    assert [path.name for path in tmp_path.glob(".*")] == []
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="not an index"):
        ClipIndex.read(file)
    assert scan(ntu_tree, store=file).frames.min() == 11  # a damaged index is made anew
    assert len(ClipIndex.read(file)) == 12


def test_an_unreadable_file_is_tried_again(ntu_tree: Path, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    link = root / "S001C001P009R001A007_rgb.avi"
    link.symlink_to(tmp_path / "later.avi")
    assert scan(root).problem[0] == "no such file or directory"
    make_video(tmp_path / "later.avi")
    assert scan(root).problem[0] == ""


def test_real_clips(test_data: Path) -> None:
    index = scan(test_data / "weizmann")
    assert len(index.usable) == 56
    assert len(index.classes) == 9
    assert (int(index.frames.min()), int(index.frames.max())) == (23, 146)
    assert not (test_data / "weizmann" / ".vtlvlm").exists()
