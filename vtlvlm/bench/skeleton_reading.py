"""Speed of reading ``.skeleton`` files, beside the usual parser that reads line after line."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtlvlm.bench.harness import Measurement, alternate, ratio
from vtlvlm.skeleton.reading import Records, parse
from vtlvlm.synth.dataset import ClipSpec
from vtlvlm.synth.scene import Camera, Setup
from vtlvlm.synth.skeleton import skeleton_text

ACTIONS = {"a person": 23, "two people": 58}
"""Of NTU RGB+D: waving, and shaking hands"""
ROUNDS = 10


def skeletons(work: Path, repeats: int) -> list[Measurement]:
    """The time of a line-by-line parser over that of ours, on rendered recordings. Both read the file and give the same records."""
    figures = []
    for people, action in ACTIONS.items():
        file = work / f"{people.replace(' ', '-')}.skeleton"
        if not file.is_file():
            file.write_text(skeleton_text(ClipSpec(0, 1, 1, 1, 1, action).performance(), Camera.of(Setup.of(0, 1), 1)))
        jobs: dict[str, Callable[[], object]] = {
            "lines": lambda file=file: [line_by_line(file) for _ in range(ROUNDS)],  # type: ignore[misc]
            "vtlvlm": lambda file=file: [parse(file.read_bytes(), file) for _ in range(ROUNDS)],  # type: ignore[misc]
        }
        seconds = alternate(jobs, repeats=repeats)
        each = statistics.median(seconds["vtlvlm"]) / ROUNDS
        note = f"{file.stat().st_size / 1e6:.2f} MB in {1000 * each:.1f} ms"
        work_done = f".skeleton file of {people}, a line-by-line parser's time over vtlvlm's"
        figures.append(Measurement(work_done, ratio(seconds, "lines", "vtlvlm"), "x", 5, ">=", note))
    return figures


def line_by_line(file: Path) -> Records:
    """Read a ``.skeleton`` file as is usual: line after line, number after number."""
    frames, bodies, rows = [], [], []
    positions: dict[str, int] = {}
    with file.open(encoding="ascii") as stream:
        for frame in range(int(stream.readline())):
            for _ in range(int(stream.readline())):
                frames.append(frame)
                bodies.append(positions.setdefault(stream.readline().split()[0], len(positions)))
                rows.append([[float(word) for word in stream.readline().split()] for _ in range(int(stream.readline()))])
    values = np.array(rows, dtype=np.float32)
    where = np.array(frames), np.array(bodies)
    return Records(*where, tuple(positions), values[..., :3], values[..., 5:7], values[..., 11].astype(np.uint8))
