"""Hands the missing items of a study to Slurm: one job array for each kind of work, after the arrays that it needs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

from vtlvlm.ablation.items import NETWORKS, TITLES, Item, Kind
from vtlvlm.slurm import cluster
from vtlvlm.slurm.site import Site
from vtlvlm.slurm.submission import Job, Outcome, Submission
from vtlvlm.system.files import write_text

ALONE: tuple[Kind, ...] = ("synth", "compose", "probe")
"""Kinds that run on one task without a GPU, by the batch script of ``prepare``; all others are elements of an array"""


def jobs(left: Sequence[Item], folder: Path) -> list[Job]:
    """The missing items as jobs.

    A failed element of an array does not stop the next array: a command whose input is missing refuses to run, and all others run.

    Args:
        left: The items, each after those that it needs.
        folder: The work folder. An array reads its command lines from ``slurm-KIND-DIGEST.txt`` in it.
    """
    names = {item.name: _job_name(item) for item in left}
    found = []
    for kind in TITLES:
        items = [item for item in left if item.kind == kind]
        if kind in ALONE:
            for item in items:
                found.append(Job(names[item.name], "prepare", item.command(), _after(item, names), item.done, any_end=True))
        elif items:
            after = tuple(dict.fromkeys(name for item in items for name in _after(item, names)))
            words = [str(folder / f"slurm-{kind}-{_digest(_lines(items))}.txt")]
            script = "network" if kind in NETWORKS else "ablation"
            found.append(Job(kind, script, words, after, partial(_all_done, items), len(items), any_end=True))
    return found


def _job_name(item: Item) -> str:
    return f"{item.kind}-{item.folder.name}" if item.kind in ALONE else item.kind


def _after(item: Item, names: dict[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names[need] for need in item.needs if need in names))


def _all_done(items: Sequence[Item]) -> bool:
    return all(item.done() for item in items)


def _lines(items: Sequence[Item]) -> str:
    return "".join(f"{shlex.join(item.command())}\n" for item in items)


def _digest(lines: str) -> str:
    return blake2b(lines.encode(), digest_size=4).hexdigest()


def hand_over(left: Sequence[Item], folder: Path, site: Site, dry: bool) -> Iterator[Outcome]:
    """Submit the items, each job at most once.

    Args:
        left: The missing items, each after those that it needs.
        folder: The work folder.
        site: The cluster.
        dry: Yield the command lines for Slurm instead, and write nothing.

    Raises:
        UsageError: There is no Slurm on this machine.
        DataError: Slurm refuses.
    """
    submission, all_jobs = Submission(folder, site), jobs(left, folder)
    if dry:
        yield from submission.dry_run(all_jobs)
        return
    cluster.live()  # without Slurm, nothing is written
    for job in all_jobs:
        if job.elements:  # a waiting array reads its lines later: other lines have a file of another name
            write_text(Path(job.words[0]), _lines([item for item in left if item.kind == job.name]))
    yield from submission.submit(all_jobs)
