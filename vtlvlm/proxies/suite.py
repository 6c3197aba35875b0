"""All automatic measures of a run, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vtlvlm.data.cache import FeatureCache
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
from vtlvlm.ratings.sentences import baseline_sentences, event_cache, event_sentences

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.recognizers.recognizer import ActionRecognizer


def measure(
    data: NTUDataModule,
    features: FeatureCache,
    recognizer: ActionRecognizer,
    other: FeatureCache | None,
    *,
    clips: int,
    seed: int,
    bar: Callable[[str, str], Callable[[Any], Any]] = lambda what, unit: iter,
) -> tuple[dict[str, list[Comparison]], dict[str, Any]]:
    """Measure a run.

    Args:
        data: Set up, with an event cache.
        features: Those that the events were made from.
        recognizer: The run's model.
        other: Features of an extractor that the run was not trained with; None leaves measure 6 out.
        clips: Test clips for measure 1.
        seed: Of shuffles, choices and k-means.
        bar: Makes a progress bar for a list of measures.

    Returns:
        The comparisons of each measure, and facts: counts, provenance, and values of single clips.
    """
    train, test = data.split.require("train"), data.split.require("test")
    rows = np.concatenate([train, test])
    events = event_sentences(data, rows)
    windows, cells = events.codes.shape[1:]
    base = baseline_sentences(data, features, rows, windows=windows, cells=cells, num_codes=events.num_codes, seed=seed)
    found = read_clips(data, rows, len(train), events, base)
    read = reader_of(recognizer)
    chosen = spread_over_actions(found.test_labels, clips, seed)
    facts: dict[str, Any] = {
        "seed": seed,
        "protocol": data.source.protocol,
        "train_clips": len(train),
        "train_people": len(np.unique(found.people[: len(train)].astype(str))),
        "test_clips": len(test),
        "test_people": len(np.unique(found.test_people.astype(str))),
        "erasure_clips": len(chosen),
        "windows": windows,
        "cells": cells,
        "codes": events.num_codes,
        "sentence_mean_weight": recognizer.reasoner.sentence_mean_weight,
        "events": event_cache(data).hash,
        "vtem": event_cache(data).provenance.get("vtem_hash"),
        "features": features.hash,
        "other_features": None if other is None else other.hash,
    }
    groups: dict[str, list[Comparison]] = {}
    names = ["erasure", "code_class", "order", "coherence", "agreement", *([] if other is None else ["purity"])]
    for name in bar("measures", "measure")(names):
        if name == "erasure":
            groups[name], facts[name] = deletion_insertion(data, found, read, chosen, seed)
        elif name == "code_class":
            groups[name] = code_class(found, seed)
        elif name == "order":
            groups[name], facts[name] = order_matters(data, found, read, seed)
        elif name == "coherence":
            groups[name], facts[name] = coherence(found, seed)
        elif name == "agreement":
            groups[name], facts[name] = agreement(found)
        elif other is not None:
            groups[name] = exemplar_purity(data, found, rows, other, seed)
    return groups, facts
