"""Sets of videos as people have them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.commands.classify import videos
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.split import split


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def clip(path: Path, shade: int = 40, **options: object) -> Path:
    return encode(path, moving_block(6, 32, falls=True, shade=shade), **options)  # type: ignore[arg-type]


def scan(root: Path, **options: object) -> ClipIndex:
    return ClipIndex.scan(root, progress=False, **options)  # type: ignore[arg-type]


def prepared(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
    """What ``vtlvlm prepare`` prints."""
    assert main(["prepare", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def problems(index: ClipIndex) -> dict[str, str]:
    return {str(path): str(problem) for path, problem in zip(index.path, index.problem, strict=True) if problem}


def test_someone_linked_a_class_folder_from_another_disk(tmp_path: Path) -> None:
    """https://github.com/pytorch/vision/issues/1580"""
    clip(tmp_path / "disk" / "running_2019" / "a.mp4")
    clip(tmp_path / "set" / "walk" / "b.mp4", 80)
    (tmp_path / "set" / "run").symlink_to(tmp_path / "disk" / "running_2019")
    index = scan(tmp_path / "set")
    assert index.classes == ("run", "walk")
    assert index.path.tolist() == ["run/a.mp4", "walk/b.mp4"]
    assert [file.name for file in videos(tmp_path / "set")[0]] == ["a.mp4", "b.mp4"]


def test_someone_linked_single_videos_and_a_folder_back_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/fastai/fastai/issues/2270"""
    root = tmp_path / "set"
    clip(tmp_path / "disk" / "a.mp4")
    clip(root / "walk" / "b.mp4", 80)
    (root / "run").mkdir()
    (root / "run" / "a.mp4").symlink_to(tmp_path / "disk" / "a.mp4")
    (root / "run" / "b again.mp4").symlink_to(root / "walk" / "b.mp4")
    (root / "run" / "up").symlink_to("..")
    (root / "all").symlink_to(root / "walk")
    (root / "run" / "gone.mp4").symlink_to(tmp_path / "gone.mp4")
    text = prepared(capsys, root)
    assert "4 clips (a folder for each class), 2 usable, 2 classes" in text
    assert "  run/b again.mp4: the same file as walk/b.mp4" in text
    assert "  run/gone.mp4: no such file or directory" in text
    assert "folders reached twice, searched once: 2 (all (the same as walk), run/up (the same as the folder itself or one above))" in text


def test_someone_unpacked_a_set_that_is_divided_into_train_and_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/huggingface/datasets/issues/4839"""
    for number, name in enumerate(("train/walk/1", "train/run/1", "val/walk/1", "val/run/1", "test/walk/1", "test/run/1")):
        clip(tmp_path / f"{name}.mp4", 20 + 30 * number)
    text = prepared(capsys, tmp_path)
    assert "6 usable, 2 classes" in text
    assert "--data.source.protocol csv uses this split" in text
    assert next(line for line in text.splitlines() if line.startswith("csv ")).split() == ["csv", "2", "2", "2"]
    index = scan(tmp_path)
    assert index.classes == ("run", "walk")
    assert sorted(index.path[split(index, "csv").test]) == ["test/run/1.mp4", "test/walk/1.mp4"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["Training/walk", "VALIDATION/walk", "Testing/walk"], {"train": 1, "val": 1, "test": 1}),
        (["walk/train", "walk/valid", "run/test", "run/train"], {"train": 2, "val": 1, "test": 1}),
        (["train/walk", "train/run"], {"train": 2, "val": 0, "test": 0}),
    ],
)
def test_other_spellings_of_the_sides(names: list[str], wanted: dict[str, int], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        clip(tmp_path / name / "a.mp4", 20 + 30 * number)
    index = scan(tmp_path)
    assert set(index.classes) <= {"walk", "run"}
    assert split(index, "csv").description["clips"] == wanted


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a", "car/a", "train/deep/b", "bus/test/c")):
        clip(tmp_path / f"{name}.mp4", 20 + 30 * number)
    index = scan(tmp_path)
    assert index.classes == ("bus", "car", "train")
    assert set(index.split) == {""}


def test_someone_copied_a_set_from_a_mac_and_a_disk_station(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/pytorch/vision/issues/109"""
    for name in ("walk/a.mp4", "run/b.mp4", "__MACOSX/walk/a.mp4", "walk/@eaDir/a.mp4", "$RECYCLE.BIN/old.mp4", "lost+found/x.mp4"):
        clip(tmp_path / name, 30 if name.startswith("walk") else 70)
    clip(tmp_path / ".cache" / "thumbnail.mp4")
    (tmp_path / "run" / "._b.mp4").write_bytes(b"\0\5\x16\7")
    (tmp_path / "run" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "run" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("mine")
    text = prepared(capsys, tmp_path)
    assert "2 clips (a folder for each class), 2 usable, 2 classes" in text
    assert "of archives and systems skipped: $RECYCLE.BIN 1, .DS_Store 1, ._* 1, @eaDir 1, Thumbs.db 1, __MACOSX 1, lost+found 1" in text
    assert "hidden folders skipped: 1 (.cache)" in text
    assert "1 other files passed over (.txt 1)" in text
    found, words = videos(tmp_path)
    assert [file.name for file in found] == ["b.mp4", "a.mp4"]
    assert any("hidden folders" in line for line in words)


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_a_category_without_a_usable_clip_is_no_class(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/pytorch/vision/issues/109"""
    for name in ("walk/a.mp4", "run/b.mp4"):
        clip(tmp_path / name, 30 if name.startswith("walk") else 70)
    (tmp_path / "jump").mkdir()
    (tmp_path / "jump" / "broken.mp4").write_text("no video")
    (tmp_path / "t.csv").write_text("path,label\nwalk/a.mp4,walk\nrun/b.mp4,run\njump/broken.mp4,jump\ngone.mp4,swim\n")
    command = ["prepare", str(tmp_path), *(["--csv", "t.csv"] if layout == "csv" else [])]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "2 usable, 2 classes" in text
    assert "categories left out, because none of their clips can be used: 1 (jump)" in text
    assert ("none of their clips can be used: 1 (swim)" in text) is (layout == "csv")
    (tmp_path / "classes.txt").write_text("walk\njump\nrun\n")
    if layout == "folders":
        assert scan(tmp_path).classes == ("walk", "jump", "run")
    clip(tmp_path / "jump" / "broken.mp4", 99)
    assert "jump" in scan(tmp_path, csv="t.csv" if layout == "csv" else None).classes


def test_someone_has_videos_straight_from_a_camcorder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/pytorch/vision/issues/1418"""
    pictures = moving_block(6, 32, falls=True, shade=40)
    encode(tmp_path / "walk" / "a.mkv", pictures).rename(tmp_path / "walk" / "00001.MTS")
    encode(tmp_path / "run" / "b.3gp", moving_block(6, 176, falls=True, shade=20), codec="mpeg4")
    encode(tmp_path / "jump" / "c.mp4", pictures + 3).rename(tmp_path / "jump" / "no ending")
    encode(tmp_path / "swim" / "c.mp4", pictures + 5).rename(tmp_path / "swim" / "x.dav")
    (tmp_path / "swim" / "cover.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "swim" / "README").write_text("swimmers")
    text = prepared(capsys, tmp_path)
    assert "4 clips (a folder for each class), 4 usable, 4 classes" in text
    assert "2 other files passed over (.jpg 1, no ending 1)" in text
    assert len(videos(tmp_path)[0]) == 4


def test_someone_has_a_file_name_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/pyload/pyload/issues/4523"""
    clip(tmp_path / "walk" / "a.mp4")
    clip(tmp_path / "run" / "b.mp4", 80)
    (tmp_path / "run" / "b.mp4").rename(tmp_path / "run" / os.fsdecode(b"caf\xe9.mp4"))
    clip(tmp_path / "run" / "c.mp4", 90)
    clip(tmp_path / "other" / "c.mp4", 95)
    (tmp_path / "other").rename(tmp_path / os.fsdecode(b"na\xefve"))
    for _ in range(2):  # the second time from the stored index
        assert main(["prepare", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        assert "4 clips (a folder for each class), 2 usable, 2 classes" in text
        assert r"  run/caf\xe9.mp4: its name is not UTF-8; rename it" in text
        assert r"  na\xefve/c.mp4: its name is not UTF-8; rename it" in text
    assert r"caf\xe9.mp4" in (tmp_path / ".vtlvlm" / "index.txt").read_text()


def test_names_with_accents_in_a_locale_of_ascii(tmp_path: Path) -> None:
    """https://peps.python.org/pep-0538: the remedy is the locale's, not another name."""
    clip(tmp_path / "walk" / "a.mp4")
    clip(tmp_path / "run" / "café.mp4", 80)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "vtlvlm", "prepare", str(tmp_path), "--fast"]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, text=True, check=False)
    assert r"run/caf\xc3\xa9.mp4: its name cannot be read in this locale (ascii); set PYTHONUTF8=1" in done.stdout, done.stderr


def test_a_folder_whose_own_name_is_not_utf8(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"s\xe9t")
    clip(tmp_path / "x" / "walk" / "a.mp4")
    clip(tmp_path / "x" / "run" / "a.mp4", 80)
    (tmp_path / "x").rename(root)
    assert main(["prepare", str(root)]) == 0
    assert scan(root, fast=True).frames.tolist() == [6, 6]


def test_someone_wrote_the_same_file_in_four_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "clips" / "1.mp4")
    clip(tmp_path / "clips" / "2.mp4", 80)
    (tmp_path / "link.mp4").symlink_to("clips/1.mp4")
    ways = ["clips/1.mp4", "./clips/1.mp4", "clips//1.mp4", f"{tmp_path}/clips/1.mp4", "clips/../clips/1.mp4", "link.mp4"]
    rows = [f"{way},walk,{'train' if number % 2 == 0 else 'test'}" for number, way in enumerate(ways)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, "clips/2.mp4,run,test"]) + "\n")
    text = prepared(capsys, tmp_path, "--csv", "t.csv")
    assert "7 clips (a CSV table), 2 usable" in text
    assert "  clips//1.mp4: the same clip as clips/1.mp4 in line 2" in text
    assert "  ./clips/1.mp4: the same clip as clips/1.mp4, on the side train, in line 2" in text
    assert "  link.mp4: the same clip as clips/1.mp4, on the side train, in line 2" in text


def test_copies_of_one_video_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/walk/a.mp4", "test/walk/b.mp4", "train/run/c.mp4"):
        clip(tmp_path / name)
    clip(tmp_path / "test/run/d.mp4", 90)
    text = prepared(capsys, tmp_path)
    assert "the same content on the training and the test side of csv: 1 (train/run/c.mp4 = test/walk/b.mp4)" in text
    assert "the same content under two labels: 1 (test/walk/b.mp4 = train/run/c.mp4)" in text or "under two labels: 2" in text


def test_a_folder_around_the_class_folders_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("walk", "run")):
        clip(tmp_path / "videos" / name / "a.mp4", 30 * number)
    assert main(["prepare", str(tmp_path)]) == 0
    assert f"which makes one class; if videos holds the class folders, name {tmp_path}/videos" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path / "videos")]) == 0
    assert "all clips lie in one folder" not in capsys.readouterr().out


def test_a_folder_around_a_divided_set_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/huggingface/datasets/issues/4839: the one folder at the top is no class of two sides."""
    for number, name in enumerate(("train/walk", "train/run", "test/walk", "test/run")):
        clip(tmp_path / "videos" / name / "a.mp4", 30 * number)
    assert main(["prepare", str(tmp_path)]) == 0
    assert f"which makes one class; if videos holds the class folders, name {tmp_path}/videos" in capsys.readouterr().out
    index = scan(tmp_path / "videos")
    assert index.classes == ("run", "walk")
    assert index.lost == ()


def test_sides_by_names_of_ones_own_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/huggingface/datasets/issues/4839"""
    for number, name in enumerate(("train_set/walk", "train_set/run", "test_set/walk", "test_set/run")):
        clip(tmp_path / name / "a.mp4", 30 * number)
    assert main(["prepare", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the class folders test_set, train_set hold folders of the same names (run, walk)" in said
    assert "name the outer ones train, val and test" in said


def test_a_camera_folder_in_each_class_is_no_side(tmp_path: Path) -> None:
    for number, name in enumerate(("walk/cam1", "run/cam1", "walk/cam2", "run/cam3")):
        clip(tmp_path / name / "a.mp4", 30 * number)
    assert scan(tmp_path).lost == ()
