"""Copies and the videos that they are made from."""

from pathlib import Path

import pytest
from videos import encode, moving_block

from vtlvlm.cli import main


def test_someone_copied_a_set_whose_table_names_the_videos_by_their_whole_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/sgoldenlab/simba/issues/176"""
    files = [encode(tmp_path / "camera" / name, moving_block(8, 32, falls=True, shade=20)) for name in ("one.mp4", "two.mp4")]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "clips.csv").write_text(f"path,label\n{files[0]},walk\n../camera/two.mp4,run\n")
    before = [file.read_bytes() for file in files]
    command = ["prepare", str(tmp_path / "tables"), "--csv", "clips.csv", "--transcode", str(tmp_path / "copies"), "--side", "32"]
    assert main(command) == 0
    assert [file.read_bytes() for file in files] == before
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["one.mp4", "two.mp4"]
    assert f"--data.source.labels {tmp_path}/copies/clips.csv" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path / "copies"), "--csv", str(tmp_path / "copies" / "clips.csv")]) == 0
    assert "2 usable, 2 classes" in capsys.readouterr().out


def test_someone_named_the_folder_of_the_videos_by_a_link_for_the_copies(tmp_path: Path) -> None:
    """https://github.com/lisamelton/video_transcoding/issues/329"""
    file = encode(tmp_path / "videos" / "walk" / "one.mp4", moving_block(8, 32, falls=True, shade=20))
    encode(tmp_path / "videos" / "run" / "two.mp4", moving_block(8, 32, falls=False, shade=20))
    before = file.read_bytes()
    (tmp_path / "out").symlink_to("videos")
    assert main(["prepare", str(tmp_path / "videos"), "--transcode", str(tmp_path / "out")]) == 1
    assert main(["prepare", str(tmp_path / "videos"), "--transcode", str(tmp_path / "videos" / "walk" / ".." / ".." / "videos")]) == 1
    assert file.read_bytes() == before
