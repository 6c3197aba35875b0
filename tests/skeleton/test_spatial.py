"""Spatial units against slow forms by loops over joints and edges, and by hand."""

import math

import by_loops as slow
import pytest
import torch
from by_loops import features, randomise, same
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.graph import hierarchy, levels, partition, stgcn_partition
from vtlvlm.skeleton.hierarchical import EdgeConvolution, HierarchicalGraph, nearest
from vtlvlm.skeleton.layouts import KINECT20, NTU25
from vtlvlm.skeleton.spatial import AttentionTopology, DilatedGraph, FixedGraph, RefinedTopology, ShiftGraph, Spatial

WIDTHS = pytest.mark.parametrize(("c_in", "c_out"), [(3, 8), (8, 8)])
V = KINECT20.num_joints


def joints_mixed(edges: Tensor, values: Tensor) -> Tensor:
    """out[.., u] = sum over the edges of A[u, v] values[.., v], one edge after the other."""
    out = torch.zeros_like(values)
    for u in range(len(edges)):
        for v in range(len(edges)):
            if edges[u, v] != 0:
                out[..., u] += edges[u, v] * values[..., v]
    return out


@WIDTHS
def test_fixed_graph(c_in: int, c_out: int) -> None:
    unit = randomise(FixedGraph()(KINECT20, c_in, c_out))
    x, wanted = features(2, c_in, 4, V), 0
    for subset, edges in enumerate(stgcn_partition(KINECT20).double()):
        mine = slice(subset * c_out, (subset + 1) * c_out)
        values = slow.pointwise(unit.values.weight[mine, :, 0, 0], unit.values.bias[mine], x)
        wanted = wanted + joints_mixed(edges * unit.importance[subset], values)
    assert same(unit(x), wanted)


@WIDTHS
def test_refined_topology(c_in: int, c_out: int) -> None:
    """Clip by clip, subset by subset and joint by joint; phi and psi before the mean over time, as the paper writes them."""
    unit = randomise(RefinedTopology()(KINECT20, c_in, c_out))
    x = features(2, c_in, 4, V)
    out = x.new_zeros(2, c_out, 4, V)
    for subset in range(3):
        mine, narrow = slice(subset * c_out, (subset + 1) * c_out), slice(subset * 8, (subset + 1) * 8)
        values = slow.pointwise(unit.values.weight[mine, :, 0, 0], unit.values.bias[mine], x)
        phi = slow.pointwise(unit.phi.weight[narrow, :, 0, 0], unit.phi.bias[narrow], x).mean(2)
        psi = slow.pointwise(unit.psi.weight[narrow, :, 0, 0], unit.psi.bias[narrow], x).mean(2)
        for u in range(V):
            for v in range(V):
                difference = torch.tanh(phi[:, :, u] - psi[:, :, v])
                refined = difference @ unit.refine.weight[mine, :, 0, 0].T + unit.refine.bias[mine]
                topology = unit.edges[subset, u, v] + unit.alpha * refined  # (B, C')
                out[..., u] += topology[:, :, None] * values[..., v]
    wanted = slow.norm(unit.norm, out) + slow.shortcut(unit.residual, x)
    assert same(unit(x), wanted.clamp(min=0))


def test_refinement_starts_at_zero() -> None:
    """At first, the unit is a graph of CTR-GCN's partition, the same for all clips and channels, under a faint batch norm."""
    unit = RefinedTopology()(NTU25, 16, 16)
    topology = unit.topology(torch.randn(2, 16, 4, 25))
    assert torch.equal(topology, partition(NTU25)[:, None].expand(2, 3, 16, 25, 25))
    assert unit.norm.weight.tolist() == pytest.approx([1e-6] * 16)
    assert unit.values.weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.1)  # fan out of one subset


@WIDTHS
def test_shift_graph(c_in: int, c_out: int) -> None:
    unit = randomise(ShiftGraph()(KINECT20, c_in, c_out))
    x = features(2, c_in, 4, V)
    there = torch.empty_like(x)
    for channel in range(c_in):
        for joint in range(V):
            there[:, channel, :, joint] = x[:, channel, :, (joint + channel) % V] * (torch.tanh(unit.mask[channel, joint]) + 1)
    mixed = slow.pointwise(unit.pointwise.weight[:, :, 0], unit.pointwise.bias, there)
    back = torch.empty_like(mixed)
    for channel in range(c_out):
        for joint in range(V):
            value, number = mixed[:, channel, :, (joint - channel) % V], channel * V + joint
            scale = unit.norm.weight[number] / (unit.norm.running_var[number] + unit.norm.eps).sqrt()
            back[:, channel, :, joint] = (value - unit.norm.running_mean[number]) * scale + unit.norm.bias[number]
    assert same(unit(x), (back + slow.shortcut(unit.residual, x)).clamp(min=0))


def test_shift_graph_there_and_back_is_the_identity() -> None:
    unit = ShiftGraph()(NTU25, 64, 64)
    assert torch.equal(torch.arange(64 * 25)[unit.there][unit.back], torch.arange(64 * 25))
    assert unit.there[:2].tolist() == [0, 1]  # channel 0 stays
    assert unit.there[25:27].tolist() == [26, 27]  # channel 1 comes from the next joint


@pytest.mark.parametrize(("c_in", "c_out"), [(8, 8), (16, 12)])
def test_attention_topology(c_in: int, c_out: int) -> None:
    unit = randomise(AttentionTopology(heads=3)(KINECT20, c_in, c_out))
    x, width = features(2, c_in, 4, V), c_in // 8
    mean, spread = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    normed = (x - mean) / (spread + 1e-5).sqrt() * unit.input_norm.weight[:, None, None] + unit.input_norm.bias[:, None, None]
    both = slow.pointwise(unit.queries_keys.weight, unit.queries_keys.bias, normed)
    out = x.new_zeros(2, c_out, 4, V)
    for head in range(3):
        queries = both[:, head * width : (head + 1) * width]
        keys = both[:, (3 + head) * width : (4 + head) * width]
        mixed = torch.zeros_like(x)
        for u in range(V):
            logits = torch.stack([(queries[..., u] * keys[..., v]).sum(1) / math.sqrt(width) for v in range(V)])
            shares = logits.exp() / logits.exp().sum(0)
            for v in range(V):
                mixed[..., u] += (shares[v] * unit.topology[head, u, v])[:, None] * x[..., v]
        out += slow.pointwise(unit.weight[:, head * c_in : (head + 1) * c_in], unit.bias[head], mixed)
    assert same(unit(x), (slow.norm(unit.norm, out) + slow.shortcut(unit.residual, x)).clamp(min=0))


def test_attention_topology_starts_as_the_official_code() -> None:
    torch.manual_seed(0)
    unit = AttentionTopology()(NTU25, 256, 256)
    assert torch.equal(unit.topology, torch.eye(25).expand(3, 25, 25))
    assert unit.queries_keys.weight.std().item() == pytest.approx(1, rel=0.02)
    assert unit.weight.std().item() == pytest.approx((2 / (256 * 256 * 3)) ** 0.5, rel=0.02)
    with pytest.raises(UsageError, match="at least 1"):
        AttentionTopology(heads=0)


def edge_convolution_by_loops(unit: EdgeConvolution, x: Tensor, number: int, count: int) -> Tensor:
    """(B, C, V) of edge set ``number``."""
    width = x.shape[1]
    mine = slice(number * width, (number + 1) * width)
    weight = unit.compare.weight[mine, :, 0, 0]
    out = torch.empty_like(x)
    for clip in range(len(x)):
        for i in range(x.shape[2]):
            far = [float((x[clip, :, i] - x[clip, :, j]).square().sum()) for j in range(x.shape[2])]
            near = sorted(range(x.shape[2]), key=far.__getitem__)[:count]
            compared = torch.stack([weight @ torch.cat([x[clip, :, j] - x[clip, :, i], x[clip, :, i]]) for j in near])
            normed = slow.norm(unit.norm, compared, mine)
            out[clip, :, i] = torch.where(normed > 0, normed, 0.2 * normed).amax(0)
    return out


@torch.no_grad()
@pytest.mark.parametrize(("c_in", "c_out", "first"), [(3, 8, True), (8, 8, False)])
def test_hierarchical_graph(c_in: int, c_out: int, first: bool) -> None:
    unit = randomise(HierarchicalGraph("spine_mid")(NTU25, c_in, c_out, first))
    x, edges, steps = features(2, c_in, 4, 25), unit.edges, levels(NTU25, 1)
    width, sets = c_out // 4, []
    for number in range(len(edges)):
        mine = slice(number * width, (number + 1) * width)
        reduced = slow.pointwise(unit.reduce.weight[mine, :, 0, 0], unit.reduce.bias[mine], x)
        reduced = slow.norm(unit.reduced, reduced, mine).clamp(min=0)
        branches = []
        for subset in range(3):
            place = slice((3 * number + subset) * width, (3 * number + subset + 1) * width)
            mixed = joints_mixed(edges[number, subset], reduced)
            mixed = slow.pointwise(unit.mixed.weight[place, :, 0, 0], unit.mixed.bias[place], mixed)
            branches.append(slow.norm(unit.mixed_norm, mixed, place))
        still = edge_convolution_by_loops(unit.similar, reduced.mean(2), number, 5)
        sets.append(torch.cat([*branches, torch.stack([still] * 4, 2)], 1))
    if first:
        out = sum(sets)
    else:
        attention = unit.attention
        means = []
        for number, features_of_set in enumerate(sets):
            highest = features_of_set.amax(2, keepdim=True)
            reduced = slow.pointwise(attention.reduce.weight[:, :, 0, 0], attention.reduce.bias, highest)
            reduced = slow.norm(attention.reduced, reduced).clamp(min=0)
            means.append(torch.stack([reduced[:, :, 0, joint] for joint in steps[number] + steps[number + 1]]).mean(0))
        compared = edge_convolution_by_loops(attention.similar, torch.stack(means, 2), 0, 3)
        shares = torch.sigmoid(attention.expand.weight[:, :, 0] @ compared + attention.expand.bias[:, None])
        out = sum(shares[:, :, number, None, None] * part for number, part in enumerate(sets))
    assert same(unit(x), (slow.norm(unit.norm, out) + slow.shortcut(unit.residual, x)).clamp(min=0))


def test_hierarchical_graph_starts_with_the_roots_edge_sets() -> None:
    assert torch.equal(HierarchicalGraph("spine_base")(NTU25, 8, 8).edges, hierarchy(NTU25, 0))
    with pytest.raises(UsageError, match="spine_mid: no joint of the layout kinect20"):
        HierarchicalGraph()(KINECT20, 8, 8)
    with pytest.raises(UsageError, match="multiples of 4"):
        HierarchicalGraph()(NTU25, 8, 6)


def test_nearest_by_hand() -> None:
    x = torch.tensor([0.0, 1, 3, 10]).view(1, 1, 1, 4)
    assert nearest(x, 2)[0, 0].tolist() == [[0, 1], [1, 0], [2, 1], [3, 2]]


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 8), (8, 8)])
def test_dilated_graph(c_in: int, c_out: int) -> None:
    """Branch d of 2 channels: subsets of 0 and d bones, found by walking from joint to joint."""
    unit = DilatedGraph(4)(KINECT20, c_in, c_out)
    for hops, found in enumerate(unit.edges, start=1):
        inward = torch.zeros(V, V)
        for joint in range(V):
            above, steps = joint, 0
            while steps < hops and above != KINECT20.root:
                above, steps = KINECT20.parents[above], steps + 1
            if steps == hops:
                inward[above, joint] = 1
        outward = inward.T / inward.T.sum(0).clamp(min=1)
        assert torch.allclose(found, torch.stack([torch.eye(V), inward, outward]))
    unit, x, out = randomise(unit), features(2, c_in, 4, V), []
    for branch in range(4):
        mixed = 0
        for subset in range(3):
            place = slice((3 * branch + subset) * 2, (3 * branch + subset + 1) * 2)
            values = slow.pointwise(unit.values.weight[place, :, 0, 0], unit.values.bias[place], x)
            mixed = mixed + joints_mixed(unit.edges[branch, subset], values)
        out.append(mixed)
    wanted = slow.norm(unit.norm, torch.cat(out, 1)) + slow.shortcut(unit.residual, x)
    assert same(unit(x), wanted.clamp(min=0))
    with pytest.raises(UsageError, match="4 dilations"):
        DilatedGraph(4)(KINECT20, 8, 6)


@pytest.mark.parametrize(
    "unit",
    [FixedGraph(), RefinedTopology(), AttentionTopology(), HierarchicalGraph(), DilatedGraph()],
    ids=lambda unit: type(unit).__name__,
)
def test_a_mirrored_body_gives_the_mirrored_features(unit: Spatial) -> None:
    """As long as left and right have equal weights, which is how every unit but Shift-GCN's starts."""
    torch.manual_seed(0)
    made, mirror = unit(NTU25, 16, 16).double().eval(), list(NTU25.mirror)
    if hasattr(made, "norm"):
        torch.nn.init.ones_(made.norm.weight)  # not faint, so that joints are seen to be mixed
    x = features(2, 16, 4, 25)
    assert same(made(x[..., mirror]), made(x)[..., mirror])
    assert not same(made(x), made(x)[..., mirror])
