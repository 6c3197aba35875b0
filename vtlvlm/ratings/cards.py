"""An event sentence as a row of cards: one for each stay of a code, with the time that it lasts. Pure arithmetic.

A window has S cells and so S codes. The card takes the code that says most: the highest tf-idf among the window's cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_CARDS = 8
"""Cards of a description, at most"""


class Card(NamedTuple):
    """One step of a description."""

    start: float
    """seconds from the start of the clip"""
    end: float
    code: int


class Row(NamedTuple):
    """The cards of a description."""

    cards: list[Card]
    joined: int
    """shorter stays that were joined to a neighbour, since there are at most eight cards"""


def inverse_frequency(sentences: NDArray[np.int64], num_codes: int) -> NDArray[np.float64]:
    """How rare each code is: log((1 + n) / (1 + clips with the code)) + 1, over n sentences (n, W, S); (K,) above 0."""
    flat = sentences.reshape(len(sentences), -1)
    occurs = np.zeros((len(flat), num_codes), dtype=bool)
    occurs[np.arange(len(flat))[:, None], flat] = True
    found: NDArray[np.float64] = np.log((1 + len(flat)) / (1 + occurs.sum(0))) + 1
    return found


def leading_codes(sentences: NDArray[np.int64], rarity: NDArray[np.float64]) -> NDArray[np.int64]:
    """The code of each window with the highest tf-idf: its share of the sentence times its rarity. Among equals, the smallest number.

    Args:
        sentences: (n, W, S) codes.
        rarity: (K,) of :func:`inverse_frequency`.

    Returns:
        (n, W) codes.
    """
    flat = np.sort(sentences.reshape(len(sentences), -1), axis=1)
    weights = np.empty(sentences.shape)
    for number, sentence in enumerate(sentences):  # a study has a few dozen clips
        here, count = np.unique(flat[number], return_counts=True)
        weights[number] = (count / flat.shape[1] * rarity[here])[np.searchsorted(here, sentence)]
    best = weights == weights.max(-1, keepdims=True)
    found: NDArray[np.int64] = np.where(best, sentences, len(rarity)).min(-1)
    return found


class Stay(NamedTuple):
    """Neighbouring windows that one code leads."""

    first: int
    last: int
    """its last window"""
    code: int


def stays_of(codes: NDArray[np.int64], spans: NDArray[np.float64], most: int = MOST_CARDS) -> tuple[list[Stay], int]:
    """The stays of a clip, an exact partition of its windows. While there are too many, the shortest joins its longer neighbour.

    Args:
        codes: (W,) the leading code of each window.
        spans: (W, 2) seconds.
        most: Stays, at most.

    Returns:
        The stays in order, and how many were joined to a neighbour.
    """
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    ends = np.r_[starts[1:], len(codes)] - 1
    stays = [Stay(int(a), int(b), int(codes[a])) for a, b in zip(starts, ends, strict=True)]
    joined = 0
    while len(stays) > most:
        lengths = [float(spans[stay.last, 1] - spans[stay.first, 0]) for stay in stays]
        place = int(np.argmin(lengths))
        left = -1.0 if place == 0 else lengths[place - 1]
        right = -1.0 if place == len(stays) - 1 else lengths[place + 1]
        other = place - 1 if left >= right else place + 1
        one, two = sorted((place, other))
        stays[one : two + 1] = [Stay(stays[one].first, stays[two].last, stays[other].code)]
        joined += 1
        for at in range(len(stays) - 1, 0, -1):  # neighbours may have one code now
            if stays[at].code == stays[at - 1].code:
                stays[at - 1 : at + 1] = [Stay(stays[at - 1].first, stays[at].last, stays[at].code)]
    return stays, joined


def cards_of(codes: NDArray[np.int64], spans: NDArray[np.float64], most: int = MOST_CARDS) -> Row:
    """The cards of a clip: a card for each stay of :func:`stays_of`."""
    stays, joined = stays_of(codes, spans, most)
    return Row([Card(float(spans[stay.first, 0]), float(spans[stay.last, 1]), stay.code) for stay in stays], joined)


def _one_each(cards: list[Card]) -> list[Card]:
    """Neighbours with one code as one card."""
    found: list[Card] = []
    for card in cards:
        if found and found[-1].code == card.code:
            found[-1] = found[-1]._replace(end=card.end)
        else:
            found.append(card)
    return found


def shuffled_cards(cards: list[Card], seed: int | list[int]) -> list[Card]:
    """The codes of the cards in another order, in the same times: a description whose steps are in the wrong order. One card stays."""
    codes = [card.code for card in cards]
    rng, order = np.random.default_rng(seed), codes
    for _ in range(100):
        order = [codes[place] for place in rng.permutation(len(codes))]
        if order != codes or len(set(codes)) < 2:
            break
    return _one_each([card._replace(code=code) for card, code in zip(cards, order, strict=True)])
