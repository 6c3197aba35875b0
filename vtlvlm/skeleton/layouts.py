"""Layouts of joints: their names and order, the bones between them, left and right, and body parts.

The bones of NTU25 and KINECT20 are those of the official code of CTR-GCN, the bones of COCO17 those of PYSKL. A hand tip hangs on the
thumb, which hangs on the hand; Kinect's own hierarchy hangs the thumb on the wrist. The body parts of NTU25 are those of GAP (arXiv
2208.05318); the others follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from vtlvlm.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """The V joints of a kind of skeleton, which form a tree.

    Attributes:
        name: Name in the settings.
        joints: The V names, in the order of the data.
        bones: V - 1 pairs (child, parent), from zero. The root is no child.
        mirror: (V,) the same joint of the other side. A joint in the middle is its own partner.
        parts: Body part → its joints. Parts may share joints.
        centre: The joint that a centred recording has at its origin.
        spine: Two joints, the lower and the upper one, whose line is the body's vertical; None for a layout in the picture's plane.
    """

    name: str
    joints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    mirror: tuple[int, ...]
    parts: Mapping[str, tuple[int, ...]] = field(hash=False)
    centre: int
    spine: tuple[int, int] | None

    @property
    def num_joints(self) -> int:
        """V, the number of joints."""
        return len(self.joints)

    @property
    def root(self) -> int:
        """The joint without a parent."""
        (root,) = {*range(self.num_joints)} - {child for child, _ in self.bones}
        return root

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """(V,) parent of each joint. The root is its own parent."""
        return self.rooted(self.root)

    def rooted(self, root: int) -> tuple[int, ...]:
        """(V,) parent of each joint in the tree of the same bones with another root, which is its own parent.

        InfoGCN and GAP hang their tree on NTU's spine_mid, CTR-GCN on spine_shoulder.
        """
        parents = {root: root}
        while len(parents) < self.num_joints:
            for pair in self.bones:
                for child, parent in (pair, pair[::-1]):
                    if parent in parents and child not in parents:
                        parents[child] = parent
        return tuple(parents[joint] for joint in range(self.num_joints))

    def index(self, joint: str) -> int:
        """Position of a joint's name.

        Raises:
            UsageError: The layout lacks the joint.
        """
        if joint not in self.joints:
            raise UsageError(f"{joint}: no joint of the layout {self.name}; it has {', '.join(self.joints)}")
        return self.joints.index(joint)


def _from_one(*pairs: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((child - 1, parent - 1) for child, parent in pairs)


def _mirror(joints: tuple[str, ...]) -> tuple[int, ...]:
    def other(name: str) -> str:
        return name.replace("left", "*").replace("right", "left").replace("*", "right")

    return tuple(joints.index(other(name)) for name in joints)


_NTU25 = (
    *("spine_base", "spine_mid", "neck", "head"),
    *("shoulder_left", "elbow_left", "wrist_left", "hand_left"),
    *("shoulder_right", "elbow_right", "wrist_right", "hand_right"),
    *("hip_left", "knee_left", "ankle_left", "foot_left"),
    *("hip_right", "knee_right", "ankle_right", "foot_right"),
    *("spine_shoulder", "hand_tip_left", "thumb_left", "hand_tip_right", "thumb_right"),
)
NTU25 = Layout(
    name="ntu25",
    joints=_NTU25,
    bones=_from_one(
        *((1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11)),
        *((13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (22, 23), (23, 8), (24, 25), (25, 12)),
    ),
    mirror=_mirror(_NTU25),
    parts={
        "head": (2, 3, 20),
        "arms": (4, 5, 6, 7, 8, 9, 10, 11, 21, 22, 23, 24),
        "hips": (0, 1, 2, 12, 16),
        "legs": (12, 13, 14, 15, 16, 17, 18, 19),
    },
    centre=1,
    spine=(0, 1),
)
"""Kinect v2, NTU RGB+D."""

_KINECT20 = (
    *("hip_center", "spine", "shoulder_center", "head"),
    *("shoulder_left", "elbow_left", "wrist_left", "hand_left"),
    *("shoulder_right", "elbow_right", "wrist_right", "hand_right"),
    *("hip_left", "knee_left", "ankle_left", "foot_left"),
    *("hip_right", "knee_right", "ankle_right", "foot_right"),
)
KINECT20 = Layout(
    name="kinect20",
    joints=_KINECT20,
    bones=_from_one(
        *((1, 2), (2, 3), (4, 3), (5, 3), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 11)),
        *((13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19)),
    ),
    mirror=_mirror(_KINECT20),
    parts={
        "head": (2, 3),
        "arms": (4, 5, 6, 7, 8, 9, 10, 11),
        "hips": (0, 1, 2, 12, 16),
        "legs": (12, 13, 14, 15, 16, 17, 18, 19),
    },
    centre=1,
    spine=(0, 1),
)
"""Kinect v1, Northwestern-UCLA Multiview Action 3D."""

_COCO17 = (
    *("nose", "eye_left", "eye_right", "ear_left", "ear_right", "shoulder_left", "shoulder_right", "elbow_left", "elbow_right"),
    *("wrist_left", "wrist_right", "hip_left", "hip_right", "knee_left", "knee_right", "ankle_left", "ankle_right"),
)
COCO17 = Layout(
    name="coco17",
    joints=_COCO17,
    bones=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 5), (12, 6), (9, 7), (7, 5), (10, 8), (8, 6)),
        *((5, 0), (6, 0), (1, 0), (3, 1), (2, 0), (4, 2)),
    ),
    mirror=_mirror(_COCO17),
    parts={
        "head": (0, 1, 2, 3, 4),
        "arms": (5, 6, 7, 8, 9, 10),
        "hips": (11, 12),
        "legs": (11, 12, 13, 14, 15, 16),
    },
    centre=0,
    spine=None,
)
"""Key points of COCO, in the picture's plane."""

LAYOUTS = {layout.name: layout for layout in (NTU25, KINECT20, COCO17)}


def layout_named(name: str) -> Layout:
    """A layout by its name in the settings.

    Raises:
        UsageError: No layout has this name.
    """
    if name not in LAYOUTS:
        raise UsageError(f"{name}: no such layout of joints; choose {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
