"""Layouts are trees whose left and right halves mirror each other; answers are those of the official code."""

import pickle

import pytest

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layouts import COCO17, KINECT20, LAYOUTS, NTU25, Layout, layout_named
from vtlvlm.synth.body import JOINTS

ALL = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


def test_sizes_and_roots() -> None:
    assert [layout.num_joints for layout in (NTU25, KINECT20, COCO17)] == [25, 20, 17]
    assert [layout.joints[layout.root] for layout in (NTU25, KINECT20, COCO17)] == ["spine_shoulder", "shoulder_center", "nose"]


def test_ntu_has_the_order_of_the_rendered_body() -> None:
    assert NTU25.joints == JOINTS


@ALL
def test_every_joint_reaches_the_root(layout: Layout) -> None:
    assert len(layout.bones) == layout.num_joints - 1
    for start in range(layout.num_joints):
        joint, steps = start, 0
        while joint != layout.root and steps < layout.num_joints:
            joint, steps = layout.parents[joint], steps + 1
        assert joint == layout.root


@ALL
def test_parents_are_those_of_the_bones(layout: Layout) -> None:
    assert [layout.parents[child] for child, _ in layout.bones] == [parent for _, parent in layout.bones]
    assert layout.parents[layout.root] == layout.root


@ALL
def test_the_mirrored_skeleton_has_the_same_bones(layout: Layout) -> None:
    assert [layout.mirror[layout.mirror[joint]] for joint in range(layout.num_joints)] == list(range(layout.num_joints))
    assert {(layout.mirror[child], layout.mirror[parent]) for child, parent in layout.bones} == set(layout.bones)
    changed = [name for joint, name in enumerate(layout.joints) if layout.mirror[joint] != joint]
    assert changed == [name for name in layout.joints if "left" in name or "right" in name]


@ALL
def test_parts_cover_all_joints_of_both_sides(layout: Layout) -> None:
    assert list(layout.parts) == ["head", "arms", "hips", "legs"]
    assert {joint for part in layout.parts.values() for joint in part} == set(range(layout.num_joints))
    assert all({layout.mirror[joint] for joint in part} == set(part) for part in layout.parts.values())


def test_infogcn_hangs_the_tree_on_the_spine() -> None:
    """Pairs parent <- child of its code, from one: 1<-2 means that joint 1 hangs on joint 2."""
    parents = [parent + 1 for parent in NTU25.rooted(NTU25.centre)]
    assert parents == [2, 2, 21, 3, 21, 5, 6, 7, 21, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19, 2, 23, 8, 25, 12]


def test_a_network_that_holds_a_layout_can_be_copied() -> None:
    assert pickle.loads(pickle.dumps(NTU25)) == NTU25
    assert len({NTU25, KINECT20, NTU25}) == 2


def test_an_unknown_layout_names_the_others() -> None:
    assert layout_named("kinect20") is KINECT20
    with pytest.raises(UsageError, match="body25: no such layout of joints; choose ntu25, kinect20, coco17"):
        layout_named("body25")


def test_an_unknown_joint_names_the_others() -> None:
    assert NTU25.index("hip_right") == 16
    with pytest.raises(UsageError, match="tail: no joint of the layout coco17"):
        COCO17.index("tail")
