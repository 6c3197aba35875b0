"""BlazePose: from landmarks to joints always, the networks where they are installed."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.blazepose import (
    FILES,
    TO_NTU25,
    Network,
    Pose,
    find_weights,
    same_person,
)  # fmt: skip
from vtlvlm.skeleton.layouts import NTU25


def test_ntus_joints_from_landmarks() -> None:
    np.testing.assert_allclose(TO_NTU25.sum(axis=1), 1.0)
    landmarks = np.random.default_rng(0).normal(size=(33, 3))
    joints = TO_NTU25 @ landmarks
    hips, shoulders = (landmarks[23] + landmarks[24]) / 2, (landmarks[11] + landmarks[12]) / 2
    expected = {
        "spine_base": hips,
        "spine_shoulder": shoulders,
        "spine_mid": (hips + shoulders) / 2,
        "head": shoulders + 1.1 * ((landmarks[7] + landmarks[8]) / 2 - shoulders),
        "elbow_right": landmarks[14],
        "hand_left": (landmarks[15] + landmarks[17] + landmarks[19]) / 3,
        "hand_tip_right": landmarks[20],
        "thumb_left": landmarks[21],
        "foot_right": landmarks[32],
    }
    for name, place in expected.items():
        np.testing.assert_allclose(joints[NTU25.index(name)], place, atol=1e-12, err_msg=name)


def facing(scale: float = 200.0, hips: tuple[float, float] = (900.0, 500.0)) -> Pose:
    """A person who faces the camera, with ``scale`` pixels a metre."""
    metres = np.random.default_rng(1).normal(0, 0.2, (33, 3))
    metres[[11, 12, 23, 24]] = [
        [0.2, -0.5, 0.0],
        [-0.2, -0.5, 0.0],
        [0.1, 0.0, 0.0],
        [-0.1, 0.0, 0.0],
    ]  # left is right in the picture
    pixels = np.zeros((35, 2))
    pixels[:33] = np.array(hips) + scale * metres[:, :2]
    visible = np.ones(33, bool)
    visible[19] = False
    return Pose(0, pixels, metres, visible)


def test_metres_in_the_cameras_frame() -> None:
    metres, pixels, visible = facing().joints(1920, 1080)
    focal = 960 / np.tan(np.radians(30))
    base = metres[NTU25.index("spine_base")]
    np.testing.assert_allclose(base, [-(900 - 960) / 200, -(500 - 540) / 200, focal / 200])
    left, right = (metres[NTU25.index(f"shoulder_{side}")] for side in ("left", "right"))
    np.testing.assert_allclose(left - base, [-0.2, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(right - base, [0.2, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(pixels[NTU25.index("spine_base")], [900, 500])
    assert set(np.array(NTU25.joints)[~visible]) == {"hand_left", "hand_tip_left"}


def test_one_person_or_two() -> None:
    torso = np.array([[100.0, 200.0], [100.0, 150.0]])
    assert same_person(torso, torso + np.array([20, 0]), radius=100)
    assert not same_person(torso, torso + np.array([30, 0]), radius=100)
    assert not same_person(torso, torso + np.array([[0, 0], [0, 80]]), radius=100)  # hips at one place, shoulders apart


def test_weights_from_a_folder_and_from_a_wheel(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lacks pose_detection.tflite.*pip install --no-deps mediapipe==0.10.21"):
        find_weights(tmp_path)
    for content, name in enumerate(FILES):
        (tmp_path / Path(name).name).write_bytes(bytes([content]))
    assert find_weights(tmp_path) == (b"\0", b"\1")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for content, name in enumerate(FILES):
            wheel.writestr(f"mediapipe/modules/{name}", bytes([content + 5]))
    assert find_weights(tmp_path / "a.whl") == (b"\5", b"\6")
    assert find_weights(tmp_path / "a.whl").digest != find_weights(tmp_path).digest
    with zipfile.ZipFile(tmp_path / "c.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in FILES:
            wheel.writestr(f"mediapipe/modules/{name}", bytes(2**26 + 1))
    with pytest.raises(UsageError, match=r"c.whl: no wheel of mediapipe"):
        find_weights(tmp_path / "c.whl")
    (tmp_path / "b.whl").write_bytes(b"no wheel")
    with pytest.raises(UsageError, match=r"b.whl: no wheel of mediapipe"):
        find_weights(tmp_path / "b.whl")
    if importlib.util.find_spec("mediapipe") is None:
        with pytest.raises(UsageError, match="the weights of BlazePose are not installed; run: pip install --no-deps"):
            find_weights(None)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UsageError, match=r"poses needs ai-edge-litert; run: pip install 'vtlvlm\[poses\]'"):
        Network(b"weights")
