"""The design, counted: balance, runs, distances, and the cards of a sentence by hand."""

from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from vtlvlm.errors import UsageError
from vtlvlm.ratings.cards import Card, cards_of, inverse_frequency, leading_codes, shuffled_cards
from vtlvlm.ratings.design import APART, CONDITIONS, Design, orders

DESIGNS = [Design(), Design(clips=40, raters=12, seed=3), Design(clips=4, raters=2, controls=2, practice=1, checks=1, repeats=1)]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_square_is_balanced(design: Design) -> None:
    found = orders(design)
    main = [[trial for trial in order if trial.purpose == "main"] for order in found]
    for own in main:  # each rater: every clip once, half of them in each condition
        assert sorted(trial.clip for trial in own) == list(range(design.clips))
        assert Counter(trial.shown for trial in own) == dict.fromkeys(CONDITIONS, design.clips // 2)
    for clip in range(design.clips):  # each clip: in each condition by half of the raters, and by one of each pair
        seen = [next(trial.shown for trial in own if trial.clip == clip) for own in main]
        assert Counter(seen) == dict.fromkeys(CONDITIONS, design.raters // 2)
        assert all({seen[pair], seen[pair + 1]} == set(CONDITIONS) for pair in range(0, design.raters, 2))
    controls = Counter((trial.clip, trial.shown) for order in found for trial in order if trial.purpose == "control")
    assert set(controls.values()) <= {design.raters // 2}


@pytest.mark.parametrize("design", [*DESIGNS, Design(both=True), Design(clips=10, both=True, seed=2)])
def test_each_order_keeps_its_rules(design: Design) -> None:
    for order in orders(design):
        counted = Counter(trial.purpose for trial in order)
        main = design.clips * (2 if design.both else 1)
        wanted = {"main": main, "control": design.controls, "practice": design.practice, "check": design.checks, "repeat": design.repeats}
        assert counted == Counter({name: number for name, number in wanted.items() if number})
        assert all(trial.purpose == "practice" for trial in order[: design.practice])
        rest = order[design.practice :]
        assert max(len(list(run)) for _, run in groupby(trial.shown for trial in rest)) <= 3
        places = {trial: place for place, trial in enumerate(rest)}
        for trial in (trial for trial in rest if trial.purpose == "repeat"):
            gap = places[trial] - places[trial._replace(purpose="main")]
            assert gap >= APART or places[trial] == len(rest) - 1 or len(rest) < 2 * APART
        assert all(1 <= trial.target <= 5 for trial in order if trial.purpose == "check")
    assert orders(design) == orders(design)


def test_both_conditions_of_a_clip_are_apart() -> None:
    for order in orders(Design(both=True, raters=20)):
        main = [(place, trial) for place, trial in enumerate(order) if trial.purpose == "main"]
        for clip in range(20):
            (one, first), (other, second) = [(place, trial) for place, trial in main if trial.clip == clip]
            assert other - one >= APART
            assert {first.shown, second.shown} == set(CONDITIONS)


def test_raters_have_different_orders() -> None:
    found = {tuple(order) for seed in (0, 1) for order in orders(Design(seed=seed))}
    assert len(found) == 20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clips": 5}, "--clips 5: an even number"),
        ({"raters": 3}, "--raters 3: an even number"),
        ({"raters": 0}, "--raters 0: from 2 to 400"),
        ({"repeats": 9}, "--repeats 9: from 0 to 5"),
        ({"clips": 8, "both": True, "repeats": 0}, "--both: needs more than 8 clips"),
        ({"checks": -1}, "--checks -1: from 0 to 10"),
    ],
)
def test_designs_that_cannot_be(given: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Design(**given)  # type: ignore[arg-type]


def test_rules_that_no_order_keeps() -> None:
    with pytest.raises(UsageError, match="no order of so few trials"):
        orders(Design(clips=2, raters=2, controls=0, practice=0, checks=10, repeats=0))  # checks would stand side by side


# -- cards ---------------------------------------------------------------------------------------------------------------------------


def test_the_leading_code_is_the_rarest_for_its_frequency() -> None:
    """Code 0 is in all three training sentences, code 1 in two, code 2 in one."""
    train = np.array([[[0, 0]], [[0, 1]], [[1, 2]]]).repeat(2, axis=1)
    train[2, 0] = 0
    rarity = inverse_frequency(train, 4)
    assert rarity == pytest.approx(1 + np.log([4 / 4, 4 / 3, 4 / 2, 4 / 1]))
    found = leading_codes(np.array([[[0, 0], [0, 1], [0, 2], [0, 2]]]), rarity)
    # tf-idf: code 0 four of eight, code 1 one of eight, code 2 two of eight: 0.5, 0.16, 0.42
    assert found.tolist() == [[0, 0, 0, 0]]
    assert leading_codes(np.array([[[3, 0], [0, 1]]]), rarity).tolist() == [[3, 0]]  # 0.25 * 2.39 beats 0.5 * 1; 0.5 beats 0.25 * 1.29


def test_cards_are_the_runs_of_a_code() -> None:
    spans = np.array([[0, 1], [1, 1.5], [1.5, 3], [3, 3.5]])
    assert cards_of(np.array([4, 4, 7, 4]), spans).cards == [Card(0, 1.5, 4), Card(1.5, 3, 7), Card(3, 3.5, 4)]


def test_too_many_cards_join_the_shortest_to_its_longer_neighbour() -> None:
    spans = np.array([[0, 2], [2, 2.4], [2.4, 4], [4, 5]])
    cards, joined = cards_of(np.array([1, 2, 3, 4]), spans, most=3)
    assert cards == [Card(0, 2.4, 1), Card(2.4, 4, 3), Card(4, 5, 4)]
    assert joined == 1
    cards, joined = cards_of(np.array([1, 2, 1, 4]), spans, most=2)  # 2 joins 1, and both parts of 1 become one card
    assert cards == [Card(0, 4, 1), Card(4, 5, 4)]
    many = cards_of(np.arange(16), np.stack([np.arange(16), np.arange(1, 17)], 1).astype(float))
    assert len(many.cards) == 8
    assert (many.cards[0].start, many.cards[-1].end, many.joined) == (0, 16, 8)
    assert all(one.end == other.start for one, other in zip(many.cards, many.cards[1:], strict=False))


def test_shuffled_cards_have_the_same_codes_in_another_order() -> None:
    cards = [Card(0, 1, 5), Card(1, 2, 6), Card(2, 3, 7)]
    found = shuffled_cards(cards, 0)
    assert sorted(card.code for card in found) == [5, 6, 7]
    assert [card.code for card in found] != [5, 6, 7]
    assert [(card.start, card.end) for card in found] == [(0, 1), (1, 2), (2, 3)]
    assert shuffled_cards(cards[:1], 0) == cards[:1]
