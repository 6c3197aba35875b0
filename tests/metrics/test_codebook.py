"""Counts of codes, and what follows from them, against values by hand."""

import math

import pytest
import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.metrics.codebook import CodebookHealth, CodeTally, action_information, entropy, run_lengths, zipf_fit

UNLABELLED = torch.full((1,), -1)


def tally(counts: list[int], clips: list[list[int]] | None = None, pairs: list[list[int]] | None = None) -> CodeTally:
    empty = torch.zeros(len(counts), 0, dtype=torch.int64)
    found = [empty if table is None else torch.tensor(table) for table in (pairs, clips)]
    return CodeTally(torch.tensor(counts), found[0], found[1], torch.tensor([sum(counts)]))


def test_usage_of_the_codes() -> None:
    usage = CodebookHealth(8, 0, windows=2)
    usage.update(torch.arange(8).repeat(5).reshape(5, 8), UNLABELLED.expand(5))
    found = {name: float(value) for name, value in usage.compute().items()}
    assert found == pytest.approx(
        {
            "perplexity": 8.0,
            "perplexity_share": 1.0,
            "used_share": 1.0,
            "dead_codes": 0.0,
            "zipf_slope": 0.0,
            "mean_run_length": 1.0,
        },
        abs=1e-6,
    )
    usage.reset()
    usage.update(torch.tensor([[3, 3, 5, 5], [5, -1, 3, -1]]), UNLABELLED.expand(2))
    found = {name: float(value) for name, value in usage.compute().items()}
    assert (found["perplexity"], found["perplexity_share"], found["used_share"], found["dead_codes"]) == pytest.approx((2, 0.25, 0.25, 6))
    with pytest.raises(IndexError):
        usage.update(torch.tensor([[8, 0]]), UNLABELLED)
    with pytest.raises(UsageError, match="windows=0"):
        CodebookHealth(8, 2, windows=0)


def test_without_a_token_nothing_breaks() -> None:
    usage = CodebookHealth(4, 3, windows=2)
    usage.update(torch.full((2, 4), -1), torch.tensor([0, 1]))
    found = usage.compute()
    assert (found["perplexity"], found["used_share"], found["dead_codes"], found["mean_run_length"]) == (0, 0, 4, 0)
    assert all(math.isnan(found[name]) for name in ("zipf_slope", "action_information", "action_information_share"))
    assert usage.tally().top_pmi_pairs() == []
    assert usage.tally().collapse() == ()


def test_runs_of_a_code_within_its_cell() -> None:
    """Four windows of two cells: the first cell says 5 5 5 7, the second 1 - 1 1."""
    ids = torch.tensor([[5, 1, 5, -1, 5, 1, 7, 1]])
    lengths, ends = run_lengths(ids.unflatten(1, (4, 2)))
    assert lengths[0, :, 0].tolist() == [1, 2, 3, 1]
    assert ends[0].T.tolist() == [[False, False, True, True], [True, False, False, True]]
    usage = CodebookHealth(8, 0, windows=4)
    usage.update(ids, UNLABELLED)
    assert usage.tally().runs.tolist() == [2, 1, 1, 0]
    assert usage.compute()["mean_run_length"] == 7 / 4


def test_pairs_count_tokens_and_clips_of_known_classes_only() -> None:
    usage = CodebookHealth(3, 2, windows=2)
    usage.update(torch.tensor([[0, 0], [0, 2], [1, -1], [2, 2]]), torch.tensor([0, 1, 1, -1]))
    found = usage.tally()
    assert found.counts.tolist() == [3, 1, 3]
    assert found.pairs.tolist() == [[2, 1], [0, 1], [0, 1]]
    assert found.clips.tolist() == [[1, 1], [0, 1], [0, 1]]
    assert found.tokens == 7


def test_power_law_has_its_exponent() -> None:
    counts = torch.tensor([1200, 0, 3600, 900, 1800, 0, 720, 600])  # 3600 / rank, in any order, and two dead codes
    slope, intercept = zipf_fit(counts)
    assert float(slope) == pytest.approx(-1.0)
    assert float(intercept) == pytest.approx(math.log(3600 / 8820))
    assert math.isnan(zipf_fit(torch.tensor([7, 0]))[0])


@pytest.mark.parametrize(
    ("pairs", "nats", "share"),
    [
        # perfect: log 2 + log 2 - log 2, and each entropy gets (2 - 1) / 2·4
        ([[2, 0], [0, 2]], math.log(2) + 1 / 8, 1.0),
        # nothing: log 2 + log 2 - log 4 + (1 + 1 - 3) / 8 is below zero
        ([[1, 1], [1, 1]], 0.0, 0.0),
        # log 2 + log 2 - H(3/8, 1/8, 1/8, 3/8) + (1 + 1 - 3) / 16
        ([[3, 1], [1, 3]], 2 * math.log(2) + 0.75 * math.log(3 / 8) + 0.25 * math.log(1 / 8) - 1 / 16, None),
        ([[4, 0], [1, 0]], 0.0, 0.0),  # one action: nothing to be told
    ],
)
def test_information_on_the_action_by_hand(pairs: list[list[int]], nats: float, share: float | None) -> None:
    found = action_information(torch.tensor(pairs))
    assert float(found[0]) == pytest.approx(nats, abs=1e-12)
    of_actions = float(entropy(torch.tensor(pairs).sum(0), corrected=True))
    assert float(found[1]) == pytest.approx(nats / of_actions if share is None else share)


def test_correction_takes_most_of_the_bias_away() -> None:
    """Codes that know nothing of the action: the plain estimate finds information all the same."""
    torch.manual_seed(0)
    pairs = torch.zeros(64, 10, dtype=torch.int64)
    pairs.view(-1).index_add_(0, torch.randint(640, (4000,)), torch.ones(4000, dtype=torch.int64))
    plain = entropy(pairs.sum(0)) + entropy(pairs.sum(1)) - entropy(pairs)
    assert float(plain) > 0.06
    assert float(action_information(pairs)[0]) < 0.01


def test_pmi_by_hand_and_its_support() -> None:
    """12 tokens, 6 of each class: code 0 has three of four in class 0, code 1 occurs in class 1 only, code 2 in too few clips."""
    found = tally([4, 4, 4], clips=[[3, 3], [0, 3], [2, 1]], pairs=[[3, 1], [0, 4], [3, 1]])
    pmi = found.pmi()
    assert pmi[0].tolist() == pytest.approx([math.log(3 / 12 / (4 / 12 * 6 / 12)), math.log(1 / 12 / (4 / 12 * 6 / 12))])
    assert float(pmi[1, 1]) == pytest.approx(math.log(2))
    assert pmi.isnan().tolist() == [[False, False], [True, False], [True, True]]
    best = found.top_pmi_pairs()
    assert [(pair.code, pair.label, pair.tokens, pair.clips) for pair in best] == [(1, 1, 4, 3), (0, 0, 3, 3)]  # not (0, 1): below chance
    assert best[0].pmi == pytest.approx(math.log(2))


def test_of_equal_pairs_the_one_with_more_tokens_and_not_all_of_one_class() -> None:
    found = tally([2, 9, 5, 20], clips=[[3, 0], [3, 0], [3, 0], [3, 9]], pairs=[[2, 0], [9, 0], [5, 0], [6, 14]])
    assert [(pair.code, pair.label) for pair in found.top_pmi_pairs(each=2)] == [(3, 1), (1, 0), (2, 0)]
    assert [(pair.code, pair.label) for pair in found.top_pmi_pairs(num=2)] == [(3, 1), (1, 0)]


@pytest.mark.parametrize(
    ("counts", "kinds"),
    [
        ([20] * 20, ()),
        ([400, *[0] * 19], ("perplexity", "unused")),
        ([390, *[1] * 10, *[0] * 9], ("perplexity",)),  # half of the codes are used, one of them for nearly everything
        ([100, 100, 100, 100, *[0] * 16], ("unused",)),  # a fifth of the codes, equally
        ([190, *[0] * 19], ()),  # too few tokens to tell
    ],
)
def test_collapse_is_called_by_its_kind(counts: list[int], kinds: tuple[str, ...]) -> None:
    assert tally(counts).collapse() == kinds


def random_sentences(num: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    ids = torch.randint(-1, 12, (num, 16)).sort(dim=1).values
    return ids, torch.randint(-1, 5, (num,))


def test_two_processes_with_uneven_halves_give_the_figures_of_one() -> None:
    ids, labels = random_sentences(37)
    whole, first, second = (CodebookHealth(12, 5, windows=4) for _ in range(3))
    whole.update(ids, labels)
    first.update(ids[:9], labels[:9])
    first.update(ids[9:20], labels[9:20])
    second.update(ids[20:], labels[20:])
    first.merge_state(second)  # the same reduction as between processes
    for one, two in zip(first.tally(), whole.tally(), strict=True):
        assert torch.equal(one, two)
    assert first.compute() == whole.compute()
    assert float(first.compute()["action_information"]) >= 0
