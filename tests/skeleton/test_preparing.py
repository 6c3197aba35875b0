"""Each method's preparation against one clip at a time, by explicit loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from vtlvlm.skeleton.layouts import KINECT20, NTU25
from vtlvlm.skeleton.preparing import BoxedFrames, CropAndResize, Preparation, UniformFrames, WholeClips
from vtlvlm.skeleton.streams import Stream

LENGTHS = torch.tensor([12, 7])


def clips(layout=NTU25) -> torch.Tensor:
    x = torch.randn(2, 3, 12, layout.num_joints, 2, generator=torch.Generator().manual_seed(3)) + 1
    x[1, :, 7:] = 0
    x[1, ..., 1] = 0
    return x


def numbers(preparation: Preparation, layout=NTU25) -> torch.Tensor:
    return torch.rand(2, preparation.numbers(layout), generator=torch.Generator().manual_seed(5))


def about(axis: int, angle: float) -> torch.Tensor:
    """(3, 3): a turn about x, y or z that takes the next axis towards the one after it."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.eye(3)
    matrix[one, one] = matrix[two, two] = math.cos(angle)
    matrix[two, one], matrix[one, two] = math.sin(angle), -math.sin(angle)
    return matrix


def stretched(piece: torch.Tensor, frames: int) -> torch.Tensor:
    """(3, T, V, M) -> (3, frames, V, M) by PyTorch."""
    rows = piece.permute(0, 2, 3, 1)
    image = F.interpolate(rows.reshape(1, 1, -1, rows.shape[-1]), (rows[..., 0].numel(), frames), mode="bilinear", align_corners=False)
    return image.view(*rows.shape[:-1], frames).permute(0, 3, 1, 2)


def test_ctr_gcn_tests_on_the_middle():
    preparation = CropAndResize(window=9, middle=0.5)
    found = preparation(clips(), LENGTHS, NTU25, numbers(preparation), False)
    for clip, length in enumerate(LENGTHS.tolist()):
        own = clips()[clip, :, :length]
        there = (own != 0).any(0, keepdim=True).any(2, keepdim=True)
        own = (own - own[:, :1, 1:2, :1]) * there
        cut = int(0.5 * length / 2)
        torch.testing.assert_close(found[clip], stretched(own[:, cut : length - cut], 9), atol=1e-5, rtol=1e-5)


def test_ctr_gcn_trains_on_a_turned_piece():
    preparation = CropAndResize(window=9, least_share=0.2, least_frames=4, angle=0.3)
    random = numbers(preparation)
    found = preparation(clips(), LENGTHS, NTU25, random, True)
    for clip, length in enumerate(LENGTHS.tolist()):
        own = clips()[clip, :, :length]
        there = (own != 0).any(0, keepdim=True).any(2, keepdim=True)
        own = (own - own[:, :1, 1:2, :1]) * there
        share, place, *angles = random[clip, :5].tolist()
        frames = min(max(int(length * (0.2 + 0.8 * share)), 4), length)
        start = int(place * (length - frames + 1))
        piece = stretched(own[:, start : start + frames], 9)
        x, y, z = (about(axis, (2 * angle - 1) * 0.3) for axis, angle in enumerate(angles))
        torch.testing.assert_close(found[clip], torch.einsum("ac,ctvm->atvm", z @ y @ x, piece), atol=1e-5, rtol=1e-5)


def test_fr_head_changes_bones_by_up_to_their_share():
    plain, scaled = CropAndResize(window=9, angle=0.0), CropAndResize(window=9, angle=0.0, bones=0.2)
    random = numbers(scaled)
    before, after = (preparation(clips(), LENGTHS, NTU25, random, True)[:1] for preparation in (plain, scaled))
    for child, parent in NTU25.bones:
        factor = 1 + (2 * random[0, 5 + min(child, NTU25.mirror[child])] - 1) * 0.2
        one, other = (x[:, :, :, child] - x[:, :, :, parent] for x in (before, after))
        torch.testing.assert_close(other, one * factor, atol=1e-5, rtol=1e-5)


def test_infogcn_stands_upright():
    preparation = CropAndResize(window=12, middle=1.0, align=True)
    found = preparation(clips(), LENGTHS, NTU25, numbers(preparation), False)
    spine = found[0, :, 0, 1] - found[0, :, 0, 0]  # (3, M)
    assert spine[:2].abs().max() < 1e-5
    assert (spine[2] > 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_pyskl_takes_frames_of_equal_parts(training):
    preparation = UniformFrames(window=3, align=False)
    random = numbers(preparation)
    found = preparation(clips(), LENGTHS, NTU25, random, training)
    for clip, length in enumerate(LENGTHS.tolist()):
        edges = [part * length // 3 for part in range(4)]
        for part in range(3):
            frame = edges[part] + int(random[clip, part] * (edges[part + 1] - edges[part]))
            torch.testing.assert_close(found[clip, :, part], clips()[clip, :, frame])
    assert UniformFrames(views=2).test_views == (1000, 1001)
    assert UniformFrames().test_views == (0,)


def test_pyskl_aligns_by_shoulders():
    preparation = UniformFrames(window=12)
    found = preparation(clips()[:1], LENGTHS[:1], NTU25, numbers(preparation)[:1], False)
    shoulders = found[0, :, 0, 8, 0] - found[0, :, 0, 4, 0]
    assert shoulders[0] > 0
    assert shoulders[1:].abs().max() < 1e-5
    assert found[0, :, 0, 1, 0].abs().max() < 1e-5


def test_st_gcn_fills_with_zeros_and_shift_gcn_with_the_clip():
    joints, none = clips(), torch.zeros(2, 0)
    zeros = WholeClips(window=20)(joints, LENGTHS, NTU25, none, True)
    again = WholeClips(window=20, rest="repeat")(joints, LENGTHS, NTU25, none, True)
    for clip, length in enumerate(LENGTHS.tolist()):
        for frame in range(20):
            torch.testing.assert_close(again[clip, :, frame], joints[clip, :, frame % length])
            expected = joints[clip, :, frame] if frame < length else torch.zeros(3, 25, 2)
            torch.testing.assert_close(zeros[clip, :, frame], expected)
    torch.testing.assert_close(WholeClips(window=5)(joints, LENGTHS, NTU25, none, True), joints[:, :, :5])
    centred = WholeClips(window=12, align=True)(joints, LENGTHS, NTU25, none, True)
    assert centred[0, :, :, 1, 0].abs().max() < 1e-5


def test_nw_ucla_trains_on_turned_clips_in_a_box():
    preparation = BoxedFrames(window=30, degrees=60)
    joints, random = clips(KINECT20)[..., :1], numbers(preparation, KINECT20)
    found = preparation(joints, LENGTHS, KINECT20, random, True)
    for clip, length in enumerate(LENGTHS.tolist()):
        x, y = (about(axis, math.radians(int(random[clip, axis] * 121) - 60)) for axis in (0, 1))
        own = joints[clip, :, :length, :, 0] - joints[clip, :, :1, 1:2, 0]
        own = torch.einsum("ac,ctv->atv", x @ y, own)
        low, high = own.amin((1, 2), keepdim=True), own.amax((1, 2), keepdim=True)
        own = (own - low) / (high - low) * 2 - 1
        frames = sorted(int(number * length) for number in random[clip, 2:].tolist())
        torch.testing.assert_close(found[clip, ..., 0], own[:, frames], atol=1e-5, rtol=1e-5)


def test_nw_ucla_tests_at_equal_distances():
    preparation = BoxedFrames(window=4)
    joints = clips(KINECT20)
    found = preparation(joints, LENGTHS, KINECT20, numbers(preparation, KINECT20), False)
    whole = BoxedFrames(window=12)(joints, LENGTHS, KINECT20, numbers(BoxedFrames(window=12), KINECT20), False)
    torch.testing.assert_close(found[0], whole[0][:, [0, 3, 7, 11]])  # 11 / 3 frames apart


@pytest.mark.parametrize("training", [True, False])
def test_everything_stays_on_the_device(training):
    """The meta device refuses tensors of another one, as a GPU would."""
    joints, lengths = clips().to("meta"), LENGTHS.to("meta")
    for preparation in (
        CropAndResize(window=8, bones=0.2, align=True),
        UniformFrames(window=8),
        WholeClips(window=8, align=True),
        BoxedFrames(window=8),
    ):
        found = preparation(joints, lengths, NTU25, numbers(preparation).to("meta"), training)
        assert (found.device.type, found.shape) == ("meta", (2, 3, 8, 25, 2))
        for stream in ("bone", "bone_motion", "ancestor:2"):
            assert Stream(stream, NTU25)(found).device.type == "meta"
