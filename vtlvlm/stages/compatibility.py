"""Compares a checkpoint with data, weights and settings. Refuses files that are not checkpoints, and data or weights that do not fit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtlvlm.errors import UsageError
from vtlvlm.stages.parts import is_part
from vtlvlm.system.text import encodable, shown
from vtlvlm.vtem.extractors import FeatureExtractor

WEIGHTS_HASH = "weights_sha256"
"""Key of the weights' hash in an extractor's fingerprint"""


_SPLIT = {"clips": {"train": int, "val": int, "test": int}, "validation": (int, float), "seed": int, "val_hash": str}
_NEEDED: dict[str, dict[str, Any]] = {
    "vtem": {"protocol": str, "train_hash": str, "split": _SPLIT, "sampling": dict, "extractor": dict},
    "prompt_tuning": {
        "classes": list,
        "protocol": str,
        "train_hash": str,
        "split": _SPLIT,
        "stage1": {"checkpoint": str, "hash": str},
        "event_dim": int,
        "num_tokens": int,
        "llava": {"llava": str, "weights": str},
    },
    "recognition": {
        "classes": list,
        "protocol": str,
        "train_hash": str,
        "split": _SPLIT,
        "sampling": dict,
    },
}
"""The entries of a stage's provenance that the commands read; those of a recognition network's input are in ``stages.network_inputs``"""
DEEPEST, MOST = 32, 2_000_000
"""Largest nesting and number of plain values in a record"""


def require_record(record: Any, path: str | Path) -> None:
    """Refuse a record that no version of vtlvlm wrote, before any of it is used.

    Args:
        record: The value under our key in a checkpoint; can be anything.
        path: The file, for the message.

    Raises:
        UsageError: An entry is missing or has another type.
    """
    fault = "it is not a table"
    if isinstance(record, dict):
        plain, stage = _plain_values(record), record.get("stage")
        if plain is not None:
            fault = plain
        elif not isinstance(stage, str) or not is_part(record.get("settings")):
            fault = "stage or settings are missing"
        else:
            fault = _lacks(record.get("provenance"), _NEEDED.get(stage, {}), "provenance") or ""
    if fault:
        raise UsageError(f"{path}: not a readable checkpoint ({fault}); get the file again, or make it again")


def require_entries(provenance: dict[str, Any], needed: dict[str, Any], path: str | Path) -> None:
    """Refuse a provenance that lacks an entry, or has one of another type.

    Args:
        provenance: Of a record that :func:`require_record` has checked.
        needed: Types of the entries, by name.
        path: The file, for the message.

    Raises:
        UsageError: Names the first fault.
    """
    if fault := _lacks(provenance, needed, "provenance"):
        raise UsageError(f"{path}: not a readable checkpoint ({fault}); get the file again, or make it again")


def require_classes(classes: Any, path: str | Path) -> list[str]:
    """Checked category names from a file.

    Raises:
        UsageError: The value is not a list of names.
    """
    if not isinstance(classes, list | tuple) or not classes or not all(isinstance(name, str) for name in classes):
        raise UsageError(f"{path}: its categories are not a list of names; get the file again, or make it again")
    if broken := [name for name in classes if not encodable(name)]:
        raise UsageError(f"{path}: its category {shown(broken[0], 80)} holds half a character; get the file again, or make it again")
    return list(classes)


def _plain_values(value: Any) -> str | None:
    """The fault of a tree of plain values, or None."""
    layer, count = [value], 0
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict) and not all(isinstance(key, str) for key in one):
                return "a key is not text"
            if isinstance(one, dict | list | tuple):
                count += len(one)
                if count > MOST:  # few bytes can repeat one list many times
                    return f"it holds more than {MOST:,} values"
                inner += one.values() if isinstance(one, dict) else one
            elif one is not None and not isinstance(one, bool | int | float | str):
                return f"it holds a {type(one).__name__}"
        if not inner:
            return None
        layer = inner
    return "its values are nested too deeply"


def _lacks(found: Any, needed: dict[str, Any], place: str) -> str | None:
    """The first entry that a table lacks or has with another type."""
    if not isinstance(found, dict):
        return f"{place} is missing"
    for name, kind in needed.items():
        value = found.get(name)
        if isinstance(kind, dict):
            if fault := _lacks(value, kind, f"{place}.{name}"):
                return fault
        elif not isinstance(value, kind) or (isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))):
            return f"{place}.{name} is {shown(repr(value), 40) if name in found else 'missing'}"
    if needed.get("classes") is list and not all(isinstance(name, str) for name in found["classes"]):
        return f"{place}.classes is not a list of names"
    return None


def require_tensors(values: Any, path: str | Path) -> None:
    """Refuse weights that are not plain tensors, or that claim more memory than their file holds, since a copy would take it.

    Args:
        values: A state dict from a file; can be anything.
        path: The file, for the message.

    Raises:
        UsageError: Names the first fault.
    """
    fault = "it has no weights"
    if isinstance(values, dict):
        fault = next((f"{shown(name, 80)} is {wrong}" for name, one in values.items() if (wrong := _no_tensor(name, one))), "")
    if fault:
        raise UsageError(f"{path}: not a readable checkpoint ({fault}); get the file again, or make it again")


def _no_tensor(name: Any, value: Any) -> str | None:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        return "not a named tensor"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
        return "not a plain tensor"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"larger ({'x'.join(map(str, value.shape))}) than its stored values"
    if name.rpartition(".")[2] == "temperature" and not (value.numel() == 1 and math.isfinite(value.item()) and value.item() > 0):
        return f"{value.item() if value.numel() == 1 else 'no number'}, a temperature must be above 0"
    return None


def require_numbers(values: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights from a file that are not finite, or that are integers instead of floats. The model would compute with them without an
    error.

    Args:
        values: The file's tensors, by name.
        own: The model's tensors; other names in the file are ignored.
        path: The file, for the message.

    Raises:
        UsageError: Names the first fault.
    """
    for name, tensor in own.items():
        value = values.get(name)
        if value is None or not (value.is_floating_point() or tensor.is_floating_point()):
            continue
        if value.is_floating_point() != tensor.is_floating_point():
            wrong = f"holds {shown(value.dtype)}, expected {shown(tensor.dtype)}"
        elif not bool(torch.isfinite(value).all()):
            wrong = "holds numbers that are not finite"
        else:
            continue
        raise UsageError(f"{path}: its {name} {wrong}; get the file again, or make it again")


def module_hash(module: nn.Module) -> str:
    """Identifies the weights: a hash of the module's state dict."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_same_split(made: dict[str, Any], protocol: str, train_hash: str, what: str = "stage 1") -> None:
    """Refuse weights of another split, since they may have been trained on clips that are tested now.

    Args:
        made: ``protocol`` and ``train_hash`` of the weights.
        protocol: of the data in use.
        train_hash: of the data in use.
        what: the holder of the weights, for the message.

    Raises:
        UsageError: they differ; names both.
    """
    if (made["protocol"], made["train_hash"]) != (protocol, train_hash):
        raise UsageError(
            f"{what} was trained on {made['protocol']} (training clips {made['train_hash'][:8]}), this is {protocol} "
            f"({train_hash[:8]}): it may have seen test clips; give the split it was trained on, or train it on this one"
        )


def require_unseen_validation(made: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse to validate on clips that the weights were trained on, because validation chooses checkpoint and temperature.

    Accepts the original validation clips, or clips of people outside the training set. Refuses anything else.

    Args:
        made: ``NTUDataModule.split_description`` of the weights.
        now: the same of the data in use.
        what: the holder of the weights, for the message.

    Raises:
        UsageError: names the people, and the settings that chose the clips.
    """
    if not now["clips"]["val"] or made["val_hash"] == now["val_hash"]:
        return
    if now["groups"] is not None and made["groups"] is not None:
        seen = sorted(set(now["groups"]["val"]) & set(made["groups"]["train"]))
        reason = f"clips of {', '.join(map(str, seen[:4]))}{', ...' * (len(seen) > 4)}"
    else:
        seen, reason = [True], "other clips are left for validation"
    if seen:
        words = f"--data.source.validation {made['validation']:g} --data.seed {made['seed']}"
        remedy = f"set data.source.validation and data.seed as they were, {words}"
        if made["protocol"] == "csv":
            remedy += ", or the table's val rows"
        raise UsageError(f"{what} was trained on clips that would validate it now ({reason}): {remedy}")


def require_same_extractor(extractor: FeatureExtractor, made: dict[str, Any], what: str) -> None:
    """Load an extractor's weights, and refuse them unless they made the features of the training. A trained extractor is part of the
    checkpoint itself.

    Args:
        extractor: from the settings of stage 1.
        made: ``fingerprint`` of the extractor that made the features.
        what: was trained on these features, for the message.

    Raises:
        UsageError: they differ; names both.
    """
    if extractor.trainable:
        return
    found = extractor.fingerprint()
    if made.get(WEIGHTS_HASH) != found.get(WEIGHTS_HASH):
        one, two = (str(side.get(WEIGHTS_HASH))[:8] for side in (made, found))
        raise UsageError(
            f"{what} was trained on features of an extractor with {WEIGHTS_HASH} {one}, extractor.weights = "
            f"{getattr(extractor, 'weights', None)!r} has {two}: restore the weights of that training, or train anew"
        )


def require_same_classes(made: list[str], now: list[str], what: str) -> None:
    """Refuse weights that were trained for other categories, or the same ones in another order.

    Args:
        made: Names that the weights were trained for.
        now: Names of the data in use.
        what: The holder of the weights, for the message.

    Raises:
        UsageError: They differ; names the first difference.
    """
    if made != now:
        number, (one, two) = next((number, pair) for number, pair in enumerate(zip_longest(made, now)) if pair[0] != pair[1])
        raise UsageError(
            f"{what} knows {len(made)} categories, the data has {len(now)}, number {number} is {one!r} there and {two!r} here: give data "
            "with the categories it was trained on"
        )


def require_same_origin(made: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse weights of stage 2 that were trained for other events, clips or categories.

    Args:
        made: Provenance of the weights.
        now: The provenance that the data in use would give.
        what: The holder of the weights, for the message.

    Raises:
        UsageError: They differ; names both.
    """
    require_same_classes(made["classes"], now["classes"], what)
    require_same_split(made, now["protocol"], now["train_hash"], what)
    one, two = made["stage1"], now["stage1"]
    if one["hash"] != two["hash"]:
        raise UsageError(
            f"{what} reads events of {one['checkpoint']} ({one['hash'][:8]}), these are of {two['checkpoint']} ({two['hash'][:8]}): "
            "give events of the stage 1 it was trained with"
        )
