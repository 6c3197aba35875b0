"""``vtlvlm poses``: names, records and files always; whole runs where BlazePose is installed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.commands import poses
from vtlvlm.errors import DataError, UsageError
from vtlvlm.skeleton.blazepose import Pose, find_weights
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.reading import read_skeleton


@pytest.fixture(scope="module")
def weights() -> Path | None:
    """Where BlazePose's weights are: the folder or wheel that VTLVLM_BLAZEPOSE names, else (None) the installed package."""
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'vtlvlm[poses]'")
    place = os.environ.get("VTLVLM_BLAZEPOSE")
    try:
        find_weights(Path(place) if place else None)
    except UsageError as error:
        pytest.skip(f"set VTLVLM_BLAZEPOSE to mediapipe's wheel or a folder of BlazePose's weights: {error}")
    return Path(place) if place else None


def test_each_video_has_a_file_of_its_name(tmp_path: Path) -> None:
    for name in ("S001C001P001R001A001_rgb.avi", "walk/a.mp4", "walk/b.c.mkv"):
        encode(tmp_path / "videos" / name, moving_block(3, falls=True, shade=9), codec="mpeg4")
    jobs = poses.listed(tmp_path / "videos", tmp_path / "out", True)
    assert {name: str(job.target.relative_to(tmp_path / "out")) for name, job in jobs.items()} == {
        "S001C001P001R001A001_rgb.avi": "S001C001P001R001A001.skeleton",
        "walk/a.mp4": "walk/a.skeleton",
        "walk/b.c.mkv": "walk/b.c.skeleton",
    }
    assert jobs["walk/a.mp4"].picture == tmp_path / "out" / "pictures" / "walk" / "a.jpg"
    one = poses.listed(tmp_path / "videos" / "walk" / "a.mp4", tmp_path / "out", False)
    assert one == {"a.mp4": (tmp_path / "videos" / "walk" / "a.mp4", tmp_path / "out" / "a.skeleton", None)}
    (tmp_path / "videos" / "walk" / "a.avi").write_bytes((tmp_path / "videos" / "walk" / "a.mp4").read_bytes())
    with pytest.raises(DataError, match=r"walk/a.avi and walk/a.mp4 would both be written to walk/a.skeleton"):
        poses.listed(tmp_path / "videos", tmp_path / "out", False)


def person(number: int, shift: float = 0.0) -> Pose:
    rng = np.random.default_rng(number)
    metres = rng.normal(0, 0.3, (33, 3)) * [1.0, 2.5, 1.0]  # a wide body would count as furniture
    pixels = np.concatenate([[400 + shift, 300] + 150 * metres[:, :2], np.zeros((2, 2))])
    return Pose(number, pixels, metres, rng.random(33) < 0.8)


def test_the_text_is_read_again(tmp_path: Path) -> None:
    """Two people, who come and go; pixels are those of the video, 1.5 for each of the picture that the networks saw."""
    bodies = [[person(0)], [person(0, 9.0), person(1)], [], *[[person(0), person(1)]] * 12]
    file = tmp_path / "a.skeleton"
    file.write_text(poses.text(bodies, 800, 600, 1.5))
    lines = file.read_text().splitlines()
    assert lines[0] == "15"
    assert len(lines) == 1 + 15 + 27 * (1 + 2 + 24)
    read = read_skeleton(file)
    assert read.joints.shape == (2, 14, 25, 3)  # the reader drops a frame without people
    metres, pixels, visible = person(0, 9.0).joints(800, 600)
    actor = int(np.abs(read.joints[:, 1] - metres).max((1, 2)).argmin())
    np.testing.assert_allclose(read.joints[actor, 1], metres, atol=1e-5)
    np.testing.assert_allclose(read.pixels[actor, 1], 1.5 * pixels, atol=1e-3)
    np.testing.assert_array_equal(read.tracked[actor, 1], 1 + visible)


@pytest.mark.parametrize(("size", "shown", "factor"), [((90, 160), (90, 160), 1.0), ((2560, 64), (1280, 32), 2.0)])
def test_frames_are_shown_upright_and_not_too_large(tmp_path: Path, size: tuple, shown: tuple, factor: float) -> None:
    pictures = np.zeros((2, *size, 3), dtype=np.uint8)
    pictures[:, : size[0] // 2] = 255
    video = encode(tmp_path / "a.mp4", pictures)
    found = list(poses.pictures_of(video))
    assert [picture.shape for picture, _ in found] == [(*shown, 3)] * 2
    assert [f for _, f in found] == [factor] * 2
    assert found[0][0][: shown[0] // 3].min() > 240
    turned = encode(tmp_path / "b.mp4", pictures, rotation=90)
    assert next(iter(poses.pictures_of(turned)))[0].shape == (*shown[::-1], 3)


def test_a_folder_of_another_origin_is_refused(tmp_path: Path) -> None:
    settings, target = {"weights": "abc", "people": 2}, tmp_path / "a.skeleton"
    assert poses.begun(tmp_path, settings, [target]) == {}
    target.write_text("1\n0\n")
    with pytest.raises(DataError, match=r"a.skeleton: exists, and no poses.json explains it"):
        poses.begun(tmp_path, settings, [target])
    (tmp_path / "poses.json").write_text(json.dumps({"settings": settings, "videos": {"a.mp4": {"bytes": 5, "frames": 2}}}))
    assert poses.begun(tmp_path, settings, [target]) == {"a.mp4": {"bytes": 5, "frames": 2}}
    with pytest.raises(UsageError, match="made with people 2 and not 1"):
        poses.begun(tmp_path, {**settings, "people": 1}, [target])
    (tmp_path / "poses.json").write_text("[]")
    with pytest.raises(DataError, match="not the list of a folder of poses"):
        poses.begun(tmp_path, settings, [target])


def test_a_finished_video_is_not_read_again(tmp_path: Path) -> None:
    job = poses.Job(tmp_path / "a.mp4", tmp_path / "a.skeleton", None)
    assert not poses.finished(job, None, 5)
    assert not poses.finished(job, {"bytes": 5}, 5)  # its file is lost
    job.target.write_text("")
    assert poses.finished(job, {"bytes": 5}, 5)
    assert not poses.finished(job, {"bytes": 5}, 6)  # another video
    assert not poses.finished(job._replace(picture=tmp_path / "a.jpg"), {"bytes": 5}, 5)
    assert poses.finished(job._replace(target=tmp_path / "b"), {"bytes": 5, "left_out": "no person"}, 5)


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = encode(tmp_path / "videos" / "a.mp4", moving_block(3, falls=True, shade=9))
    for arguments, code, message in (
        ([tmp_path / "none", tmp_path / "out"], 1, "none: no such file or folder"),
        ([video, tmp_path / "out", "--weights", tmp_path], 2, "lacks pose_detection.tflite"),
        ([video.parent, video.parent / "out"], 2, "would lie inside its source"),
        ([video, tmp_path / "out", "--workers", "0"], 2, "--workers 0: at least 1"),
    ):
        assert main(["poses", *map(str, arguments)]) == code
        text = capsys.readouterr().err
        assert message in text
        assert text.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_people_in_a_real_clip(weights: Path | None, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A man waves from a door; after a cut, he stands before a fence, with a woman and a child beside him."""
    clip = test_data / "clips" / "TrumanShow_wave_f_nm_np1_fr_med_26.avi"
    if not clip.is_file():
        pytest.skip(f"{clip.name} is not among the test data")
    arguments = ["poses", str(clip), str(tmp_path / "out"), "--pictures", "--workers", "1"]
    arguments += [] if weights is None else ["--weights", str(weights)]
    assert main(arguments) == 0
    assert "skeletons of 1 videos" in capsys.readouterr().out
    file = tmp_path / "out" / f"{clip.stem}.skeleton"
    lines = file.read_text().splitlines()
    assert lines[0] == "48"
    read = read_skeleton(file)
    head = read.pixels[:, :, NTU25.index("head")]
    assert np.nanmin(np.linalg.norm(head - [178, 17], axis=-1)) < 15  # seen in frame 42 of the drawn picture
    trunk = read.joints[0, :, NTU25.index("spine_shoulder")] - read.joints[0, :, NTU25.index("spine_base")]
    assert 0.3 < np.median(trunk[:, 1]) < 0.7  # metres, upright
    assert (tmp_path / "out" / "pictures" / f"{clip.stem}.jpg").stat().st_size > 10_000
    before, stamp = (tmp_path / "out" / "poses.json").read_text(), file.stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "out" / "poses.json").read_text() == before
    assert file.stat().st_mtime_ns == stamp


def test_a_video_without_people_is_left_out(weights: Path | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode(tmp_path / "videos" / "a.mp4", moving_block(12, falls=True, shade=9))
    (tmp_path / "videos" / "b.mp4").write_text("no video")
    arguments = ["poses", str(tmp_path / "videos"), str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments + ([] if weights is None else ["--weights", str(weights)])) == 1
    out = capsys.readouterr().out
    assert "left out: a.mp4: no person found in its 12 frames" in out
    assert "left out: b.mp4: not a readable video" in out
    assert not list((tmp_path / "out").glob("*.skeleton"))


def test_damaged_weights(weights: Path | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = encode(tmp_path / "a.mp4", moving_block(3, falls=True, shade=9))
    for name in ("pose_detection.tflite", "pose_landmark_full.tflite"):
        (tmp_path / "weights" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "weights" / name).write_bytes(b"no weights")
    assert main(["poses", str(video), str(tmp_path / "out"), "--weights", str(tmp_path / "weights")]) == 2
    assert "a weight file of BlazePose is damaged" in capsys.readouterr().err
