"""Temporal units against slow forms by loops over frames, and by hand."""

import by_loops as slow
import pytest
import torch
from by_loops import features, randomise, same

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.temporal import MultiScaleTemporal, PlainTemporal, Shift, ShiftTemporal

STRIDES = pytest.mark.parametrize("stride", [1, 2])
FRAMES = pytest.mark.parametrize("frames", [7, 8])


@STRIDES
@FRAMES
def test_plain(stride: int, frames: int) -> None:
    unit = randomise(PlainTemporal(9)(4, 6, stride))
    first, _, convolution, second, _ = unit
    x = features(2, 4, frames, 3)
    wanted = slow.over_time(convolution.weight[..., 0], convolution.bias, slow.norm(first, x).clamp(min=0), stride)
    assert same(unit(x), slow.norm(second, wanted))


def test_plain_drops_in_training_but_not_in_the_first_block() -> None:
    x = features(2, 4, 8, 3).float()
    assert (PlainTemporal(9, 0.5)(4, 4, 1)(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert (PlainTemporal(9, 0.5)(4, 4, 1, first=True)(x) != 0).all()


@STRIDES
@FRAMES
@pytest.mark.parametrize("relu", [False, True])
def test_multi_scale(stride: int, frames: int, relu: bool) -> None:
    """Branch by branch: widths 2 of 8, dilations 1 and 2, maximum, pointwise."""
    unit = randomise(MultiScaleTemporal(5, (1, 2), relu)(8, 8, stride))
    x = features(2, 8, frames, 3)
    branches = []
    for number in range(3):
        mine = slice(2 * number, 2 * number + 2)
        reduced = slow.pointwise(unit.reduce.weight[mine, :, 0, 0], unit.reduce.bias[mine], x)
        reduced = slow.norm(unit.reduced, reduced, mine).clamp(min=0)
        if number < 2:
            layer = unit.dilated[number]
            branches.append(slow.over_time(layer.weight[..., 0], layer.bias, reduced, stride, dilation=number + 1))
        else:
            windows = [reduced[:, :, max(0, t - 1) : t + 2].amax(2) for t in range(0, frames, stride)]
            branches.append(torch.stack(windows, 2))
    branches.append(slow.pointwise(unit.pointwise.weight[:, :, 0, 0], unit.pointwise.bias, x[:, :, ::stride]))
    wanted = torch.cat([slow.norm(unit.norm, part, slice(2 * number, 2 * number + 2)) for number, part in enumerate(branches)], 1)
    assert same(unit(x), wanted.clamp(min=0) if relu else wanted)


def test_multi_scale_starts_as_the_official_code() -> None:
    torch.manual_seed(0)
    unit = MultiScaleTemporal()(256, 256, 1)
    assert unit.reduce.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)  # fan out of one branch
    assert unit.dilated[0].weight.std().item() == pytest.approx((2 / (64 * 5)) ** 0.5, rel=0.02)
    assert unit.norm.weight.mean().item() == pytest.approx(1, abs=0.01)
    assert unit.norm.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert all(not layer.bias.any() for layer in (unit.reduce, *unit.dilated, unit.pointwise))


def test_widths_and_kernels_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="width 66 cannot be cut into 4 branches"):
        MultiScaleTemporal()(66, 66, 1)
    with pytest.raises(UsageError, match="must be odd"):
        PlainTemporal(8)


def shift_by_loops(positions: torch.Tensor, x: torch.Tensor, stride: int) -> torch.Tensor:
    out = x.new_zeros(len(x), x.shape[1], -(-x.shape[2] // stride), x.shape[3])
    for channel in range(x.shape[1]):
        for frame in range(out.shape[2]):
            place = float(positions[channel]) + (0.5 if stride == 2 else 0) + stride * frame
            for source in range(x.shape[2]):
                out[:, channel, frame] += max(0.0, 1 - abs(place - source)) * x[:, channel, source]
    return out


@STRIDES
@FRAMES
def test_shift(stride: int, frames: int) -> None:
    shift = Shift(6, stride).double()
    x = features(2, 6, frames, 3)
    for positions in ([-1.0, -0.4, 0.0, 0.25, 0.9, 1.0], [-9.5, -2.5, 2.0, 3.25, 6.75, 20.0]):
        with torch.no_grad():
            shift.positions.copy_(torch.tensor(positions))
        assert same(shift(x), shift_by_loops(shift.positions.detach(), x, stride))


def test_shift_by_whole_frames_and_back() -> None:
    there, back = Shift(1), Shift(1)
    with torch.no_grad():
        there.positions.fill_(2.0)
        back.positions.fill_(-2.0)
    x = torch.arange(1.0, 7).view(1, 1, 6, 1)
    assert there(x).flatten().tolist() == [3, 4, 5, 6, 0, 0]
    assert back(there(x)).flatten().tolist() == [0, 0, 3, 4, 5, 6]


def test_shift_gradients() -> None:
    """The input's gradient is the true one; a position's is 0.01 with the true one's sign."""
    shift = Shift(2).double()
    with torch.no_grad():
        shift.positions.copy_(torch.tensor([0.5, 0.5]))
    x = torch.tensor([[0.0, 1, 2, 3], [0.0, -5, -10, -15]], dtype=torch.float64).view(1, 2, 4, 1).requires_grad_()
    shift(x)[:, :, :3].sum().backward()  # within, channel 0 rises and channel 1 falls
    assert shift.positions.grad.tolist() == [0.01, -0.01]
    assert x.grad.flatten().tolist() == [0.5, 1, 1, 0.5] * 2


def test_shift_positions_start_between_minus_one_and_one() -> None:
    torch.manual_seed(0)
    positions = Shift(4000).positions
    assert (positions.min().item(), positions.max().item()) == pytest.approx((-1, 1), abs=0.01)
    assert positions.mean().item() == pytest.approx(0, abs=0.05)


@STRIDES
def test_shift_temporal(stride: int) -> None:
    unit = randomise(ShiftTemporal()(4, 6, stride))
    before, first, convolution, _, second, after = unit
    x = features(2, 4, 8, 3)
    shifted = shift_by_loops(first.positions.detach(), slow.norm(before, x), 1)
    mixed = slow.pointwise(convolution.weight[:, :, 0, 0], convolution.bias, shifted).clamp(min=0)
    assert same(unit(x), slow.norm(after, shift_by_loops(second.positions.detach(), mixed, stride)))
