"""Processor cores."""


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has where a scheduler or a container (cgroup) limits them."""
    from joblib import cpu_count

    return int(cpu_count())
