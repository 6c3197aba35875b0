"""Tables and lists of classes as people save them."""

import codecs
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from vtlvlm.cli import main
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.ntu import plain_names, read_classes
from vtlvlm.data.tables import MOST_CLASSES, read_table, require_distinct
from vtlvlm.errors import DataError

ROWS = "path,label,split\na.mp4,walk,train\nb.mp4,Öl wechseln,test\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "change", [str, lambda s: s.replace(",", ";"), lambda s: s.replace(",", "\t"), lambda s: "sep=;\n" + s.replace(",", ";")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_divisions_and_ends_of_lines(encoding: str, change: Callable[[str], str], end: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(change(ROWS).replace("\n", end).encode(encoding))
    table = read_table(tmp_path / "t.csv")
    assert (table.paths, table.labels, table.splits) == (["a.mp4", "b.mp4"], ["walk", "Öl wechseln"], ["train", "test"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ROWS.encode("latin-1"), r"t\.csv: line 3 is not UTF-8 \(at \.\.\..*\\xd6l .*save the file as UTF-8"),
        (b"path,label\na,b\nx,y,z\n", "not a CSV table: line 3 has 3 cells, the first line names 2"),
        (b"path,label\na\n", "line 2 has 1 cells"),
        (b'path,label\na,"b\n', "not a CSV table: line 2"),
        (b"path,label,path\na,b,c\n", "names path twice"),
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        (b"path,label\n\n,\n", "holds no rows"),
        (b"\xff\xfe\x00", "is not UTF-8|no column|no rows"),
        (bytes(range(256)) * 20, "is not UTF-8|no column"),
        (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(1000), "no column"),
        (b'[{"path": "a.mp4", "label": "walk"}, ' * 10_000, "no column label and path"),
    ],
)
def test_what_is_no_table_is_one_line_with_the_place(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_table(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("above", ["      \n", "\t\t\t\t\t\t\n\n", "sep=;\n      \n"])
def test_lines_of_spaces_above_the_header_are_passed_over(above: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(above + (ROWS.replace(",", ";") if "sep" in above else ROWS))
    assert read_table(tmp_path / "t.csv").labels == ["walk", "Öl wechseln"]


def test_utf_32_with_the_highest_byte_first(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(codecs.BOM_UTF32_BE + ROWS.encode("utf-32-be"))
    assert read_table(tmp_path / "t.csv").labels == ["walk", "Öl wechseln"]


def test_long_lists_and_headers_are_read_in_no_time(tmp_path: Path) -> None:
    began = time.perf_counter()
    (tmp_path / "c.txt").write_text("".join(f"walk{number}\n" for number in range(50_000)))
    with pytest.raises(DataError, match=f"at most {MOST_CLASSES:,} are possible"):
        plain_names(tmp_path / "c.txt")
    (tmp_path / "t.csv").write_text(",".join(f"c{number}" for number in range(50_000)) + "\n")
    with pytest.raises(DataError, match="no column label and path"):
        read_table(tmp_path / "t.csv")
    assert time.perf_counter() - began < 10


def test_labels_are_trimmed_and_columns_found_by_any_capitals(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Path, Label ,SPLIT,group\na.mp4, walk , Training,  ann \nb.mp4,\tsit down,VAL,\n")
    table = read_table(tmp_path / "t.csv")
    assert table[1:] == (["walk", "sit down"], ["train", "val"], ["ann", ""], [2, 3])


def test_labels_that_differ_in_capitals_only_are_refused_with_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_text("x")
    cafe = "café"
    (tmp_path / "t.csv").write_text("path,label\na.mp4,Walk\nb.mp4,walk\nc.mp4,walk \nd.mp4,Walk\n")
    assert main(["prepare", str(tmp_path), "--csv", "t.csv", "--fast"]) == 1
    assert "'Walk' (line 2, 5) and 'walk' (line 3, 4) differ in capitals only" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text(f"path,label\na.mp4,{cafe}\nb.mp4,{unicodedata.normalize('NFD', cafe)}\n")
    assert main(["prepare", str(tmp_path), "--csv", "t.csv", "--fast"]) == 1
    assert "(line 3) and 'café' (line 2) differ in the encoding of accents only" in capsys.readouterr().err
    for folder in ("set/Walk", "set/walk"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.mp4").write_text(folder)
    assert main(["prepare", str(tmp_path / "set"), "--fast"]) == 1
    assert "'Walk' (in Walk) and 'walk' (in walk) differ in capitals only" in capsys.readouterr().err
    (tmp_path / "c.txt").write_text("A001 Walk\nA002 walk\n")
    with pytest.raises(DataError, match=r"'Walk' \(A001\) and 'walk' \(A002\) differ in capitals only"):
        read_classes(tmp_path / "c.txt")


def test_labels_that_are_no_names_are_left_out_by_row(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.mp4").write_text(name)
    (tmp_path / "t.csv").write_text(f"path,label\na.mp4,walk\nb.mp4,   \nc.mp4,{'x' * 2000}\nd.mp4,a\x1b[31mb\ne.mp4,run\n")
    index = ClipIndex.scan(tmp_path, csv="t.csv", fast=True, progress=False)
    assert index.problem.tolist() == [
        "",
        "no label",
        "a label of 2,000 letters; at most 500",
        "a label with control characters; rename it",
        "",
    ]
    assert index.classes == ("run", "walk")


def test_more_categories_than_can_be_told_apart(tmp_path: Path) -> None:
    require_distinct({f"c{number}": "line 1" for number in range(MOST_CLASSES)}, tmp_path)
    with pytest.raises(DataError, match="has 200,000 classes, at most 10,000 are possible"):
        require_distinct({f"c{number}": "line 1" for number in range(200_000)}, tmp_path)


@pytest.mark.parametrize("lines", ["walk\nrun\n", "\ufeffwalk\r\nrun\r\n", "A001 walk\nA002 run\n", "1 walk\n2 run\n", "0,walk\n1,run"])
def test_a_list_of_plain_names_orders_class_folders(lines: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("run", "walk", "swim"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_text(folder)
    (tmp_path / "classes.txt").write_text(lines + "\njump" if lines == "walk\nrun\n" else lines, newline="")
    assert main(["prepare", str(tmp_path), "--fast"]) == 0
    text = capsys.readouterr().out
    index = ClipIndex.scan(tmp_path, fast=True, progress=False)
    assert index.classes[:2] == ("walk", "run")
    assert f"  swim/a.mp4: its folder swim is not in {tmp_path}/classes.txt: add it there, or rename the folder" in text
    if lines == "walk\nrun\n":
        assert index.classes == ("walk", "run", "jump")
        assert f"classes of {tmp_path}/classes.txt that have no folder: 1 (jump)" in text


@pytest.mark.parametrize(("lines", "said"), [("walk\nwalk\n", "occurs twice"), ("", "holds no classes"), ("Walk\nwalk\n", "capitals only")])
def test_lists_of_names_that_say_too_little(lines: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(lines)
    with pytest.raises(DataError, match=said):
        plain_names(tmp_path / "c.txt")


def test_a_path_as_the_disk_has_it(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "café.mp4")).write_text("a")
    (tmp_path / "b.mp4").write_text("b")
    (tmp_path / "t.csv").write_text("path,label\ncafé.mp4,walk\n b.mp4 ,run\nnul\0.mp4,run\n")
    index = ClipIndex.scan(tmp_path, csv="t.csv", fast=True, progress=False)
    assert index.problem.tolist() == ["", "", "no such file"]
