"""Intervals by hand and against the normal approximation."""

import numpy as np
import pytest

from vtlvlm.metrics.paired import paired_difference, paired_scores


def test_no_difference_has_no_width() -> None:
    right = np.array([[True, False, True]])
    found = paired_difference(right, right)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_seeds_are_averaged_and_the_interval_is_that_of_the_clips() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random((1, 400)) < 0.8, rng.random((1, 400)) < 0.6
    found = paired_difference(ours, theirs)
    gain = ours[0].astype(float) - theirs[0]
    half = 1.96 * gain.std() / 20
    assert found.mean == pytest.approx(gain.mean())
    assert (found.low, found.high) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.01)
    again = paired_difference(np.repeat(ours, 3, axis=0), np.repeat(theirs, 3, axis=0))
    assert again == found  # three equal seeds tell no more than one


def test_drawing_people_is_wider_where_their_clips_are_alike() -> None:
    groups = np.repeat(np.arange(6), 20)
    ours, theirs = (groups % 2 == 0)[None], np.zeros((1, 120), dtype=bool)
    clips, people = paired_difference(ours, theirs), paired_difference(ours, theirs, groups)
    assert clips.mean == people.mean == 0.5
    assert people.high - people.low > 3 * (clips.high - clips.low)
    assert str(people).startswith("+0.500 [+0.")


def test_one_clip_or_one_person_is_always_drawn_as_it_is() -> None:
    right, wrong = np.ones((1, 4), dtype=bool), np.array([[True, False, False, True]])
    for found in (paired_difference(right[:, 1:2], wrong[:, 1:2]), paired_difference(right[:, :2], wrong[:, :2], np.array([7, 7]))):
        assert found.low == found.mean == found.high > 0


def test_refused() -> None:
    with pytest.raises(ValueError, match="same seeds and clips"):
        paired_difference(np.ones((1, 2), dtype=bool), np.ones((1, 3), dtype=bool))


def test_scores_have_the_interval_of_the_clips() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.random((3, 300)), rng.random((3, 300)) - 0.2
    found = paired_scores(ours, theirs)
    gain = (ours - theirs).mean(0)
    half = 1.96 * gain.std() / np.sqrt(300)
    assert found.mean == pytest.approx(gain.mean())
    assert (found.low, found.high) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.005)
    assert found == paired_scores(ours, theirs)
    with pytest.raises(ValueError, match="same seeds and clips"):
        paired_scores(ours, theirs[:2])
