"""Reads checkpoints without running code in them, and finds the newest readable one of a run.

Lightning reads checkpoints unchecked and trusts the paths in them. :func:`examine` checks a checkpoint before it is used. :func:`harmless`
removes paths that Lightning would delete from the callbacks' states. ``checkpoint_writing.py`` writes checkpoints whole or not at all.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vtlvlm.errors import UsageError
from vtlvlm.stages.compatibility import require_record, require_tensors
from vtlvlm.stages.sharded import read_description
from vtlvlm.system.places import same, within
from vtlvlm.system.text import shown

METADATA = "meta.pt"
"""File of ModelParallelStrategy in a checkpoint's folder, with everything but weights and optimiser"""
RECORD = "vtlvlm"
"""The key of our record in a checkpoint. Lightning's ``hyper_parameters`` stays empty on purpose: its command line would let them silently
override the configuration."""
LAST, BEST = "last", "best"
BEFORE = "before-"
"""Prefix of a folder of shards while the next one replaces it"""
LEFTOVER = re.compile(r"\..+\.ckpt\..+\.[0-9a-f]{8}\.tmp")
"""A half-written checkpoint (a file or a folder of shards)"""
REPLAYED = {"loops": dict, "callbacks": dict, "lr_schedulers": list}
"""Entries, with their types, that a training needs to continue, beside weights and optimiser"""


# -- reading ---------------------------------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint on the CPU, memory-mapped, read without running code in it.

    Raises:
        UsageError: The file is missing, damaged (each part is compared with its checksum), or not a checkpoint of vtlvlm.
    """
    path = Path(path)
    if (path / METADATA).is_file():
        raise UsageError(f"{path} holds the shards of several processes: merge them into one file with `vtlvlm consolidate {path} FILE`")
    if path.is_dir():
        held = written(path) or sorted(path.glob("*.ckpt"))
        raise UsageError(f"{path}: a folder, not a checkpoint; give a file such as {held[0] if held else 'RUN/checkpoints/best.ckpt'}")
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    try:
        _require_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensors that we refuse below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UsageError(f"{path}: not a readable checkpoint ({shown(reason, 100)})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(RECORD), dict):
        raise UsageError(f"{path}: not a checkpoint of vtlvlm")
    require_record(checkpoint[RECORD], path)
    if path.name != METADATA:  # the weights are in the shards beside it
        require_tensors(checkpoint.get("state_dict"), path)
    return checkpoint


def _require_whole(path: Path) -> None:
    """Refuse a file whose parts differ from their checksums. torch does not check them."""
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with zipfile.ZipFile(path) as parts:
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
            raise ValueError("compressed, which torch never does")
        if damaged := parts.testzip():
            raise ValueError(f"damaged in {damaged}")


def read_record(path: str | Path) -> dict[str, Any]:
    """Our record in a checkpoint: ``stage``, ``settings``, ``provenance``, ``version``.

    Raises:
        UsageError: The file is missing, unreadable, or not a checkpoint of vtlvlm.
    """
    return examine(path)


def examine(path: str | Path, training: bool = False) -> dict[str, Any]:
    """The record of a checkpoint (a file or a folder of shards) that has all entries that Lightning will read.

    Args:
        path: The checkpoint.
        training: Whether training continues from it; otherwise it needs only the weights.

    Raises:
        UsageError: It is missing, damaged, not a checkpoint of vtlvlm, or lacks an entry.
    """
    path = Path(path)
    sharded = (path / METADATA).is_file()
    checkpoint = load_checkpoint(path / METADATA if sharded else path)
    record = checkpoint[RECORD]
    if sharded:
        read_description(path)  # Lightning unpickles it next
    expected: dict[str, type] = {"pytorch-lightning_version": str}
    if not sharded:
        expected["state_dict"] = dict
    if training:
        expected |= REPLAYED if sharded else {**REPLAYED, "optimizer_states": list}
    lacking = [name for name, kind in expected.items() if not isinstance(checkpoint.get(name), kind)]
    if training and "optimizer_states" in lacking:
        raise UsageError(f"{path}: holds only weights, so training cannot continue from it; give one that was written with its optimiser")
    described = {"stage": str, "settings": dict, "provenance": dict}
    lacking += [f"{RECORD}.{name}" for name, kind in described.items() if not isinstance(record.get(name), kind)]
    if lacking:
        raise UsageError(f"{path}: not a readable checkpoint (lacks {', '.join(lacking)})")
    return record


def belongs(path: Path, folder: Path) -> bool:
    """Whether a checkpoint belongs to the run in a folder: it lies in that folder, or that run wrote it.

    Raises:
        UsageError: It lies elsewhere and cannot be read.
    """
    if within(path, folder):
        return True
    states = load_checkpoint(path / METADATA if (path / METADATA).is_file() else path).get("callbacks")
    ours = ("RunCheckpoint", "ModelCheckpoint{")  # the keys of our callbacks and of Lightning's own
    for key, state in states.items() if isinstance(states, dict) else ():
        place = state.get("dirpath") if isinstance(state, dict) and str(key).startswith(ours) else None
        if isinstance(place, str) and same(place, folder / "checkpoints"):
            return True
    return False


def harmless(checkpoint: dict[str, Any]) -> None:
    """Remove, in place, every path from the callbacks' states that Lightning cannot have written, because Lightning would later delete
    these paths. Plain absolute paths stay; Lightning compares them with its own folder."""
    states = checkpoint.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if not isinstance(state, dict):
            continue
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if name in state and not _is_plain_path(state[name]):
                state[name] = ""
        if isinstance(kept := state.get("best_k_models"), dict):
            state["best_k_models"] = {path: score for path, score in kept.items() if _is_plain_path(path)}


def _is_plain_path(path: Any) -> bool:
    return isinstance(path, str) and "::" not in path and "://" not in path and os.path.isabs(path) and os.path.normpath(path) == path  # noqa: PTH117


# -- finding ---------------------------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The checkpoint that a run folder's training can continue from."""

    checkpoint: Path | None
    """The newest readable one"""
    unreadable: tuple[str, ...]
    """Why newer ones cannot be read"""


def continuation(folder: Path | str) -> Found:
    """The newest checkpoint from which a run folder's training can continue, and the errors of newer ones.

    The search covers ``checkpoints/`` and the checkpoints that Lightning writes on Slurm's warning. Of equally old ones, the one of the
    last epoch's end comes first.
    """
    passed: list[str] = []
    for path in written(folder):
        try:
            examine(path, training=True)
        except UsageError as error:
            passed.append(str(error))
        else:
            return Found(path, tuple(passed))
    return Found(None, tuple(passed))


def to_continue(folder: Path | str) -> Path | None:
    """The checkpoint from which a run folder's training continues; None if there is none."""
    return continuation(folder).checkpoint


def written(folder: Path | str) -> list[Path]:
    """All checkpoints of a run folder, readable or not, newest first."""
    folder = Path(folder)
    paths = [*(folder / "checkpoints").glob("*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]
    ages = {path: age for path in paths if (age := _age(path)) is not None}
    return sorted(ages, key=lambda path: (ages[path], path.stem == LAST, path.name), reverse=True)


def _age(checkpoint: Path) -> float | None:
    """Time at which a checkpoint (a file or a folder of shards) was completed; None if it is incomplete."""
    end = checkpoint / METADATA if checkpoint.is_dir() else checkpoint  # Lightning writes it last
    return end.stat().st_mtime if end.is_file() else None


def named(word: str, folder: Path | str) -> Path:
    """The file that one of Lightning's words for ``--ckpt_path`` names in a run folder; any other text is a path.

    Raises:
        UsageError: The folder has no such checkpoint, or the word has no meaning.
    """
    folder = Path(folder)
    if word == "hpc":
        warned = [path for path in written(folder) if path.parent == folder]
        if not warned:
            raise UsageError(f"--ckpt_path hpc: {folder} holds no checkpoint from Slurm's warning; give last, or a file")
        return warned[0]
    if word in (LAST, BEST):
        path = folder / "checkpoints" / f"{word}.ckpt"
        if _age(path) is None:
            others = written(folder)
            instead = f"; it holds {others[0]}" if others else ""
            raise UsageError(f"--ckpt_path {word}: no {path}{instead}; name the run's folder with --trainer.default_root_dir, or a file")
        return path
    if word.lower() == "registry" or word.lower().startswith("registry:"):
        raise UsageError(f"--ckpt_path {word}: Lightning's registry is not supported; download the model and give the file")
    if "://" in word:
        raise UsageError(f"--ckpt_path {word}: addresses are not supported; download the file and give its path")
    if not word:
        raise UsageError("--ckpt_path is empty: give last, best or a file, or leave it out")
    path = Path(word)
    if not path.exists() and word.startswith("~"):  # a shell does not expand it after `=`
        with suppress(RuntimeError):
            path = path.expanduser()
    if not path.exists():
        meant = word.strip(" ./").lower()
        hint = f"; the word for the run's own checkpoint is {meant}" if meant in (LAST, BEST, "hpc") else ""
        raise UsageError(f"{word}: no such checkpoint{hint}")
    return path
