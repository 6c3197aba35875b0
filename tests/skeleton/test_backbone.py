"""The network around the units: normalised joints, embedding, residuals, strides, taps, and whole networks against loops over blocks."""

import pytest
import torch
from by_loops import features, randomise, same, shortcut
from torch import Tensor
from torch.nn.functional import batch_norm

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import EmbeddedJoints, NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.heads import LinearHead, TapShape
from vtlvlm.skeleton.layouts import COCO17, KINECT20, NTU25
from vtlvlm.skeleton.spatial import AttentionTopology, FixedGraph, RefinedTopology, ShiftGraph
from vtlvlm.skeleton.temporal import MultiScaleTemporal, PlainTemporal, ShiftTemporal

SMALL = {"widths": (8, 8, 16), "strides": (1, 1, 2)}


def ctr_gcn() -> SkeletonNet:
    return SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal(), **SMALL)


def test_every_joint_body_and_coordinate_has_its_own_norm() -> None:
    norm = NormalisedJoints()(joints=4, bodies=2, channels=3)
    x = torch.randn(5, 3, 6, 4, 2) * torch.arange(1.0, 3) + torch.arange(4.0)[:, None]
    y = norm(x).unflatten(0, (5, 2))
    for body in range(2):
        for channel in range(3):
            for joint in range(4):
                values = x[:, channel, :, joint, body]
                wanted = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
                assert torch.allclose(y[:, body, channel, :, joint], wanted, atol=1e-5)


def test_bodies_can_share_the_norm() -> None:
    norm = NormalisedJoints(shared=True)(joints=4, bodies=2, channels=3)
    x = torch.randn(5, 3, 6, 4, 2)
    values, y = x[:, 1, :, 3], norm(x).unflatten(0, (5, 2))
    wanted = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()  # (N, T, M)
    assert torch.allclose(y[:, :, 1, :, 3], wanted.transpose(1, 2), atol=1e-5)


def test_embedding_by_loops() -> None:
    layer = randomise(EmbeddedJoints(8)(joints=4, bodies=2, channels=3))
    x, norm = features(2, 3, 5, 4, 2), layer.norm.norm
    wanted = x.new_empty(2, 2, 8, 5, 4)
    for body in range(2):
        for joint in range(4):
            for frame in range(5):
                value = x[:, :, frame, joint, body] @ layer.linear.weight.T + layer.linear.bias + layer.position[joint]
                mine = slice((body * 4 + joint) * 8, (body * 4 + joint + 1) * 8)
                running = norm.running_mean[mine], norm.running_var[mine]
                wanted[:, body, :, frame, joint] = batch_norm(value, *running, norm.weight[mine], norm.bias[mine])
    assert same(layer(x), wanted.flatten(0, 1))


@pytest.mark.parametrize("frames", [12, 13])
def test_taps_have_the_shapes_that_heads_are_told(frames: int) -> None:
    net = ctr_gcn()
    net.build(KINECT20, bodies=2)
    taps = net(torch.randn(3, 3, frames, 20, 2))
    assert net.shapes(frames) == [TapShape(8, frames, 20), TapShape(8, frames, 20), TapShape(16, -(-frames // 2), 20)]
    assert [tap.shape for tap in taps] == [(3, 2, shape.channels, shape.frames, shape.joints) for shape in net.shapes(frames)]


def test_blocks_in_a_row_with_residuals() -> None:
    """The first block of coordinates has no residual; the second is the identity, the third a convolution with its stride."""
    net = ctr_gcn()
    net.build(NTU25, bodies=1)
    randomise(net)
    x = features(2, 3, 6, 25, 1)
    y: Tensor = net.embed(x)
    for number, (block, tap) in enumerate(zip(net.blocks, net(x), strict=True)):
        inner = block.temporal(block.spatial(y))
        y = (inner if number == 0 else inner + shortcut(block.residual, y, stride=SMALL["strides"][number])).clamp(min=0)
        assert same(tap[:, 0], y)


def test_the_first_block_of_embedded_joints_has_a_residual() -> None:
    net = SkeletonNet(EmbeddedJoints(8), AttentionTopology(), MultiScaleTemporal(relu=True), **SMALL)
    net.build(NTU25, bodies=1)
    assert isinstance(net.blocks[0].residual, torch.nn.Identity)
    assert ctr_gcn().embedding.raw


@pytest.mark.parametrize(
    "net",
    [
        SkeletonNet(NormalisedJoints(shared=True), FixedGraph(), PlainTemporal(), **SMALL),
        SkeletonNet(NormalisedJoints(), ShiftGraph(), ShiftTemporal(), **SMALL),
        SkeletonNet(EmbeddedJoints(8), AttentionTopology(), MultiScaleTemporal(relu=True), **SMALL),
        ctr_gcn(),
    ],
    ids=["st_gcn", "shift_gcn", "infogcn", "ctr_gcn"],
)
def test_every_weight_gets_a_gradient(net: SkeletonNet) -> None:
    torch.manual_seed(0)
    net.build(COCO17, bodies=2)
    head = LinearHead()
    head.build(net.shapes(8), ["walk", "sit"], COCO17)
    with torch.no_grad():  # at the start, faint norms and zero factors hold some gradients at zero
        for part in net.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.fill_(1)
        for name, value in net.named_parameters():
            if name.endswith("alpha"):
                value.fill_(1)
    scores = head(net(torch.randn(4, 3, 8, 17, 2)))
    torch.nn.functional.cross_entropy(scores.logits, torch.tensor([0, 1, 0, 1])).backward()
    assert [name for name, value in net.named_parameters() if value.grad is None] == []
    assert all(value.grad.isfinite().all() for value in net.parameters())


def test_ctr_gcn_can_be_trained_to_tell_two_movements_apart() -> None:
    """A hand that rises and a hand that sinks, by SGD for a few steps."""
    torch.manual_seed(0)
    net, head = ctr_gcn(), LinearHead()
    net.build(NTU25, bodies=1)
    head.build(net.shapes(8), ["rise", "sink"], NTU25)
    labels = torch.arange(16) % 2
    x = 0.1 * torch.randn(16, 3, 8, 25, 1)
    x[:, 1, :, 7, 0] += torch.linspace(-1, 1, 8) * (1 - 2 * labels[:, None])
    trained = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(trained, 0.05, momentum=0.9, nesterov=True)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(head(net(x)).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # it starts near ln 2


def test_clips_of_another_layout_are_refused() -> None:
    net = ctr_gcn()
    net.build(NTU25, bodies=2)
    with pytest.raises(UsageError, match=r"20 joints and 2 bodies, the network has 25 \(ntu25\) and 2"):
        net(torch.zeros(1, 3, 8, 20, 2))
    with pytest.raises(UsageError, match="widths has 2 blocks"):
        SkeletonNet(NormalisedJoints(), FixedGraph(), PlainTemporal(), (8, 8), (1,))
