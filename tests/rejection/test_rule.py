"""The rule of rejection, by hand and by counting."""

import math

import numpy as np
import pytest
import torch

from vtlvlm.batches import EventTokens
from vtlvlm.errors import DataError, UsageError
from vtlvlm.rejection import RejectionRule
from vtlvlm.rejection.rule import neighbours, signals_of, speed


def fitted(signals: np.ndarray, acceptance: float = 0.95) -> RejectionRule:
    return RejectionRule.fit(torch.eye(3), signals, acceptance)


def test_familiarity_by_hand() -> None:
    """Three known values of each signal: 1, 2, 4."""
    rule = fitted(np.array([[4.0] * 6, [1.0] * 6, [2.0] * 6]), 0.6)
    # p-values: the known values that are at most as large, and one more, of four
    assert rule.values(np.array([[4.0] * 6]))[0] == pytest.approx(0.0)
    assert rule.values(np.array([[3.0] * 6]))[0] == pytest.approx(math.log(3 / 4))
    assert rule.values(np.array([[1.0, 2.0, 3.0, 9.0, 9.0, 9.0]]))[0] == pytest.approx((2 * math.log(3 / 4) + math.log(2 / 4)) / 6)
    # below the smallest, one unit is from the smallest to the median
    assert rule.values(np.array([[0.0] * 6]))[0] == pytest.approx(math.log(1 / 4) - math.log(2))
    # each validation clip beside the two others: 4 beside 1 and 2; 2 beside 1 and 4; 1 beside 2 and 4, whose median is 3
    beside = [math.log(1 / 3) - math.log(2), math.log(2 / 3), 0.0]
    assert rule.familiarities.tolist() == pytest.approx(beside)
    # the ⌊0.4 · 4⌋ = first smallest is the threshold
    assert rule.threshold == pytest.approx(beside[0])
    found = rule(np.array([[0.9] * 6, [0.0] * 6, [3.0] * 6]))
    assert [one.rejected for one in found] == [False, True, False]  # the logarithms: of 1/4 less that of 1.1, then less that of 2
    assert [one.share for one in found] == pytest.approx([1 / 3, 0, 2 / 3])
    assert found[2].signals == {"probability": 3.0, "in_list": 3.0, "codes": 3.0, "neighbours": 3.0, "motion": 3.0, "looks": 3.0}


@pytest.mark.parametrize("acceptance", [0.8, 0.95])
def test_new_clips_of_the_same_kind_are_accepted_at_the_stated_rate(acceptance: float) -> None:
    """Over 400 draws of validation clips and new ones, with correlated and skewed signals."""
    generator = np.random.default_rng(0)
    accepted = []
    for _ in range(400):
        base = generator.normal(size=(60, 1))
        signals = np.exp(base + generator.normal(size=(60, 6))) * [1, 10, 0.1, 1, 5, 2]
        rule = fitted(signals[:40], acceptance)
        accepted += [not one.rejected for one in rule(signals[40:])]
    assert np.mean(accepted) == pytest.approx(acceptance, abs=0.015)


def test_a_strange_value_in_any_signal_lowers_it_further_and_further() -> None:
    rule = fitted(np.random.default_rng(1).normal(size=(50, 6)))
    for column in range(6):
        rows = np.zeros((4, 6))
        rows[:, column] = [0, -5, -50, -500]
        assert (np.diff(rule.values(rows)) < 0).all()


def test_a_signal_that_never_changes_says_nothing() -> None:
    """A model without a codebook has no distance to its codes."""
    signals = np.random.default_rng(2).normal(size=(30, 6))
    signals[:, 2] = 0.0
    rule = fitted(signals)
    assert np.isfinite(rule.familiarities).all()
    assert rule.values(np.array([[9.0, 9.0, 0.0, 9.0, 9.0, 9.0]]))[0] == pytest.approx(0.0)


def test_what_is_no_number_is_rejected_and_any_acceptance_has_a_threshold() -> None:
    signals = np.random.default_rng(4).normal(size=(40, 6))
    rule = fitted(signals)
    odd = np.zeros((1, 6))
    odd[0, 2] = np.nan
    assert rule(odd)[0].rejected
    strict = RejectionRule(1e-12, rule.training, rule.validation, rule.familiarities)  # a bundle may say anything
    assert strict.threshold == rule.familiarities[-1]


def test_refusals() -> None:
    signals = np.random.default_rng(3).normal(size=(18, 6))
    with pytest.raises(UsageError, match=r"18 validation clips: to accept 95\.0% of the actions takes at least 19"):
        fitted(signals)
    fitted(signals, 0.9)
    with pytest.raises(UsageError, match="a share between 0 and 1"):
        fitted(signals, 1.0)
    signals[4, 1] = np.nan
    with pytest.raises(DataError, match="no number"):
        fitted(signals, 0.9)


def test_signals_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    tokens = EventTokens(torch.zeros(1, 2, dtype=torch.int64), vectors, torch.zeros(1, 2, 2))
    training = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0]])  # mean (1, 1)
    continuous = vectors + torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])
    rates = torch.tensor([[1.0, 2.0, 3.0, 4.0, 8.0, 3.0]])  # means of three: 2, 3, 5, 5; their 0.9 quantile: 5
    found = signals_of(tokens, continuous, torch.tensor([[0.25, 0.75]]), torch.tensor([0.5]), training, rates, torch.tensor([2.0]))
    # the clip's mean (2, 0) less (1, 1) is (1, -1); the training's less (1, 1): (1, 0), (-1, 0), (0, 0)
    cosine = (math.sqrt(0.5) - math.sqrt(0.5) + 0) / 3
    assert found.tolist() == [pytest.approx([math.log(0.75), math.log(0.5), -2.5, cosine, math.log(5.0), -math.log(2.0)], abs=1e-6)]


def test_speed_of_short_and_of_still_clips() -> None:
    assert speed(torch.tensor([[4.0, 6.0]])).tolist() == [5.0]
    assert speed(torch.zeros(1, 9)).tolist() == [0.0]
    nan = float("nan")
    assert speed(torch.tensor([[2.0, nan, nan, nan, 4.0, nan]])).tolist() == [4.0]  # means 2, 4, 4 and one unknown
    assert speed(torch.full((1, 5), nan)).tolist() == [0.0]  # one picture
    assert speed(torch.zeros(1, 0)).tolist() == [0.0]
    # means of three: 1, 1, 1, 11 -> 0.9 of the way along them
    assert speed(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 31.0]])).tolist() == [pytest.approx(1 + 0.7 * 10)]


def test_neighbours_are_the_nearest_five() -> None:
    """Against a sort of all cosines in double precision."""
    generator = torch.Generator().manual_seed(0)
    training, means = torch.randn(40, 6, generator=generator), torch.randn(7, 6, generator=generator)
    centre = training.double().mean(0)
    for mean, found in zip(means, neighbours(means, training).tolist(), strict=True):
        one = mean.double() - centre
        cosines = sorted((float(one @ other / one.norm() / other.norm()) for other in training.double() - centre), reverse=True)
        assert found == pytest.approx(sum(cosines[:5]) / 5, abs=1e-5)
