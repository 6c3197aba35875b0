"""Performances: reversed pairs, timing that tells nothing, the cast."""

import numpy as np
import pytest

from vtlvlm.synth.actions import ACTIONS
from vtlvlm.synth.dataset import EXTRA, MAX_SUBJECTS, ClipSpec, plan
from vtlvlm.synth.people import Person
from vtlvlm.synth.performance import REST, Timing, perform


@pytest.mark.parametrize(("forward", "backward"), [(8, 9), (14, 15)])
def test_pairs_are_each_others_reversal(forward, backward):
    person, extra = Person.of(0, 3), Person.of(0, EXTRA + 2)
    one = perform(ACTIONS[forward], person, extra, np.random.default_rng(5))
    other = perform(ACTIONS[backward], person, extra, np.random.default_rng(5))
    np.testing.assert_array_equal(one.joints, other.joints[:, ::-1])
    np.testing.assert_array_equal(one.jacket, other.jacket[:, ::-1])
    assert one.chair == other.chair
    assert one.timing.start + one.timing.duration + other.timing.start == one.timing.frames
    assert np.abs(one.joints - other.joints).max() > 0.2  # and not the same


def test_pairs_differ_in_the_direction_they_should():
    person, extra = Person.of(0, 1), Person.of(0, EXTRA)
    pelvis = {a: perform(ACTIONS[a], person, extra, np.random.default_rng(1)).joints[0, :, 0, 1] for a in (8, 9)}
    assert pelvis[8][0] - pelvis[8][-1] > 0.3
    assert pelvis[9][-1] - pelvis[9][0] > 0.3
    worn = {a: perform(ACTIONS[a], person, extra, np.random.default_rng(1)).jacket[0, [0, -1], 1] for a in (14, 15)}
    np.testing.assert_array_equal(worn[14], [0, 1])
    np.testing.assert_array_equal(worn[15], [1, 0])


def test_timing_is_within_the_clip_and_symmetric():
    draws = [Timing.draw(np.random.default_rng(seed), 1.0) for seed in range(400)]
    before = np.array([d.start for d in draws])
    after = np.array([d.frames - d.start - d.duration for d in draws])
    assert min(before.min(), after.min()) >= REST[0]
    assert abs(before.mean() - after.mean()) < 3.0
    phase = draws[0].phase
    assert phase[draws[0].start] == 0.0
    assert phase[draws[0].start + draws[0].duration - 1] == 1.0


def test_length_and_timing_do_not_depend_on_the_action():
    person, extra = Person.of(0, 2), Person.of(0, EXTRA + 1)
    lengths = {perform(action, person, extra, np.random.default_rng(7)).timing.frames for action in ACTIONS.values()}
    assert len(lengths) == 1


def test_all_cameras_film_the_same_performance():
    views = [ClipSpec(0, 2, camera, 4, 1, 24).performance() for camera in (1, 2, 3)]
    for view in views[1:]:
        np.testing.assert_array_equal(view.joints, views[0].joints)
        np.testing.assert_array_equal(view.ball, views[0].ball)


def test_two_people_meet_hand_to_hand():
    performance = ClipSpec(0, 1, 1, 1, 1, 58).performance()
    assert performance.joints.shape[0] == 2
    assert performance.people[1].number > MAX_SUBJECTS
    working = performance.working[0]
    hands = performance.joints[:, :, {"left": 7, "right": 11}[working]]
    assert np.linalg.norm(hands[0] - hands[1], axis=-1).min() < 0.25


def test_people_differ_and_both_sides_have_left_handers():
    people = [Person.of(0, number) for number in range(1, 11)]
    assert len({p.height for p in people}) == len({p.speed for p in people}) == len({(p.shirt, p.trousers) for p in people}) == 10
    assert max(p.height for p in people) - min(p.height for p in people) > 0.25
    train = {1, 2, 4, 5, 8, 9}
    assert {p.left_handed for p in people if p.number in train} == {p.left_handed for p in people if p.number not in train} == {True, False}
    assert Person.of(0, 3) == Person.of(0, 3) != Person.of(1, 3)


def test_every_protocol_has_two_sides():
    clips = plan(0, 10, 1, sorted(ACTIONS), (1, 2, 3))
    assert len(clips) == 420
    assert [c.name for c in clips] == sorted({c.name for c in clips})
    for action in ACTIONS:
        setups = {c.setup % 2 for c in clips if c.action == action}
        assert setups == {0, 1}  # X-Set: odd and even
    for subject in range(1, 11):
        assert {c.setup % 2 for c in clips if c.subject == subject} == {0, 1}
