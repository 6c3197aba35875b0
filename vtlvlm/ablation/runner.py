"""Runs work items, each as a command in a process of its own, several at once if asked."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtlvlm.ablation.items import SCORE, TRAINING, TRIALS, Item
from vtlvlm.errors import DataError, UsageError
from vtlvlm.report.runs import Run, fit_finished
from vtlvlm.report.tables import duration_text
from vtlvlm.system.cpu import usable_cores
from vtlvlm.system.files import write_json
from vtlvlm.system.text import shown

LOOK = 0.2
"""Seconds between looks at the processes"""
PATIENCE = 60.0
"""Seconds that an interrupted command has to end by itself"""
DIVERGED = "with a lower learning rate"
"""Part of the last message of a training that diverged (``vtlvlm/stages/nan_guard.py``)"""
TAIL = 16_384
"""Bytes at the end of a log in which the error's line is looked for"""


class Ended(BaseException):
    """The system asks this process to end (SIGTERM)."""


@dataclass
class Running:
    """A command that runs."""

    item: Item
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)


def execute(items: Sequence[Item], jobs: int, on_end: Callable[[Item, str | None, float], None]) -> dict[str, str]:
    """Run items, each after those that it needs. A failed item stops only those that need it.

    After Ctrl-C or SIGTERM, the running commands are interrupted in turn, and end with their state on the disk.

    Args:
        items: In an order in which each comes after those that it needs.
        jobs: Commands at the same time.
        on_end: Called when an item has ended, with its error in one line, or None, and its seconds.

    Returns:
        Name -> error of each failed item, and of each item that needs one.
    """
    waiting, failed, running = list(items), dict[str, str](), list[Running]()
    names, ended = {item.name for item in items}, 0
    with _asked_to_end():
        try:
            while waiting or running:
                for item in list(waiting):
                    if reason := next((failed[need] for need in item.needs if need in failed), None):
                        waiting.remove(item)
                        failed[item.name] = reason
                        ended += 1
                    elif len(running) < jobs and not any(need in names for need in item.needs):
                        waiting.remove(item)
                        print(f"[{ended + len(running) + 1}/{len(items)}] {item.title}  ({item.log})", flush=True)
                        running.append(_start(item, jobs))
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    names.discard(one.item.name)
                    ended += 1
                    if error := _result(one):
                        failed[one.item.name] = error
                    seconds = time.monotonic() - one.began
                    took = duration_text(seconds)
                    print(f"      {one.item.title}: {f'failed after {took}: {error}' if error else took}", flush=True)
                    on_end(one.item, error, seconds)
                if running:
                    time.sleep(LOOK)
        except BaseException:
            _interrupt(running)
            raise
    return failed


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """Raise :class:`Ended` at SIGTERM, in the main thread."""

    def end(number: int, frame: Any) -> None:
        raise Ended

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(item: Item, jobs: int) -> Running:
    """Start a command. Its output is appended to its log. It has a process group of its own, so that Ctrl-C reaches it once."""
    arguments = item.command()
    item.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, usable_cores() // jobs))
    with item.log.open("ab") as log:
        log.write(f"$ vtlvlm {shlex.join(arguments)}\n".encode())
        log.flush()
        command = [sys.executable, "-m", "vtlvlm", *arguments]
        return Running(item, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0))


def _result(one: Running) -> str | None:
    """The error of a command that has ended, in one line; None if its result is complete."""
    item, code = one.item, one.process.returncode
    error = None if code == 0 else last_error(item.log, code)
    try:
        if item.kind in TRIALS and (code == 0 or (error is not None and DIVERGED in error)):
            _keep_score(item, diverged=code != 0)
            return None
        return error if error or item.done() else f"ended without its result; {item.log} has its output"
    except (DataError, UsageError) as damage:
        return str(damage)


def last_error(log: Path, code: int) -> str:
    """The line in which a command said why it failed.

    Args:
        log: Its output.
        code: Its exit code; negative for a signal.
    """
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; {log} has its output"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").rpartition("\n$ vtlvlm ")[2].splitlines()
    told = [line.removeprefix("vtlvlm: ") for line in lines if line.startswith("vtlvlm: ")]
    return shown(told[-1], 600) if told else f"ended with {code}; {log} has its output"


def settle(item: Item) -> None:
    """Write the score of a trial that ended elsewhere, such as in a job of Slurm."""
    if item.done():
        return
    record = Run(item.folder).fit
    diverged = record is not None and bool(record.sessions) and DIVERGED in str(record.sessions[-1].get("error", ""))
    if diverged or fit_finished(item.folder):
        _keep_score(item, diverged=diverged)


def _keep_score(item: Item, diverged: bool) -> None:
    """Write the calibrated loss of a trial's best checkpoint on the validation people, and delete its checkpoints."""
    score = None if diverged else _best_score(item.folder / "checkpoints" / "best.ckpt")
    write_json(item.folder / SCORE, {"nll": score})
    shutil.rmtree(item.folder / "checkpoints", ignore_errors=True)


def _best_score(checkpoint: Path) -> float:
    from vtlvlm.stages.checkpoints import load_checkpoint

    states = load_checkpoint(checkpoint).get("callbacks", {}).values()
    found = next(
        (state["best_model_score"] for state in states if state.get("monitor") and state.get("best_model_score") is not None), None
    )
    if found is None:
        raise DataError(f"{checkpoint}: has no score on validation people; delete {checkpoint.parents[1]}, and the trial runs again")
    return float(found)


def _interrupt(running: Sequence[Running]) -> None:
    """Interrupt the commands that run, and wait until they have ended. A training writes a checkpoint at SIGTERM.

    Those that take too long are killed; all are, if this process is asked to end again meanwhile.
    """
    for one in running:
        with suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGTERM if one.item.kind in TRAINING else signal.SIGINT)
    limit = time.monotonic() + PATIENCE
    try:
        for one in running:
            with suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.1, limit - time.monotonic()))
    finally:
        for one in running:
            if one.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(one.process.pid, signal.SIGKILL)  # its loading processes too
                one.process.wait()
