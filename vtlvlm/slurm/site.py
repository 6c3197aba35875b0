"""What differs between clusters: account, partition, GPUs of a node, modules, container. One small file, ``slurm/site.yaml``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vtlvlm.configs import config, shipped
from vtlvlm.errors import UsageError
from vtlvlm.system.text import shown

SHIPPED = "slurm/site.yaml"


@dataclass(frozen=True)
class Site:
    """One cluster."""

    account: str | None = None
    partition: str | None = None
    gpus_per_node: int = 8
    """0 for nodes without GPUs"""
    container: str | None = None
    """the words that run ``vtlvlm`` in a container; None for this installation"""
    setup: str = ""
    """shell lines before the command"""
    restarts: int = 3
    """a job whose process was killed, such as for lack of memory, starts again if it was restarted less often than this"""
    options: list[str] = field(default_factory=list)
    """more options of sbatch"""
    steps: dict[str, list[str]] = field(default_factory=dict)
    """more options of sbatch for one step, by its name"""

    @classmethod
    def read(cls, path: Path | str | None = None) -> Site:
        """Read a site file; the shipped one without a path.

        Raises:
            UsageError: The file is missing, or a value in it has another type. Names the key.
        """
        import yaml

        path = Path(config(SHIPPED) if path is None else path)
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path}: no such site file; copy {config(SHIPPED)} and change it") from None
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
            raise UsageError(f"{path}: not a site file ({shown(' '.join(str(error).split()), 200)})") from error
        if not isinstance(found, dict):
            raise UsageError(f"{path}: not a site file: it holds no settings such as `partition:`")
        known = [one.name for one in fields(cls)]
        for key, value in found.items():
            if key not in known:
                raise UsageError(f"{path}: {shown(key, 40)}: no such setting; there are {', '.join(known)}")
            if not _fits(key, value):
                raise UsageError(f"{path}: {key}: {shown(value, 60)!r} is not {MEANT[key]}")
        steps = sorted(script.stem for script in (shipped() / "slurm").glob("*.sbatch"))
        if wrong := next((name for name in found.get("steps") or {} if name not in steps), None):
            raise UsageError(f"{path}: steps: {shown(wrong, 40)}: no such step; there are {', '.join(steps)}")
        return cls(**{key: value for key, value in found.items() if value is not None})

    def environment(self) -> dict[str, str]:
        """The variables that the batch scripts read."""
        own = shlex.join([sys.executable, "-m", "vtlvlm"])
        return {"VTLVLM_RESTARTS": str(self.restarts), "VTLVLM_SETUP": self.setup, "VTLVLM_COMMAND": self.container or own}

    def sbatch_options(self, step: str, resources: dict[str, str]) -> list[str]:
        """Options of sbatch for a step, which replace those of its script.

        A step keeps its number of processes: on nodes with fewer GPUs than its script asks for, it takes more nodes.

        Args:
            step: The name of the step, such as ``stage2``.
            resources: The options in its script, from :func:`of_script`.
        """
        found = [f"--{name}={value}" for name, value in (("account", self.account), ("partition", self.partition)) if value]
        wanted = int(resources.get("gpus-per-node", "0"))
        if wanted and not self.gpus_per_node:
            found += ["--gpus-per-node=0", "--ntasks-per-node=1"]
        elif wanted > self.gpus_per_node:
            whole = int(resources.get("nodes", "1")) * wanted
            each = next(number for number in range(self.gpus_per_node, 0, -1) if whole % number == 0)
            found += [f"--nodes={whole // each}", f"--ntasks-per-node={each}", f"--gpus-per-node={each}"]
        return [*found, *self.options, *self.steps.get(step, [])]


MEANT = {
    "account": "a name",
    "partition": "a name",
    "gpus_per_node": "a whole number from 0",
    "restarts": "a whole number from 0",
    "container": "a command line",
    "setup": "shell lines",
    "options": "a list of options of sbatch",
    "steps": "a table of lists of options of sbatch, by step",
}


def _fits(key: str, value: Any) -> bool:
    if value is None:
        return key in ("account", "partition", "container")
    if key in ("gpus_per_node", "restarts"):
        return type(value) is int and value >= 0
    if key == "options":
        return _are_words(value)
    if key == "steps":
        return isinstance(value, dict) and all(isinstance(name, str) and _are_words(words) for name, words in value.items())
    return isinstance(value, str)


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def of_script(path: Path | str) -> dict[str, str]:
    """The options of a batch script's ``#SBATCH`` lines, by name without dashes; "" for one without a value."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    words = [line.split()[1].removeprefix("--") for line in lines if line.startswith("#SBATCH --")]
    return {name: value for name, _, value in (word.partition("=") for word in words)}
