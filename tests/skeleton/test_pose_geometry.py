"""Where BlazePose looks, and what its numbers mean, by hand."""

import numpy as np
import pytest

from vtlvlm.skeleton.pose_geometry import CUT_SIDE, DETECTOR_SIDE, Letterbox, Region, anchors, detections, mended, parts


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
    picture = np.stack([x, y, np.full_like(x, 200)], axis=-1).astype(np.uint8)
    region = Region.around(np.array([100.0, 100.0]), np.array(edge))
    cut = region.cut(picture)
    for column, row in ((0, 0), (100, 30), (255, 255), (17, 200)):
        place = region.to_picture(np.array([column + 0.5, row + 0.5]))
        expected = np.clip(place - 0.5, 0, 199)  # a pixel's value is that of its middle; outside, the border goes on
        np.testing.assert_allclose(cut[row, column, :2], expected, atol=1e-3)
    np.testing.assert_allclose(cut[..., 2], 200, rtol=1e-6)


def test_landmarks_move_to_the_middle_of_their_heat_maps() -> None:
    heat = np.full((64, 64, 5), -100.0)
    heat[20, 30, 0] = heat[20, 31, 0] = 0.0  # one half in two cells: columns 30 and 31, row 20
    heat[20, 40, 1] = -0.01  # nowhere one half
    heat[50, 50, 2] = 5.0  # four cells away
    heat[0, 0, 3], heat[0, 1, 3] = np.log(3), np.log(1 / 3)  # three quarters and a quarter, at the corner
    heat[63, 63, 4] = 5.0  # the landmark lies outside
    places = np.array([[119.0, 83.9], [160.0, 80.0], [46 * 4.0, 50 * 4.0], [7.0, 3.0], [256.0, 255.0]])
    np.testing.assert_allclose(mended(places, heat), [[122, 80], [160, 80], [184, 200], [1, 0], [256, 255]], atol=1e-9)
