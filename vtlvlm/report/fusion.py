"""Fuses the tests of several runs, such as the streams of a skeleton network, into a run folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.errors import DataError
from vtlvlm.metrics.actions import UNKNOWN, action_metrics, confusion
from vtlvlm.metrics.fusion import Normalise, fused
from vtlvlm.metrics.paired import Difference, paired_difference
from vtlvlm.report.predictions import Predictions, read_predictions, write_predictions
from vtlvlm.report.provenance import environment
from vtlvlm.report.runs import Confusion, Metrics, write_confusion
from vtlvlm.report.tables import Table
from vtlvlm.report.tested import read_tested
from vtlvlm.system.files import write_json

FIGURES = ("top1", "top5", "mean_class_accuracy", "nll", "ece")
"""Metrics of the table"""
TIES = 0.005
"""Accuracy of a table and of its metrics.json may differ by this much, where two classes have the same probability"""


@dataclass(frozen=True)
class Stream:
    """A tested run: its folder, the metrics of its test, and its predictions."""

    folder: Path
    metrics: Metrics
    predictions: Predictions

    @property
    def train_hash(self) -> str:
        """Hash of the names of all clips outside the test side."""
        return str(self.metrics.provenance["split"]["train_hash"])

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether each labelled clip was recognised, in the order of the clips' names."""
        return right(self.predictions.recognised, self.predictions.labels)

    def figure(self, name: str) -> float | None:
        """A metric of the calibrated probabilities, which the file holds, or of the plain ones where there is no temperature."""
        return self.metrics.metrics.get(f"{name}_calibrated", self.metrics.metrics.get(name))


@dataclass(frozen=True)
class Fusion:
    """Streams and what became of them.

    Attributes:
        streams: The tested runs.
        weights: One for each stream, as given.
        normalise: See ``metrics.fusion.fused``.
        log_probs: (n, A) fused log-probabilities, in the order of the clips' names.
        metrics: Those of a test, without the ``_calibrated`` ones: no temperature is fitted to the fusion.
        best: The place of the stream with the highest top-1 accuracy on these test clips.
        difference: Accuracy of the fusion minus the best stream's, with a paired bootstrap over clips.
    """

    streams: Sequence[Stream]
    weights: Sequence[float]
    normalise: Normalise
    log_probs: NDArray[np.float64]
    metrics: dict[str, float]
    best: int
    difference: Difference


def read_stream(folder: Path) -> Stream:
    """A tested run with the predictions of its test.

    Raises:
        DataError: It has no test, no predictions, or is damaged or of an older version.
    """
    metrics = read_tested(folder).metrics
    path = folder / "predictions_test.csv"
    predictions = read_predictions(path)
    split = metrics.provenance.get("split")
    if metrics.protocol is None or not isinstance(split, dict) or "train_hash" not in split:
        raise DataError(f"{folder / 'metrics.json'}: names no protocol and training clips; run the test again")
    if not (predictions.labels != UNKNOWN).any():
        raise DataError(f"{path}: no clip has a label, so nothing can be measured")
    stream, found = Stream(folder, metrics, predictions), metrics.metrics.get("top1")
    if len(predictions.clips) != metrics.num_clips or found is None or abs(stream.right.mean() - found) > TIES:
        raise DataError(f"{path}: not of the test that wrote metrics.json (clips or top-1 accuracy differ); run the test again")
    return stream


def require_same_test(first: Stream, other: Stream) -> None:
    """Refuse two streams that were not trained and tested on the same clips.

    Raises:
        DataError: The message names the first difference: protocol, classes, training clips, test clips or labels.
    """
    pair, one, two = f"{other.folder} and {first.folder} cannot be fused", first.predictions, other.predictions
    if first.metrics.protocol != other.metrics.protocol:
        raise DataError(f"{pair}: protocol {other.metrics.protocol} and {first.metrics.protocol}; test both under one protocol")
    if len(one.classes) != len(two.classes):
        raise DataError(f"{pair}: {len(two.classes)} and {len(one.classes)} classes; train both on the same classes")
    for number, (here, there) in enumerate(zip(one.classes, two.classes, strict=True), 1):
        if here != there:
            raise DataError(f"{pair}: class {number} is {there!r} and {here!r}; train both on the same classes in one order")
    if first.train_hash != other.train_hash:
        raise DataError(
            f"{pair}: their clips outside the test side differ (hash {other.train_hash[:8]} and {first.train_hash[:8]}), so one may have "
            "seen others; train both on the same clips (for NTU with skeletons: data.source.exclude_missing_skeletons)"
        )
    for more, fewer in ((first, other), (other, first)):
        only = np.setdiff1d(more.predictions.clips, fewer.predictions.clips)
        if len(only):
            raise DataError(f"{pair}: {len(only)} test clips of {more.folder} are not in the other, {only[0]} first; test both on the same")
    if len(wrong := np.flatnonzero(one.labels != two.labels)):
        raise DataError(f"{pair}: {len(wrong)} test clips have another true class, {one.clips[wrong[0]]} first; test both on one index")


def right(recognised: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) and (n,) -> whether each labelled clip was recognised."""
    known = labels != UNKNOWN
    return np.asarray(recognised[known] == labels[known])


def fuse(streams: Sequence[Stream], weights: Sequence[float], normalise: Normalise) -> Fusion:
    """Fuse streams and measure the result as a test does.

    Args:
        streams: Two or more, of the same clips.
        weights: One for each stream, not negative, with a positive sum.
        normalise: See ``metrics.fusion.fused``.

    Raises:
        DataError: The streams are not of the same clips, classes, protocol and training clips.
    """
    for other in streams[1:]:
        require_same_test(streams[0], other)
    labels, classes = streams[0].predictions.labels, streams[0].predictions.classes
    log_probs = fused([stream.predictions.log_probabilities for stream in streams], weights, normalise)
    measured = action_metrics(len(classes))
    measured.update(torch.from_numpy(log_probs).float(), torch.from_numpy(labels))
    metrics = {name: float(value) for name, value in measured.compute().items()}
    best = int(np.argmax([stream.right.mean() for stream in streams]))
    ours = right(log_probs.argmax(1), labels)
    return Fusion(streams, weights, normalise, log_probs, metrics, best, paired_difference(ours[None], streams[best].right[None]))


def fusion_table(fusion: Fusion) -> Table:
    """The accuracy and calibration of each stream and of the fusion."""
    rows = [
        [str(stream.folder), f"{weight:g}", *(_shown(name, stream.figure(name)) for name in FIGURES)]
        for stream, weight in zip(fusion.streams, fusion.weights, strict=True)
    ]
    rows.append(["fusion", "", *(_shown(name, fusion.metrics[name]) for name in FIGURES)])
    header = ["stream", "weight", "top-1, %", "top-5, %", "mean class, %", "NLL", "ECE"]
    return Table(header, rows, frozenset({len(rows) - 1}))


def _shown(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if name in ("nll", "ece") else f"{100 * value:.1f}"


def write_fusion(fusion: Fusion, folder: Path) -> list[Path]:
    """Write ``predictions_test.csv``, ``confusion_test.json``, ``versions.json`` and ``metrics.json``, as a test does.

    ``metrics.json`` comes last and an older one goes first, so a fusion that was interrupted has no results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "metrics.json"
    last.unlink(missing_ok=True)
    first = fusion.streams[0]
    rows = first.predictions
    write_predictions(folder / "predictions_test.csv", [*rows.clips], rows.labels, np.exp(fusion.log_probs), rows.classes)
    counts = confusion(len(rows.classes))
    counts.update(torch.from_numpy(fusion.log_probs.argmax(1)), torch.from_numpy(rows.labels))
    write_confusion(folder / "confusion_test.json", Confusion(counts.compute().numpy(), rows.classes))
    seeds = {stream.metrics.seed for stream in fusion.streams}
    seed = seeds.pop() if len(seeds) == 1 else None
    made = environment(seed, Path.cwd())
    write_json(folder / "versions.json", made)
    content = {
        "protocol": first.metrics.protocol,
        "split": "test",
        "num_clips": len(rows.clips),
        "seed": seed,
        "device": {"name": "cpu", "count": 1},
        "metrics": fusion.metrics,
        "provenance": {
            "classes": list(rows.classes),
            "protocol": first.metrics.protocol,
            "train_hash": first.train_hash,
            "split": first.metrics.provenance["split"],
            "fusion": _origin(fusion),
            "environment": made,
        },
    }
    write_json(last, content)
    return [last, folder / "predictions_test.csv"]


def _origin(fusion: Fusion) -> dict[str, Any]:
    """The streams, their weights and what they were made from, in plain values."""
    streams = [
        {
            "folder": str(stream.folder),
            "weight": float(weight),
            "top1": float(stream.right.mean()),
            "seed": stream.metrics.seed,
            "checkpoint": stream.metrics.provenance.get("checkpoint"),
            "predictions_hash": blake2b((stream.folder / "predictions_test.csv").read_bytes(), digest_size=16).hexdigest(),
        }
        for stream, weight in zip(fusion.streams, fusion.weights, strict=True)
    ]
    gain = fusion.difference
    difference = {"mean": gain.mean, "low": gain.low, "high": gain.high}
    best = str(fusion.streams[fusion.best].folder)
    return {"normalise": fusion.normalise, "streams": streams, "best_stream": best, "difference_to_best": difference}
