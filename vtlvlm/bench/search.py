"""Speed of a search over 100,000 event sentences of 256 codes: its index, a clip, an action, and a pattern."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtlvlm.bench.harness import Measurement, alternate
from vtlvlm.retrieval.gallery import Gallery
from vtlvlm.retrieval.search import EventSearch
from vtlvlm.retrieval.stored import FILE, load_index, make_index, save_index

CLIPS, WINDOWS, CELLS, CODES, WIDTH, ACTIONS, LEARNED = 100_000, 16, 16, 2048, 1024, 60, 1_200
"""The paper's size: M = WINDOWS · CELLS = 256"""
STAY = 0.5
"""Share of windows in which a cell keeps its code"""


def measure(work: Path, *, repeats: int) -> tuple[list[Measurement], dict[str, Any]]:
    """All measurements of this bench."""
    gallery = drawn_gallery(CLIPS, CODES)
    path = work / FILE
    start = time.perf_counter()
    save_index(make_index(gallery), gallery.identity, path)
    made = time.perf_counter() - start
    start = time.perf_counter()
    index = load_index(gallery, path)
    opened = time.perf_counter() - start
    assert index is not None
    search = EventSearch(gallery, index)
    rng = np.random.default_rng(1)
    counts = np.bincount(gallery.ids.ravel(), minlength=CODES)
    common, next_common = np.argsort(-counts)[:2].tolist()

    def clip() -> object:
        return search.like(str(gallery.names[rng.integers(CLIPS)]))

    jobs: dict[str, Callable[[], object]] = {
        "clip": clip,
        "action": lambda: search.action(gallery.classes[0]),
        "pattern": lambda: search.pattern(f"{common} then {next_common} within 2 s"),
    }
    seconds = alternate(jobs, repeats=repeats, clock=time.perf_counter)
    work_of = f"search of {CLIPS:,} clips x {WINDOWS * CELLS} codes"
    figures = [
        Measurement(f"{work_of}: a clip like another, 200 aligned", statistics.median(seconds["clip"]), "s", 1),
        Measurement("... clips of an action", statistics.median(seconds["action"]), "s", 1),
        Measurement("... a pattern of the two most frequent codes", statistics.median(seconds["pattern"]), "s", 1),
        Measurement("... opening the index", opened, "s", note=f"{path.stat().st_size / 1e6:,.0f} MB beside the event cache"),
        Measurement("... making the index, once", made, "s", note=f"with {LEARNED:,} training clips of {ACTIONS} actions"),
    ]
    return figures, {"clips": CLIPS, "tokens": WINDOWS * CELLS, "codes": CODES, "repeats": repeats}


def drawn_gallery(clips: int, codes: int) -> Gallery:
    """Random sentences: an action prefers some of the codes, few codes are frequent (Zipf), and a cell often keeps its code."""
    rng = np.random.default_rng(0)
    labels = rng.integers(ACTIONS, size=clips)
    shares = 1 / np.arange(1, codes + 1)
    drawn = rng.choice(codes, size=(clips, WINDOWS, CELLS), p=shares / shares.sum())
    drawn = (drawn * 7 + labels[:, None, None] * 31) % codes
    stays = rng.random(drawn.shape) < STAY
    stays[:, 0] = False
    window = np.maximum.accumulate(np.where(stays, 0, np.arange(WINDOWS)[None, :, None]), axis=1)
    edges = np.linspace(0, 4, WINDOWS + 1, dtype=np.float32)
    return Gallery(
        names=_texts("clip", clips),
        ids=np.take_along_axis(drawn, window, axis=1).astype(np.uint16),
        spans=np.broadcast_to(np.stack([edges[:-1], edges[1:]], axis=1), (clips, WINDOWS, 2)),
        table=rng.standard_normal((codes, WIDTH), dtype=np.float32),
        labels=labels,
        classes=tuple(f"action {number}" for number in range(ACTIONS)),
        people=_texts("person", clips),
        performances=np.full(clips, "", dtype=object),
        learning=np.arange(min(LEARNED, clips)),
        testing=np.zeros(0, dtype=np.int64),
        identity="bench",
        unlearned="",
    )


def _texts(word: str, count: int) -> NDArray[np.object_]:
    return np.array([f"{word} {number}" for number in range(count)], dtype=object)
