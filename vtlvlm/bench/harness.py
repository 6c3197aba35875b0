"""Shared parts of the benches: timing of alternating jobs, measurements with targets, and their output."""

from __future__ import annotations

import itertools
import json
import operator
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch.profiler import ProfilerActivity, profile

from vtlvlm.report.provenance import environment
from vtlvlm.report.tables import Table, as_text
from vtlvlm.system.files import write_json


@dataclass(frozen=True)
class Measurement:
    """One line of a bench.

    Attributes:
        work: Description of the measured work.
        value: Its cost or speed. None if it could not be measured; ``note`` has the reason.
        unit: Unit of the value; ``x`` for ratios.
        target: The value to reach; None without a target.
        sense: Whether the value should be at most, at least or exactly the target.
        note: Further information.
    """

    work: str
    value: float | None
    unit: str = "x"
    target: float | None = None
    sense: Literal["<=", ">=", "=="] = "<="
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        compare = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}[self.sense]
        return self.value is not None and compare(self.value, self.target)


def alternate(
    jobs: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: Callable[[], float] = time.process_time,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each job per round. The jobs alternate, so that noise of the machine affects all of them alike.

    Args:
        jobs: Name → job. Each job first runs once without being measured.
        repeats: Rounds.
        clock: Processor time of all threads (``time.process_time``) or wall time (``time.perf_counter``).
        tick: Called after each job, for a progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if number:
                seconds[name].append(clock() - start)
            tick()
    return seconds


def ratio(seconds: Mapping[str, list[float]], job: str, unit: str) -> float:
    """Median over rounds of one job's time divided by another job's time in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[job], seconds[unit], strict=True))


def peak_bytes(job: Callable[[], object]) -> int:
    """Peak bytes of tensors during a job, beyond those that existed before.

    The profiler records torch's allocator. The C library's free memory and the system's file pages do not count. Buffers
    inside a library such as MKL are not seen.
    """
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            job()
        recorded.export_chrome_trace(trace := str(Path(folder) / "trace.json"))
        found = json.loads(Path(trace).read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in found if event["name"] == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def table(rows: Iterable[Measurement]) -> str:
    """The lines of a bench as a table of text."""
    cells = [(f.work, _number(f.value), f.unit, _target(f), {True: "yes", False: "NO", None: ""}[f.holds], f.note) for f in rows]
    return as_text(Table(["work", "value", "unit", "target", "holds", "note"], cells))


def finish(name: str, figures: Iterable[Measurement], output: Path, facts: Mapping[str, Any] | None = None) -> int:
    """Print the table, write ``{"machine", "rows", …}``, and return the number of missed targets."""
    rows = list(figures)
    print(table(rows))
    content = {"bench": name, **environment(None), **(facts or {}), "rows": [{**asdict(f), "holds": f.holds} for f in rows]}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, content)
    missed = sum(f.holds is False for f in rows)
    print(f"{output} written; {missed} of {sum(f.target is not None for f in rows)} targets missed")
    return missed


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _target(figure: Measurement) -> str:
    return "" if figure.target is None else f"{figure.sense} {_number(figure.target)}"
