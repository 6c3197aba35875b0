"""BlazePose: the geometry around the networks always, the networks where they are installed."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.blazepose import (
    CUT_SIDE,
    DETECTOR_SIDE,
    FILES,
    TO_NTU25,
    Letterbox,
    Network,
    Pose,
    Region,
    anchors,
    detections,
    find_weights,
    parts,
    same_person,
)  # fmt: skip
from vtlvlm.skeleton.layouts import NTU25


def test_anchors_are_the_centres_of_three_grids() -> None:
    centres = anchors()
    assert centres.shape == (2 * 28**2 + 2 * 14**2 + 6 * 7**2, 2) == (2254, 2)
    np.testing.assert_allclose(centres[:4] * 28, [[0.5, 0.5], [0.5, 0.5], [1.5, 0.5], [1.5, 0.5]])  # along a row first
    np.testing.assert_allclose(centres[2 * 28] * 28, [0.5, 1.5])
    np.testing.assert_allclose(centres[2 * 28**2] * 14, [0.5, 0.5])
    np.testing.assert_allclose(centres[-7:] * 7, [[5.5, 6.5]] + [[6.5, 6.5]] * 6)


def test_letterbox_of_a_wide_and_a_high_picture() -> None:
    wide = Letterbox.of(1920, 1080)
    assert (wide.left, wide.top, wide.width, wide.height) == (0, 49, 224, 126)
    np.testing.assert_allclose(wide.to_picture(np.array([[112.0, 112.0], [224.0, 49.0]])), [[960, 540], [1920, 0]])
    high = Letterbox.of(112, 448)
    assert (high.left, high.top, high.width, high.height) == (84, 0, 56, 224)
    np.testing.assert_allclose(high.to_picture(np.array([84.0, 224.0])), [0, 448])


def test_parts_of_a_picture_cover_it() -> None:
    assert parts(640, 600) == []
    assert parts(1920, 1080) == [(0, 0, 1080, 1080), (420, 0, 1500, 1080), (840, 0, 1920, 1080)]
    assert parts(480, 640) == [(0, 0, 480, 480), (0, 160, 480, 640)]


def test_overlapping_boxes_are_averaged_and_others_are_further_people() -> None:
    boxes, logits = np.zeros((2254, 12)), np.full(2254, -5.0)
    centres = anchors() * DETECTOR_SIDE
    first, second, far, weak = 0, 2, 2253, 900
    for place, logit in ((first, np.log(3)), (second, np.log(9)), (far, np.log(4)), (weak, -0.01)):
        boxes[place, 2:4] = 40  # pixels
        boxes[place, 4:6] = 10, 20
        logits[place] = logit
    found = detections(boxes, logits)
    assert [one.score for one in found] == pytest.approx([0.9, 0.8])
    expected = (0.75 * centres[first] + 0.9 * centres[second]) / 1.65 + [10, 20]
    np.testing.assert_allclose(found[0].points[0], expected)
    np.testing.assert_allclose(found[1].points[0], centres[far] + [10, 20])
    np.testing.assert_allclose(found[1].torso[1], centres[far])
    assert detections(boxes, np.full(2254, -0.1)) == []


def test_regions_stand_the_body_upright() -> None:
    upright = Region.around(np.array([100.0, 100.0]), np.array([100.0, 60.0]))
    assert upright.side == 2 * 1.25 * 40
    corners = np.array([[0.0, 0.0], [CUT_SIDE, CUT_SIDE], [CUT_SIDE / 2, 0.0]])
    np.testing.assert_allclose(upright.to_picture(corners), [[50, 50], [150, 150], [100, 50]])
    lying = Region.around(np.array([100.0, 100.0]), np.array([140.0, 100.0]))  # the head is on the right
    np.testing.assert_allclose(lying.to_picture(corners), [[150, 50], [50, 150], [150, 100]])
    # world axes turn back in the same way: up in the cut is right in the picture
    np.testing.assert_allclose(np.array([0.0, -1.0]) @ lying.axes, [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(np.array([1.0, 0.0]) @ lying.axes, [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("edge", [(100.0, 60.0), (130.0, 75.0), (128.0, 128.0)])
def test_the_cut_holds_the_pixels_of_its_places(edge: tuple[float, float]) -> None:
    x, y = np.meshgrid(np.arange(200), np.arange(200))
    picture = Image.fromarray(np.stack([x, y, np.full_like(x, 200)], axis=-1).astype(np.uint8))
    region = Region.around(np.array([100.0, 100.0]), np.array(edge))
    cut = np.asarray(region.cut(picture)).astype(float)
    for column, row in ((0, 0), (100, 30), (255, 255), (17, 200)):
        place = region.to_picture(np.array([column + 0.5, row + 0.5]))
        if (place > 1).all() and (place < 199).all():
            np.testing.assert_allclose(cut[row, column, :2], place - 0.5, atol=1.0)  # a pixel's value is that of its middle
    assert cut[128, 128, 2] == 200
    outside = np.asarray(Region.around(np.array([0.0, 0.0]), np.array([0.0, -40.0])).cut(picture))
    assert (outside[:100, :100] == 0).all()


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
