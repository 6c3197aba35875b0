"""The clips of a run for the measures, and its model as a function."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.ratings.sentences import Sentences

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.recognizers.recognizer import ActionRecognizer

AT_ONCE = 32
"""Sentences that the model reads at once"""
Reader = Callable[[Tensor], Tensor]
"""(B, M, E) events → (B, A) log-probabilities"""


@dataclass(frozen=True)
class Clips:
    """The plain views of the training and test clips of a run.

    Attributes:
        events: Sentences of all clips, training clips first.
        baseline: The baseline's sentences of the same clips.
        labels: (n,) actions.
        people: (n,) groups.
        names: (n,) names.
        train: How many are training clips.
        keys: (n,) the performance, without the camera; "" if unknown.
        classes: Names of the actions.
    """

    events: Sentences
    baseline: Sentences
    labels: NDArray[np.int64]
    people: NDArray[Any]
    names: NDArray[Any]
    train: int
    keys: NDArray[np.str_]
    classes: tuple[str, ...]

    def side(self, book: Sentences, test: bool) -> NDArray[np.int64]:
        """(n', W, S) codes of one side."""
        return book.codes[self.train :] if test else book.codes[: self.train]

    @property
    def test_labels(self) -> NDArray[np.int64]:
        """Of the test clips."""
        return self.labels[self.train :]

    @property
    def test_people(self) -> NDArray[Any]:
        """Of the test clips."""
        return self.people[self.train :]


def read_clips(data: NTUDataModule, clips: NDArray[np.int64], train: int, events: Sentences, baseline: Sentences) -> Clips:
    """Facts of clips, given as rows of the index, training clips first."""
    index = data.index
    numbers = np.stack([index.setup[clips], index.subject[clips], index.replication[clips], index.label[clips]], 1)
    keys = np.array(["-".join(map(str, row)) if row[1] >= 0 else "" for row in numbers.tolist()])
    labels, people = np.asarray(index.label)[clips].astype(np.int64), np.asarray(index.group)[clips]
    return Clips(events, baseline, labels, people, np.asarray(index.name)[clips], train, keys, tuple(data.classes))


def reader_of(recognizer: ActionRecognizer, progress: Callable[[int], object] = lambda number: None) -> Reader:
    """The model as a function from events to calibrated log-probabilities."""

    @torch.inference_mode()
    def read(vectors: Tensor) -> Tensor:
        found = []
        for part in vectors.split(AT_ONCE):
            scores = recognizer.reasoner(part.float().to(recognizer.device)).score
            found.append(recognizer.reasoner.probabilities(scores).log().float().cpu())
            progress(len(part))
        return torch.cat(found)

    return read


def spread_over_actions(labels: NDArray[np.int64], number: int, seed: int) -> NDArray[np.int64]:
    """Up to ``number`` places, each action in turn; drawn with the seed."""
    order = np.random.default_rng([seed, zlib.crc32(b"clips")]).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for action in np.unique(labels):
        own = order[labels[order] == action]
        rank[own] = np.arange(len(own))
    return np.sort(np.lexsort((labels, rank))[:number])
