"""Talks to Slurm through its own commands: sbatch, squeue, sacct, scontrol."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.text import shown

PATIENCE = 120
"""Seconds to wait for an answer of Slurm"""


class Live(NamedTuple):
    """A job that Slurm still holds."""

    job: str
    """its number; that of the whole array for an element"""
    name: str
    state: str
    """such as ``RUNNING`` or ``PENDING``"""
    reason: str
    """why it waits, such as ``Dependency``"""


def ask(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """Run one of Slurm's commands, and return what it prints.

    Raises:
        UsageError: Slurm is not installed here.
        DataError: Slurm refuses, or does not answer; holds its own words.
    """
    try:
        more = {**os.environ, **(environment or {})}
        done = subprocess.run(words, env=more, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except FileNotFoundError:
        raise UsageError(
            f"{words[0]}: no Slurm on this machine; submit from a login node of the cluster (--dry-run lists the commands)"
        ) from None
    except subprocess.TimeoutExpired:
        raise DataError(f"{words[0]}: Slurm has not answered for {PATIENCE} seconds; give the same command again later") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise DataError(f"{shown(said, 300)}; correct it in the site file (--site), or give the same command again later")
    return done.stdout


def submit(script: str, words: Sequence[str], options: Sequence[str], environment: Mapping[str, str]) -> str:
    """Hand a batch script to Slurm.

    Args:
        script: Path of the script.
        words: Its arguments.
        options: Options of sbatch, which replace those of the script.
        environment: Variables for the job, beside those of this process.

    Returns:
        The number of the job.

    Raises:
        UsageError: Slurm is not installed here.
        DataError: Slurm refuses, or does not answer.
    """
    said = ask("sbatch", "--parsable", *options, script, *words, environment=environment)
    return said.strip().splitlines()[-1].partition(";")[0]


def live() -> list[Live]:
    """The jobs of this user that wait or run. Elements of an array have a row each, once they have started.

    Raises:
        UsageError: Slurm is not installed here.
        DataError: Slurm refuses, or does not answer.
    """
    user = ["--user", str(os.getuid())]
    rows = ask("squeue", *user, "--noheader", "--format=%F|%j|%T|%r").splitlines()
    return [Live(*(part.strip() for part in row.split("|", 3))) for row in rows if row.count("|") >= 3]


def ended(job: str) -> str | None:
    """How a job ended, such as ``COMPLETED`` or ``FAILED``; None if Slurm has forgotten it.

    Slurm itself keeps a job for some minutes. An accounting database keeps it longer.
    """
    for words in (
        ("scontrol", "show", "job", job, "--oneliner"),
        ("sacct", "--allocations", "--noheader", "--parsable2", "--format=State", "--jobs", job),
    ):
        try:
            said = ask(*words)
        except DataError:  # no database, or a forgotten job
            continue
        for line in said.splitlines():
            found = next((part.removeprefix("JobState=") for part in line.split() if part.startswith("JobState=")), None)
            if found is None and words[0] == "sacct":
                found = line.split()[0] if line.split() else None
            if found:
                return found
    return None
