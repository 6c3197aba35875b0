"""Numbers of parameters of the methods at full size, which equal those of the official modules."""

import pytest
import torch
from torch import nn

from vtlvlm.skeleton.backbone import EmbeddedJoints, NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.curves import CurveTemporal
from vtlvlm.skeleton.heads import BottleneckHead, Head, LinearHead
from vtlvlm.skeleton.hierarchical import HierarchicalGraph
from vtlvlm.skeleton.layouts import KINECT20, NTU25, Layout
from vtlvlm.skeleton.spatial import AttentionTopology, DilatedGraph, FixedGraph, RefinedTopology, ShiftGraph
from vtlvlm.skeleton.temporal import MultiScaleTemporal, PlainTemporal, ShiftTemporal


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def built(net: SkeletonNet, head: Head, actions: int, layout: Layout = NTU25, bodies: int = 2) -> int:
    """Parameters of a network and its head; nothing is drawn or computed."""
    with torch.device("meta"):
        net.build(layout, bodies)
        head.build(net.shapes(64), [f"A{i}" for i in range(actions)], layout)
    return count(net) + count(head)


def st_gcn() -> SkeletonNet:
    return SkeletonNet(NormalisedJoints(shared=True), FixedGraph(), PlainTemporal())


def shift_gcn() -> SkeletonNet:
    return SkeletonNet(NormalisedJoints(), ShiftGraph(), ShiftTemporal())


def ctr_gcn() -> SkeletonNet:
    return SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal())


def hd_gcn(root: str) -> SkeletonNet:
    return SkeletonNet(NormalisedJoints(), HierarchicalGraph(root), MultiScaleTemporal())


@pytest.mark.parametrize(("actions", "parameters"), [(60, 3_098_832), (120, 3_114_252)])
def test_st_gcn(actions: int, parameters: int) -> None:
    assert built(st_gcn(), LinearHead(), actions) == parameters


@pytest.mark.parametrize(("actions", "parameters"), [(60, 690_291), (120, 705_711)])
def test_shift_gcn(actions: int, parameters: int) -> None:
    """The official module has 2,816 more: positions of shifts sideways, which get no gradient."""
    assert built(shift_gcn(), LinearHead(), actions) == parameters


@pytest.mark.parametrize(("actions", "parameters"), [(60, 1_446_672), (120, 1_462_092)])
def test_ctr_gcn(actions: int, parameters: int) -> None:
    net = ctr_gcn()
    assert built(net, LinearHead(), actions) == parameters
    blocks = [12_052, *[26_308] * 3, 78_084, *[97_844] * 2, 301_748, *[382_228] * 2]
    assert [count(block) for block in net.blocks] == blocks


def test_ctr_gcn_of_nw_ucla() -> None:
    assert built(ctr_gcn(), LinearHead(), 10, KINECT20, bodies=1) == 1_426_892
    small = SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal(), [16] * 4 + [32] * 3 + [64] * 3)
    assert built(small, LinearHead(), 10, KINECT20, bodies=1) == 105_716


@pytest.mark.parametrize("root", ["spine_base", "spine_mid", "spine_shoulder"])
@pytest.mark.parametrize(("actions", "parameters"), [(60, 1_659_980), (120, 1_675_400)])
def test_hd_gcn(actions: int, parameters: int, root: str) -> None:
    net = hd_gcn(root)
    assert built(net, LinearHead(), actions) == parameters
    assert [count(block) for block in net.blocks] == [
        28_050,
        *[36_226] * 3,
        112_146,
        *[107_282] * 2,
        405_554,
        *[387_634] * 2,
    ]


@pytest.mark.parametrize(("actions", "parameters"), [(60, 1_556_807), (120, 1_572_227)])
def test_infogcn(actions: int, parameters: int) -> None:
    """Nine blocks; the class vectors are no parameters."""
    net = SkeletonNet(
        EmbeddedJoints(),
        AttentionTopology(),
        MultiScaleTemporal(relu=True),
        widths=[64] * 3 + [128] * 3 + [256] * 3,
        strides=[1, 1, 1, 2, 1, 1, 2, 1, 1],
    )
    assert built(net, BottleneckHead(), actions) == parameters


def test_stc_net_as_reconstructed_is_of_the_family_size() -> None:
    """There is no code to equal: CTR-GCN has 1.45 million, the same authors' HD-GCN 1.66 million."""
    net = SkeletonNet(NormalisedJoints(), DilatedGraph(), CurveTemporal())
    assert 1_300_000 < built(net, LinearHead(), 60) < 1_700_000
