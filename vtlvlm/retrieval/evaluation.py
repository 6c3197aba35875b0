"""Measures a search on test clips, beside simpler ones: does a clip find the same action by other people?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import DataError
from vtlvlm.metrics.paired import paired_scores
from vtlvlm.metrics.retrieval import CUTS, QueryScore, by_chance, query_score
from vtlvlm.report.predictions import Predictions, read_predictions
from vtlvlm.report.tables import Table
from vtlvlm.retrieval.search import EventSearch
from vtlvlm.retrieval.stored import SearchIndex
from vtlvlm.retrieval.words import index_words
from vtlvlm.system.text import shown

OURS = "search"
EVENTS = "events alone: tf-idf, 200 aligned"
WORDS = "tf-idf of codes and changes"
CODES = "tf-idf of codes"
MEAN = "mean event vector, cosine"
PROBABILITIES = "the classifier's probabilities, cosine"
CHANCE = "chance"
METHODS = (OURS, EVENTS, WORDS, CODES, MEAN, PROBABILITIES)
COMPARED = ((OURS, MEAN), (OURS, PROBABILITIES), (OURS, EVENTS), (EVENTS, MEAN), (EVENTS, WORDS), (WORDS, CODES))
"""Pairs of methods whose difference is told"""

Scores = Callable[[int], NDArray[np.int64]]
"""Row of a query -> rows of the other clips, best first"""


class Run(NamedTuple):
    """The queries of one event cache, each method's scores in the order of the queries' names."""

    queries: tuple[str, ...]
    actions: tuple[str, ...]
    """of each query"""
    scores: dict[str, list[QueryScore]]
    twins: dict[str, list[bool]]
    """of the queries of which there are views by other cameras: whether the first of all other clips is one"""
    chance: dict[str, float]
    """mAP and R@k"""
    people: int
    clips: int


def measure(search: EventSearch, predictions: Predictions) -> Run:
    """Let each test clip look for its action among the test clips of other people.

    Args:
        search: Of an event cache; its action reader has learned from training clips only.
        predictions: The classifier's, of the same test clips.

    Raises:
        DataError: There are no test clips, their people are unknown, or the predictions are of other clips.
    """
    rows = search.gallery.testing
    folder = f"{len(rows)} test clips"
    if not len(rows):
        raise DataError(f"the cache has no test clips that are known as such: {search.gallery.unlearned or 'its protocol tests none'}")
    gallery = search.gallery._replace(**{name: getattr(search.gallery, name)[rows] for name in _BY_CLIP})
    if (gallery.people == "").any() or (gallery.labels < 0).any():
        raise DataError(f"{folder}: of some, the person or the action is unknown; a search is measured on clips of known people")
    places = {clip: place for place, clip in enumerate(predictions.clips.tolist())}
    if lacking := [name for name in gallery.names.tolist() if name not in places]:
        raise DataError(
            f"the predictions lack {len(lacking)} of {folder}, the first being {shown(lacking[0])}; give those of the same test"
        )
    guessed = predictions.probabilities[[places[name] for name in gallery.names.tolist()]]
    orders = _methods(search, gallery, rows, guessed)
    return _run(gallery, orders)


_BY_CLIP = ("names", "ids", "spans", "labels", "people", "performances")


def _methods(search: EventSearch, gallery: Any, rows: NDArray[np.int64], guessed: NDArray[np.float64]) -> dict[str, Scores]:
    codes, n = len(gallery.table), len(rows)
    words = index_words(gallery.ids, codes)
    whole = EventSearch(gallery, SearchIndex(words, search.index.reader, search.index.probabilities[rows]))
    alone = EventSearch(gallery, SearchIndex(words, None, np.zeros((n, 0), np.float32)))
    single = index_words(gallery.ids.reshape(n, 1, -1), codes)  # one window: no changes
    vectors = np.stack([gallery.table[ids].mean((0, 1)) for ids in gallery.ids])
    nothing = np.zeros(n, np.bool_)

    def by_words(query: int) -> NDArray[np.int64]:
        return _falling(words.scores(gallery.ids[query], codes))

    def by_codes(query: int) -> NDArray[np.int64]:
        return _falling(single.scores(gallery.ids[query].reshape(1, -1), codes))

    return {
        OURS: lambda query: whole.order(gallery.ids[query], nothing).rows,
        EVENTS: lambda query: alone.order(gallery.ids[query], nothing).rows,
        WORDS: by_words,
        CODES: by_codes,
        MEAN: _cosine(vectors - vectors.mean(0)),
        PROBABILITIES: _cosine(guessed),
    }


def _cosine(vectors: NDArray[np.floating]) -> Scores:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return lambda query: _falling(units @ units[query])


def _falling(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")


def _run(gallery: Any, orders: dict[str, Scores]) -> Run:
    scores: dict[str, list[QueryScore]] = {name: [] for name in orders}
    twins: dict[str, list[bool]] = {name: [] for name in orders}
    chances, queries = [], []
    for row in np.argsort(gallery.names.astype(str), kind="stable").tolist():
        others = gallery.people != gallery.people[row]
        same = others & (gallery.labels == gallery.labels[row])
        if not same.any():
            continue
        queries.append(row)
        chances.append(by_chance(int(same.sum()), int(others.sum())))
        views = (gallery.performances == gallery.performances[row]) & (gallery.performances != "")
        views[row] = False
        for name, order in orders.items():
            rows = order(row)
            rows = rows[rows != row]
            scores[name].append(query_score(same[rows[others[rows]]]))
            if views.any():
                twins[name].append(bool(views[rows[0]]))
    if not queries:
        raise DataError("no test clip shows an action that another test person shows too")
    chance = {"mAP": float(np.mean([precision for precision, _ in chances]))}
    chance |= {f"R@{cut}": float(np.mean([recalls[cut] for _, recalls in chances])) for cut in CUTS}
    names = tuple(str(gallery.names[row]) for row in queries)
    actions = tuple(gallery.classes[gallery.labels[row]] for row in queries)
    return Run(names, actions, scores, twins, chance, len(set(gallery.people.tolist())), len(gallery.names))


class Result(NamedTuple):
    """The figures of several runs of the same test clips, such as those of several seeds."""

    table: Table
    differences: Table
    facts: dict[str, Any]


def evaluate(pairs: Sequence[tuple[Path, Path]]) -> Result:
    """Measure the searches of some event caches, each beside the predictions of its classifier.

    Args:
        pairs: Event cache, and ``predictions_test.csv`` of the same seed.

    Raises:
        DataError: As for :func:`measure`, or the runs have other queries.
    """
    runs = []
    for events, table in pairs:
        runs.append(measure(EventSearch.open(events), read_predictions(table)))
        if runs[-1].queries != runs[0].queries:
            raise DataError(f"{events}: its test clips are not those of {pairs[0][0]}; give seeds of one experiment")
    return _result(runs)


def _result(runs: Sequence[Run]) -> Result:
    rows: list[list[str]] = []
    methods: dict[str, Any] = {}
    for name in METHODS:
        figures = [_figures(run.scores[name], run.twins[name]) for run in runs]
        methods[name] = {key: [figure[key] for figure in figures] for key in figures[0]}
        methods[name]["mAP of each action"] = _of_each_action(runs, name)
        rows.append([name, *(_spread([figure[key] for figure in figures], key) for key in figures[0])])
    chance = runs[0].chance
    rows.append([CHANCE, f"{chance['mAP']:.3f}", *(f"{chance[f'R@{cut}']:.3f}" for cut in CUTS), "", ""])
    header = ["order", "mAP", *(f"R@{cut}" for cut in CUTS), "median rank", "first is another camera's view"]
    gains = []
    for ours, theirs in COMPARED:
        precisions, hits = (
            [np.array([[of(score) for score in run.scores[name]] for run in runs]) for name in (ours, theirs)] for of in (_precision, _hit)
        )
        gains.append([ours, theirs, str(paired_scores(*precisions)), str(paired_scores(*hits))])
    facts: dict[str, Any] = {
        "seeds": len(runs),
        "queries": len(runs[0].queries),
        "people": runs[0].people,
        "clips": runs[0].clips,
        "methods": methods,
    }
    facts |= {"chance": chance, "differences": [dict(zip(("ours", "theirs", "mAP", "R@1"), gain, strict=True)) for gain in gains]}
    return Result(Table(header, rows, frozenset({0})), Table(["", "minus", "mAP", "R@1"], gains), facts)


def _precision(score: QueryScore) -> float:
    return score.average_precision


def _hit(score: QueryScore) -> float:
    return float(score.recall(1))


def _figures(scores: list[QueryScore], twins: list[bool]) -> dict[str, float]:
    found = {"mAP": float(np.mean([score.average_precision for score in scores]))}
    found |= {f"R@{cut}": float(np.mean([score.recall(cut) for score in scores])) for cut in CUTS}
    found["median rank"] = float(np.median([score.first for score in scores]))
    found["first is another camera's view"] = float(np.mean(twins)) if twins else float("nan")
    return found


def _of_each_action(runs: Sequence[Run], name: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for action, score in zip(run.actions, run.scores[name], strict=True):
            found.setdefault(action, []).append(score.average_precision)
    return {action: float(np.mean(values)) for action, values in sorted(found.items())}


def _spread(values: list[float], key: str) -> str:
    if np.isnan(values).any():
        return ""
    if key == "median rank":
        return f"{np.mean(values):g}"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
