"""What a checkpoint was made from. Refuses files that are not checkpoints, and data or weights that do not match a checkpoint."""

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
"""Where an extractor's fingerprint has the hash of its weights"""


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
}
"""What the commands read of a stage's provenance"""
DEEPEST, MOST = 32, 2_000_000
"""Nesting and number of the plain values in a record"""


def require_record(record: Any, path: str | Path) -> None:
    """Refuse a record that no version of vtlvlm wrote, before anything in it is used.

    Args:
        record: What a checkpoint has under our key; anything.
        path: The file, for the message.

    Raises:
        UsageError: It lacks something, or has it in another form.
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


def require_classes(classes: Any, path: str | Path) -> list[str]:
    """Category names out of a file.

    Raises:
        UsageError: Not a list of names.
    """
    if not isinstance(classes, list | tuple) or not classes or not all(isinstance(name, str) for name in classes):
        raise UsageError(f"{path}: its categories are not a list of names; get the file again, or make it again")
    if broken := [name for name in classes if not encodable(name)]:
        raise UsageError(f"{path}: its category {shown(broken[0], 80)} holds half a character; get the file again, or make it again")
    return list(classes)


def _plain_values(value: Any) -> str | None:
    """What is wrong with a tree of plain values, or None."""
    layer, count = [value], 0
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict) and not all(isinstance(key, str) for key in one):
                return "a key is not text"
            if isinstance(one, dict | list | tuple):
                count += len(one)
                if count > MOST:  # also where few bytes name one list again and again
                    return f"it holds more than {MOST:,} values"
                inner += one.values() if isinstance(one, dict) else one
            elif one is not None and not isinstance(one, bool | int | float | str):
                return f"it holds a {type(one).__name__}"
        if not inner:
            return None
        layer = inner
    return "its values lie within each other without end"


def _lacks(found: Any, needed: dict[str, Any], place: str) -> str | None:
    """The first thing that a table lacks or has in another form."""
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
    """Refuse weights that are not plain tensors, or claim more memory than their file has: copied, they would take it.

    Args:
        values: A state dict out of a file; anything.
        path: The file, for the message.

    Raises:
        UsageError: Naming the first.
    """
    fault = "it has no weights"
    if isinstance(values, dict):
        fault = next((f"{shown(name, 80)} is {wrong}" for name, one in values.items() if (wrong := _no_tensor(name, one))), "")
    if fault:
        raise UsageError(f"{path}: not a readable checkpoint ({fault}); get the file again, or make it again")


def _no_tensor(name: Any, value: Any) -> str | None:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        return "no tensor under a name"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
        return "no plain tensor"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"larger ({'x'.join(map(str, value.shape))}) than what is stored of it"
    if name.rpartition(".")[2] == "temperature" and not (value.numel() == 1 and math.isfinite(value.item()) and value.item() > 0):
        return f"{value.item() if value.numel() == 1 else 'no number'}, a temperature must be above 0"
    return None


def require_numbers(values: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights from a file that are not finite, or that are whole numbers instead of real ones: the model would answer all the same.

    Args:
        values: Of the file, by name.
        own: The model's tensors that they are for; other names are passed over.
        path: The file, for the message.

    Raises:
        UsageError: Naming the first.
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
    """A name for exactly these weights: a hash over what the module's state dict holds."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_same_split(made: dict[str, Any], protocol: str, train_hash: str, what: str = "stage 1") -> None:
    """Refuse weights that were trained on another split: they may have seen what is tested now.

    Args:
        made: ``protocol`` and ``train_hash`` of the weights.
        protocol: in use.
        train_hash: in use, of the data module.
        what: holds the weights, for the message.

    Raises:
        UsageError: naming both.
    """
    if (made["protocol"], made["train_hash"]) != (protocol, train_hash):
        raise UsageError(
            f"{what} was trained on {made['protocol']} (training clips {made['train_hash'][:8]}), this is {protocol} "
            f"({train_hash[:8]}): it may have seen test clips; give the split it was trained on, or train it on this one"
        )


def require_unseen_validation(made: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse to validate on clips that the weights were trained on: checkpoint and temperature would be chosen by them.

    The clips that validated them then may do so again. Others must show people who were not trained on; if the people are not known, they
    are refused.

    Args:
        made: ``NTUDataModule.split_description`` of the weights.
        now: ... of the data in use.
        what: holds the weights, for the message.

    Raises:
        UsageError: naming the people, and the settings that chose the clips.
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
        raise UsageError(f"{what} was trained on what would validate it now ({reason}): {remedy}")


def require_same_extractor(extractor: FeatureExtractor, made: dict[str, Any], what: str) -> None:
    """Load an extractor's weights, and refuse any but those whose features were learned from. A trained extractor lies in the checkpoint
    itself.

    Args:
        extractor: as the settings of stage 1 describe it.
        made: ``fingerprint`` of the one that made the features.
        what: was trained on them, for the message.

    Raises:
        UsageError: naming both.
    """
    if extractor.trainable:
        return
    found = extractor.fingerprint()
    if made.get(WEIGHTS_HASH) != found.get(WEIGHTS_HASH):
        one, two = (str(side.get(WEIGHTS_HASH))[:8] for side in (made, found))
        raise UsageError(
            f"{what} was trained on features of an extractor with {WEIGHTS_HASH} {one}, extractor.weights = "
            f"{getattr(extractor, 'weights', None)!r} has {two}: put back the weights that it was trained with, or train stage 1 anew"
        )


def require_same_origin(made: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse to use weights of stage 2 on events, clips or categories that they were not trained for.

    Args:
        made: Provenance of the weights.
        now: ... as it would be with the data in use.
        what: Holds the weights, for the message.

    Raises:
        UsageError: Naming both.
    """
    if made["classes"] != now["classes"]:
        pairs = enumerate(zip_longest(made["classes"], now["classes"]))
        number, (one, two) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
        raise UsageError(
            f"{what} knows {len(made['classes'])} categories, the data has {len(now['classes'])}, number {number} is {one!r} there and "
            f"{two!r} here: give data with the categories it was trained on"
        )
    require_same_split(made, now["protocol"], now["train_hash"], what)
    one, two = made["stage1"], now["stage1"]
    if one["hash"] != two["hash"]:
        raise UsageError(
            f"{what} reads events of {one['checkpoint']} ({one['hash'][:8]}), these are of {two['checkpoint']} ({two['hash'][:8]}): "
            "give events of the stage 1 it was trained with"
        )
