import gzip
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vtlvlm.data.forms import ntu_clips
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.split import group_numbers, split
from vtlvlm.errors import DataError, UsageError

# train and test clips; without the clips that lack a skeleton
SIZES = {
    "xsub60": (40_320, 16_560, 40_091, 16_487),
    "xview60": (37_920, 18_960, 37_646, 18_932),
    "xsub120": (63_360, 51_120, 63_026, 50_919),
    "xset120": (54_720, 59_760, 54_468, 59_477),
}


def named(names: list[str], classes: dict[int, str] | None = None) -> ClipIndex:
    return ntu_clips(Path("/data"), names, [1] * len(names), names, classes, "classes.txt")


@pytest.fixture(scope="module")
def official(test_data: Path) -> ClipIndex:
    return named(gzip.decompress((test_data / "ntu" / "ntu120_all_sample_names.txt.gz").read_bytes()).decode().split())


@pytest.mark.parametrize("key", SIZES)
def test_official_sizes(key: str, official: ClipIndex) -> None:
    plain, without = split(official, key), split(official, key, exclude_missing_skeletons=True)
    assert (len(plain.train), len(plain.test), len(without.train), len(without.test)) == SIZES[key]
    assert len(plain.classes) == (60 if key.endswith("60") else 120)
    assert plain.train_hash != without.train_hash
    assert without.description["exclude_missing_skeletons"] is True


@pytest.mark.parametrize(("key", "column"), [("xsub120", "subject"), ("xview60", "subject"), ("xset120", "setup")])
def test_validation_takes_whole_groups_of_the_training_side(key: str, column: str, official: ClipIndex) -> None:
    plain, sides = split(official, key), split(official, key, validation=0.2, seed=1)
    groups = {side: set(getattr(official, column)[getattr(sides, side)].tolist()) for side in ("train", "val", "test")}
    assert not groups["train"] & groups["val"]
    assert len(groups["val"]) == round(0.2 * len(groups["train"] | groups["val"]))
    assert sorted([*sides.train, *sides.val]) == plain.train.tolist()
    assert sides.test.tolist() == plain.test.tolist()
    assert sides.train_hash == plain.train_hash
    assert sides.description["groups"]["val"] == sorted(groups["val"])
    assert sides.val.tolist() == split(official, key, validation=0.2, seed=1).val.tolist()
    assert sides.val.tolist() != split(official, key, validation=0.2, seed=2).val.tolist()


def test_real_people(test_data: Path) -> None:
    index = ClipIndex.scan(test_data / "weizmann", fast=True, progress=False)
    sides = split(index, "xsub60", validation=0.1)
    assert sides.description["clips"] == {"train": 27, "val": 9, "test": 20}
    assert sides.description["groups"]["test"] == [3, 6]
    assert len(sides.description["groups"]["val"]) == 1


def test_empty_side_names_what_there_is() -> None:
    index = named(["S001C001P001R001A001", "S001C002P002R001A001"])
    with pytest.raises(DataError, match=r"protocol xsub60 leaves no clip for test: .*subjects 1-2, cameras 1-2, setups 1") as caught:
        split(index, "xsub60").require("test")
    assert "\n" not in str(caught.value)
    assert split(index, "xview60").require("test").tolist() == [0]


def test_classes_beyond_sixty_stay_with_a_classes_file() -> None:
    names = ["S001C001P001R001A001", "S018C001P003R001A061"]
    assert split(named(names), "xsub60").test.tolist() == []
    assert split(named(names, {1: "a", 61: "b"}), "xsub60").test.tolist() == [1]


def test_damaged_clips_do_not_change_the_hash_but_are_left_out() -> None:
    index = named(["S001C001P001R001A001", "S001C001P002R001A001", "S001C001P003R001A001"])
    before = split(index, "xsub60")
    index.damage[1] = "truncated"
    after = split(index, "xsub60")
    assert (before.train.tolist(), after.train.tolist()) == ([0, 1], [0])
    assert before.train_hash == after.train_hash


def test_validation_needs_two_people() -> None:
    index = named(["S001C001P001R001A001", "S001C001P003R001A001"])
    with pytest.raises(DataError, match="at least two groups"):
        split(index, "xsub60", validation=0.5)
    with pytest.raises(UsageError, match="validation=1"):
        split(index, "xsub60", validation=1.0)
    known = "xsub60, xview60, xsub120, xset120, csv, group, leave_out:GROUP, cameras:1,2 or all"
    with pytest.raises(UsageError, match=f"no such protocol; choose {known}"):
        split(index, "xsub")
    with pytest.raises(UsageError, match="needs a CSV"):
        split(index, "csv")


def test_csv_and_group_protocols(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    lines = ["path,label,split,group"]
    for i in range(12):
        make_video(tmp_path / f"{i}.mp4", frames=3)
        lines.append(f"{i}.mp4,{'ab'[i % 2]},{['train', 'val', 'test'][i % 3] if i < 11 else ''},g{i // 2}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    index = ClipIndex.scan(tmp_path, csv="t.csv", progress=False)
    sides = split(index, "csv", validation=0.3)
    assert (sides.train.tolist(), sides.val.tolist(), sides.test.tolist()) == ([0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8])
    assert sides.description["val_hash"] == split(index, "csv", validation=0.1, seed=7).description["val_hash"]
    grouped = split(index, "group", validation=0.2, seed=4)
    parts = [set(index.group[rows]) for rows in (grouped.train, grouped.val, grouped.test)]
    assert [len(part) for part in parts] == [3, 1, 2]  # 6 groups: 30 % test, then a fifth of the other four, at least one
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(np.unique(np.concatenate([grouped.train, grouped.val, grouped.test]))) == 12
    others = [split(index, "group", validation=0.2, seed=seed) for seed in range(4)]
    differ = [part.val.tolist() != grouped.val.tolist() for part in others]
    assert [part.description["val_hash"] != grouped.description["val_hash"] for part in others] == differ
    assert any(differ)
    with pytest.raises(UsageError, match="needs NTU clip names"):
        split(index, "xsub60")


def test_leaving_one_group_out_and_leaving_out_none() -> None:
    index = named([f"S001C001P{person:03}R001A{action:03}" for person in (1, 2, 3) for action in (1, 2)])
    sides = split(index, "leave_out:P002", validation=0.4)
    assert sides.test.tolist() == [2, 3]
    assert len(sides.val) == 2
    assert sorted([*sides.train, *sides.val]) == [0, 1, 4, 5]
    assert sides.description["groups"]["test"] == ["P002"]
    everything = split(index, "all")
    assert everything.train.tolist() == list(range(6))
    assert not len(everything.test)
    assert len({split(index, key).train_hash for key in ("all", "leave_out:P001", "leave_out:P002")}) == 3
    with pytest.raises(UsageError, match="leave_out:P009: no such group; the groups are P001, P002, P003"):
        split(index, "leave_out:P009")


def test_groups_of_different_size_are_drawn_so_that_each_class_is_shared_out_evenly() -> None:
    """Two people with 40 clips of two actions and twenty with one clip each: a draw by number alone would often leave two or three clips to
    validate on, or only one action."""
    names = [f"S001C001P{person:03}R{take:03}A{action:03}" for person in (1, 2) for action in (1, 2) for take in range(1, 21)]
    names += [f"S001C001P{person:03}R001A{1 + person % 2:03}" for person in range(3, 23)]
    index = named(names)
    for seed in range(5):
        sides = split(index, "leave_out:P022", validation=0.3, seed=seed)
        held = np.bincount(index.label[sides.val], minlength=2)
        assert len(set(index.group[sides.val].astype(str))) == 6  # 0.3 of 21 people
        assert all(15 <= number <= 25 for number in held)  # of 50 and 49 clips
        assert not set(index.group[sides.val]) & set(index.group[sides.train])
    assert len({split(index, "leave_out:P022", validation=0.3, seed=seed).description["val_hash"] for seed in range(5)}) > 1


def test_clips_of_one_group_have_one_number_and_those_without_a_group_their_own() -> None:
    index, sides = SimpleNamespace(group=np.array(["P003", "", "P001", "P003", ""])), SimpleNamespace(train=np.array([0, 1, 2]))
    assert group_numbers(index, sides).tolist() == [2, 6, 1, 2, 9]  # type: ignore[arg-type]


def test_clips_of_the_only_training_group_are_groups_of_their_own() -> None:
    """Views of one clip then stay together: in another fold they would give its label away."""
    index, sides = SimpleNamespace(group=np.array(["P001", "P001", "P002", "P001"])), SimpleNamespace(train=np.array([0, 1, 3]))
    assert group_numbers(index, sides).tolist() == [0, 1, 2, 3]  # type: ignore[arg-type]


def test_cameras_are_a_setting(official: ClipIndex) -> None:
    """NTU's X-View trains on cameras 2 and 3, that of other sets on others."""
    rows = np.flatnonzero(official.setup <= 17)
    index = named(official.name[rows].tolist())
    same, xview = split(index, "cameras:2,3"), split(index, "xview60")
    np.testing.assert_array_equal(same.train, xview.train)
    np.testing.assert_array_equal(same.test, xview.test)
    other = split(index, "cameras:1,2", validation=0.2)
    assert set(index.camera[other.train].tolist()) == set(index.camera[other.val].tolist()) == {1, 2}
    assert set(index.camera[other.test].tolist()) == {3}
    assert not set(index.subject[other.train].tolist()) & set(index.subject[other.val].tolist())
    assert len({same.train_hash, xview.train_hash, other.train_hash}) == 3


@pytest.mark.parametrize("cameras", ["1,2,3", "4", "1,4", "", "x", "1,,2", "-1", "9" * 5000])
def test_cameras_that_are_not_there_are_refused(cameras: str) -> None:
    index = named([f"S001C{camera:03}P001R001A001" for camera in (1, 2, 3)])
    with pytest.raises(UsageError, match=r"the clips have cameras 1-3; name some of them for training, not all"):
        split(index, f"cameras:{cameras}")
    folders = SimpleNamespace(**{**vars(index), "camera": np.full(3, -1), "problem": index.problem})
    with pytest.raises(UsageError, match="needs NTU clip names, which name cameras"):
        split(folders, "cameras:1")  # type: ignore[arg-type]
