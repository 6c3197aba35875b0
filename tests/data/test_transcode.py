import csv
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from videos import damaged, encode

from vtlvlm.cli import main
from vtlvlm.data import transcode as module
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.transcode import copy, is_copy_of, transcode
from vtlvlm.data.video import decode, probe
from vtlvlm.errors import DataError

GOOD = [
    "av1_video.mkv",
    "bt709_full_range.mp4",
    "h264_10bits.mp4",
    "tree.avi",
    "unordered.mov",
    "video_90.mov",
    "video_180.mov",
    "test.mp4",
]


def pictures(frames: int = 20, height: int = 64, width: int = 96) -> np.ndarray:
    """(T, H, W, 3): a slope of grey that moves."""
    slope = np.add.outer(np.arange(height), np.arange(width))[None] + 5 * np.arange(frames)[:, None, None]
    return np.repeat((slope[..., None] % 256).astype(np.uint8), 3, axis=3)


def scanned(root: Path, **options: object) -> ClipIndex:
    return ClipIndex.scan(root, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GOOD)
def test_copies_of_real_files_keep_frames_times_and_orientation(name: str, test_data: Path, tmp_path: Path) -> None:
    source, target = test_data / "clips" / name, tmp_path / "copy.mp4"
    before = probe(source)
    assert copy(source, target) == before.frames
    after = probe(target)
    assert (after.frames, after.rotation) == (before.frames, 0)
    assert min(after.width, after.height) <= 256
    wanted = np.linspace(0, before.frames - 1, min(8, before.frames)).astype(int)
    old, new = decode(source, wanted, size=64), decode(target, wanted, size=64)
    assert (old.times - new.times).abs().max() < 1e-4
    assert (old.frames.float() - new.frames.float()).abs().mean() < 5  # of 255: the same pictures in the same colours, the right way up


def test_copies_have_short_groups_and_say_their_colours(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.avi", pictures(24, 400, 600), codec="mpeg4")
    copy(source, tmp_path / "b.mp4", side=100)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.codec_context.colorspace, stream.codec_context.color_range) == (150, 100, 1, 1)
        assert [packet.is_keyframe for packet in container.demux(stream) if packet.size] == ([True] + [False] * 7) * 3


def test_small_videos_are_not_blown_up(tmp_path: Path) -> None:
    copy(encode(tmp_path / "a.mp4", pictures()), tmp_path / "b.mp4")
    assert probe(tmp_path / "b.mp4")[3:5] == (96, 64)


def test_variable_frame_rate_is_kept(tmp_path: Path, test_data: Path) -> None:
    names = [path for path in sorted((test_data / "clips").iterdir()) if path.name != "corrupted.mp4" and path.suffix != ".wav"]
    uneven = [path for path in names if probe(path).variable]
    assert uneven
    copy(uneven[0], tmp_path / "b.mp4")
    every = range(probe(uneven[0]).frames)
    assert (decode(uneven[0], every, size=8).times - decode(tmp_path / "b.mp4", every, size=8).times).abs().max() < 1e-4


def test_a_set_is_copied_once_and_an_interrupted_one_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = tmp_path / "videos", tmp_path / "copies"
    for person in (1, 2, 3):
        encode(root / "deep" / f"S001C001P{person:03}R001A001_rgb.avi", pictures(8 + person), codec="mpeg4")
    (root / "classes.txt").write_text("A001 wave\n")
    assert transcode(scanned(root), folder, workers=1, progress=False) == {}
    first = folder / "deep" / "S001C001P001R001A001_rgb.mp4"
    left = folder / "deep" / f".S001C001P002R001A001_rgb.mp4.{socket.gethostname()}.999999999.0.tmp"
    left.write_bytes(b"half")  # as kill -9 leaves it
    (folder / "deep" / "S001C001P002R001A001_rgb.mp4").unlink()
    stamp, made = first.stat().st_mtime_ns, []
    monkeypatch.setattr(module, "copy", lambda *args, **kwargs: made.append(args[1].name) or copy(*args, **kwargs))
    assert transcode(scanned(root), folder, workers=1, progress=False) == {}
    assert made == ["S001C001P002R001A001_rgb.mp4"]
    assert first.stat().st_mtime_ns == stamp
    assert not left.exists()
    copies = scanned(folder)
    assert (copies.name == scanned(root).name).all()
    assert copies.frames.tolist() == [9, 10, 11]
    assert copies.classes == ("wave",)


def test_a_changed_source_is_copied_again(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    file = encode(root / "S001C001P001R001A001_rgb.avi", pictures(9), codec="mpeg4")
    transcode(scanned(root), tmp_path / "copies", progress=False)
    encode(file, pictures(14), codec="mpeg4")
    transcode(scanned(root), tmp_path / "copies", progress=False)
    assert probe(tmp_path / "copies" / "S001C001P001R001A001_rgb.mp4").frames == 14
    assert not is_copy_of(file, "anything")


def test_a_table_is_rewritten(tmp_path: Path) -> None:
    encode(tmp_path / "v" / "a.mov", pictures())
    encode(tmp_path / "v" / "b.mp4", pictures())
    (tmp_path / "v" / "t.csv").write_text("path,label,split\na.mov,wave,train\nb.mp4,sit down,test\n")
    transcode(scanned(tmp_path / "v", csv="t.csv"), tmp_path / "c", progress=False)
    with (tmp_path / "c" / "clips.csv").open() as file:
        assert list(csv.reader(file))[1:] == [["a.mp4", "wave", "train", ""], ["b.mp4", "sit down", "test", ""]]
    assert scanned(tmp_path / "c", csv="clips.csv").classes == ("sit down", "wave")


def test_a_classes_file_from_elsewhere_goes_along(tmp_path: Path) -> None:
    encode(tmp_path / "v" / "S001C001P001R001A007_rgb.avi", pictures(), codec="mpeg4")
    (tmp_path / "mine.txt").write_text("A007 wave\n")
    assert main(["prepare", str(tmp_path / "v"), "--classes", str(tmp_path / "mine.txt"), "--transcode", str(tmp_path / "c")]) == 0
    assert scanned(tmp_path / "c").classes == ("wave",)


def test_names_that_would_collide(tmp_path: Path) -> None:
    encode(tmp_path / "v" / "wave" / "a.mov", pictures())
    encode(tmp_path / "v" / "wave" / "a.mp4", pictures())
    with pytest.raises(DataError, match=r"wave/a\.mov and wave/a\.mp4 differ only in their ending; rename one"):
        transcode(scanned(tmp_path / "v"), tmp_path / "c", progress=False)
    with pytest.raises(DataError, match="holds the videos themselves"):
        transcode(scanned(tmp_path / "v"), tmp_path / "v", progress=False)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "v" / "wave" / "a.mov", pictures())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="make room"):
        transcode(scanned(tmp_path / "v"), tmp_path / "c", progress=False)
    assert not list((tmp_path / "c").rglob("*.mp4"))


def test_the_command_leaves_out_what_proves_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "v"
    encode(root / "wave" / "a.mp4", pictures())
    damaged(root / "wave" / "damaged.avi")
    assert main(["prepare", str(root), "--transcode", str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    assert "left out: wave/damaged.avi: damaged: a frame is corrupt" in text
    assert f"1 copies: use --data.source.root {tmp_path}/c from now on" in text
    assert scanned(root).problem.tolist().count("") == 1
    assert main(["prepare", str(root), "--fast", "--transcode", str(tmp_path / "c")]) == 2
