"""Matrices of joints against values made by hand on a small tree, and against loops over bones."""

import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.graph import ancestor, dilated_partition, hierarchy, levels, partition, stgcn_partition
from vtlvlm.skeleton.layouts import COCO17, KINECT20, NTU25, Layout

# 0 is the root; 1 and 2 hang on it; 3 hangs on 1
SMALL = Layout("small", ("a", "b", "c", "d"), ((1, 0), (2, 0), (3, 1)), (0, 2, 1, 3), {}, centre=1, spine=None)
ALL = pytest.mark.parametrize("layout", [NTU25, KINECT20, COCO17], ids=lambda layout: layout.name)


def test_partition_by_hand() -> None:
    itself, inward, outward = partition(SMALL)
    assert itself.tolist() == torch.eye(4).tolist()
    assert inward.tolist() == [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert outward.tolist() == [[0, 0, 0, 0], [0.5, 0, 0, 0], [0.5, 0, 0, 0], [0, 1, 0, 0]]


def test_stgcn_partition_by_hand() -> None:
    itself, farther, closer = stgcn_partition(SMALL)
    assert itself.diagonal().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2, 1 / 2])  # one over the neighbours and itself
    assert farther[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0])
    assert closer[3].tolist() == pytest.approx([0, 1 / 2, 0, 0])
    assert closer[0].tolist() == [0] * 4


@ALL
def test_partition_against_loops_over_bones(layout: Layout) -> None:
    inward, outward = torch.zeros(2, layout.num_joints, layout.num_joints)
    for child, parent in layout.bones:
        inward[parent, child] = 1
        outward[child, parent] = 1 / sum(other == parent for _, other in layout.bones)
    assert torch.allclose(partition(layout), torch.stack([torch.eye(layout.num_joints), inward, outward]))


@ALL
def test_sums(layout: Layout) -> None:
    children = len({parent for _, parent in layout.bones})
    assert partition(layout).sum((1, 2)).tolist() == pytest.approx([layout.num_joints, layout.num_joints - 1, children])
    assert torch.allclose(stgcn_partition(layout).sum((0, 2)), torch.ones(layout.num_joints))
    assert (stgcn_partition(layout) > 0).sum() == layout.num_joints + 2 * len(layout.bones)


@pytest.mark.parametrize("layout", [NTU25, KINECT20], ids=lambda layout: layout.name)
def test_a_mirrored_layout_has_the_mirrored_matrices(layout: Layout) -> None:
    mirror = torch.tensor(layout.mirror)
    for matrices in (partition(layout), stgcn_partition(layout), ancestor(layout, 2)[None]):
        assert torch.equal(matrices[:, mirror][:, :, mirror], matrices)


def test_dilated_partition_follows_chains() -> None:
    _, inward, outward = dilated_partition(SMALL, 2)
    assert inward.nonzero().tolist() == [[0, 3]]
    assert outward.nonzero().tolist() == [[3, 0]]
    assert torch.equal(dilated_partition(NTU25, 1), partition(NTU25))


def test_ancestor_by_hand() -> None:
    """The tree of SMALL hung on its centre 1: 0 and 3 hang on 1, 2 hangs on 0."""
    x = torch.tensor([1.0, 10, 100, 1000])
    assert (ancestor(SMALL, 1) @ x).tolist() == [1 - 10, 10, 100 - 1, 1000 - 10]
    assert (ancestor(SMALL, 2) @ x).tolist() == [1, 10, 100 - 10, 1000]
    assert (ancestor(SMALL, 1, root=0) @ x).tolist() == [1, 10 - 1, 100 - 1, 1000 - 10]
    with pytest.raises(UsageError, match="at least 1"):
        ancestor(SMALL, 0)


def test_ancestors_of_ntu() -> None:
    first = {joint: int(row.argmin()) for joint, row in enumerate(ancestor(NTU25, 1)) if row.min() < 0}
    assert len(first) == 24
    assert (first[0], first[20], first[2], first[22], first[21]) == (1, 1, 20, 7, 22)
    assert torch.equal(ancestor(NTU25, 8), torch.eye(25))  # no joint has an eighth ancestor


@pytest.mark.parametrize("root", [0, 1, 20])
def test_hd_gcn_levels_hold_every_joint_once(root: int) -> None:
    found = levels(NTU25, root)
    assert len(found) == 7
    assert found[0] == (root,)
    assert sorted(joint for level in found for joint in level) == list(range(25))


def test_levels_of_another_layout_count_bones() -> None:
    assert levels(SMALL, 0) == ((0,), (1, 2), (3,))
    assert levels(SMALL, 3) == ((3,), (1,), (0,), (2,))


@pytest.mark.parametrize(("layout", "root"), [(NTU25, 0), (NTU25, 1), (NTU25, 20), (KINECT20, 2), (SMALL, 0)])
def test_hierarchy_against_loops_over_joints(layout: Layout, root: int) -> None:
    steps = levels(layout, root)
    slow = torch.zeros(len(steps) - 1, 3, layout.num_joints, layout.num_joints)
    for number in range(len(steps) - 1):
        for joint in steps[number] + steps[number + 1]:
            slow[number, 0, joint, joint] = 1
        for above in steps[number]:
            for below in steps[number + 1]:
                slow[number, 1, below, above] = 1
                slow[number, 2, above, below] = 1
        for subset in (1, 2):
            for column in range(layout.num_joints):
                if slow[number, subset, :, column].sum() > 0:
                    slow[number, subset, :, column] /= slow[number, subset, :, column].sum()
    assert torch.allclose(hierarchy(layout, root), slow)
