"""Batched transforms against one clip at a time, by explicit loops or PyTorch's own functions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vtlvlm.errors import UsageError
from vtlvlm.skeleton import transforms as t
from vtlvlm.skeleton.layouts import COCO17, KINECT20, NTU25

LENGTHS = torch.tensor([9, 4, 6])


def clips(layout=NTU25, seed=0) -> torch.Tensor:
    """Three clips of 9, 4 and 6 frames. In the second, body 1 is absent; in the third, body 0 comes in frame 2 and body 1 goes after 3."""
    x = torch.randn(3, 3, 9, layout.num_joints, 2, generator=torch.Generator().manual_seed(seed)) + 2
    for clip, length in enumerate(LENGTHS.tolist()):
        x[clip, :, length:] = 0
    x[1, ..., 1] = 0
    x[2, :, :2, :, 0] = 0
    x[2, :, 4:, :, 1] = 0
    return x


def frames_there(x: torch.Tensor, clip: int, body: int) -> list[int]:
    return [frame for frame in range(x.shape[2]) if x[clip, :, frame, :, body].abs().sum() > 0]


def test_who_is_there():
    there = t.present(clips())
    assert there.sum(1).tolist() == [[9, 9], [4, 0], [4, 4]]
    assert t.first_frames(there).tolist() == [[0, 0], [0, 0], [2, 0]]


@pytest.mark.parametrize("every", [False, True])
def test_centring(every):
    x = clips()
    expected = torch.zeros_like(x)
    for clip in range(3):
        origin = x[clip, :, frames_there(x, clip, 0)[0], 1, 0]
        for body in (0, 1):
            for frame in frames_there(x, clip, body):
                expected[clip, :, frame, :, body] = x[clip, :, frame, :, body] - (x[clip, :, frame, 1, :1] if every else origin[:, None])
    torch.testing.assert_close(t.centred(x, NTU25, every), expected)


def test_infogcns_axes():
    x = t.centred(clips(), NTU25)
    found = t.aligned(x, NTU25, "hips")
    expected = torch.zeros_like(x)
    for clip in range(3):
        for body in (0, 1):
            frames = frames_there(x, clip, body)
            if not frames:
                continue
            first = x[clip, :, frames[0], :, body].double()
            v1 = first[:, 1] - first[:, 0]
            v1 = v1 / v1.norm()
            v2 = first[:, 12] - first[:, 16]
            v2 = v2 - v2.dot(v1) * v1
            v2 = v2 / v2.norm()
            inverse = torch.linalg.inv(torch.stack([v2, torch.linalg.cross(v2, v1), v1], dim=1))
            for frame in frames:
                expected[clip, :, frame, :, body] = (inverse @ x[clip, :, frame, :, body].double()).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_shoulders_lie_along_x_and_turn_everything_alike():
    x = clips()[:2]
    found = t.aligned(x, NTU25, "shoulders")
    shoulders = found[:, :, 0, 8, 0] - found[:, :, 0, 4, 0]
    assert (shoulders[:, 0] > 0).all()
    assert shoulders[:, 1:].abs().max() < 1e-5
    for clip in range(2):
        one, other = x[clip].reshape(3, -1).double(), found[clip].reshape(3, -1).double()
        turn = other @ torch.linalg.pinv(one)  # one matrix explains all joints
        torch.testing.assert_close(turn @ one, other, atol=1e-5, rtol=0)
        torch.testing.assert_close(turn @ turn.T, torch.eye(3).double(), atol=1e-5, rtol=0)
        assert torch.linalg.det(turn) > 0


def test_the_first_turn_puts_a_vector_on_its_axis():
    vectors = torch.tensor([[0.3, -2.0, 0.5], [0.0, 0.0, 3.0], [0.0, 0.0, -3.0], [0.0, 0.0, 0.0]])
    turns = t.turning(vectors, (0.0, 0.0, 1.0))
    torch.testing.assert_close(turns[0] @ vectors[0], torch.tensor([0.0, 0.0, float(vectors[0].norm())]), atol=1e-5, rtol=0)
    for row in (1, 2, 3):
        torch.testing.assert_close(turns[row], torch.eye(3))


def test_a_body_without_sides_stays():
    x = clips()[:1]
    x[:, :, :, 16] = x[:, :, :, 12]
    torch.testing.assert_close(t.aligned(x, NTU25, "hips"), x)
    with pytest.raises(UsageError, match="coco17 has no spine to align bodies by"):
        t.aligned(clips(COCO17), COCO17, "hips")


def test_rotations_about_one_axis_and_their_order():
    quarter = math.pi / 2
    x, y, z = torch.eye(3)
    turn = t.rotations(torch.tensor([[quarter, 0, 0], [0, quarter, 0], [0, 0, quarter], [quarter, quarter, 0.0]]))
    torch.testing.assert_close(turn[0] @ y, z, atol=1e-6, rtol=0)
    torch.testing.assert_close(turn[1] @ z, x, atol=1e-6, rtol=0)
    torch.testing.assert_close(turn[2] @ x, y, atol=1e-6, rtol=0)
    torch.testing.assert_close(turn[3] @ y, x, atol=1e-6, rtol=0)  # about x to z, then about y to x
    joints = clips()
    found = t.turned(joints, turn[:3])
    torch.testing.assert_close(found[1, :, 2, 5, 0], turn[1] @ joints[1, :, 2, 5, 0])


@pytest.mark.parametrize("layout", [NTU25, KINECT20], ids=["ntu25", "kinect20"])
def test_bones_get_their_factors(layout):
    x = clips(layout)
    factors = 1 + torch.linspace(-0.2, 0.2, 3 * layout.num_joints).view(3, -1)
    found = t.scaled_bones(x, layout, factors)
    for clip in range(3):
        for child, parent in layout.bones:
            side = min(child, layout.mirror[child])
            bone = (x[clip, :, :, child] - x[clip, :, :, parent]) * factors[clip, side]
            torch.testing.assert_close(found[clip, :, :, child] - found[clip, :, :, parent], bone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :, :, layout.root], x[:, :, :, layout.root])
    torch.testing.assert_close(t.scaled_bones(x, layout, torch.ones_like(factors)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 3, 6, 20])
def test_resampling_is_pytorchs(frames):
    x = clips()
    start, length = torch.tensor([2, 0, 5]), torch.tensor([7, 4, 1])
    found = t.resampled(x, start, length, frames)
    for clip in range(3):
        piece = x[clip, :, start[clip] : start[clip] + length[clip]].permute(0, 2, 3, 1).reshape(1, 1, -1, int(length[clip]))
        wanted = F.interpolate(piece, size=(piece.shape[2], frames), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[clip], wanted.view(3, 25, 2, frames).permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_crops_are_within_the_clip():
    lengths = torch.tensor([200, 200, 200, 70, 30, 1])
    start, length = t.crops(lengths, torch.tensor([0.5, 0.999, 0.1, 0.5, 0.5, 0.5]), torch.tensor([0.0, 0.999, 0.5, 0.999, 0.5, 0.999]), 64)
    assert length.tolist() == [100, 199, 64, 64, 30, 1]
    assert start.tolist() == [0, 1, 68, 6, 0, 0]


def test_the_middle_is_that_of_the_official_code():
    lengths = list(range(1, 301))
    start, length = t.central(torch.tensor(lengths), 0.95)
    for place, frames in enumerate(lengths):
        bias = int((1 - 0.95) * frames / 2)
        assert (int(start[place]), int(length[place])) == (bias, len(range(bias, frames - bias)))


def test_one_frame_of_each_part():
    random = torch.rand(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (found,) = t.spread(torch.tensor([40]), 4, random).tolist()
    assert found == [10 * part + int(10 * random[0, part]) for part in range(4)]


def test_short_clips_wrap_and_middling_ones_skip():
    random = torch.tensor([[0.7, 0.2, 0.9, 0.1, 0.4]])
    assert t.spread(torch.tensor([3]), 4, random).tolist() == [[2, 0, 1, 2]]
    # 6 frames, 4 wanted: frames are skipped before the places of the two smallest numbers, 3 and 1
    assert t.spread(torch.tensor([6]), 4, random).tolist() == [[0, 2, 3, 5]]
    assert t.spread(torch.tensor([4]), 4, random).tolist() == [[0, 1, 2, 3]]


def test_every_choice_of_rising_frames_comes_equally_often():
    random = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0))
    found, counts = t.spread(torch.full((6000,), 5), 3, random).unique(dim=0, return_counts=True)
    assert len(found) == 6  # two of the four gaps are skipped
    assert (found.diff(dim=1) > 0).all()
    assert counts.float().sub(1000).abs().max() < 150


def test_boxes():
    x = clips(KINECT20)
    found = t.boxed(x, LENGTHS)
    for clip, length in enumerate(LENGTHS.tolist()):
        there = torch.stack([x[clip, :, f, :, body] for body in (0, 1) for f in frames_there(x, clip, body)], dim=1)
        low, high = there.amin(dim=(1, 2)), there.amax(dim=(1, 2))
        for body in (0, 1):
            for frame in range(9):
                expected = torch.zeros(3, 20)
                if frame < length and frame in frames_there(x, clip, body):
                    expected = (x[clip, :, frame, :, body] - low[:, None]) / (high - low)[:, None] * 2 - 1
                torch.testing.assert_close(found[clip, :, frame, :, body], expected, atol=1e-5, rtol=1e-5)
    flat = x.clone()
    flat[:, 2] = torch.where(flat[:, 2] != 0, 1.0, 0.0)
    assert not t.boxed(flat, LENGTHS)[:, 2].any()


def test_draws_depend_on_the_clip_alone():
    one, two = t.draws(["a", "b"], 5), t.draws(["b"], 5)
    torch.testing.assert_close(one[1], two[0], atol=0, rtol=0)
    assert not torch.equal(one[0], one[1])
    many = t.draws([str(number) for number in range(400)], 10)
    assert 0 <= many.min() < many.max() < 1
    assert abs(float(many.mean()) - 0.5) < 0.02
    assert many.dtype == torch.float32
    assert np.isfinite(many.numpy()).all()
