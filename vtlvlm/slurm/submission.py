"""Submits jobs that depend on each other, each at most once: what is finished, waits or runs is not started again."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from vtlvlm.configs import config
from vtlvlm.errors import DataError, UsageError
from vtlvlm.slurm import cluster
from vtlvlm.slurm.site import Site, of_script
from vtlvlm.system.files import write_json
from vtlvlm.system.locks import FileLock, Taken

STATE = "slurm.json"
"""File of a run folder: the jobs that were submitted for it"""


def never() -> bool:
    """False: the default of :attr:`Job.done`, for a job whose output cannot be checked."""
    return False


class Job(NamedTuple):
    """One job of a chain.

    Attributes:
        name: Short and unique in its chain, such as ``stage2``.
        script: Name of a shipped batch script without its ending, such as ``stage2``.
        words: The command line after ``vtlvlm``. For an array, the arguments of the script.
        after: Names of jobs that must end before it starts.
        done: Whether its output is complete.
        elements: Number of elements of an array; 0 for a single job.
        any_end: Start also after jobs that failed. The command itself then refuses what is incomplete.
    """

    name: str
    script: str
    words: list[str]
    after: tuple[str, ...] = ()
    done: Callable[[], bool] = never
    elements: int = 0
    any_end: bool = False


class Outcome(NamedTuple):
    """What was found or done for a job."""

    name: str
    number: str | None
    """of the job; None for a finished one, and in a dry run"""
    text: str
    """in words, such as ``submitted``"""


class Submission:
    """The jobs of one folder.

    Args:
        folder: The run folder. It holds ``slurm.json`` and ``logs/``.
        site: The cluster.
    """

    def __init__(self, folder: Path, site: Site) -> None:
        self.folder, self.site = folder, site
        self.mark = blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()

    def full_name(self, job: Job) -> str:
        """The job's name in Slurm. It is the same each time, so that a job is found also without ``slurm.json``."""
        return f"vtlvlm-{job.name}-{self.mark}"

    def options(self, job: Job, numbers: Sequence[str]) -> list[str]:
        """Options of sbatch for a job that depends on jobs with these numbers."""
        resources = of_script(config(f"slurm/{job.script}.sbatch"))
        log = f"{job.name}-%A_%a.out" if job.elements else f"{job.name}-%j.out"
        found = [f"--job-name={self.full_name(job)}", f"--output={(self.folder / 'logs' / log).resolve()}"]
        if job.elements:
            found.append(f"--array=0-{job.elements - 1}")
        if numbers:
            found.append(f"--dependency={'afterany' if job.any_end else 'afterok'}:{':'.join(numbers)}")
        return [*found, *self.site.sbatch_options(job.script, resources)]

    def dry_run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The command lines that would be given to Slurm, with names for the numbers of jobs. Needs no Slurm."""
        done: set[str] = set()
        for job in jobs:
            if job.done():
                done.add(job.name)
                yield Outcome(job.name, None, "done")
                continue
            script = config(f"slurm/{job.script}.sbatch")
            waits = [name for name in job.after if name not in done]
            yield Outcome(job.name, None, shlex.join(["sbatch", *self.options(job, waits), script, *job.words]))

    def submit(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Submit the jobs that are not finished and that Slurm does not hold already, in order.

        Raises:
            UsageError: There is no Slurm on this machine, or another process submits from this folder.
            DataError: Slurm refuses. Jobs submitted before stay; the same call goes on with the rest.
        """
        held = {row.name: row for row in cluster.live()}  # without Slurm, nothing is written
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder / ".lock-submit")
        except Taken as error:
            raise UsageError(f"{self.folder}: another process submits from there ({error.owner or 'this one'}); wait for it") from error
        try:
            recorded = read_state(self.folder)
            numbers: dict[str, str] = {}
            for job in jobs:
                outcome = self._one(job, numbers, held, recorded)
                if outcome.number is not None:
                    numbers[job.name] = outcome.number
                yield outcome
        finally:
            lock.release()

    def _one(self, job: Job, numbers: dict[str, str], held: dict[str, cluster.Live], recorded: dict[str, Any]) -> Outcome:
        if job.done():
            return Outcome(job.name, None, "done")
        found = held.get(self.full_name(job))
        if found is not None and found.reason == "DependencyNeverSatisfied":
            cluster.ask("scancel", found.job)
            found = None
        if found is not None:
            waits = f" ({found.reason})" if found.state == "PENDING" else ""
            return Outcome(job.name, found.job, f"{found.state.lower()}{waits}")
        before = recorded.get(job.name)
        told = "submitted"
        if before is not None:
            told = f"submitted again; job {before['job']} ended: {cluster.ended(before['job']) or 'unknown to Slurm'}"
        waits_for = [numbers[name] for name in job.after if name in numbers]
        script = config(f"slurm/{job.script}.sbatch")
        number = cluster.submit(script, job.words, self.options(job, waits_for), self.site.environment())
        recorded[job.name] = {"job": number, "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": job.words}
        write_json(self.folder / STATE, {"version": 1, "jobs": recorded})
        return Outcome(job.name, number, told)


def read_state(folder: Path) -> dict[str, Any]:
    """The jobs that were submitted for a folder, by name: ``job``, ``submitted`` and ``command``.

    Raises:
        DataError: ``slurm.json`` is damaged or of another version.
    """
    path = folder / STATE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        jobs = {str(name): {"job": str(row["job"]), **row} for name, row in found["jobs"].items()}
        if found["version"] != 1:
            raise ValueError(f"version {found['version']}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not readable ({error}); delete it: jobs that Slurm still holds are found by their names") from error
    return jobs
