"""Tests, intervals and agreement against enumeration, other libraries, and a worked example."""

import itertools

import numpy as np
import pytest
from scipy.stats import wilcoxon

from vtlvlm.errors import UsageError
from vtlvlm.ratings.power import power
from vtlvlm.ratings.significance import alpha, crossed_bootstrap, holm, mean_interval, sign_flip


def by_hand(differences: np.ndarray) -> float:
    flips = [abs(np.mean(differences * np.array(signs))) for signs in itertools.product((1, -1), repeat=len(differences))]
    return float(np.mean(np.array(flips) >= abs(differences.mean()) - 1e-12))


@pytest.mark.parametrize("number", [2, 3, 6, 10])
def test_sign_flip_tries_all_signs(number: int) -> None:
    rng = np.random.default_rng(number)
    for _ in range(5):
        differences = rng.normal(0.4, 1, number).round(2)
        assert sign_flip(differences) == pytest.approx(by_hand(differences))


def test_sign_flip_on_ranks_is_wilcoxons() -> None:
    """Signed ranks 1 to n are the test's differences in Wilcoxon's exact test."""
    values = np.array([0.3, -0.1, 1.2, 0.8, -0.5, 2.0, 0.9])
    ranks = np.sign(values) * (np.abs(values).argsort().argsort() + 1)
    assert sign_flip(ranks.astype(float)) == pytest.approx(wilcoxon(values, method="exact").pvalue)


def test_five_raters_never_reach_five_percent() -> None:
    assert sign_flip(np.ones(5)) == 2 / 2**5
    assert sign_flip(np.ones(6)) == 2 / 2**6
    assert sign_flip(np.array([1.0])) == 1
    assert np.isnan(sign_flip(np.zeros(0)))
    assert sign_flip(np.zeros(4)) == 1
    assert sign_flip(np.r_[np.ones(20), -np.ones(2)]) < 0.001  # many raters: flips are drawn


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    found = holm([0.01, float("nan"), 0.02])
    assert found[0] == pytest.approx(0.02)
    assert np.isnan(found[1])


def test_crossed_bootstrap_draws_raters_and_clips() -> None:
    """Without a clip's or rater's own difference the interval is a point; one rater who differs widens it to his share."""
    even = np.stack([np.full((4, 6), 4.0), np.full((4, 6), 3.0)])
    assert tuple(crossed_bootstrap(even)) == (1, 1, 1)
    one = even.copy()
    one[0, 0] = 5
    found = crossed_bootstrap(one)
    assert found.value == 1.25
    assert (found.low, found.high) == (1.0, 1.75)  # of 4 raters drawn, he comes 0 to 3 times in 95 %
    half = np.full((2, 2, 4), np.nan)  # the Latin square
    half[0, 0, ::2], half[1, 0, 1::2], half[0, 1, 1::2], half[1, 1, ::2] = 4, 2, 4, 2
    assert crossed_bootstrap(half).value == 2


@pytest.mark.slow
def test_crossed_bootstrap_covers_the_truth() -> None:
    """Normal raters and clips: the 95 % interval holds the true difference of 0.5 in about 95 of 100 studies."""
    rng, hits = np.random.default_rng(7), 0
    for number in range(100):
        shape = 20, 30
        gain = 0.5 + 0.3 * rng.normal(size=(20, 1)) + 0.3 * rng.normal(size=(1, 30)) + 0.5 * rng.normal(size=shape)
        found = crossed_bootstrap(np.stack([3 + gain, np.full(shape, 3.0)]), seed=number)
        hits += found.low <= 0.5 <= found.high
    assert 85 <= hits <= 100


def test_mean_interval() -> None:
    assert tuple(mean_interval(np.ones(4))) == (1, 1, 1)
    found = mean_interval(np.r_[np.zeros(50), np.ones(50)])
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert np.isnan(mean_interval(np.zeros(0)).value)


def ordinal_alpha(scores: np.ndarray) -> float:
    """Krippendorff (2011), from the coincidence matrix with the ordinal difference, all loops written out."""
    values = [1, 2, 3, 4, 5]
    matrix = np.zeros((5, 5))
    for item in scores.T:
        given = [int(score) - 1 for score in item if not np.isnan(score)]
        for i, j in itertools.permutations(range(len(given)), 2):
            matrix[given[i], given[j]] += 1 / (len(given) - 1)
    totals, number = matrix.sum(1), matrix.sum()
    observed = expected = 0.0
    for c, k in itertools.product(range(len(values)), repeat=2):
        low, high = min(c, k), max(c, k)
        distance = (totals[low : high + 1].sum() - (totals[low] + totals[high]) / 2) ** 2
        observed += matrix[c, k] * distance
        expected += totals[c] * totals[k] * distance / (number - 1)
    return float(1 - observed / expected)


def test_alpha_of_a_worked_example() -> None:
    """Krippendorff's own example (Computing Krippendorff's Alpha-Reliability, 2011, section C): ordinal alpha 0.815."""
    pytest.importorskip("krippendorff")
    n = np.nan
    scores = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, n, n, n],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, n, 3],
            [n, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, n],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, n],
        ]
    )
    found = alpha(scores)
    assert found.value == pytest.approx(0.815, abs=5e-4)
    assert found.value == pytest.approx(ordinal_alpha(scores))
    assert found.low < found.value < found.high <= 1


def test_alpha_at_its_ends() -> None:
    pytest.importorskip("krippendorff")
    same = np.tile(np.array([1, 3, 5, 2.0]), (3, 1))
    assert alpha(same).value == 1
    assert np.isnan(alpha(np.full((3, 4), 4.0)).value)  # no item differs: nothing to agree about
    assert np.isnan(alpha(np.array([[1, np.nan], [np.nan, 2]])).value)  # no item has two scores


def test_power_rises_with_the_difference_and_keeps_its_size() -> None:
    """Of 10 raters and 20 clips, 0.62 points are seen in three of four studies."""
    none, some, much = (power(10, 20, latent, studies=1000, seed=1) for latent in (0.0, 0.7, 1.5))
    assert none.power < 0.08
    assert some.points == pytest.approx(0.63, abs=0.04)
    assert 0.68 < some.power < 0.82
    assert much.power > 0.98
    assert power(10, 20, 0.7, both=True, studies=1000, seed=1).power > some.power
    assert power(5, 20, 3.0, studies=50).power == 0  # the smallest p of five raters is 0.0625
    assert power(6, 20, 3.0, studies=50).power > 0.9


@pytest.mark.parametrize("given", [(1, 20), (17, 20), (10, 3), (10, 0)])
def test_power_refuses_what_it_cannot_try(given: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"--raters|--clips"):
        power(*given, 1.0)


def test_the_p_of_power_is_the_p_of_the_report() -> None:
    from vtlvlm.ratings.power import p_values

    rng = np.random.default_rng(3)
    flips = np.array(list(itertools.product((1.0, -1.0), repeat=7)))
    differences = rng.normal(0.5, 1, (6, 7))
    assert p_values(differences, flips) == pytest.approx([sign_flip(row) for row in differences])
