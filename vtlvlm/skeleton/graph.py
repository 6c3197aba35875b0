"""Matrices of a layout's joints. In each matrix A, entry A[u, v] is what joint u takes from joint v: out_u = sum over v of A[u, v] x_v."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layouts import Layout


def partition(layout: Layout) -> Tensor:
    """The three subsets of CTR-GCN (arXiv 2107.12213): joints to themselves, inward and outward.

    Inward, a parent takes from its children; outward, a child takes from its parent. The columns of the last two sum to one, or are zero.

    Returns:
        (3, V, V) float32.
    """
    return dilated_partition(layout, 1)


def dilated_partition(layout: Layout, hops: int) -> Tensor:
    """As :func:`partition`, for joints ``hops`` bones apart: the ancestor takes the parent's place, the descendants the children's.

    Args:
        layout: The V joints.
        hops: Number of bones, from 1.

    Returns:
        (3, V, V) float32.
    """
    above = torch.linalg.matrix_power(_parents(layout, layout.root), hops)  # [child, ancestor]
    return torch.stack([torch.eye(layout.num_joints), _columns_to_one(above.T), _columns_to_one(above)])


def stgcn_partition(layout: Layout) -> Tensor:
    """The three subsets of ST-GCN (arXiv 1801.07455, "spatial configuration"): a joint itself, neighbours farther from the root, and
    neighbours closer to it.

    Each joint takes the mean over itself and its neighbours: the three rows of a joint sum to one together.

    Returns:
        (3, V, V) float32.
    """
    parent = _parents(layout, layout.root)
    whole = torch.eye(layout.num_joints) + parent + parent.T
    mean = whole / whole.sum(1, keepdim=True)
    return torch.stack([mean * torch.eye(layout.num_joints), mean * parent.T, mean * parent])


def ancestor(layout: Layout, hops: int, root: int | None = None) -> Tensor:
    """B_k = I - P^k of InfoGCN (CVPR 2022): a joint minus its ancestor of k bones. Joints without such an ancestor stay.

    Args:
        layout: The joints.
        hops: k >= 1; 1 gives the bones.
        root: Root of the tree; None for the layout's centre, which is InfoGCN's.

    Returns:
        (V, V) float32.
    """
    if hops < 1:
        raise UsageError(f"ancestor:{hops}: the number of bones must be at least 1")
    parent = _parents(layout, layout.centre if root is None else root)
    return torch.eye(layout.num_joints) - torch.linalg.matrix_power(parent, hops)


_HIERARCHIES = {  # of NTU's joints, numbered from one as in HD-GCN's paper
    1: ((2,), (1, 21), (13, 17, 3, 5, 9), (14, 18, 4, 6, 10), (15, 19, 7, 11), (16, 20, 8, 12), (22, 23, 24, 25)),
    20: ((21,), (2, 3, 5, 9), (4, 6, 10, 1), (7, 11, 13, 17), (8, 12, 14, 18), (22, 23, 24, 25, 15, 19), (16, 20)),
    0: ((1,), (2, 13, 17), (14, 18, 21), (3, 5, 9, 15, 19), (4, 6, 10, 16, 20), (7, 11), (8, 12, 22, 23, 24, 25)),
}


def levels(layout: Layout, root: int) -> tuple[tuple[int, ...], ...]:
    """The joints by their level under a root, the root alone first.

    For NTU's joints these are HD-GCN's own (arXiv 2208.10741), in which a hand, its thumb and its tip can share a level; its figures are
    made with three roots: spine_base, spine_mid and spine_shoulder. Other layouts and roots count bones from the root.
    """
    if layout.name == "ntu25" and root in _HIERARCHIES:
        return tuple(tuple(joint - 1 for joint in level) for level in _HIERARCHIES[root])
    parents = layout.rooted(root)
    found: list[tuple[int, ...]] = [(root,)]
    while below := tuple(j for j, parent in enumerate(parents) if parent in found[-1] and j != root):
        found.append(below)
    return tuple(found)


def hierarchy(layout: Layout, root: int) -> Tensor:
    """HD-GCN's edge sets: set l joins every joint of level l with every joint of level l + 1, whether a bone joins them or not.

    The three subsets of a set are the joints of both levels to themselves, the lower level taking from the upper, and the upper level
    taking from the lower. Columns of a set's joints sum to one, or are zero.

    Returns:
        (L, 3, V, V) float32, L one less than the number of levels.
    """
    sets = []
    steps = levels(layout, root)
    for upper, lower in pairwise(steps):
        subsets = torch.zeros(3, layout.num_joints, layout.num_joints)
        both = torch.tensor((*upper, *lower))
        subsets[0, both, both] = 1
        subsets[1, torch.tensor(lower)[:, None], torch.tensor(upper)] = 1 / len(lower)
        subsets[2, torch.tensor(upper)[:, None], torch.tensor(lower)] = 1 / len(upper)
        sets.append(subsets)
    return torch.stack(sets)


def _parents(layout: Layout, root: int) -> Tensor:
    """(V, V) float32: 1 at [child, parent]; the root's row is zero."""
    found = torch.zeros(layout.num_joints, layout.num_joints)
    for child, parent in enumerate(layout.rooted(root)):
        if child != root:
            found[child, parent] = 1
    return found


def _columns_to_one(matrix: Tensor) -> Tensor:
    return matrix / matrix.sum(0).clamp(min=1)
