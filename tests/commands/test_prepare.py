import argparse
import time
from pathlib import Path

import pytest
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.commands import prepare
from vtlvlm.data.ntu import clip_name, official_clips


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def test_real_clips(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "index.parquet"
    assert main(["prepare", str(test_data / "weizmann"), "--protocol", "xsub60", "--validation", "0.25", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "56 clips (NTU names), 56 usable, 9 classes" in text
    assert "frames a clip: 23 to 146" in text
    assert "wave both hands 6" in text
    assert next(line for line in text.splitlines() if line.startswith("xsub60")).split()[-3:] == ["27", "9", "20"]
    assert "left out: none" in text
    assert output.is_file()


def test_awkward_clips_verified(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    for name in ("corrupted.mp4", "h265_video.mp4", "unordered.mov"):
        (tmp_path / "a" / name).symlink_to(test_data / "clips" / name)
    (tmp_path / "a" / "text.avi").write_text("no video")
    assert main(["prepare", str(tmp_path), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "4 clips (a folder for each class), 2 usable" in text
    assert "a/corrupted.mp4: damaged: decoding stops near 3.00 s" in text
    assert "a/text.avi: not a readable video" in text


def test_nothing_usable_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "foo_rgb.avi").write_text("no video")
    assert main(["prepare", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "not an NTU clip name" in message
    assert message.count("\n") == 1


def test_wrong_use_is_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "S001C001P001R001A001_rgb.avi").touch()
    assert main(["prepare", str(tmp_path), "--fast", "--protocol", "xsub"]) == 2
    assert "xsub: no such protocol" in capsys.readouterr().err


def test_fast_official_tree_shows_all_four_protocols(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("S001C001P001R001A001", "S001C002P003R001A060", "S020C001P050R002A120", "S019C003P060R002A061"):
        (tmp_path / f"{name}_rgb.avi").write_bytes(b"x")
    assert main(["prepare", str(tmp_path), "--fast"]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[-3:] for line in text.splitlines() if line.startswith("x")}
    assert rows == {"xsub60": ["1", "0", "1"], "xview60": ["1", "0", "1"], "xsub120": ["2", "0", "2"], "xset120": ["1", "0", "3"]}
    assert "frames: not counted" in text


def test_the_report_is_kept_whole_and_shown_in_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "S001C001P001R001A001_rgb.avi").touch()
    for number in range(30):
        (tmp_path / f"odd{number:02}_rgb.avi").touch()
    assert main(["prepare", str(tmp_path), "--fast", "--protocol", "xsub60"]) == 0
    text = capsys.readouterr().out
    assert text.count("not an NTU clip name") == 20
    assert "  and 10 more\n" in text
    assert (tmp_path / ".vtlvlm" / "index.txt").read_text().count("not an NTU clip name") == 30


def test_what_is_missing_from_the_official_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in official_clips(60):
        name = clip_name(number)
        if not name.startswith("S003") and name not in ("S001C001P001R001A001", "S001C002P005R001A004"):
            (tmp_path / f"{name}_rgb.avi").touch()
    (tmp_path / "S001C001P009R001A001_rgb.avi").touch()
    assert main(["prepare", str(tmp_path), "--fast"]) == 0
    text = capsys.readouterr().out
    assert (
        "of the 56,880 official clips of NTU RGB+D 60 missing, with all of setup 3: 3,242 (S001C001P001R001A001, S001C002P005R001A004, S003"
        in text
    )
    assert "1 clips have names that are not in the official list" in text
    assert "lack a skeleton; they are kept unless exclude_missing_skeletons is set" in text


def test_rotated_and_uneven_clips_are_named(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    for name in ("video_90.mov", "video_180.mov", "h265_video.mp4"):
        (tmp_path / "a" / name).symlink_to(test_data / "clips" / name)
    assert main(["prepare", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "stored turned, shown upright: 2 (a/video_180.mov, a/video_90.mov)" in text
    assert "picture: 568 x 320 (and 1 other sizes)" in text


def test_help_begins_with_the_module_docstring() -> None:
    parser = argparse.ArgumentParser(description=prepare.__doc__)
    prepare.add_arguments(parser)
    assert parser.format_help().count("--verify") >= 1
    assert (prepare.__doc__ or "").splitlines()[0].endswith(".")


def test_a_hundred_thousand_clips_that_are_left_out_take_no_longer_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_text(name)
    rows = "gone.mp4,walk\n" * 100_000  # time for each of them by the number of all would be minutes
    (tmp_path / "t.csv").write_text(f"path,label\na.mp4,walk\nb.mp4,run\n{rows}")
    start = time.process_time()
    assert main(["prepare", str(tmp_path), "--csv", "t.csv", "--fast"]) == 0
    assert time.process_time() - start < 30
    assert "left out: 100,000" in capsys.readouterr().out


def test_a_single_clip_is_told_though_it_cannot_be_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode(tmp_path / "v" / "walk" / "a.mp4", moving_block(6, 32, falls=True, shade=40))
    assert main(["prepare", str(tmp_path / "v")]) == 0
    said = capsys.readouterr().out
    assert "walk 1" in said
    assert "not divided: protocol group needs at least two groups" in said
    assert main(["prepare", str(tmp_path / "v"), "--protocol", "group"]) == 1


def test_an_index_that_could_not_be_kept_is_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips" / "walk"
    folder.mkdir(parents=True)
    for shade, name in enumerate("ab"):
        encode(folder / f"{name}.mp4", moving_block(8, falls=True, shade=20 * shade))
    (tmp_path / "file").write_text("in the way")
    assert main(["prepare", str(tmp_path / "clips"), "--output", str(tmp_path / "file" / "index.parquet")]) == 0
    out, err = capsys.readouterr()
    assert "2 clips" in out
    assert "index: " not in out
    assert "the index cannot be written" in err
