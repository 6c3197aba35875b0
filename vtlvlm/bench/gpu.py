"""Both stages on one GPU at the paper's size, on random weights and features that are made on the GPU.

Parts come in the order of importance. Each figure is printed and written as one JSON line as soon as it is known, so that a run that is
cut off keeps what it has.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from vtlvlm.bench import gpu_inference, gpu_peers, gpu_stage1, gpu_stage2
from vtlvlm.bench.gpu_cost import PAPER, TINY, Gpu, Setting
from vtlvlm.bench.harness import Measurement, table
from vtlvlm.errors import UsageError
from vtlvlm.report.provenance import environment


class Part(NamedTuple):
    """A part of the bench."""

    name: str
    seconds: float
    """on an H100, rounded up; a part starts only if the budget has as much left"""
    measure: Callable[[Setting, Path], Iterator[Measurement]]


HEAD = '{"bench": "gpu"'
"""Start of the first line of a run"""
PARTS = (
    Part("stage 2", 25, gpu_stage2.steps),
    Part("stage 1", 6, gpu_stage1.steps),
    Part("stored layers", 5, gpu_stage2.stored),
    Part("kernels", 3, gpu_stage2.kernels),
    Part("scores", 7, gpu_inference.scores),
    Part("peers", 12, gpu_peers.steps),
    Part("answers", 5, gpu_peers.answers),
    Part("forms", 10, gpu_inference.forms),
    Part("numerics", 4, gpu_stage2.numerics),
    Part("extractor", 4, gpu_stage1.extractor),
    Part("video", 35, gpu_inference.video),
    Part("Liger", 30, gpu_peers.liger),
)


def measure(output: Path, budget: float, tiny: bool, parts: Sequence[Part] = PARTS) -> int:
    """Measure all parts that fit into the budget; returns the number of parts that failed.

    Args:
        output: File that gets a JSON line for each figure, after those that it has.
        budget: Seconds in which the parts start.
        tiny: Run the same code with small models on a CPU, where no part has an estimate.
        parts: What to measure.

    Raises:
        UsageError: There is no GPU, or ``output`` is no place for JSON lines.
    """
    if not tiny and not torch.cuda.is_available():
        raise UsageError("bench gpu needs a CUDA device, and torch sees none; --tiny runs the same code with small models on a CPU")
    require_lines_place(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    setting, start = Setting(Gpu(torch.device("cpu" if tiny else "cuda")), TINY if tiny else PAPER), time.perf_counter()
    rows: list[Measurement] = []
    failed = 0
    with output.open("a", encoding="utf-8") as file:
        say(file, {"bench": "gpu", "tiny": tiny, "budget": budget, **environment(None)})
        for part in parts:
            left = budget - (time.perf_counter() - start)
            if left < (0 if tiny else part.seconds):
                found: Iterator[Measurement] = iter([skipped(part.name, f"needs {part.seconds:.0f} s, the budget has {max(0, left):.0f}")])
            else:
                found = guarded(part, setting, output.parent)
            for row in found:
                failed += row.note.startswith(FAILED)
                rows.append(row)
                at = round(time.perf_counter() - start, 1)
                say(file, {"seconds": at, "part": part.name, **asdict(row), "holds": row.holds})
            setting.gpu.clear()
    print(table(rows))
    print(f"{output} written in {time.perf_counter() - start:.0f} s; {failed} parts failed")
    return failed


FAILED = "failed: "
"""Start of the note of a part that raised an error"""


def require_lines_place(output: Path) -> None:
    """Refuse an output that is no file of this bench.

    Raises:
        UsageError: The message names the file.
    """
    if output.suffix != ".jsonl" or output.is_dir():
        raise UsageError(f"{output}: name a file that ends in .jsonl")
    if not output.exists():
        return
    with output.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(100)
    if first and not first.startswith(HEAD):
        raise UsageError(f"{output}: exists and holds no lines of bench gpu; name a new file")


def guarded(part: Part, setting: Setting, work: Path) -> Iterator[Measurement]:
    """The figures of a part. Its error becomes a line, so that the next part still runs."""
    try:
        yield from part.measure(setting, work)
    except ModuleNotFoundError as error:
        yield skipped(part.name, f"{error.name} is not installed")
    except Exception as error:
        traceback.print_exc()
        yield Measurement(part.name, None, "", note=f"{FAILED}{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def skipped(name: str, reason: str) -> Measurement:
    return Measurement(name, None, "", note=f"skipped: {reason}")


def say(file: TextIO, line: dict[str, Any]) -> None:
    """Write a JSON line to the file and to the standard output, at once."""
    text = json.dumps(line, ensure_ascii=False)
    file.write(text + "\n")
    file.flush()
    print(text, flush=True)
