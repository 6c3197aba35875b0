"""Search over the clips of an event cache, from Python: ``EventSearch.open(EVENTS).like(CLIP)``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import DataError, UsageError
from vtlvlm.retrieval.alignment import align, directions
from vtlvlm.retrieval.gallery import Gallery, gallery_of
from vtlvlm.retrieval.patterns import match, read_pattern
from vtlvlm.retrieval.stored import FILE, SearchIndex, load_index, make_index, save_index
from vtlvlm.system.text import shown

ALIGNED = 200
"""Best clips that are aligned with the query, and ranked anew"""
EVENTS_WEIGHT = 0.1
"""Weight of the events beside the action, where both are known: clips of one action are ordered by how they do it"""
SHOWN = 3
"""Places of a pattern that are listed for a clip"""

Likelihoods = Callable[[NDArray[np.integer]], NDArray[np.floating]]


class Order(NamedTuple):
    """Clips in the order of their scores."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """A clip that a search found.

    Attributes:
        clip: Its name.
        score: For a clip: how alike, 1 for an equal one. For an action: its probability. For a sentence: nats by which the clip makes it
            likelier than all clips do on average. For a pattern: windows that end it.
        action: Its labelled action; None if unknown.
        person: Who acts, or the group; "" if unknown.
        times: For a pattern, where it occurs: start and end in seconds, at most three.
    """

    clip: str
    score: float
    action: str | None
    person: str
    times: tuple[tuple[float, float], ...] = ()


class EventSearch:
    """Searches clips by their event sentences.

    Args:
        gallery: The clips.
        index: Their index.
    """

    def __init__(self, gallery: Gallery, index: SearchIndex) -> None:
        self.gallery, self.index = gallery, index
        self._place = {str(name): row for row, name in enumerate(gallery.names)}
        self._actions = {" ".join(name.casefold().split()): row for row, name in enumerate(gallery.classes)}

    @classmethod
    def open(cls, events: str | Path) -> EventSearch:
        """The search over an event cache. Its index is made once, and kept in the cache's folder if that can be written.

        Raises:
            DataError: The cache cannot be read, or has no codes.
        """
        gallery, path = gallery_of(events), Path(events) / FILE
        index = load_index(gallery, path)
        if index is None:
            index = make_index(gallery)
            with suppress(OSError):  # a folder of someone else
                save_index(index, gallery.identity, path)
        return cls(gallery, index)

    def __len__(self) -> int:
        return len(self.gallery.names)

    def __contains__(self, clip: object) -> bool:
        return clip in self._place

    # -- clips like a clip -------------------------------------------------------------------------------------------------------

    def like(self, clip: str, top: int = 10, other_people: bool = False) -> list[Hit]:
        """The clips most like one of the clips.

        Args:
            clip: Its name.
            top: Number of clips to return.
            other_people: Leave out the clips of the same person.

        Raises:
            DataError: There is no such clip, or its person is unknown.
        """
        row = self._row(clip)
        left_out = np.arange(len(self)) == row
        if other_people:
            person = self.gallery.people[row]
            if not person:
                raise DataError(f"{shown(clip, 200)}: the cache's index does not say whose clip it is")
            left_out |= self.gallery.people == person
        return self._hits(self.order(self.gallery.ids[row], left_out, top), top)

    def like_sentence(self, ids: NDArray[np.integer], top: int = 10) -> list[Hit]:
        """The clips most like an event sentence (W, S) of the same model.

        Raises:
            UsageError: The sentence has another form than those of the cache.
        """
        if ids.shape != self.gallery.ids.shape[1:]:
            there, here = (" windows of ".join(map(str, shape)) for shape in (self.gallery.ids.shape[1:], ids.shape))
            raise UsageError(f"the clip has {here} codes, the cache's have {there}; use the model that made the cache")
        return self._hits(self.order(ids, np.zeros(len(self), np.bool_), top), top)

    def order(self, ids: NDArray[np.integer], left_out: NDArray[np.bool_], top: int = ALIGNED) -> Order:
        """All clips but those left out (n,), most like the sentence (W, S) first."""
        first = self.index.words.scores(ids, len(self.gallery.table))
        by_action = self._same_action(ids)
        score = _joined(by_action, first)
        rows = np.argsort(-score, kind="stable")
        rows = rows[~left_out[rows]]
        best = rows[: max(ALIGNED, top)]
        aligned = align(ids, self.gallery.ids[best], self._units)
        score[best] = _joined(None if by_action is None else by_action[best], aligned)
        rows[: len(best)] = best[np.argsort(-score[best], kind="stable")]
        return Order(rows, score[rows])

    def _same_action(self, ids: NDArray[np.integer]) -> NDArray[np.float32] | None:
        """(n,) cosines in [0, 1] between the sentence's probabilities of the actions and each clip's; None if no action was learned."""
        if self.index.reader is None:
            return None
        mine = self.index.reader.probabilities(ids[None])[0]
        found: NDArray[np.float32] = self.index.probabilities @ (mine / np.linalg.norm(mine)) / self._lengths
        return found

    @cached_property
    def _units(self) -> NDArray[np.float32]:
        return directions(self.gallery.table)

    @cached_property
    def _lengths(self) -> NDArray[np.float32]:
        return np.maximum(np.linalg.norm(self.index.probabilities, axis=1), 1e-12)

    # -- texts and patterns ------------------------------------------------------------------------------------------------------

    def is_action(self, text: str) -> bool:
        """Whether a text is the name of one of the actions, whatever its capitals."""
        return " ".join(text.casefold().split()) in self._actions

    def action(self, name: str, top: int = 10) -> list[Hit]:
        """The clips that most probably show an action, by what their codes say.

        Raises:
            DataError: The actions are not known, or no training clip shows this one.
            UsageError: There is no such action.
        """
        if not self.is_action(name):
            raise UsageError(
                f"{shown(name, 100)!r}: no action of the cache, which has {shown(', '.join(self.gallery.classes), 300)}; another sentence "
                "needs --model, whose language model scores it"
            )
        reader, place = self.index.reader, self._actions[" ".join(name.casefold().split())]
        if reader is None:
            raise DataError(f"actions cannot be told from the codes: {self.gallery.unlearned}; --model scores texts by the language model")
        if not reader.weight[place].any():
            raise DataError(f"{shown(name, 100)!r}: no training clip shows it; --model scores texts by the language model")
        return self._best(self.index.probabilities[:, place], top)

    def sentence(self, likelihoods: Likelihoods, top: int = 10) -> list[Hit]:
        """The clips that most raise the likelihood of a sentence: log P(sentence | events) - log P(sentence), where P(sentence) is the mean
        over all clips.

        Args:
            likelihoods: Codes (n, W, S) of all clips -> (n,) log P(sentence | events), in nats.
            top: Number of clips to return.
        """
        found = np.asarray(likelihoods(self.gallery.ids), dtype=np.float64)
        mean = np.logaddexp.reduce(found) - np.log(len(found))
        return self._best(found - mean, top)

    def pattern(self, text: str, top: int = 10) -> list[Hit]:
        """The clips in which a pattern of codes occurs, most often first.

        Args:
            text: As ``17 then 402 within 2 s``; ``retrieval/patterns.py`` has the whole form.
            top: Number of clips to return.

        Raises:
            UsageError: The text is no pattern, or has a code that does not exist.
        """
        found = match(read_pattern(text, len(self.gallery.table)), self.gallery.ids, self.gallery.spans)
        rows, starts, counts = np.unique(found.clips, return_index=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:top]
        hits = []
        for place in order.tolist():
            spans = found.spans[starts[place] : starts[place] + min(SHOWN, counts[place])]
            hits.append(self._hit(int(rows[place]), float(counts[place]), tuple((float(a), float(b)) for a, b in spans)))
        return hits

    # -- hits ----------------------------------------------------------------------------------------------------------------------

    def _row(self, clip: str) -> int:
        if clip not in self._place:
            raise DataError(f"{shown(clip, 200)}: no clip of the cache, which has {', '.join(map(shown, self.gallery.names[:3]))}, ...")
        return self._place[clip]

    def _best(self, scores: NDArray[np.floating], top: int) -> list[Hit]:
        rows = np.argsort(-scores, kind="stable")[:top]
        return self._hits(Order(rows, scores[rows].astype(np.float32)), top)

    def _hits(self, order: Order, top: int) -> list[Hit]:
        return [self._hit(row, score) for row, score in zip(order.rows[:top].tolist(), order.scores[:top].tolist(), strict=True)]

    def _hit(self, row: int, score: float, times: tuple[tuple[float, float], ...] = ()) -> Hit:
        known, label = self.gallery, int(self.gallery.labels[row])
        return Hit(str(known.names[row]), score, None if label < 0 else known.classes[label], str(known.people[row]), times)


def _joined(by_action: NDArray[np.float32] | None, by_events: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted mean of how alike clips are in their actions and in their events; by events alone without known actions."""
    if by_action is None:
        return by_events
    return np.asarray((by_action + EVENTS_WEIGHT * by_events) / (1 + EVENTS_WEIGHT), dtype=np.float32)
