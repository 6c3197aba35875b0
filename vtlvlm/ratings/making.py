"""Makes a study from a tested run: chooses its clips, describes them in both conditions, and writes what raters see."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.data.cache import FeatureCache
from vtlvlm.data.transcode import copy
from vtlvlm.errors import DataError, UsageError
from vtlvlm.metrics.codebook import CodebookHealth
from vtlvlm.ratings.cards import Card, cards_of, inverse_frequency, leading_codes, shuffled_cards
from vtlvlm.ratings.design import Condition, Design, Shown, Trial, orders
from vtlvlm.ratings.pictures import frames_of, montage, places_of
from vtlvlm.ratings.sentences import Sentences, baseline_sentences, event_sentences
from vtlvlm.ratings.study_folder import ANSWERS, FILE, FORMAT, MEDIA, digest_of
from vtlvlm.report.predictions import Predictions
from vtlvlm.system.files import appearing

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule

CHOICES = 4
"""Actions that a rater chooses from"""
SHORT_SIDE = 320
"""Pixels of the clips' shorter side, at most"""
WORDS = 2
"""Actions on a card, with words"""
RULES = {
    "checks": "a rater who fails one of the checks is left out",
    "seconds": 3.0,
    "fast": "a rater whose median time for the scores of a trial is below 3 s is left out",
    "equal": "a rater whose scores are all equal is left out",
}
"""When a rater's answers do not count. They are written into the study before the first answer; reports show results with and without."""


class Made(NamedTuple):
    """What was made."""

    cards: int
    without_picture: int
    joined: int
    failures: list[str]
    """a line for each training clip that cannot be decoded"""


def confusions(predictions: Predictions, most: int = CHOICES) -> NDArray[np.int64]:
    """For each action, the actions that a rater chooses from: itself, then those that the model takes it for most.

    Returns:
        (A, min(most, A)) places in the classes.
    """
    number = len(predictions.classes)
    means = np.zeros((number, number))
    for action in range(number):
        rows = predictions.probabilities[predictions.labels == action]
        means[action] = rows.mean(0) if len(rows) else 0
    means[np.arange(number), np.arange(number)] = np.inf
    return np.argsort(-means, axis=1, kind="stable")[:, :most]


def choose_clips(labels: NDArray[np.int64], right: NDArray[np.bool_], number: int, more: int, seed: int) -> NDArray[np.int64]:
    """Choose clips evenly over the actions. A quarter of the rated ones are clips that the model gets wrong, as far as there are so many.

    Args:
        labels: (n,) actions.
        right: (n,) whether the model recognises each clip.
        number: Rated clips.
        more: Clips for controls and practice, from those that the model gets right where possible.
        seed: Of the choice.

    Returns:
        Places: the rated clips in the order wrong, right, each action by action, so that neighbours, which one rater sees in different
        conditions, are alike; then the others.

    Raises:
        UsageError: There are too few clips.
    """
    if number + more > len(labels):
        raise UsageError(f"{number} rated clips and {more} for controls and practice, but the test has {len(labels)} clips; take fewer")
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(labels))
    wrong = _in_turn([place for place in order if not right[place]], labels)[: number // 4]
    rest = _in_turn([place for place in order if right[place]], labels) + _in_turn([place for place in order if not right[place]], labels)
    rest = [place for place in dict.fromkeys(rest) if place not in set(wrong)]
    rated = sorted(wrong, key=lambda place: labels[place]) + sorted(rest[: number - len(wrong)], key=lambda p: (not right[p], labels[p]))
    return np.array(rated + rest[number - len(wrong) : number - len(wrong) + more], dtype=np.int64)


def _in_turn(places: list[Any], labels: NDArray[np.int64]) -> list[int]:
    """Places so that each action comes once before any comes twice."""
    seen: dict[int, int] = {}
    turns: list[tuple[int, int, int]] = []
    for place in places:
        turns.append((seen.get(int(labels[place]), 0), len(turns), int(place)))
        seen[int(labels[place])] = turns[-1][0] + 1
    return [place for _, _, place in sorted(turns)]


def make(
    data: NTUDataModule,
    features: FeatureCache,
    predictions: Predictions,
    folder: Path,
    design: Design,
    *,
    words: bool = False,
    progress: Any = iter,
) -> Made:
    """Write a study.

    Args:
        data: Set up, with an event cache and its videos.
        features: Those that the events were made from.
        predictions: Of the run's test; gives the wrong answers to choose from.
        folder: New.
        design: Its size and seed.
        words: Show the actions that each code points to. They are the labels, so this is a study of its own.
        progress: Wraps the training clips that are decoded, for a bar.

    Raises:
        UsageError: Clips, videos or events are missing.
        DataError: A video that raters would see cannot be decoded.
    """
    if not data.source.has_videos:
        raise UsageError("a study needs the videos: name their folder with --videos")
    tokens = _Tokens()
    order = orders(design)  # refuses a design before the work begins
    row_of = dict(zip(data.index.name.tolist(), range(len(data.index)), strict=True))
    test = {*data.split.require("test").tolist()}
    known = np.array(
        [name in row_of and row_of[name] in test and label >= 0 for name, label in zip(predictions.clips, predictions.labels, strict=True)]
    )
    if not known.any():
        raise UsageError("the test's predictions name none of the run's test clips; test the run again")
    places = np.flatnonzero(known)
    if predictions.classes != data.classes:
        raise UsageError("the test's predictions are of other classes; test the run again")
    right = predictions.recognised[places] == predictions.labels[places]
    chosen = places[choose_clips(predictions.labels[places], right, design.clips, design.all_clips - design.clips, design.seed)]
    clips = np.array([row_of[name] for name in predictions.clips[chosen]], dtype=np.int64)
    pool = _others(data, clips)
    both = np.concatenate([clips, pool])
    events = event_sentences(data, both)
    shape = events.codes.shape[1:]
    base = baseline_sentences(data, features, both, windows=shape[0], cells=shape[1], num_codes=events.num_codes, seed=design.seed)
    shown: dict[Condition, Sentences] = {"events": events, "baseline": base}
    own, others = np.arange(len(clips)), np.arange(len(clips), len(both))
    rows = {name: _rows_of_cards(sentences, own, others) for name, sentences in shown.items()}
    used = {name: {card.code for cards, _ in found for card in cards} for name, found in rows.items()}
    wanted: dict[Condition, Any] = {
        name: (sentences.of(others), places_of(sentences.of(others), pool, used[name])) for name, sentences in shown.items()
    }
    frames, failures = frames_of(data, pool, wanted, progress)
    said = {name: _words(sentences.of(others), data, pool) if words else {} for name, sentences in shown.items()}
    with appearing(folder) as temporary:
        (temporary / MEDIA).mkdir()
        (temporary / ANSWERS).mkdir()
        pictures = {name: {code: tokens(".webp") for code in sorted(found)} for name, found in frames.items()}
        for name, found in pictures.items():
            for code, token in found.items():
                (temporary / MEDIA / token).write_bytes(montage(frames[name][code]))
        videos = [tokens(".mp4") for _ in clips]
        for clip, token in zip(clips, videos, strict=True):
            copy(data.index.file(int(clip)), temporary / MEDIA / token, side=SHORT_SIDE)
        rng = np.random.default_rng([design.seed, 2])
        near = confusions(predictions)
        described = [
            {
                "name": str(predictions.clips[place]),
                "action": int(predictions.labels[place]),
                "choices": rng.permutation(near[predictions.labels[place]]).tolist(),
                "right": bool(predictions.recognised[place] == predictions.labels[place]),
                "person": str(data.index.group[clip]),
                "video": video,
            }
            for place, clip, video in zip(chosen, clips, videos, strict=True)
        ]
        descriptions: dict[str, dict[str, Any]] = {}
        steps, by_key = [], dict[tuple[int, Shown], str]()
        for trials in order:
            steps.append([_step(trial, descriptions, by_key, tokens) for trial in trials])
        actions = predictions.labels[chosen]
        for (clip, what), token in by_key.items():
            cards, joined = _described(what, clip, rows, actions, design.seed)
            book: Condition = "baseline" if what == "baseline" else "events"
            marks = {code: number for number, code in enumerate(dict.fromkeys(card.code for card in cards))}
            descriptions[token] = {
                "clip": clip,
                "shown": what,
                "joined": joined,
                "cards": [_card(card, marks, pictures[book], said[book]) for card in cards],
            }
        facts = {
            "format": FORMAT,
            "design": asdict(design),
            "rules": RULES,
            "words": words,
            "classes": list(data.classes),
            "origin": _origin(data, features, shape, events.num_codes),
            "clips": described,
            "descriptions": descriptions,
            "orders": steps,
            "media": {path.name: digest_of(path) for path in sorted((temporary / MEDIA).iterdir())},
        }
        (temporary / FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    every = [card for description in descriptions.values() for card in description["cards"]]
    return Made(len(every), sum(card["picture"] is None for card in every), sum(d["joined"] for d in descriptions.values()), failures)


class _Tokens:
    """Random names, none twice."""

    def __init__(self) -> None:
        self.given: set[str] = set()

    def __call__(self, ending: str = "") -> str:
        while (token := secrets.token_hex(8)) in self.given:
            pass
        self.given.add(token)
        return token + ending


def _others(data: NTUDataModule, clips: NDArray[np.int64]) -> NDArray[np.int64]:
    """The training clips of people whom the study's clips do not show."""
    train, groups = data.split.require("train"), data.index.group
    people = {person for person in groups[clips].tolist() if person}
    found = train[np.array([person not in people for person in groups[train].tolist()])]
    if not len(found):
        raise DataError("all training clips show people of the test clips; a study needs a protocol that splits people, such as xsub60")
    rows: NDArray[np.int64] = found
    return rows


def _rows_of_cards(sentences: Sentences, own: NDArray[np.int64], others: NDArray[np.int64]) -> list[tuple[list[Card], int]]:
    """Cards of the study's clips, and how many were joined; rarity is counted on the training clips."""
    leading = leading_codes(sentences.codes[own], inverse_frequency(sentences.codes[others], sentences.num_codes))
    return [tuple(cards_of(codes, spans)) for codes, spans in zip(leading, sentences.spans[own], strict=True)]  # type: ignore[misc]


def _step(trial: Trial, descriptions: dict[str, Any], by_key: dict[tuple[int, Shown], str], tokens: _Tokens) -> dict[str, Any]:
    token = ""
    if trial.purpose != "check":
        token = by_key.setdefault((trial.clip, trial.shown), "")
        if not token:
            token = by_key[trial.clip, trial.shown] = tokens()
    return {**trial._asdict(), "description": token}


def _described(
    what: Shown, clip: int, rows: dict[Condition, list[tuple[list[Card], int]]], actions: NDArray[np.int64], seed: int
) -> tuple[list[Card], int]:
    """The cards of a clip, and how many were joined."""
    if what == "baseline":
        return rows["baseline"][clip]
    cards, joined = rows["events"][clip]
    if what == "shuffled":
        return shuffled_cards(cards, [seed, 3, clip]), joined
    if what == "mismatched":
        other = [place for place in range(len(actions)) if actions[place] != actions[clip]]
        if not other:
            raise UsageError("controls show the events of another action, but the test clips have one; take --controls 0")
        cards, joined = rows["events"][int(np.random.default_rng([seed, 4, clip]).choice(other))]
        return _stretched(cards, rows["events"][clip][0][-1].end), joined
    return cards, joined


def _stretched(cards: list[Card], end: float) -> list[Card]:
    """Cards of another clip in the length of this one, so that the length does not give them away."""
    factor = end / cards[-1].end if cards[-1].end > 0 else 1.0
    return [Card(card.start * factor, card.end * factor, card.code) for card in cards]


def _card(card: Card, marks: dict[int, int], pictures: dict[int, str], said: dict[int, list[str]]) -> dict[str, Any]:
    return {
        "start": round(card.start, 3),
        "end": round(card.end, 3),
        "mark": marks[card.code],
        "code": card.code,
        "picture": pictures.get(card.code),
        "words": said.get(card.code, []),
    }


def _words(sentences: Sentences, data: NTUDataModule, clips: NDArray[np.int64]) -> dict[int, list[str]]:
    """The two actions that each code points to most, counted on training clips, as in the event dictionary."""
    health = CodebookHealth(sentences.num_codes, data.num_classes, sentences.codes.shape[1])
    labels = torch.from_numpy(np.asarray(data.index.label)[clips].astype(np.int64))
    health.update(torch.from_numpy(sentences.codes).flatten(1), labels)
    pmi = health.tally().pmi().nan_to_num(-torch.inf)
    best = pmi.topk(min(WORDS, pmi.shape[1]), dim=1)
    return {code: list(_positive(best.values[code].tolist(), best.indices[code].tolist(), data.classes)) for code in range(len(pmi))}


def _positive(values: list[float], places: list[int], classes: tuple[str, ...]) -> Iterator[str]:
    yield from (classes[place] for value, place in zip(values, places, strict=True) if value > 0)


def _origin(data: NTUDataModule, features: FeatureCache, shape: tuple[int, ...], num_codes: int) -> dict[str, Any]:
    cache = data.events_cache
    return {
        "protocol": data.source.protocol,
        "train_hash": data.train_hash,
        "events": getattr(cache, "hash", None),
        "vtem": getattr(cache, "provenance", {}).get("vtem_hash"),
        "features": features.hash,
        "windows": shape[0],
        "cells": shape[1],
        "codes": num_codes,
    }
