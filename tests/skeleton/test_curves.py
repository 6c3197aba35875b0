"""The reading of STC-Net's temporal unit against a walk from node to node."""

import by_loops as slow
import pytest
import torch
from by_loops import features, randomise, same

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.curves import CurveTemporal


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [2, 7, 8])
def test_curve_by_walking(stride: int, frames: int) -> None:
    unit = randomise(CurveTemporal(length=5)(16, 16, stride))
    branch, x, joints = unit.curve, features(2, 16, frames, 5), 5
    now = slow.pointwise(branch.now.weight[:, :, 0, 0], branch.now.bias, x)
    later = slow.pointwise(branch.next.weight[:, :, 0, 0], branch.next.bias, x)
    reduced = slow.pointwise(branch.reduce.weight[:, :, 0, 0], branch.reduce.bias, x)
    reduced = slow.norm(branch.reduced, reduced).clamp(min=0)
    along = branch.along.weight[:, :, 0, 0].unflatten(1, (5, 4))  # (C', place, C')
    out = x.new_zeros(2, 4, -(-frames // stride), joints)
    for clip in range(2):

        def related(t: int, u: int, v: int, clip: int = clip) -> float:
            """Of joint u at frame t with joint v at frame t + 1."""
            return float((now[clip, :, t, u] * later[clip, :, t + 1, v]).sum())

        for place in range(out.shape[2]):
            for start in range(joints):
                value = branch.along.bias + along[:, 2] @ reduced[clip, :, place * stride, start]
                joint, t = start, place * stride
                for step in (1, 2):
                    if t + 1 >= frames:
                        break
                    joint, t = max(range(joints), key=lambda v, u=joint, t=t: related(t, u, v)), t + 1
                    value = value + along[:, 2 + step] @ reduced[clip, :, t, joint]
                joint, t = start, place * stride
                for step in (1, 2):
                    if t == 0:
                        break
                    joint, t = max(range(joints), key=lambda u, v=joint, t=t: related(t - 1, u, v)), t - 1
                    value = value + along[:, 2 - step] @ reduced[clip, :, t, joint]
                out[clip, :, place, start] = value
    assert same(unit(x)[:, 12:], slow.norm(branch.norm, out))
    assert same(unit(x)[:, :12], unit.scales(x))  # CTR-GCN's branches stay, as test_temporal has them


def test_training_draws_links_that_can_be_learnt() -> None:
    torch.manual_seed(0)
    unit = CurveTemporal()(16, 16, 1)
    x = torch.randn(2, 16, 6, 5)
    forwards, backwards = unit.curve.links(x)
    for links in (forwards, backwards):
        assert links.shape == (2, 5, 5, 5)
        assert torch.allclose(links.sum(-1), torch.ones(2, 5, 5))
        assert torch.allclose(links.amax(-1), torch.ones(2, 5, 5))
    assert not torch.equal(forwards, unit.curve.links(x)[0])
    assert torch.equal(unit.eval().curve.links(x)[0], unit.curve.links(x)[0])
    unit.train()(x).square().sum().backward()
    assert all(
        value.grad is not None and value.grad.any() for name, value in unit.curve.named_parameters() if name.startswith(("now", "next"))
    )


def test_widths_and_lengths_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        CurveTemporal()(8, 8, 1)
    with pytest.raises(UsageError, match="must be odd"):
        CurveTemporal(length=4)
