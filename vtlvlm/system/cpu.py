"""Processor cores."""


def usable_cores() -> int:
    """Number of cores that this process may use. A scheduler or a container (cgroup) may allow fewer than the machine has."""
    from joblib import cpu_count

    return int(cpu_count())
