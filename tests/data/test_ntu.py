import gzip
from pathlib import Path

import pytest

from vtlvlm.data.ntu import ACTIONS, PROTOCOLS, ClipName, clip_name, missing_skeletons, official_clips, parse_names, read_classes
from vtlvlm.errors import DataError


def test_name_round_trip() -> None:
    name = ClipName.parse("deep/S017C003P008R002A060_rgb.avi")
    assert name == ClipName(setup=17, camera=3, subject=8, replication=2, action=60)
    assert str(name) == "S017C003P008R002A060"
    assert ClipName.parse(Path("S017C003P008R002A060.mp4")) == name


ODD_NAMES = [
    "foo_rgb.avi",
    "S1C1P1R1A1_rgb.avi",
    "S001C001P001R001A0011_rgb.avi",
    "S001C001P001R001A000_rgb.avi",
    "s001C001P001R001A001.avi",
    "S001C001P001R001A001_depth.avi",
    "S001C001P001R001A00é_rgb.avi",
    "",
    "S001C001P001R001A001",
]


@pytest.mark.parametrize("name", ODD_NAMES[:-1])
def test_wrong_names_are_refused_with_an_example(name: str) -> None:
    with pytest.raises(DataError, match=r"not an NTU clip name such as S001C001P001R001A001_rgb\.avi"):
        ClipName.parse(name)


def test_vectorised_parse_agrees_with_the_single_one() -> None:
    names = [*ODD_NAMES, "S032C003P106R002A120_rgb.avi", "S001C002P003R001A004.mp4"]
    columns = parse_names(names)
    assert columns.valid.tolist() == [False] * 8 + [True] * 3
    assert [column[-2] for column in columns[1:]] == [32, 3, 106, 2, 120]
    assert [column[0] for column in columns[1:]] == [-1] * 5
    assert len(parse_names([]).valid) == 0


def test_official_actions() -> None:
    assert len(ACTIONS) == len(set(ACTIONS)) == 120
    assert (ACTIONS[0], ACTIONS[7], ACTIONS[59]) == ("drink water", "sitting down", "walking apart from each other")
    assert len(missing_skeletons()) == 535


def test_official_clips_are_the_published_names(test_data: Path) -> None:
    names = gzip.decompress((test_data / "ntu" / "ntu120_all_sample_names.txt.gz").read_bytes()).decode().split()
    assert [clip_name(number) for number in official_clips(120)] == sorted(names)
    assert [clip_name(number) for number in official_clips(60)] == [name for name in sorted(names) if name[17:] <= "060"]
    assert len(official_clips(60)) == 56_880


@pytest.mark.parametrize("key", PROTOCOLS)
def test_single_and_vectorised_protocols_agree(key: str, test_data: Path) -> None:
    names = gzip.decompress((test_data / "ntu" / "ntu120_all_sample_names.txt.gz").read_bytes()).decode().split()[::97]
    columns, protocol = parse_names(names), PROTOCOLS[key]
    assert columns.valid.all()
    train = protocol.train_mask(columns.subject, columns.camera, columns.setup)
    assert [protocol.is_train(ClipName.parse(name)) for name in names] == train.tolist()
    assert 0.3 < train.mean() < 0.8


def test_classes_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("A009 wave both hands\n\nA001 bend down\n")
    assert list(read_classes(file).items()) == [(9, "wave both hands"), (1, "bend down")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("walk\n", "cannot read the line 'walk'"),
        ("A001 a\nA002 a\n", "repeats"),
        ("A001 a\nA001 b\n", "repeats"),
        ("\n", "no classes"),
    ],
)
def test_bad_classes_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "c.txt")


def test_missing_classes_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such classes file"):
        read_classes(tmp_path / "c.txt")
