"""The origin of a result: versions, machine and git state, written with every result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vtlvlm.system.cpu import usable_cores

PACKAGES = (
    "vtlvlm",
    "torch",
    "torchvision",
    "lightning",
    "transformers",
    "peft",
    "timm",
    "av",
    "torchmetrics",
    "vector-quantize-pytorch",
    "numpy",
    "scikit-learn",
)
"""Distributions whose version can change a result."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages of ``PACKAGES`` that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The computer: platform, processor name, usable cores, and the GPUs torch sees."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "cpu": _processor(), "cores": usable_cores(), "gpus": gpus}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(folder: Path | str = ".") -> dict[str, Any] | None:
    """The commit and whether anything differs from it; None if ``folder`` is in no git repository with a commit, or git is missing."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path | str, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def global_seed() -> int | None:
    """The last seed of Lightning's ``seed_everything``, the same on all ranks; None without one."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed else None


def environment(seed: int | None, folder: Path | str = ".") -> dict[str, Any]:
    """The content of ``versions.json``: ``versions``, ``machine``, ``seed`` and ``git`` (of ``folder``)."""
    return {"versions": versions(), "machine": machine(), "seed": seed, "git": git_state(folder)}
