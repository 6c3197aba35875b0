"""Checkpoints are written whole or not at all, read without running anything in them, and found by whether they can be read.

Lightning writes checkpoints through TMPDIR, reads them unchecked, and believes the paths in them. Here :class:`CheckpointFiles` and
:class:`RunTrainer` write a checkpoint beside its target and rename it once it is on the disk; :func:`examine` checks it before it is used;
:func:`harmless` removes from its callbacks' states the paths that Lightning would delete.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from vtlvlm.errors import DataError, UsageError
from vtlvlm.stages.compatibility import require_record, require_tensors
from vtlvlm.stages.sharded import read_description
from vtlvlm.system.files import replacing, sync
from vtlvlm.system.places import same, within
from vtlvlm.system.text import shown

METADATA = "meta.pt"
"""What ModelParallelStrategy writes into a checkpoint's folder beside the shards: all but weights and optimiser"""
RECORD = "vtlvlm"
"""The key of our own record in a checkpoint. Lightning's ``hyper_parameters`` stays empty on purpose: its command line would let them
silently override the configuration that was asked for."""
LAST, BEST = "last", "best"
BEFORE = "before-"
"""Prefix of a folder of shards while the next one replaces it"""
LEFTOVER = re.compile(r"\..+\.ckpt\..+\.[0-9a-f]{8}\.tmp")
"""A half-written checkpoint, a file or a folder of shards"""
REPLAYED = {"loops": dict, "callbacks": dict, "lr_schedulers": list}
"""What a training needs to continue, beside weights and optimiser, and its type"""


# -- reading ---------------------------------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A whole checkpoint on the CPU, memory-mapped, without running any code in it.

    Raises:
        UsageError: if the file is missing, damaged (each part is compared with its checksum), or no checkpoint of vtlvlm.
    """
    path = Path(path)
    if (path / METADATA).is_file():
        raise UsageError(f"{path} is split into the shards of several processes: make one file of it with `vtlvlm consolidate {path} FILE`")
    if path.is_dir():
        held = written(path) or sorted(path.glob("*.ckpt"))
        raise UsageError(f"{path}: a folder, and no checkpoint; give a file such as {held[0] if held else 'RUN/checkpoints/best.ckpt'}")
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    try:
        _require_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensors that are refused below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what it likes
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UsageError(f"{path}: not a readable checkpoint ({shown(reason, 100)})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(RECORD), dict):
        raise UsageError(f"{path}: not a checkpoint of vtlvlm")
    require_record(checkpoint[RECORD], path)
    if path.name != METADATA:  # the shards beside it have the weights
        require_tensors(checkpoint.get("state_dict"), path)
    return checkpoint


def _require_whole(path: Path) -> None:
    """Refuse a file whose parts differ from their checksums, which torch does not check."""
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with zipfile.ZipFile(path) as parts:
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
            raise ValueError("compressed, as torch never writes one")
        if damaged := parts.testzip():
            raise ValueError(f"damaged in {damaged}")


def read_record(path: str | Path) -> dict[str, Any]:
    """Our record in a checkpoint: ``stage``, ``settings``, ``provenance``, ``version``.

    Raises:
        UsageError: if the file is missing, unreadable, or no checkpoint of vtlvlm.
    """
    return examine(path)


def examine(path: str | Path, training: bool = False) -> dict[str, Any]:
    """The record of a checkpoint (a file or a folder of shards), if it holds everything that Lightning will read.

    Args:
        path: The checkpoint.
        training: Whether a training continues from it; otherwise only its weights are needed.

    Raises:
        UsageError: if it is missing, damaged, no checkpoint of vtlvlm, or lacks something.
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
        raise UsageError(f"{path}: holds only weights, from which no training can continue; give one that was written with its optimiser")
    described = {"stage": str, "settings": dict, "provenance": dict}
    lacking += [f"{RECORD}.{name}" for name, kind in described.items() if not isinstance(record.get(name), kind)]
    if lacking:
        raise UsageError(f"{path}: not a readable checkpoint (lacks {', '.join(lacking)})")
    return record


def belongs(path: Path, folder: Path) -> bool:
    """Whether a checkpoint belongs to the run in a folder: it lies there, or that run wrote it.

    Raises:
        UsageError: if it lies elsewhere and cannot be read.
    """
    if within(path, folder):
        return True
    states = load_checkpoint(path / METADATA if (path / METADATA).is_file() else path).get("callbacks")
    ours = (RunCheckpoint.__name__, "ModelCheckpoint{")
    for key, state in states.items() if isinstance(states, dict) else ():
        place = state.get("dirpath") if isinstance(state, dict) and str(key).startswith(ours) else None
        if isinstance(place, str) and same(place, folder / "checkpoints"):
            return True
    return False


def harmless(checkpoint: dict[str, Any]) -> None:
    """Remove from the callbacks' states, in place, every path that Lightning cannot have written: it would one day delete what is there.
    Plain absolute paths are kept; Lightning compares them with its own folder."""
    states = checkpoint.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if not isinstance(state, dict):
            continue
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if name in state and not _plain(state[name]):
                state[name] = ""
        if isinstance(kept := state.get("best_k_models"), dict):
            state["best_k_models"] = {path: score for path, score in kept.items() if _plain(path)}


def _plain(path: Any) -> bool:
    return isinstance(path, str) and "::" not in path and "://" not in path and os.path.isabs(path) and os.path.normpath(path) == path  # noqa: PTH117


# -- finding ---------------------------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What the training of a run folder can continue from."""

    checkpoint: Path | None
    """The newest that can be read"""
    unreadable: tuple[str, ...]
    """Why newer ones cannot"""


def continuation(folder: Path | str) -> Found:
    """The newest checkpoint of a run folder from which a training can continue, with those that were passed over.

    The search covers ``checkpoints/`` and what Lightning writes when Slurm warns it. Of equally old ones, the last epoch's end comes first.
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
    """The checkpoint from which the training of a run folder continues; None if there is none."""
    return continuation(folder).checkpoint


def written(folder: Path | str) -> list[Path]:
    """All checkpoints of a run folder, readable or not, the newest first."""
    folder = Path(folder)
    paths = [*(folder / "checkpoints").glob("*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]
    ages = {path: age for path in paths if (age := _age(path)) is not None}
    return sorted(ages, key=lambda path: (ages[path], path.stem == LAST, path.name), reverse=True)


def _age(checkpoint: Path) -> float | None:
    """When a checkpoint, a file or a folder of shards, was completed; None if it was not."""
    end = checkpoint / METADATA if checkpoint.is_dir() else checkpoint  # Lightning writes it last
    return end.stat().st_mtime if end.is_file() else None


def named(word: str, folder: Path | str) -> Path:
    """The file that one of Lightning's words for ``--ckpt_path`` means in a run folder; other text is a path.

    Raises:
        UsageError: if there is no such checkpoint in that folder, or the word means none.
    """
    folder = Path(folder)
    if word == "hpc":
        warned = [path for path in written(folder) if path.parent == folder]
        if not warned:
            raise UsageError(f"--ckpt_path hpc: {folder} holds no checkpoint that Slurm's warning left; give last, or a file")
        return warned[0]
    if word in (LAST, BEST):
        path = folder / "checkpoints" / f"{word}.ckpt"
        if _age(path) is None:
            others = written(folder)
            instead = f"; it holds {others[0]}" if others else ""
            raise UsageError(f"--ckpt_path {word}: no {path}{instead}; name the run's folder with --trainer.default_root_dir, or a file")
        return path
    if word.lower() == "registry" or word.lower().startswith("registry:"):
        raise UsageError(f"--ckpt_path {word}: models are not taken from Lightning's registry; download it and give the file")
    if "://" in word:
        raise UsageError(f"--ckpt_path {word}: nothing is fetched; download it and give the file")
    if not word:
        raise UsageError("--ckpt_path is empty: give last, best or a file, or leave it out")
    path = Path(word)
    if not path.exists() and word.startswith("~"):  # which a shell leaves alone behind `=`
        with suppress(RuntimeError):
            path = path.expanduser()
    if not path.exists():
        meant = word.strip(" ./").lower()
        hint = f"; the word for the one of the run's folder is {meant}" if meant in (LAST, BEST, "hpc") else ""
        raise UsageError(f"{word}: no such checkpoint{hint}")
    return path


# -- writing ---------------------------------------------------------------------------------------------------------------------------


class NotWrittenError(DataError):
    """A checkpoint that could not be written: the one before it is still there."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads it without running anything in it.

    Raises:
        NotWrittenError: The disk is full, or the place cannot be written.
    """

    def __init__(self) -> None:
        self.restoring = False
        """Whether Lightning is restoring a checkpoint"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are for storage that is not a file system")
        path = Path(path)
        try:
            with replacing(path) as temporary:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                if path.is_dir():  # shards, from a training on several processes
                    shutil.rmtree(path)
        except Exception as error:
            if (cause := _system_error(error)) is None:
                raise
            raise not_written(path, cause) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        self.restoring = True
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Restored(Callback):
    """Notes when Lightning has restored all of a checkpoint: later errors are not the checkpoint's fault."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        files = trainer.strategy.checkpoint_io
        if isinstance(files, CheckpointFiles):
            files.restoring = False

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = on_train_start


def not_written(path: Path, error: OSError) -> NotWrittenError:
    """The one line about a checkpoint that could not be written."""
    return NotWrittenError(
        f"{path}: the checkpoint cannot be written ({error.strerror}); those from before are whole: make room or rights there, and go on "
        "with --ckpt_path last"
    )


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind another one: torch reports in its own words that a file could not be written."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class RunTrainer(Trainer):
    """A Trainer that writes each checkpoint, a file or a folder of shards, whole or not at all. If one cannot be written, all processes
    stop."""

    def save_checkpoint(self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None) -> None:
        target = Path(filepath)
        sharded = isinstance(self.strategy, ModelParallelStrategy | FSDPStrategy)
        place = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp") if sharded else target
        failed: NotWrittenError | None = None
        try:
            super().save_checkpoint(place, weights_only, storage_options)
            if sharded and self.is_global_zero:
                _take_place(place, target)
        except NotWrittenError as error:
            failed = error
            if not sharded:  # the first process alone writes, and the others wait here
                self.strategy.barrier("Trainer.save_checkpoint")
        except OSError as error:
            if not sharded:
                raise
            failed = not_written(target, error)
        if not self.strategy.reduce_boolean_decision(failed is None, all=True):
            raise failed or NotWrittenError(f"{target}: the checkpoint cannot be written by another process; those from before are whole")


def _take_place(temporary: Path, target: Path) -> None:
    """Replace the previous checkpoint by a finished one, a folder or a file. The previous one has a name at every moment."""
    before = target.with_name(f"{BEFORE}{target.name}")
    for inner in temporary.iterdir() if temporary.is_dir() else [temporary]:
        sync(inner)
    if temporary.is_file() and not target.is_dir():
        temporary.replace(target)
    else:
        if target.exists():
            if before.is_dir():
                shutil.rmtree(before)
            target.rename(before)
        temporary.rename(target)
        if before.is_dir():
            shutil.rmtree(before)
        else:
            before.unlink(missing_ok=True)
    sync(target.parent)


def clear_leftovers(folder: Path | str) -> None:
    """Remove the half-written checkpoints of dead processes. The caller must hold the run folder's lock."""
    folder = Path(folder)
    for left in (*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")):
        if LEFTOVER.fullmatch(left.name):
            CheckpointFiles().remove_checkpoint(left)


class RunCheckpoint(ModelCheckpoint):
    """One of the two checkpoints that every run has: ``last.ckpt``, written at each epoch's end and at ``max_steps``, and ``best.ckpt``,
    chosen by validation alone. It has a class of its own, so that Lightning does not take a user's ``ModelCheckpoint`` for it."""

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__}[{self.filename}]"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score if its checkpoint lies in this run's folder, which may have moved; a new folder has none."""
        here = Path(self.dirpath or ".") / f"{self.filename}{self.FILE_EXTENSION}"
        if not here.exists():
            self.best_model_path = state_dict["best_model_path"]
            return
        scores = list(state_dict["best_k_models"].values())[:1]
        known = {name: str(here) for name in ("best_model_path", "kth_best_model_path") if state_dict[name]}
        place = {"dirpath": self.dirpath, "last_model_path": "", "best_k_models": {str(here): score for score in scores}}
        super().load_state_dict({**state_dict, **known, **place})


def run_checkpoints(folder: Path | str, monitor: str, mode: str) -> list[ModelCheckpoint]:
    """The two checkpoint callbacks of a run folder; without validation there is never a best checkpoint.

    Args:
        folder: The run folder.
        monitor: The validation figure by which the best one is chosen.
        mode: ``min`` or ``max``.
    """
    place = Path(folder) / "checkpoints"
    last = RunCheckpoint(dirpath=place, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False)
    best = RunCheckpoint(
        dirpath=place, filename=BEST, monitor=monitor, mode=mode, save_on_train_epoch_end=False, enable_version_counter=False
    )
    return [last, best]


def with_present_names(checkpoint: dict[str, Any], monitor: str) -> None:
    """Rename the states of both callbacks, in place, if they were saved when both were plain ``ModelCheckpoint`` s."""
    states = checkpoint.get("callbacks")
    if not isinstance(states, dict) or any(str(key).startswith(RunCheckpoint.__name__) for key in states):
        return
    for key in [key for key in states if str(key).startswith("ModelCheckpoint{")]:
        state = states[key]
        found = state.get("monitor") if isinstance(state, dict) else False
        if found in (None, monitor):
            states[f"{RunCheckpoint.__name__}[{BEST if found else LAST}]"] = states.pop(key)


def is_default(callback: Any) -> bool:
    """Whether a checkpoint callback is the one that Lightning adds if it is given none."""
    told = (getattr(callback, name, True) for name in ("dirpath", "filename", "monitor", "save_last"))
    return type(callback) is ModelCheckpoint and not any(told)
