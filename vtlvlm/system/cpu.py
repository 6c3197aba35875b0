"""Processor cores."""

import os


def usable_cores() -> int:
    """Number of cores that this process may use. A scheduler or a container (cgroup) may allow fewer than the machine has."""
    from joblib import cpu_count

    return int(cpu_count())


def cores_of_a_process(processes: int) -> int:
    """Number of cores for one of several processes on this machine, at least 1.

    Slurm gives each process cores of its own and says how many. Otherwise the processes share the cores that they may use.

    Args:
        processes: Processes of the job on this machine.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdecimal() and int(given):
        return min(int(given), usable_cores())
    return max(1, usable_cores() // processes)
