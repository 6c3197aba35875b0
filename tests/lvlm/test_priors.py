"""Priors by hand: two clips, two labels of 2 and 4 tokens."""

import math

import pytest
import torch

from vtlvlm.lvlm.priors import RELATIVE, PriorSums

SUMS = torch.tensor([[0.6, 0.3], [0.2, 0.2]]).log()
"""log P of two labels after two clips: their shares are 2/3 and 1/3, then 1/2 and 1/2"""
TOKENS = torch.tensor([2, 4])


def prior(mode: str, *parts: torch.Tensor) -> list[float]:
    sums = PriorSums(mode, 2)
    for part in parts:
        sums.add(part)
    return sums.solve().tolist()


def test_pmi_is_the_mean_log_likelihood():
    assert prior("pmi", SUMS) == pytest.approx([math.log(0.6 * 0.2) / 2, math.log(0.3 * 0.2) / 2])


def test_batch_calibration_is_the_log_of_the_mean_share():
    assert prior("batch_cal", SUMS) == pytest.approx([math.log((2 / 3 + 1 / 2) / 2), math.log((1 / 3 + 1 / 2) / 2)])


def test_ncc_is_the_log_of_the_mean_probability_per_token():
    expected = [math.log((0.6**0.5 + 0.2**0.5) / 2), math.log((0.3**0.25 + 0.2**0.25) / 2)]
    assert prior("ncc", SUMS / TOKENS) == pytest.approx(expected)


@pytest.mark.parametrize("mode", RELATIVE)
def test_sums_of_two_processes_are_those_of_one(mode: str):
    """Unequal shares: 9 clips and 4."""
    scores = -10 * torch.rand(13, 7)
    whole, first, second = (PriorSums(mode, 7) for _ in range(3))
    whole.add(scores)
    first.add(scores[:9])
    second.add(scores[9:])
    for one, two in zip(first.buffers(), second.buffers(), strict=True):
        one += two
    torch.testing.assert_close(first.solve(), whole.solve())


def test_a_label_that_never_has_a_chance_keeps_a_finite_prior():
    """e^-300 is nothing in float32."""
    assert prior("batch_cal", torch.tensor([[0.0, -300.0]])) == pytest.approx([0, -300])
    assert prior("batch_cal", torch.tensor([[0.0, -3000.0]]))[1] < -700
