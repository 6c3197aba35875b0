"""Heat maps against explicit loops over pixels, joints and bodies, and values computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heatmaps import HeatMaps, cropped, frontal, in_box, joint_maps, limb_maps, mirrored, randomly_cropped
from vtlvlm.skeleton.layouts import COCO17

BONES = ((1, 0), (2, 1), (0, 2))


def poses(n: int = 2, frames: int = 3, joints: int = 3, bodies: int = 2) -> Tensor:
    """Some key points lie outside the square; some are missing."""
    generator = torch.Generator().manual_seed(0)
    points = 1.6 * torch.rand(n, 2, frames, joints, bodies, generator=generator) - 0.3
    confidence = torch.rand(n, 1, frames, joints, bodies, generator=generator)
    found = torch.cat([points, confidence], dim=1)
    found[0, :, 1, :, 1] = 0
    found[1, :2, 0, 1, 0] = found[1, :2, 0, 0, 0] + 0.01  # a limb shorter than a pixel
    return found


def gaussian(square: float, sigma: float) -> float:
    return math.exp(-square / (2 * sigma**2))


def joints_by_loops(found: Tensor, size: int, sigma: float) -> Tensor:
    n, _, frames, joints, bodies = found.shape
    maps = torch.zeros(n, joints, frames, size, size)
    for clip in range(n):
        for frame in range(frames):
            for joint in range(joints):
                for row in range(size):
                    for column in range(size):
                        values = [0.0]
                        for body in range(bodies):
                            x, y, confidence = found[clip, :, frame, joint, body].tolist()
                            across, down = column + 0.5 - size * x, row + 0.5 - size * y
                            if abs(across) <= 3 * sigma and abs(down) <= 3 * sigma:
                                values.append(confidence * gaussian(across**2 + down**2, sigma))
                        maps[clip, joint, frame, row, column] = max(values)
    return maps


def to_segment(x: float, y: float, a: tuple[float, float], b: tuple[float, float]) -> float:
    """Squared distance by the cases of the textbook: beyond the first end, beyond the second, or beside the line."""
    length = math.dist(a, b)
    along = ((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / length
    if along <= 0:
        return math.dist((x, y), a) ** 2
    if along >= length:
        return math.dist((x, y), b) ** 2
    return (abs((b[0] - a[0]) * (a[1] - y) - (a[0] - x) * (b[1] - a[1])) / length) ** 2


def limbs_by_loops(found: Tensor, size: int, sigma: float) -> Tensor:
    n, _, frames, _, bodies = found.shape
    maps = torch.zeros(n, len(BONES), frames, size, size)
    for clip in range(n):
        for frame in range(frames):
            for limb, ends in enumerate(BONES):
                for body in range(bodies):
                    (ax, ay, ac), (bx, by, bc) = (found[clip, :, frame, joint, body].tolist() for joint in ends)
                    a, b = (size * ax, size * ay), (size * bx, size * by)
                    if math.dist(a, b) < 1:
                        b = a
                    for row in range(size):
                        for column in range(size):
                            x, y = column + 0.5, row + 0.5
                            wide = min(a[0], b[0]) - 3 * sigma <= x <= max(a[0], b[0]) + 3 * sigma
                            high = min(a[1], b[1]) - 3 * sigma <= y <= max(a[1], b[1]) + 3 * sigma
                            if wide and high:
                                square = math.dist((x, y), a) ** 2 if a == b else to_segment(x, y, a, b)
                                value = min(ac, bc) * gaussian(square, sigma)
                                maps[clip, limb, frame, row, column] = max(maps[clip, limb, frame, row, column].item(), value)
    return maps


@pytest.mark.parametrize("sigma", [0.6, 1.3])
def test_joints_equal_the_loops(sigma: float) -> None:
    found = poses()
    torch.testing.assert_close(joint_maps(found, 9, sigma), joints_by_loops(found, 9, sigma), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.6, 1.3])
def test_limbs_equal_the_loops(sigma: float) -> None:
    found = poses()
    torch.testing.assert_close(limb_maps(found, BONES, 9, sigma), limbs_by_loops(found, 9, sigma), atol=1e-5, rtol=1e-5)


def test_one_joint_by_hand() -> None:
    """A joint in the middle of pixel (1, 2) of four, confidence 0.8, beside nothing."""
    found = torch.zeros(1, 3, 1, 1, 1)
    found[0, :, 0, 0, 0] = torch.tensor([2.5 / 4, 1.5 / 4, 0.8])
    maps = joint_maps(found, 4, 0.6)[0, 0, 0]
    side = 0.8 * math.exp(-1 / 0.72)
    torch.testing.assert_close(maps[1], torch.tensor([0.0, side, 0.8, side]))
    torch.testing.assert_close(maps[:, 2], torch.tensor([side, 0.8, side, 0.0]))


def test_the_box_by_hand() -> None:
    """Key points from (10, 100) to (30, 140) in two frames: the square has side 50 around (20, 120)."""
    found = torch.zeros(1, 3, 2, 2, 1)
    found[0, :, 0, 0, 0] = torch.tensor([10.0, 140.0, 1.0])
    found[0, :, 1, 0, 0] = torch.tensor([30.0, 100.0, 0.5])
    found[0, :, 0, 1, 0] = torch.tensor([torch.nan, 5.0, 1.0])
    found[0, :, 1, 1, 0] = torch.tensor([900.0, 900.0, 0.0])
    boxed = in_box(found)
    torch.testing.assert_close(boxed[0, :, 0, 0, 0], torch.tensor([0.3, 0.9, 1.0]))
    torch.testing.assert_close(boxed[0, :, 1, 0, 0], torch.tensor([0.7, 0.1, 0.5]))
    assert (boxed[0, :, :, 1] == 0).all()


def test_nobody_and_a_single_point_stay_finite() -> None:
    found = torch.zeros(2, 3, 1, 2, 1)
    found[1, :, 0, 0, 0] = torch.tensor([7.0, 8.0, 1.0])
    boxed = in_box(found)
    assert (boxed[0] == 0).all()
    torch.testing.assert_close(boxed[1, :, 0, 0, 0], torch.tensor([0.5, 0.5, 1.0]))
    assert joint_maps(boxed, 5)[0].sum() == 0


def test_the_mirrored_pose_gives_the_mirrored_picture() -> None:
    """Left and right channels swap."""
    generator = torch.Generator().manual_seed(1)
    found = torch.rand(1, 3, 2, 17, 1, generator=generator)
    mirror = list(COCO17.mirror)
    turned = mirrored(found, mirror)
    torch.testing.assert_close(joint_maps(turned, 16), joint_maps(found, 16).flip(-1)[:, mirror], atol=1e-5, rtol=1e-4)
    partner = [COCO17.bones.index((mirror[a], mirror[b])) for a, b in COCO17.bones]
    limbs = limb_maps(found, COCO17.bones, 16)
    torch.testing.assert_close(limb_maps(turned, COCO17.bones, 16), limbs.flip(-1)[:, partner], atol=1e-5, rtol=1e-4)


def test_a_crop_by_hand() -> None:
    found = torch.tensor([0.5, 0.5, 0.9]).view(1, 3, 1, 1, 1)
    moved = cropped(found, torch.tensor([[0.25, 0.4]]), torch.tensor([[0.5, 0.2]]))
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.5, 0.5, 0.9]))


def test_random_crops_lie_in_the_square_and_have_the_areas_asked_for() -> None:
    """The square's corners, seen from each crop, give its place back."""
    torch.manual_seed(0)
    corners = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]).view(1, 3, 1, 2, 1).expand(400, -1, -1, -1, -1)
    moved = randomly_cropped(corners, 0.56)
    low, high = moved[:, :2, 0, 0, 0], moved[:, :2, 0, 1, 0]
    extent = 1 / (high - low)
    corner = -low * extent
    assert (corner >= -1e-5).all()
    assert (corner + extent <= 1 + 1e-5).all()
    assert extent.max() <= 1 + 1e-5
    uncut = (extent < 1 - 1e-4).all(dim=1)
    area = extent.prod(dim=1)
    assert (area[uncut] >= 0.56 - 1e-4).all()
    assert 0.7 < area.mean() < 0.8  # uniform areas would have the mean 0.78; cut sides make it a little smaller
    assert torch.equal(randomly_cropped(corners, 1.0), corners)


def test_maps_in_training_are_smaller_and_random() -> None:
    torch.manual_seed(0)
    found = torch.rand(2, 3, 3, 17, 2)
    maps = HeatMaps(kind="limb", size=12, eval_size=16)
    assert maps.build(COCO17) == 16
    first, second = maps(found), maps(found)
    assert first.shape == second.shape == (2, 16, 3, 12, 12)
    assert not torch.equal(first, second)
    maps.eval()
    assert maps(found).shape == (2, 16, 3, 16, 16)
    assert torch.equal(maps(found), limb_maps(in_box(found), COCO17.bones, 16))


def test_the_place_and_the_size_of_a_person_do_not_matter() -> None:
    torch.manual_seed(0)
    found = torch.rand(1, 3, 3, 17, 1)
    moved = found.clone()
    moved[:, :2] = 300 * moved[:, :2] + 500
    maps = HeatMaps(size=12, eval_size=16).eval()
    assert maps.build(COCO17) == 17
    torch.testing.assert_close(maps(found), maps(moved), atol=1e-4, rtol=1e-3)


def test_joints_in_metres_are_seen_from_the_front() -> None:
    joints = torch.zeros(1, 3, 1, 2, 2)  # the second joint of the first body is the origin; there is no second body
    joints[0, :, 0, 0, 0] = torch.tensor([0.1, 0.7, 3.0])
    assert frontal(joints)[0, :, 0, :, 0].T.tolist() == [pytest.approx([0.1, -0.7, 1.0]), [0.0, 0.0, 1.0]]
    assert frontal(joints)[0, 2, 0, :, 1].tolist() == [0.0, 0.0]
    torch.manual_seed(0)
    joints = torch.randn(1, 3, 2, 17, 2)
    seen, given = HeatMaps(metres=True).eval(), HeatMaps().eval()
    assert seen.build(COCO17) == given.build(COCO17)
    assert torch.equal(seen(joints), given(frontal(joints)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bone"}, "choose joint or limb"),
        ({"size": 0}, "at least one pixel"),
        ({"sigma": 0.0}, "positive"),
        ({"area": 0.0}, r"maps\.area=0\.0"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HeatMaps(**settings)


def test_clips_of_another_layout_are_refused() -> None:
    maps = HeatMaps()
    maps.build(COCO17)
    with pytest.raises(UsageError, match=r"the clips have 25 joints, the network has 17 \(coco17\)"):
        maps(torch.zeros(1, 3, 1, 25, 1))
