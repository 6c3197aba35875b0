"""Recorded movement: what is kept of a recording, what is mended, and the rendered sets."""

from pathlib import Path

import av
import numpy as np
import pytest

from vtlvlm.cli import main
from vtlvlm.data.ntu import ClipName
from vtlvlm.errors import DataError, UsageError
from vtlvlm.skeleton.layouts import KINECT20
from vtlvlm.skeleton.reading import read_skeleton
from vtlvlm.synth.body import JOINTS, Body, J, pose
from vtlvlm.synth.motion import (
    CLEARANCE,
    SPREAD,
    Recording,
    Rig,
    bone_lengths,
    closed,
    grounded,
    in_the_middle,
    is_mirrored,
    joined,
    performed,
    smoothed,
    with_rigid_bones,
)  # fmt: skip
from vtlvlm.synth.people import Person
from vtlvlm.synth.recorded import MotionClip, loaded, play, source_of

LIMBS = [
    (f"{a}_{s}", f"{b}_{s}")
    for s in ("left", "right")
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
]
NAME = ClipName(1, 2, 3, 1, 9)
TILT = 0.25


def performer(frames: int, walk: float = 0.0) -> np.ndarray:
    """(F, 25, 3) in the world: the left hand rises in front, the right knee bends, the body walks ``walk`` metres a frame to +z."""
    share = np.linspace(0, 1, frames)[:, None]
    start, end = pose(hand_left=(0.2, -0.9, 0.2)), pose(hand_left=(0.1, 0.3, 0.8), foot_right=(0.0, 0.3, -0.2))
    joints = Body.of(1.7).joints(start + share * (end - start))
    return joints + walk * np.arange(frames)[:, None, None] * [0.0, 0.0, 1.0]


def recorded(world: np.ndarray, mirrored: bool = True, tilt: float = TILT) -> np.ndarray:
    """World joints as a camera 3 m in front and 1.2 m up, tilted downwards, would store them; a Kinect's x points to its left."""
    seen = (world - [0.0, 1.2, 3.0]) * [1.0, 1.0, -1.0]
    y, ahead = seen[..., 1], seen[..., 2]
    turned = np.stack([seen[..., 0], np.cos(tilt) * y + np.sin(tilt) * ahead, np.cos(tilt) * ahead - np.sin(tilt) * y], axis=-1)
    return turned * [-1.0 if mirrored else 1.0, 1.0, 1.0]


def _tilted() -> np.ndarray:
    """The rotation that undoes the tilt of ``recorded``."""
    return np.array([[1, 0, 0], [0, np.cos(TILT), np.sin(TILT)], [0, -np.sin(TILT), np.cos(TILT)]])


def kinect20(joints: np.ndarray) -> np.ndarray:
    """The 20 joints of Kinect v1 out of 25."""
    other = {"hip_center": "spine_base", "spine": "spine_mid", "shoulder_center": "spine_shoulder"}
    return joints[..., [J[other.get(name, name)] for name in KINECT20.joints], :]


def directions(joints: np.ndarray) -> np.ndarray:
    bones = np.stack([joints[..., J[b], :] - joints[..., J[a], :] for a, b in LIMBS], axis=-2)
    return bones / np.linalg.norm(bones, axis=-1, keepdims=True)


def write_packed(path: Path, recordings: dict[tuple[int, int, int, int], np.ndarray]) -> Path:
    """{(view, subject, repetition, label): (F, V, 3)} as a packed file."""
    keys = np.array(list(recordings))
    columns = dict(zip(("view", "subject", "repetition", "label"), keys.T, strict=True))
    joints = np.concatenate(list(recordings.values())).astype(np.float32)
    np.savez(path, joints=joints, frames=[len(part) for part in recordings.values()], **columns)
    return path


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("joints", [20, 25])
def test_limbs_point_where_the_recordings_do(joints: int, mirrored: bool) -> None:
    world = performer(20)
    seen = recorded(world, mirrored)
    recording = Recording(NAME, (kinect20(seen) if joints == 20 else seen)[None])
    assert is_mirrored([recording]) is mirrored
    # the plane of a person who stands still says nothing of the slope: the rig is given
    played = performed(recording, Rig(mirrored, _tilted()), (Person.of(0, 3),))
    np.testing.assert_allclose(directions(played.joints[0]), directions(world), atol=0.02)
    # as seen by the recording camera: the left hand of a person who faces it is on the right side of its picture
    assert (played.joints[0, :, J["wrist_left"], 0] > played.joints[0, :, J["wrist_right"], 0]).all()
    assert played.people[0].height == pytest.approx(1.7, abs=0.12)


def test_the_floor_is_found_where_people_walk() -> None:
    recordings = []
    for step in (0.05, -0.05):
        world = performer(40, walk=step)
        recordings.append(Recording(NAME, recorded(world + np.array([6 * step, 0.0, 0.0]))[None]))
    upright = Rig.of(recordings, True).upright
    np.testing.assert_allclose(upright @ upright.T, np.eye(3), atol=1e-12)
    found = np.degrees(np.arccos(upright[1] @ [0.0, np.cos(TILT), np.sin(TILT)]))
    assert found < 2.5
    assert np.degrees(TILT) > 14


def test_gaps_spikes_and_jumps_are_mended() -> None:
    steps = np.arange(12.0)
    track = np.zeros((12, 25, 3)) + (0.02 * steps)[:, None, None]
    hurt = track.copy()
    hurt[4:6, J["wrist_left"]] = np.nan
    hurt[0, J["head"]] = np.nan
    hurt[8, J["knee_right"]] += 1.5
    whole = closed(hurt)
    np.testing.assert_allclose(whole[4:6], track[4:6], atol=1e-12)  # a straight line goes on through its gap
    np.testing.assert_allclose(whole[8], track[8], atol=1e-12)
    np.testing.assert_allclose(whole[0, J["head"]], track[1, J["head"]], atol=1e-12)  # the nearest frame at an end
    apart = track.copy()
    apart[7:] += [2.0, 0.0, -1.0]
    together = joined(apart)
    assert np.abs(np.diff(together[:, 0], axis=0)[:, [0, 2]]).max() < 0.021
    np.testing.assert_allclose(together[..., 1], track[..., 1])
    np.testing.assert_allclose(joined(track), track)


def test_smoothing_keeps_steady_movement_and_takes_noise_out() -> None:
    steps = np.arange(30.0)[:, None, None]
    curve = np.concatenate([0.01 * steps, 0.002 * steps**2, 1 - 0.03 * steps], axis=-1) + np.zeros((30, 25, 1))
    np.testing.assert_allclose(smoothed(curve), curve, atol=1e-9)
    noise = np.random.default_rng(0).normal(0, 0.02, curve.shape)
    assert np.std((smoothed(curve + noise) - curve)[3:-3]) < 0.62 * 0.02  # a weight of 7/21 in the middle: sqrt(1/3) is left
    np.testing.assert_array_equal(smoothed(curve[:6]), curve[:6])


def test_bones_become_rigid_and_keep_their_directions() -> None:
    joints = performer(9)
    stretched = joints.copy()
    stretched[4, J["wrist_left"]] += 0.3 * (joints[4, J["wrist_left"]] - joints[4, J["elbow_left"]])
    rigid = with_rigid_bones(stretched, bone_lengths(stretched))
    length = np.linalg.norm(rigid[:, J["wrist_left"]] - rigid[:, J["elbow_left"]], axis=-1)
    np.testing.assert_allclose(length, np.linalg.norm(joints[0, J["wrist_left"]] - joints[0, J["elbow_left"]]))
    np.testing.assert_allclose(directions(rigid), directions(stretched), atol=1e-9)


def test_feet_stand_on_the_floor_and_a_jump_stays_a_jump() -> None:
    still = np.repeat(Body.of(1.7).joints(pose()[None]), 61, axis=0)
    height = np.maximum(0.0, 0.4 - 0.4 * ((np.arange(61) - 30) / 8.0) ** 2)  # 17 frames in the air, 0.4 m high
    sloping = still + height[:, None, None] * [0, 1, 0] + (0.7 + 0.002 * np.arange(61))[:, None, None] * [0, 1, 0]
    up = grounded(sloping, sloping)[:, J["ankle_left"], 1] - CLEARANCE[J["ankle_left"]]
    assert np.abs(up[:18]).max() < 0.05
    assert np.abs(up[-18:]).max() < 0.05
    assert 0.2 < up[30] < 0.4


def test_long_paths_are_shortened() -> None:
    far = performer(40, walk=0.1)[None]
    near = in_the_middle(far)
    assert np.linalg.norm(near[0, :, 0, [0, 2]], axis=0).max() == pytest.approx(1.0)
    np.testing.assert_allclose(directions(near), directions(far), atol=1e-12)
    short = performer(10)[None] + [5.0, 0.0, 7.0]
    np.testing.assert_allclose(np.ptp(in_the_middle(short)[0, :, 0], axis=0), np.ptp(short[0, :, 0], axis=0))


def test_two_bodies_keep_their_distance() -> None:
    world = performer(10)
    pair = np.stack([recorded(world + np.array([side, 0.0, 0.4])) for side in (-0.6, 0.8)])
    people = (Person.of(0, 3), Person.of(0, 500))
    played = performed(Recording(NAME, pair), Rig(True, _tilted()), people).joints
    apart = played[1, :, 0] - played[0, :, 0]
    np.testing.assert_allclose(apart, np.tile([1.4, 0.0, 0.0], (10, 1)), atol=0.03)
    np.testing.assert_allclose(played[:, :, 0, [0, 2]].mean((0, 1)), 0.0, atol=0.05)


def test_joints_of_kinect_v1_are_sums_of_recorded_ones() -> None:
    np.testing.assert_allclose(SPREAD.sum(1), 1.0)
    joints = np.arange(60.0).reshape(20, 3)
    wide = SPREAD @ joints
    for name in ("head", "hand_left", "knee_right", "foot_left"):
        np.testing.assert_array_equal(wide[J[name]], joints[KINECT20.index(name)])
    tip = joints[KINECT20.index("hand_left")] + 0.6 * (joints[KINECT20.index("hand_left")] - joints[KINECT20.index("wrist_left")])
    np.testing.assert_allclose(wide[J["hand_tip_left"]], tip)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings of two people before two cameras; the last of one frame."""
    seen = kinect20(recorded(performer(8)))
    return write_packed(tmp_path_factory.mktemp("motion") / "three.npz", {(1, 1, 0, 0): seen, (2, 1, 0, 0): seen, (2, 4, 1, 6): seen[:1]})


def test_one_clip_a_recording_and_one_more_a_camera(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", str(tmp_path / "set"), "--motion", str(packed), "--workers", "1"]) == 0
    assert "3 clips of 2 actions" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "set" / "nturgb+d_rgb").iterdir())
    assert names == ["S001C001P001R001A001_rgb.avi", "S001C002P001R001A001_rgb.avi", "S001C002P004R002A007_rgb.avi"]
    frames = []
    for name in names:
        with av.open(str(tmp_path / "set" / "nturgb+d_rgb" / name)) as container:
            frames.append(sum(1 for _ in container.decode(video=0)))
    assert frames == [8, 8, 1]
    manifest = play(tmp_path / "two", packed, subjects=1, cameras=(1, 3), workers=1, progress=False)
    assert [clip["name"] for clip in manifest["clips"]] == [
        "S001C001P001R001A001", "S001C002P001R001A001", "S201C001P001R001A001", "S201C002P001R001A001"
    ]  # fmt: skip
    one, other = (tmp_path / folder / "nturgb+d_rgb" / names[0] for folder in ("set", "two"))
    assert one.read_bytes() == other.read_bytes()  # does not depend on which others are rendered
    assert (tmp_path / "two" / "classes.txt").read_text() == "A001 drink water\n"


def test_the_set_resumes_and_refuses_other_recordings(packed: Path, tmp_path: Path) -> None:
    settings = {"subjects": 1, "workers": 1, "progress": False}
    play(tmp_path / "set", packed, **settings)
    files = sorted((tmp_path / "set").rglob("*.*"))
    before = {file: file.read_bytes() for file in files if file.is_file()}
    lost = next(file for file in before if file.suffix == ".avi")
    lost.unlink()
    play(tmp_path / "set", packed, **settings)
    assert {file: file.read_bytes() for file in before} == before
    seen = kinect20(recorded(performer(8)))
    other = write_packed(tmp_path / "other.npz", {(1, 1, 0, 0): seen + 0.01, (2, 1, 0, 0): seen})
    with pytest.raises(UsageError, match="made with motion"):
        play(tmp_path / "set", other, **settings)
    with pytest.raises(UsageError, match="made with seed 0 and not 2"):
        play(tmp_path / "set", packed, seed=2, **settings)


def test_a_persons_bones_are_the_same_in_all_recordings(tmp_path: Path) -> None:
    seen = kinect20(recorded(performer(6)))
    sizes = (0.7, 1.0, 1.05)  # as if seen from three sides
    file = write_packed(tmp_path / "a.npz", {(camera, 1, 0, 0): size * seen for camera, size in enumerate(sizes, 1)})
    play(tmp_path / "set", file, actions=[1], workers=1, progress=False)
    lengths = []
    for camera in (1, 2, 3):
        joints = read_skeleton(tmp_path / "set" / "nturgb+d_skeletons" / f"S001C00{camera}P001R001A001.skeleton").joints[0]
        lengths.append(np.linalg.norm(joints[:, J["knee_left"]] - joints[:, J["hip_left"]], axis=-1))
    thigh = np.linalg.norm(seen[0, KINECT20.index("knee_left")] - seen[0, KINECT20.index("hip_left")])
    np.testing.assert_allclose(lengths, thigh, atol=1e-3)


def test_skeleton_files_play_again(packed: Path, tmp_path: Path) -> None:
    """The files of a rendered set are recordings themselves, with the same limbs."""
    play(tmp_path / "set", packed, subjects=1, workers=1, progress=False)
    folder = tmp_path / "set" / "nturgb+d_skeletons"
    (folder / "S001C003P001R001A001.skeleton").write_text("2\n0\n0\n")
    manifest = play(tmp_path / "again", folder, workers=1, progress=False)
    assert [clip["name"] for clip in manifest["clips"]] == ["S001C001P001R001A001", "S001C002P001R001A001"]
    assert list(manifest["left_out"]) == ["S001C003P001R001A001"]
    assert "holds no body" in manifest["left_out"]["S001C003P001R001A001"]
    first, again = (read_skeleton(tmp_path / f / "nturgb+d_skeletons" / "S001C001P001R001A001.skeleton").joints for f in ("set", "again"))
    turned = directions(first[0].astype(float)), directions(again[0].astype(float))
    assert np.degrees(np.arccos(np.clip((turned[0] * turned[1]).sum(-1), -1, 1))).max() < 12  # both cameras look down a little differently


def spoilt(path: Path, **changes: np.ndarray) -> Path:
    arrays = dict(np.load(path))
    np.savez(path.with_name("spoilt.npz"), **{**arrays, **changes})
    return path.with_name("spoilt.npz")


def test_files_that_are_no_recordings(packed: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("no arrays")
    seen = kinect20(recorded(performer(8)))
    joints = np.concatenate([seen, seen, seen[:1]]).astype(np.float32)
    lost = joints.copy()
    lost[:, KINECT20.index("knee_left")] = 0.0
    (tmp_path / "empty").mkdir()
    for file, message in {
        text: "text.npz: not an .npz file of recordings",
        tmp_path / "none.npz": "none.npz: no such file or folder",
        tmp_path / "empty": "empty: holds no .skeleton files",
        spoilt(packed, joints=joints[:, :17]): "has joints of coco17; recordings of ntu25 and kinect20 can be played",
    }.items():
        with pytest.raises(DataError, match=message):
            play(tmp_path / "set", file, workers=1, progress=False)
    with pytest.raises(DataError, match=r"none of its recordings can be played.*knee_left is in no frame"):
        play(tmp_path / "set", spoilt(packed, joints=lost), workers=1, progress=False)
    with pytest.raises(UsageError, match=r"none of its 3 recordings is chosen; it has people 1 to 4, replications 1 to 2, actions 1 to 7"):
        play(tmp_path / "set", packed, actions=[5], workers=1, progress=False)
    (tmp_path / "clip.skeleton").write_text("1\n0\n")
    with pytest.raises(DataError, match="not an NTU clip name"):
        play(tmp_path / "set", tmp_path / "clip.skeleton", workers=1, progress=False)
    with pytest.raises(UsageError, match="camera 4: cannot be rendered"):
        play(tmp_path / "set", packed, cameras=[4], progress=False)
    assert not (tmp_path / "set").exists()


def test_real_recordings(test_data: Path) -> None:
    """NW-UCLA: three recordings, one before each camera, keep their limbs and stand on the floor."""
    file = test_data / "skeletons" / "nw_ucla.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not among the test data")
    source = source_of(file)
    assert len(source.held) == 1484
    assert source.classes[1] == "pick up with one hand"
    assert source.classes[10] == "carry"
    by_camera = {c: [loaded(name, held) for name, held in source.held.items() if name.camera == c][:40] for c in (1, 2, 3)}
    assert is_mirrored(recording for recordings in by_camera.values() for recording in recordings)
    for camera, recordings in by_camera.items():
        rig = Rig.of(recordings, True)
        recording = recordings[5]
        lengths = bone_lengths(recording.world(True)[0])
        clip = MotionClip(0, 1, recording.name, source.held[recording.name], rig, lengths, recording.joints.shape[1], 1)
        played = clip.performance().joints[0]
        truth = recording.world(True)[0] @ rig.upright.T
        angles = np.degrees(np.arccos(np.clip((directions(played) * directions(truth)).sum(-1), -1, 1)))
        assert np.median(angles) < 3, camera  # the rest is smoothing
        ankles = played[:, [J["ankle_left"], J["ankle_right"]], 1].min(1)
        assert np.abs(np.median(ankles) - CLEARANCE[J["ankle_left"]]) < 0.04
        assert played.shape[1:] == (len(JOINTS), 3)
