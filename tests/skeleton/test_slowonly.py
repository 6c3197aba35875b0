"""SlowOnly: its size to the last weight, and its output against convolutions written as loops over the kernel."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import LinearHead
from vtlvlm.skeleton.heatmaps import HeatMaps, in_box, limb_maps
from vtlvlm.skeleton.layouts import COCO17, NTU25, layout_named
from vtlvlm.skeleton.slowonly import PoseC3D, SlowOnly

OFFICIAL = {("coco17", 60): 2_024_860, ("coco17", 120): 2_055_640, ("ntu25", 60): 2_037_404}
"""Parameters of the official module, by layout and number of actions"""


def count(*modules: nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


@pytest.mark.parametrize(("layout", "actions"), list(OFFICIAL))
def test_size_is_the_official_one(layout: str, actions: int) -> None:
    network, head = PoseC3D(HeatMaps()), LinearHead(0.5)
    network.build(layout_named(layout), bodies=2)
    head.build(network.shapes(48), [str(action) for action in range(actions)], layout_named(layout))
    assert count(network, head) == OFFICIAL[layout, actions]


@pytest.mark.parametrize(("size", "billions"), [(56, 15.6), (64, 20.4)])
def test_multiply_adds_of_a_clip_are_the_official_ones(size: int, billions: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        SlowOnly(17, 32, (4, 6, 3))(torch.zeros(1, 17, 48, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.05)


def test_a_limb_has_a_channel() -> None:
    network = PoseC3D(HeatMaps(kind="limb"), width=4, blocks=(1, 1, 1))
    network.build(NTU25, bodies=1)
    assert network.cnn.stem[0].in_channels == 24


def test_shapes_of_a_clip() -> None:
    """Rows and columns are halved three times, frames once, at the end."""
    network = SlowOnly(17, 4, (1, 1, 1)).eval()
    shapes = [tuple(tap.shape) for tap in network(torch.zeros(1, 17, 8, 56, 56))]
    assert shapes == [(1, 1, 16, 8, 28 * 28), (1, 1, 32, 8, 14 * 14), (1, 1, 64, 4, 7 * 7)]


def test_poses_become_maps_and_then_features() -> None:
    torch.manual_seed(0)
    network = PoseC3D(HeatMaps(kind="limb", size=9, eval_size=12), width=4, blocks=(1, 1, 1))
    network.build(COCO17, bodies=2)
    poses = torch.rand(2, 3, 5, 17, 2)
    assert [tuple(tap.shape[2:]) for tap in network(poses)] == network.shapes(5)
    network.eval()
    drawn = limb_maps(in_box(poses), COCO17.bones, 12)
    for found, expected in zip(network(poses), network.cnn(drawn), strict=True):
        assert torch.equal(found, expected)


def convolved(x: Tensor, weight: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Sum over the places of the kernel, with zeros around the input."""
    sides = weight.shape[2:]
    around = [side // 2 for side in sides]
    padded = torch.zeros(*x.shape[:2], *(size + 2 * more for size, more in zip(x.shape[2:], around, strict=True)))
    padded[:, :, around[0] : around[0] + x.shape[2], around[1] : around[1] + x.shape[3], around[2] : around[2] + x.shape[4]] = x
    sizes = [(size - 1) // step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    found = torch.zeros(x.shape[0], weight.shape[0], *sizes)
    for t in range(sides[0]):
        for row in range(sides[1]):
            for column in range(sides[2]):
                seen = padded[:, :, t :: stride[0], row :: stride[1], column :: stride[2]][:, :, : sizes[0], : sizes[1], : sizes[2]]
                found += torch.einsum("oi,nithw->nothw", weight[:, :, t, row, column], seen)
    return found


def test_output_equals_the_loops() -> None:
    torch.manual_seed(0)
    network = SlowOnly(3, 4, (2, 1, 1))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    network.eval()
    state = network.state_dict()

    def unit(x: Tensor, name: str, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.1.{part}"][:, None, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (convolved(x, state[f"{name}.0.weight"], stride) - mean) / (var + 1e-5).sqrt() * weight + bias

    maps = torch.rand(2, 3, 5, 9, 9)
    x = unit(maps, "stem").clamp(min=0)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-torch.inf)
    x = torch.stack([padded[..., row : row + 9, column : column + 9] for row in range(3) for column in range(3)]).amax(dim=0)
    expected = []
    for stage, (number, frames) in enumerate([(2, 1), (1, 1), (1, 2)]):
        for block in range(number):
            name, stride = f"stages.{stage}.{block}", (frames, 2, 2) if block == 0 else (1, 1, 1)
            inner = unit(unit(x, f"{name}.reduce").clamp(min=0), f"{name}.spread", stride).clamp(min=0)
            shortcut = unit(x, f"{name}.shortcut", stride) if block == 0 else x
            x = (unit(inner, f"{name}.expand") + shortcut).clamp(min=0)
        expected.append(x.flatten(3)[:, None])
    for found, wanted in zip(network(maps), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_first_stage_does_not_mix_frames() -> None:
    torch.manual_seed(0)
    network = SlowOnly(2, 4, (1, 1, 1)).eval()
    for stage in network.stages:
        nn.init.ones_(stage[0].expand[1].weight)
    maps = torch.rand(1, 2, 6, 8, 8)
    changed = maps.clone()
    changed[:, :, 3] += 1
    first, last = (
        (one - other).abs().sum(dim=(0, 1, 2, 4)) > 0 for one, other in list(zip(network(maps), network(changed), strict=True))[::2]
    )
    assert first.tolist() == [False, False, False, True, False, False]
    assert last.tolist() == [False, True, True]  # frames 2 and 4 of the six, and their neighbours' neighbours


def test_blocks_start_as_identities() -> None:
    network = SlowOnly(2, 4, (2, 1, 1))
    x = torch.rand(1, 16, 2, 4, 4)
    torch.testing.assert_close(network.stages[0][1](x), x)


@pytest.mark.parametrize("settings", [{"width": 0}, {"blocks": (1, 2)}, {"blocks": (1, 0, 1)}])
def test_wrong_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError, match="network"):
        PoseC3D(HeatMaps(), **settings)
