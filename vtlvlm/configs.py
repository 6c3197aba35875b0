"""Where the shipped configurations lie: beside the package in a checkout, inside it when installed."""

from pathlib import Path

from vtlvlm.errors import UsageError


def config(name: str) -> str:
    """Path of a shipped configuration.

    Args:
        name: relative to ``lightning_configs``, such as ``stage1_small.yaml``.

    Raises:
        UsageError: if there is none of that name.
    """
    package = Path(__file__).parent
    for folder in (package / "lightning_configs", package.parent / "lightning_configs"):
        if (folder / name).is_file():
            return str(folder / name)
    raise UsageError(f"{name}: no such configuration; the shipped ones lie in lightning_configs/")
