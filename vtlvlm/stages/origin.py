"""What a checkpoint was made from, and the refusal of data or weights that do not go with it."""

from __future__ import annotations

import hashlib
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from vtlvlm.errors import UsageError
from vtlvlm.vtem.extractors import FeatureExtractor

WEIGHTS = "weights_sha256"
"""Where an extractor's fingerprint has the hash of its weights"""


def content_hash(module: nn.Module) -> str:
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

    The clips that validated them then may do so again. Other ones must be of people who did not train, or are refused where people are
    not known.

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
        remedy = f"set data.validation and data.seed as they were, --data.validation {made['validation']:g} --data.seed {made['seed']}"
        if made["protocol"] == "csv":
            remedy += ", or the table's val rows"
        raise UsageError(f"{what} was trained on what would validate it now ({reason}): {remedy}")


def require_same_extractor(extractor: FeatureExtractor, made: dict[str, Any], what: str) -> None:
    """Load an extractor's weights, and refuse other ones than those whose features were learned from. A trained extractor lies in the
    checkpoint itself.

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
    if made.get(WEIGHTS) != found.get(WEIGHTS):
        one, two = (str(side.get(WEIGHTS))[:8] for side in (made, found))
        raise UsageError(
            f"{what} was trained on features of an extractor with {WEIGHTS} {one}, extractor.weights = "
            f"{getattr(extractor, 'weights', None)!r} has {two}: put the weights of then in their place, or train stage 1 anew"
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
