"""Streams: what a network reads of the joints. Every stream has the joints' shape."""

from __future__ import annotations

import re
from functools import cache

import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.graph import ancestor
from vtlvlm.skeleton.layouts import Layout

STREAMS = ("joint", "bone", "joint_motion", "bone_motion")
_ANCESTOR = re.compile(r"ancestor(_motion)?:([1-9]\d?)", re.ASCII)


class Stream:
    """A stream of one layout, by its name in the settings.

    ``joint`` is the joints themselves. ``bone`` is each joint minus its parent; the root is zero. ``joint_motion`` and ``bone_motion`` are
    the next frame minus this one; the last frame is zero. ``ancestor:k`` is InfoGCN's: each joint minus its ancestor of k bones, in the
    tree whose root is the middle of the spine; a joint without such an ancestor stays. With 25 joints, ``ancestor:8`` is ``joint``.
    ``ancestor_motion:k`` is its motion.

    Args:
        name: The name.
        layout: The joints.

    Raises:
        UsageError: There is no such stream, or the layout lacks it.
    """

    def __init__(self, name: str, layout: Layout) -> None:
        found = _ANCESTOR.fullmatch(name)
        if name not in STREAMS and found is None:
            raise UsageError(f"{name}: no such stream; choose {', '.join(STREAMS)}, ancestor:k or ancestor_motion:k, with k from 1")
        if found is not None and layout.spine is None:
            raise UsageError(f"{name}: the layout {layout.name} has no spine, from which ancestors count; choose {', '.join(STREAMS)}")
        self.name, self.layout = name, layout
        self.hops = 0 if found is None else int(found[2])
        self.moving = "motion" in name

    def __call__(self, joints: Tensor) -> Tensor:
        """(N, C, T, V, M) -> (N, C, T, V, M). Absent bodies, all zeros, stay zero."""
        if self.name.startswith("bone"):
            joints = joints - joints.index_select(3, _parents(self.layout, joints.device))
        elif self.hops:
            joints = torch.einsum("uv,nctvm->nctum", _ancestors(self.layout, self.hops, joints.device).to(joints.dtype), joints)
        return motion(joints) if self.moving else joints


def motion(joints: Tensor) -> Tensor:
    """(N, C, T, V, M) -> the same: the next frame minus this one; the last frame is zero."""
    return torch.cat([joints[:, :, 1:] - joints[:, :, :-1], torch.zeros_like(joints[:, :, :1])], dim=2)


@cache
def _parents(layout: Layout, device: torch.device) -> Tensor:
    return torch.tensor(layout.parents, device=device)


@cache
def _ancestors(layout: Layout, hops: int, device: torch.device) -> Tensor:
    return ancestor(layout, hops).to(device)
