"""Streams against explicit loops over frames and joints."""

import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layouts import COCO17, KINECT20, LAYOUTS, NTU25
from vtlvlm.skeleton.streams import Stream


def joints_of(layout, seed=0) -> torch.Tensor:
    return torch.randn(2, 3, 5, layout.num_joints, 2, generator=torch.Generator().manual_seed(seed))


def looped(name: str, layout, x: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    kind, _, hops = name.partition(":")
    if kind.startswith("bone"):
        for joint in range(layout.num_joints):
            parent = next((parent for child, parent in layout.bones if child == joint), joint)
            out[:, :, :, joint] = x[:, :, :, joint] - x[:, :, :, parent]
    if hops:
        parents = layout.rooted(layout.centre)
        for joint in range(layout.num_joints):
            above, steps = joint, 0
            while steps < int(hops) and above != layout.centre:
                above, steps = parents[above], steps + 1
            if steps == int(hops):
                out[:, :, :, joint] = x[:, :, :, joint] - x[:, :, :, above]
    if "motion" in kind:
        still = out.clone()
        for frame in range(x.shape[2]):
            out[:, :, frame] = still[:, :, frame + 1] - still[:, :, frame] if frame + 1 < x.shape[2] else 0
    return out


@pytest.mark.parametrize("name", ["joint", "bone", "joint_motion", "bone_motion", "ancestor:1", "ancestor:2", "ancestor_motion:2"])
@pytest.mark.parametrize("layout", [NTU25, KINECT20], ids=["ntu25", "kinect20"])
def test_streams_are_those_of_loops(name, layout):
    x = joints_of(layout)
    torch.testing.assert_close(Stream(name, layout)(x), looped(name, layout, x), atol=1e-6, rtol=0)


def test_picture_streams():
    x = joints_of(COCO17)
    for name in ("joint", "bone", "joint_motion", "bone_motion"):
        torch.testing.assert_close(Stream(name, COCO17)(x), looped(name, COCO17, x), atol=1e-6, rtol=0)


def test_known_bones():
    """The head minus the neck; the root, which is the spine's shoulder, is zero."""
    x = joints_of(NTU25)
    bones = Stream("bone", NTU25)(x)
    torch.testing.assert_close(bones[:, :, :, 3], x[:, :, :, 3] - x[:, :, :, 2])
    assert not bones[:, :, :, 20].any()


def test_eight_bones_up_there_is_nobody():
    x = joints_of(NTU25)
    torch.testing.assert_close(Stream("ancestor:8", NTU25)(x), x)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_absent_bodies_stay_zero(layout):
    x = joints_of(layout)
    x[..., 1] = 0
    for name in ("bone", "joint_motion", "bone_motion"):
        assert not Stream(name, layout)(x)[..., 1].any()


def test_what_is_no_stream_is_refused():
    for name in ("bones", "ancestor", "ancestor:0", "ancestor:x", "joint:2", ""):
        with pytest.raises(UsageError, match="no such stream; choose joint, bone, joint_motion, bone_motion, ancestor:k"):
            Stream(name, NTU25)
    with pytest.raises(UsageError, match="ancestor:2: the layout coco17 has no spine"):
        Stream("ancestor:2", COCO17)
