"""Reads and writes ``predictions*.csv``: clip, true class, recognised class, and the probability of each class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import DataError
from vtlvlm.metrics.actions import UNKNOWN
from vtlvlm.system.files import replacing
from vtlvlm.system.text import cell, plain_cell

SMALLEST = 5e-7
"""A probability of at most this is written as 0.000000"""
COLUMNS = ["clip", "truth", "recognised"]


@dataclass(frozen=True)
class Predictions:
    """The rows of ``predictions_test.csv``, in the order of the clips' names.

    Attributes:
        clips: (n,) names, all different.
        labels: (n,) int64 places in ``classes``; -1 for an unknown class.
        recognised: (n,) int64 places in ``classes``.
        probabilities: (n, A) as written, with six digits.
        classes: A names.
    """

    clips: NDArray[np.str_]
    labels: NDArray[np.int64]
    recognised: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """(n, A) logarithms. A probability that is written as zero counts as ``SMALLEST``."""
        logarithms: NDArray[np.float64] = np.log(np.maximum(self.probabilities, SMALLEST))
        return logarithms


def write_predictions(
    path: Path,
    clips: Sequence[object],
    labels: NDArray[np.integer],
    probs: NDArray[np.floating],
    classes: Sequence[str],
    views: Sequence[object] | None = None,
) -> None:
    """Write a table of predictions, whole or not at all.

    Args:
        path: The CSV file.
        clips: n names.
        labels: (n,) places in ``classes``; -1 for an unknown class.
        probs: (n, A).
        classes: A names.
        views: n views of the clips, for a column after the names; None for no such column.
    """
    names = [*map(cell, classes)]
    seen = views is not None
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", *["view"] * seen, "truth", "recognised", *names])
        for clip, view, label, row in zip(clips, repeat(None, len(clips)) if views is None else views, labels, probs, strict=True):
            truth = names[label] if label >= 0 else ""
            writer.writerow([cell(clip), *[view] * seen, truth, names[row.argmax()], *(f"{p:.6f}" for p in row)])


def read_predictions(path: Path) -> Predictions:
    """Read ``predictions_test.csv`` with its probabilities.

    Raises:
        DataError: The file is missing, damaged, or not such a table.
    """
    import pyarrow as pa
    import pyarrow.csv

    if not path.is_file():
        raise DataError(f"{path}: no such file; run `vtlvlm test` of a stage that recognises actions")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
        if header[:3] != COLUMNS or len(header) < 5:
            raise DataError(f"{path}: not a table of a test's predictions; run the test again")
        types = [pa.string()] * 3 + [pa.float64()] * (len(header) - 3)
        named = [f"f{column}" for column in range(len(header))]
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(skip_rows=1, column_names=named, use_threads=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict(zip(named, types, strict=True)), null_values=[]),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError, StopIteration) as error:
        raise DataError(f"{path}: a damaged table ({str(error)[:200]}); run the test again") from error
    classes = tuple(plain_cell(name) for name in header[3:])
    place = {name: number for number, name in enumerate(classes)}
    clips, truth, recognised = ([plain_cell(text) for text in table[name].to_pylist()] for name in named[:3])
    for name in (*(name for name in truth if name), *recognised):
        if name not in place:
            raise DataError(f"{path}: {name!r} is none of its classes; run the test again")
    if len(place) < len(classes) or len({*clips}) < len(clips):
        raise DataError(f"{path}: a {'class' if len(place) < len(classes) else 'clip'} stands there twice; run the test again")
    probabilities = np.stack([table[name].to_numpy() for name in named[3:]], 1)
    sums = probabilities.sum(1)
    if not ((probabilities >= 0).all() and (np.abs(sums - 1) < 1e-3).all()):
        first = clips[int(np.argmin((probabilities >= 0).all(1) & (np.abs(sums - 1) < 1e-3)))]
        raise DataError(f"{path}: the numbers of {first} are no probabilities that sum to one; run the test again")
    order = np.argsort(np.array(clips, dtype=np.str_), kind="stable")
    labels = np.array([place[name] if name else UNKNOWN for name in truth], dtype=np.int64)
    guesses = np.array([place[name] for name in recognised], dtype=np.int64)
    return Predictions(np.array(clips, dtype=np.str_)[order], labels[order], guesses[order], probabilities[order], classes)
