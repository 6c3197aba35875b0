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
    """The computer: platform, processor name, usable cores, the GPUs torch sees, and the versions of CUDA, cuDNN and the NVIDIA driver.

    The three versions are None without a GPU.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "driver": driver_version() if gpus else None,
    }
    return {"platform": platform.platform(), "cpu": _processor(), "cores": usable_cores(), "gpus": gpus, **found}


def driver_version(path: Path = Path("/sys/module/nvidia/version")) -> str | None:
    """The version of the NVIDIA driver, as its kernel module gives it; None without that file.

    Args:
        path: The file of the kernel module.
    """
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def device_of(kind: str, count: int) -> dict[str, Any]:
    """The devices of a run: ``name`` ("cpu", or the name of this process's GPU) and ``count``, one for each process.

    Args:
        kind: ``cpu`` or ``cuda``, the type of torch's device.
        count: Number of processes.
    """
    return {"name": torch.cuda.get_device_name() if kind == "cuda" else kind, "count": count}


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
