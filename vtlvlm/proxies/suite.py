"""All automatic measures of a run, one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vtlvlm.data.cache import FeatureCache
from vtlvlm.errors import UsageError
from vtlvlm.proxies.clips import read_clips, reader_of, spread_over_actions
from vtlvlm.proxies.comparing import Comparison
from vtlvlm.proxies.measuring import (
    agreement,
    code_class,
    coherence,
    deletion_insertion,
    exemplar_purity,
    order_matters,
)
from vtlvlm.ratings.cards import MOST_CARDS
from vtlvlm.ratings.sentences import baseline_sentences, event_cache, event_sentences

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.recognizers.recognizer import ActionRecognizer


ORDER = ("code_class", "coherence", "agreement", "purity", "order", "erasure")
"""The model reads for the last two"""


@dataclass(frozen=True)
class Amounts:
    """How much the model reads, which takes nearly all of the time.

    Attributes:
        clips: Test clips for measure 1.
        steps: Steps of such a clip, at most 8; the model reads 2 ** steps sentences twice.
        order_clips: Test clips for measure 3; None for all. Each is read three times.
        seed: Of shuffles, choices and k-means.
    """

    clips: int = 28
    steps: int = 6
    order_clips: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("clips", None), ("steps", MOST_CARDS), ("order_clips", None)):
            value, least = getattr(self, name), 2 if name == "steps" else 1
            if value is not None and (value < least or (most is not None and value > most)):
                text = f"from {least}" + (f" to {most}" if most is not None else "")
                raise UsageError(f"--{name.replace('_', '-')} {value}: {text}")


OF_ONE = {"clips": "erasure", "steps": "erasure", "order_clips": "order", "other_features": "purity"}
"""Settings that one measure alone depends on"""
Groups = dict[str, list[Comparison]]
Facts = dict[str, Any]


def measure(
    data: NTUDataModule,
    features: FeatureCache,
    model: Callable[[], ActionRecognizer],
    other: FeatureCache | None,
    amounts: Amounts,
    done: tuple[Groups, Facts] | None = None,
    keep: Callable[[Groups, Facts], None] = lambda groups, facts: None,
    bar: Callable[[str, str], Callable[[Any], Any]] = lambda what, unit: iter,
) -> tuple[Groups, Facts]:
    """Measure a run. The quick measures come first.

    Args:
        data: Set up, with an event cache.
        features: Those that the events were made from.
        model: Loads the run's model, when a measure needs it.
        other: Features of an extractor that the run was not trained with; None leaves measure 6 out.
        amounts: How much is read.
        done: Measures of an earlier call, which are kept if they are of the same run and amounts.
        keep: Called after each measure with all that there are.
        bar: Makes a progress bar for a list of measures.

    Returns:
        The comparisons of each measure, and facts: counts, provenance, and values of single clips.
    """
    train, test = data.split.require("train"), data.split.require("test")
    rows = np.concatenate([train, test])
    cache = event_cache(data)
    settings = {
        **asdict(amounts),
        "protocol": data.source.protocol,
        "train_clips": len(train),
        "test_clips": len(test),
        "train_people": len(np.unique(data.index.group[train].astype(str))),
        "test_people": len(np.unique(data.index.group[test].astype(str))),
        "events": cache.hash,
        "vtem": cache.provenance.get("vtem_hash"),
        "features": features.hash,
        "other_features": None if other is None else other.hash,
    }
    groups, facts = _kept(done, settings)
    names = [name for name in ORDER if name not in groups and (name != "purity" or other is not None)]
    if not names:
        return groups, facts
    events = event_sentences(data, rows)
    windows, cells = events.codes.shape[1:]
    seed = amounts.seed
    base = baseline_sentences(data, features, rows, windows=windows, cells=cells, num_codes=events.num_codes, seed=seed)
    facts |= {"windows": windows, "cells": cells, "codes": events.num_codes}
    found = read_clips(data, rows, len(train), events, base)
    recognizer: ActionRecognizer | None = None
    for name in bar("measures", "measure")(names):
        if name in ("order", "erasure") and recognizer is None:
            recognizer = model()
            facts["sentence_mean_weight"] = recognizer.reasoner.sentence_mean_weight
        if name == "erasure" and recognizer is not None:
            chosen = spread_over_actions(found.test_labels, amounts.clips, seed)
            groups[name], facts[name] = deletion_insertion(data, found, reader_of(recognizer), chosen, amounts.steps, seed)
        elif name == "order" and recognizer is not None:
            chosen = spread_over_actions(found.test_labels, amounts.order_clips or len(test), seed)
            groups[name], facts[name] = order_matters(data, found, reader_of(recognizer), chosen, seed)
        elif name == "code_class":
            groups[name] = code_class(found, seed)
        elif name == "coherence":
            groups[name], facts[name] = coherence(found, seed)
        elif name == "agreement":
            groups[name], facts[name] = agreement(found)
        elif other is not None:
            groups[name] = exemplar_purity(data, found, rows, other, seed)
        keep(groups, facts)
    return groups, facts


def _kept(done: tuple[Groups, Facts] | None, settings: Facts) -> tuple[Groups, Facts]:
    """The measures of an earlier call that are of the same run and settings, with their facts."""
    if done is None or any(done[1].get(name) != value for name, value in settings.items() if name not in OF_ONE):
        return {}, dict(settings)
    stale = {measure for name, measure in OF_ONE.items() if done[1].get(name) != settings[name]}
    groups, facts = ({name: value for name, value in one.items() if name not in stale} for one in done)
    return groups, facts | settings
