"""Videos of the same content, under two labels or on both sides of a split."""

from pathlib import Path

import numpy as np
import pytest
from modules import data_of
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.split import split
from vtlvlm.data.twins import across, same_content, twins
from vtlvlm.errors import DataError


def clip(path: Path, shade: int = 40) -> Path:
    return encode(path, moving_block(6, 32, falls=True, shade=shade))


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    for number, name in enumerate(("train/walk/a", "train/run/b", "test/walk/c", "test/run/d", "val/run/e")):
        clip(tmp_path / f"{name}.mp4", 20 * number)
    (tmp_path / "test" / "run" / "copy.mp4").write_bytes((tmp_path / "train" / "run" / "b.mp4").read_bytes())
    (tmp_path / "test" / "walk" / "wrong.mp4").write_bytes((tmp_path / "val" / "run" / "e.mp4").read_bytes())
    return tmp_path


def test_pairs_across_the_sides(leaking: Path) -> None:
    index = ClipIndex.scan(leaking, progress=False)
    pairs = {(index.path[one], index.path[other]) for one, other in across(index, split(index, "csv"))}
    assert pairs == {("train/run/b.mp4", "test/run/copy.mp4"), ("val/run/e.mp4", "test/walk/wrong.mp4")}


def test_training_on_what_is_tested_is_refused_unless_allowed(leaking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("fit", "predict"):
        with pytest.raises(
            DataError,
            match=r"train/run/b\.mp4 \(training or validation\) and test/run/copy\.mp4 \(test\) have the same content under protocol",
        ):
            data_of(leaking, protocol="csv").setup(stage)
    data_of(leaking, protocol="csv", allow_duplicates=True).setup("fit")
    data_of(leaking, protocol="all", validation=0).setup("fit")
    assert main(["prepare", str(leaking)]) == 0
    text = capsys.readouterr().out
    assert "the same content on the training and the test side of csv: 2 (" in text
    assert "the same content under two labels: 1 (test/walk/wrong.mp4 = val/run/e.mp4)" in text
    assert "the same content twice: 1 (test/run/copy.mp4 = train/run/b.mp4)" in text


def test_equal_ends_are_not_equal_contents(tmp_path: Path) -> None:
    ends = bytes(range(256)) * 256
    for name, middle in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"3")):
        (tmp_path / f"{name}.mp4").write_bytes(ends + middle * 100 + ends)
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{name}.mp4,walk\n" for name in "abcd"))
    index = ClipIndex.scan(tmp_path, csv="t.csv", fast=True, progress=False)
    index.identity[:] = "the same"
    assert list(twins(index)) == [(0, 2)]
    assert not same_content(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert same_content(tmp_path / "a.mp4", tmp_path / "gone.mp4")  # who cannot be compared is believed


def test_unknown_contents_are_not_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_text("x")
    (tmp_path / "t.csv").write_text("path,label\na.mp4,walk\nb.mp4,run\n")
    index = ClipIndex.scan(tmp_path, csv="t.csv", fast=True, progress=False)
    assert list(twins(index, np.arange(2))) == []
