"""The kinematic body: rigid bones, exact inverse kinematics, mirror images."""

import numpy as np
import pytest

from vtlvlm.synth.actions import ACTIONS
from vtlvlm.synth.body import JOINTS, PARENTS, Body, J, mirror, pose, rotation, two_bones

BODY = Body.of(1.7, legs=1.02, arms=0.97)


def bones(joints):
    child = [joint for joint, parent in enumerate(PARENTS) if parent >= 0]
    return np.linalg.norm(joints[:, child] - joints[:, [PARENTS[joint] for joint in child]], axis=-1)


def test_the_hierarchy_is_a_tree_of_25_joints():
    assert len(JOINTS) == len(PARENTS) == len(set(JOINTS)) == 25
    for joint in range(25):
        seen = set()
        while joint >= 0:
            assert joint not in seen
            seen.add(joint)
            joint = PARENTS[joint]
        assert 0 in seen
    assert JOINTS[0] == "spine_base"
    assert JOINTS[20] == "spine_shoulder"
    assert JOINTS[3] == "head"


@pytest.mark.parametrize("number", sorted(ACTIONS))
def test_bones_are_rigid_through_every_action(number):
    motion = ACTIONS[number].program(np.linspace(0, 1, 41), np.random.default_rng(0))
    joints = BODY.joints(motion.poses)
    thumbs = [bone for bone, joint in enumerate(j for j in range(25) if PARENTS[j] >= 0) if "thumb" in JOINTS[joint]]
    lengths = bones(joints)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), atol=1e-9)
    assert len(thumbs) == 2
    assert joints[..., 1].min() > -0.2
    assert np.abs(np.diff(joints, axis=0)).max() < 0.45  # nothing jumps: no more than this between 41 phases


def test_standing_at_ease():
    joints = BODY.joints(pose()[None])[0]
    assert joints[J["head"], 1] == pytest.approx(1.7 - 0.11, abs=0.05)
    assert joints[J["ankle_left"]] == pytest.approx([1.15 * BODY.hip, BODY.ankle, 0.0])
    assert joints[J["hand_left"], 0] > 0 > joints[J["hand_right"], 0]
    assert joints[J["foot_left"], 2] > joints[J["ankle_left"], 2]  # feet point to where the performer faces


def test_two_bones_meet_the_target_and_bend_towards_the_pole():
    middle, end = two_bones(np.zeros((1, 3)), np.array([[0.0, -0.6, 0.0]]), 0.5, 0.5, np.array([[0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(end, [[0, -0.6, 0]], atol=1e-12)
    np.testing.assert_allclose(middle, [[0, -0.3, 0.4]], atol=1e-12)  # the 3-4-5 triangle
    _, far = two_bones(np.zeros((1, 3)), np.array([[9.0, 0.0, 0.0]]), 0.5, 0.5, np.array([[0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(far, [[0.999, 0, 0]], atol=1e-12)


def test_rotation_directions():
    up, ahead, left = np.eye(3)[[1, 2, 0]]
    quarter = np.pi / 2
    np.testing.assert_allclose(rotation(np.array([quarter, 0, 0])) @ up, ahead, atol=1e-12)  # pitch leans forwards
    np.testing.assert_allclose(rotation(np.array([0, quarter, 0])) @ ahead, left, atol=1e-12)  # yaw turns left
    np.testing.assert_allclose(rotation(np.array([0, 0, quarter])) @ up, -left, atol=1e-12)  # roll leans right


def test_mirror_image_of_a_pose_is_the_mirror_image_of_the_body():
    motion = ACTIONS[24].program(np.linspace(0, 1, 9), np.random.default_rng(1))
    joints, mirrored = BODY.joints(motion.poses), BODY.joints(mirror(motion.poses))
    swap = [J[n.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")] for n in JOINTS]
    np.testing.assert_allclose(mirrored, joints[:, swap] * [-1, 1, 1], atol=1e-9)
    np.testing.assert_array_equal(mirror(mirror(motion.poses)), motion.poses)
