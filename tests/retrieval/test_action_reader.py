"""What codes say of actions: softened shares by loops, and what is learned from them."""

import numpy as np
import pytest
from galleries import gallery

from vtlvlm.retrieval import actions
from vtlvlm.retrieval.actions import learn_actions, neighbourhoods, softened, thinned
from vtlvlm.retrieval.alignment import directions


def test_shares_are_softened_within_each_third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "NEAR", 3)
    rng = np.random.default_rng(0)
    units = directions(rng.standard_normal((6, 4)))
    near, shares = neighbourhoods(units)
    ids = rng.integers(6, size=(3, 7, 2))
    found = softened(ids, near, shares)
    alike = units @ units.T
    for row, sentence in enumerate(ids):
        for part, windows in enumerate((sentence[:2], sentence[2:5], sentence[5:])):  # edges 0, 2.33, 4.67, 7, rounded
            expected = np.zeros(6)
            for code in windows.ravel():
                best = np.argsort(-alike[code])[:3]
                assert best[0] == code
                weights = np.exp((alike[code, best] - 1) / actions.WIDTH)
                expected[best] += weights / weights.sum() / windows.size
            np.testing.assert_allclose(found[row, 6 * part : 6 * part + 6], np.sqrt(expected), atol=1e-5)


def test_fewer_windows_than_parts() -> None:
    near, shares = neighbourhoods(directions(np.eye(4)))
    assert softened(np.zeros((2, 1, 3), int), near, shares).shape == (2, 4)


@pytest.mark.parametrize("count", [2, 3])
def test_it_learns_from_some_people_what_others_do(count: int) -> None:
    known = gallery(people=8, actions=count)
    units = directions(known.table)
    reader = learn_actions(known.ids[known.learning], known.labels[known.learning], count + 1, units)  # an action without clips
    found = reader.probabilities(known.ids)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (found[known.testing].argmax(1) == known.labels[known.testing]).mean() > 0.9
    assert found[:, count].max() == 0
    assert not reader.weight[count].any()


def test_clips_are_thinned_evenly() -> None:
    labels = np.repeat([0, 1, 2], [50, 4, 20])
    kept = thinned(labels, 24)
    assert np.bincount(labels[kept]).tolist() == [10, 4, 10]
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert thinned(labels, 100).tolist() == list(range(74))
