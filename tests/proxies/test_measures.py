"""The automatic measures against enumeration, by hand, and on sentences whose answer is known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vtlvlm.proxies import likeness, purity, wording
from vtlvlm.proxies.clips import Clips, spread_over_actions
from vtlvlm.proxies.comparing import compare
from vtlvlm.proxies.erasure import areas, erasure, subsets, with_subsets
from vtlvlm.proxies.measuring import agreement, code_class, coherence, jackknife
from vtlvlm.proxies.order import REVERSED, backwards, in_order, partners, shuffles
from vtlvlm.ratings.cards import Stay
from vtlvlm.ratings.sentences import Sentences

# -- deletion and insertion ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3, 5])
def test_areas_over_all_orders(number: int) -> None:
    values = np.random.default_rng(number).normal(size=1 << number)
    full = (1 << number) - 1
    orders = list(itertools.permutations(range(number)))
    deleted, inserted = [], []
    for order in orders:
        removed = np.cumsum([1 << step for step in order])
        deleted.append(np.mean([values[full] - values[full - mask] for mask in removed]))
        inserted.append(np.mean([values[mask] - values[0] for mask in removed]))
    importance = [values[full] - values[full ^ (1 << step)] for step in range(number)]
    own = orders.index(tuple(np.argsort(-np.array(importance), kind="stable").tolist()))
    found = areas(values)
    for all_orders, at, mean in ((deleted, found.deletion, found.random_deletion), (inserted, found.insertion, found.random_insertion)):
        low, high = min(all_orders), max(all_orders)
        assert at == pytest.approx((all_orders[own] - low) / (high - low))
        assert mean == pytest.approx((np.mean(all_orders) - low) / (high - low))


def test_orders_that_are_all_equal_have_no_area() -> None:
    assert np.isnan(areas(np.array([0.0, 1, 1, 2]))).all()


def test_subsets_replace_whole_steps() -> None:
    """Two steps over three windows of two cells."""
    vectors, other = torch.arange(6.0)[:, None], -torch.ones(6, 1)
    found = with_subsets(vectors, other, [Stay(0, 1, 5), Stay(2, 2, 7)], 2)[..., 0]
    assert found.tolist() == [[-1] * 6, [0, 1, 2, 3, -1, -1], [-1, -1, -1, -1, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert subsets(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]


def test_the_step_that_decides_is_found() -> None:
    """A model that looks at the last window alone: its order is the best one, in both directions."""

    def read(vectors: Tensor) -> Tensor:
        return torch.stack([vectors[:, -1, 0], -vectors[:, -1, 0]], 1).log_softmax(1)

    vectors = torch.tensor([[0.1], [0.2], [0.3], [3.0]])
    found = erasure(read, vectors, torch.zeros(4, 1), [Stay(0, 0, 0), Stay(1, 2, 1), Stay(3, 3, 2)], 1)
    assert found is not None
    assert found.deletion == pytest.approx(1)
    assert found.insertion == pytest.approx(1)
    assert found.random_deletion == pytest.approx(0.5)
    assert erasure(read, vectors, torch.zeros(4, 1), [Stay(0, 3, 0)], 1) is None


# -- order -----------------------------------------------------------------------------------------------------------------------------


def test_windows_are_put_in_another_order() -> None:
    vectors = torch.arange(12.0).view(1, 6, 2)
    turned = in_order(vectors, backwards(1, 3), 2)
    assert turned[0, :, 0].tolist() == [8, 10, 4, 6, 0, 2]
    assert torch.equal(in_order(turned, backwards(1, 3), 2), vectors)
    order = shuffles(50, 5, seed=0)
    assert (np.sort(order, axis=1) == np.arange(5)).all()
    assert len(np.unique(order, axis=0)) > 30


def test_reversals_are_actions_of_ntu() -> None:
    from importlib.resources import files

    names = (files("vtlvlm.data") / "ntu_actions.txt").read_text().splitlines()
    assert {name for pair in REVERSED for name in pair} <= {line.strip() for line in names}
    classes = ("clapping", "take off jacket", "wear jacket")
    assert partners(classes) == {1: 2, 2: 1}


# -- wording ---------------------------------------------------------------------------------------------------------------------------


def test_surprise_by_hand() -> None:
    """One cell, K = 4, one training sentence 0 1 0 1: bigrams 01 twice, 10 once; unigrams one half each."""
    train = np.array([0, 1, 0, 1])[None, :, None]
    model = wording.Bigrams(train, 4, changes_only=False)
    found = model.surprise(np.array([[0, 1, 1], [2, 3, 2]])[..., None])
    known = 0.7 * 1 + 0.25 * 0.5 + 0.05 / 4  # 0 → 1
    stays = 0.7 * 0 + 0.25 * 0.5 + 0.05 / 4  # 1 → 1 was never seen
    never = 0.05 / 4
    assert found == pytest.approx([-(np.log(known) + np.log(stays)) / 2, -np.log(never)])
    changes = wording.Bigrams(train, 4, changes_only=True)
    assert changes.surprise(np.array([[0, 1, 1]])[..., None]) == pytest.approx(-np.log(0.7 + 0.25 * 2 / 3 + 0.05 / 4))
    assert np.isnan(changes.surprise(np.array([[1, 1, 1]])[..., None])[0])


def test_run_lengths() -> None:
    codes = np.array([[[1, 5], [1, 6], [2, 6], [2, 6]]])  # runs 2, 2 and 1, 3
    assert wording.run_length(codes) == pytest.approx([2.0])
    shuffled = wording.shuffled_windows(np.arange(24).reshape(2, 4, 3), 0)
    assert (np.sort(shuffled.reshape(2, -1)) == np.arange(24).reshape(2, -1)).all()
    assert (shuffled % 3 == np.arange(3)).all()  # cells of a window stay together


# -- likeness --------------------------------------------------------------------------------------------------------------------------


def lcs(one: list[int], other: list[int]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + lcs(one[:-1], other[:-1])
    return max(lcs(one[:-1], other), lcs(one, other[:-1]))


def test_similarity_of_order_is_the_longest_common_subsequence() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 3, (40, 5, 2)), rng.integers(0, 3, (4, 5, 2))
    found = likeness.by_order(one, other)
    for i, j in ((0, 0), (7, 2), (35, 3)):
        wanted = np.mean([lcs(one[i, :, cell].tolist(), other[j, :, cell].tolist()) for cell in (0, 1)]) / 5
        assert found[i, j] == pytest.approx(wanted)
    assert likeness.by_order(one, one).diagonal() == pytest.approx(np.ones(40))


def test_similarity_of_codes_is_sklearns_tfidf() -> None:
    """Sublinear counts, smooth rarity, unit length, as TfidfVectorizer has them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = np.random.default_rng(1)
    train, test = rng.integers(0, 9, (20, 4, 2)), rng.integers(0, 9, (5, 4, 2))
    words = [[" ".join(f"c{code}" for code in row.ravel()) for row in side] for side in (train, test)]
    vectoriser = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+").fit(words[0])
    wanted = (vectoriser.transform(words[1]) @ vectoriser.transform(words[0]).T).toarray()
    assert likeness.by_codes(test, train, 9) == pytest.approx(wanted)


def test_retrieval_is_sklearns_average_precision() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(2)
    near, labels, gallery = rng.normal(size=(6, 12)), rng.integers(0, 3, 6), rng.integers(0, 3, 12)
    first, precision = likeness.retrieval(near, labels, gallery)
    for row in range(6):
        assert precision[row] == pytest.approx(average_precision_score(gallery == labels[row], near[row]))
        assert first[row] == (gallery[near[row].argmax()] == labels[row])
    draws = np.array([average_precision_score(gallery == 1, rng.normal(size=12)) for _ in range(4000)])
    assert likeness.chance_precision(np.array([(gallery == 1).sum()]), 12)[0] == pytest.approx(draws.mean(), abs=0.01)
    tied, _ = likeness.retrieval(np.zeros((1, 4)), np.array([0]), np.array([0, 1, 1, 1]))
    assert tied.tolist() == [0.25]
    assert np.isnan(likeness.retrieval(np.zeros((1, 2)), np.array([5]), np.array([0, 1]))[1]).all()


# -- purity ----------------------------------------------------------------------------------------------------------------------------


def test_the_odd_one() -> None:
    same, odd = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    groups = np.array([[same, same, same, odd], [odd, same, same, same], [same, same, same, same]])
    assert purity.odd_one_out(groups).tolist() == [True, False, False]


def test_groups_are_of_one_code_in_three_clips() -> None:
    codes, clips = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 0, 1, 5, 5, 6])
    found = purity.groups_of(codes, clips, 0)
    assert len(found) == 1  # code 1 is in two clips, and so is code 2
    assert (codes[found[0, :3]] == 0).all()
    assert len({*clips[found[0, :3]].tolist()}) == 3
    assert codes[found[0, 3]] != 0
    assert clips[found[0, 3]] not in clips[found[0, :3]]


def test_random_codes_are_at_chance() -> None:
    rng = np.random.default_rng(3)
    codes, clips, features = rng.integers(0, 500, 6000), np.repeat(np.arange(300), 20), rng.normal(size=(6000, 8))
    groups = purity.groups_of(codes, clips, 0)
    assert purity.odd_one_out(features[groups]).mean() == pytest.approx(purity.CHANCE, abs=0.08)


# -- comparing -------------------------------------------------------------------------------------------------------------------------


def test_a_comparison_draws_people() -> None:
    people = np.repeat(["a", "b", "c", "d", "e", "f"], 5)
    values = np.repeat([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 5)
    found = compare("m", "c", values, np.full(30, 0.1), people)
    assert (found.number, found.groups, found.beats) == (30, 6, True)
    assert found.difference.value == pytest.approx(0.35)
    assert found.p == 2 / 2**6
    assert 0.1 < found.difference.low < 0.35 < found.difference.high < 0.6
    worse = compare("m", "c", values, np.full(30, 0.1), people, better="lower")
    assert not worse.beats
    assert worse.difference.value == pytest.approx(-0.35)
    assert compare("m", "c", np.array([np.nan]), np.array([1.0]), np.array(["a"])).number == 0
    assert compare("m", "c", np.r_[values, np.nan], np.full(31, 0.1), np.append(people, "g")).number == 30


def told(seed: int = 0) -> Clips:
    """Twelve people, three actions. The events tell the action in an order; the baseline's codes are random."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), 24)
    people = np.repeat([f"P{number:02}" for number in range(12)], 6)
    codes = np.zeros((72, 6, 1), dtype=np.int64)
    for number, label in enumerate(labels):
        codes[number, :, 0] = 10 * label + np.arange(6) // 2 + rng.integers(0, 2) * 5
    spans = np.stack([np.arange(6.0), np.arange(1.0, 7)], 1)[None].repeat(72, 0)
    events = Sentences(codes, spans, 40)
    base = replace(events, codes=rng.integers(0, 40, codes.shape))
    return Clips(events, base, labels, people, np.array([f"clip {n}" for n in range(72)]), 48, np.array([""] * 72), ("a", "b", "c"))


def test_sentences_that_tell_the_action_beat_all_controls() -> None:
    clips = told()
    rows, facts = agreement(clips)
    assert [row.value for row in rows if row.measure.startswith("nearest")] == [1, 1, 1, 1]
    assert all(row.beats for row in rows)
    assert set(facts["average_precision"]) == set(clips.names[48:])
    rows, facts = coherence(clips, 0)
    assert all(row.beats for row in rows if row.control != "baseline" or row.measure != "windows that a code stays")
    assert facts["zipf_slope"]["events"] <= 0
    rows = code_class(clips, 0)
    assert all(row.beats for row in rows)
    assert rows[0].value > 0.9
    assert rows[0].control_value < 0.3


def test_thejackknife_of_a_mean_is_its_standard_error() -> None:
    """Of a mean, the values without each person give the usual interval by Student's t."""
    from scipy.stats import t

    values = np.array([1.0, 2, 4, 7])
    without = np.array([np.delete(values, place).mean() for place in range(4)])
    found = jackknife(values.mean(), without)
    reach = t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert tuple(found) == pytest.approx((3.5, 3.5 - reach, 3.5 + reach))


def test_random_sentences_beat_none() -> None:
    clips = told()
    rows = [*agreement(replace(clips, events=clips.baseline))[0], *code_class(replace(clips, events=clips.baseline), 0)]
    assert sum(row.beats for row in rows) <= 1


def test_two_cameras_of_one_performance() -> None:
    clips = told()
    keys = np.array([f"{person}-{label}" for person, label in zip(clips.people, clips.labels, strict=True)])
    rows, _ = agreement(replace(clips, keys=keys))
    twin = [row for row in rows if row.measure == "one performance from two cameras"]
    assert [row.control for row in twin] == ["clips of other actions", "baseline"]
    assert all(row.beats for row in twin)


def test_clips_are_taken_from_each_action() -> None:
    labels = np.repeat([0, 1, 2], [50, 5, 2])
    found = spread_over_actions(labels, 9, 0)
    assert np.bincount(labels[found]).tolist() == [4, 3, 2]
    assert len(spread_over_actions(labels, 500, 0)) == 57
