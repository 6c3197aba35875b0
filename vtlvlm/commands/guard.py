"""Checks before ``fit``, ``validate``, ``test`` and ``predict`` begin: settings, Slurm's tasks, the run folder and its checkpoint.

Lightning interprets all of these in its own way. Here, each has one definite meaning or is refused in one line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vtlvlm.callbacks.stopping import Stopped
from vtlvlm.errors import DataError, UsageError
from vtlvlm.stages.checkpoint_writing import RunCheckpoint, clear_leftovers
from vtlvlm.stages.checkpoints import BEST, LAST, belongs, continuation, named, written
from vtlvlm.system import signals
from vtlvlm.system.locks import FileLock, Taken
from vtlvlm.system.places import same
from vtlvlm.system.text import shown

HPC = "hpc_ckpt_"
"""Part of a file name. Lightning loads such a file in a run folder as a checkpoint that it wrote at Slurm's warning"""


# -- settings and tasks ----------------------------------------------------------------------------------------------------------------


def require_settings(trainer: Any) -> None:
    """Refuse settings of Lightning that replace our loaders.

    Raises:
        UsageError: Names the setting and its replacement.
    """
    if trainer.get("overfit_batches"):
        raise UsageError(
            "--trainer.overfit_batches replaces the data module's order of clips and views: use --trainer.limit_train_batches N"
        )
    if trainer.get("use_distributed_sampler"):
        raise UsageError("--trainer.use_distributed_sampler: the data module already divides the clips over processes; leave it out")


def require_float64(trainer: Any) -> None:
    """Refuse a device without float64, which pooling and calibration need.

    Raises:
        UsageError: The trainer would run on Apple's GPU. Lightning chooses it for ``gpu`` and ``auto`` on a machine that has one.
    """
    if (device := trainer.strategy.root_device).type == "mps":
        raise UsageError(f"device {device}: has no float64, which pooling needs; use --trainer.accelerator cpu")


def outside_slurm(environment: Mapping[str, str], devices: Any = None, nodes: Any = None) -> bool:
    """Whether Lightning would mistake this process for a Slurm task, because it runs in the shell of an allocation with one task.

    Args:
        environment: The environment variables of the process.
        devices: The trainer's ``devices``, if it is a number.
        nodes: The trainer's ``num_nodes``, if it is a number.

    Raises:
        UsageError: The variables contradict how the command was started. Names the remedy.
    """
    if "SLURM_NTASKS" not in environment or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return False  # Lightning sees no Slurm here either
    if "TORCHELASTIC_RUN_ID" in environment:
        return False  # Lightning prefers torchrun, too
    tasks = _count(environment, "SLURM_NTASKS")
    started = "SLURM_PROCID" in environment and ("SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment)
    if not started and tasks == 1:
        return True
    if not started:
        raise UsageError(
            f"SLURM_NTASKS={tasks}, but srun did not start this process, and it would wait for the other tasks: start it "
            "with `srun vtlvlm ...`, or `unset SLURM_NTASKS` for one process"
        )
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        _count(environment, name)
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise UsageError(f"--ntasks={tasks} does not say how many processes a node has: give Slurm --ntasks-per-node instead")
    for name, option, setting, asked in (
        ("SLURM_NTASKS_PER_NODE", "--ntasks-per-node", "--trainer.devices", devices),
        ("SLURM_NNODES", "--nodes", "--trainer.num_nodes", nodes),
    ):
        if name in environment and isinstance(asked, int) and asked > 0 and _count(environment, name) != asked:
            raise UsageError(f"{setting} {asked}, but Slurm was given {option}={environment[name]}: make them the same")
    return False


def with_slurm(own: list[Any], environment: Mapping[str, str], devices: Any = None, nodes: Any = None) -> list[Any]:
    """The configuration's plugins, with one that tells Lightning whether this process is a task of Slurm, if Lightning needs it.

    In a task, the plugin switches off Lightning's answer to Slurm's warning: ours is in ``callbacks/stopping.py``.

    Args:
        own: The configuration's plugins. A cluster's environment among them counts.
        environment: The environment variables of the process.
        devices: The trainer's ``devices``, if it is a number.
        nodes: The trainer's ``num_nodes``, if it is a number.

    Raises:
        UsageError: As :func:`outside_slurm`.
    """
    if outside_slurm(environment, devices, nodes):
        return [*own, LightningEnvironment()]
    task = "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    named = any(isinstance(plugin, ClusterEnvironment) for plugin in own)
    return [*own, *([SLURMEnvironment(auto_requeue=False)] if task and not named and "TORCHELASTIC_RUN_ID" not in environment else [])]


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"{name}={shown(text, 40)!r} is not a number: start with srun, or `unset SLURM_NTASKS`")
    return int(text)


# -- the run folder --------------------------------------------------------------------------------------------------------------------


def checkpoint_for(asked: str | None, folder: Path, training: bool, needed: bool) -> str | None:
    """The path of the checkpoint that a command starts from; None for a fresh start or an untuned model.

    Args:
        asked: ``--ckpt_path``: a path, or one of Lightning's keywords.
        folder: The run folder, into which the command writes.
        training: Whether the command is ``fit``.
        needed: Whether an evaluation requires a checkpoint.

    Raises:
        UsageError: The command would change another run in the folder, or the checkpoint does not exist.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file, not a run folder; name another with --trainer.default_root_dir")
    held = written(folder)
    if training and held and (asked is None or _requeued()):
        return _go_on(folder)
    if asked is None:
        if not training and needed:
            raise UsageError("no checkpoint given: add --ckpt_path RUN/checkpoints/best.ckpt")
        if held:
            raise UsageError(
                f"{folder} holds a trained run, and the untuned model's metrics would replace its metrics: name another folder with "
                "--trainer.default_root_dir"
            )
        return None
    path = named(asked, folder)
    if held and not belongs(path, folder):
        raise UsageError(
            f"{folder} holds another run than {path}, and its files would be replaced: name another folder with --trainer.default_root_dir"
        )
    return str(path)


def _requeued() -> bool:
    """Whether Slurm has restarted the job."""
    return os.environ.get("SLURM_RESTART_COUNT", "0").strip("0").isdecimal()


def _go_on(folder: Path) -> str:
    """The checkpoint from which a job restarted by Slurm continues. Any other start is refused with the option that names it."""
    found = continuation(folder)
    if found.checkpoint is None:
        raise UsageError(
            f"{folder} holds checkpoints, but training can continue from none of them ({'; '.join(found.unreadable)}): move them away, or "
            "name another folder with --trainer.default_root_dir"
        )
    passed = f"; skipped: {'; '.join(found.unreadable)}" if found.unreadable else ""
    if _requeued():
        rank_zero_info(f"restarted by Slurm: continues from {found.checkpoint}{passed}")
        return str(found.checkpoint)
    raise UsageError(
        f"{folder} already holds a run: continue it with --ckpt_path {found.checkpoint}, "
        f"or name another folder with --trainer.default_root_dir{passed}"
    )


def require_no_other_start(folder: Path, trainer: Trainer, training: bool) -> None:
    """Refuse a command without ``--ckpt_path`` if Lightning would load a checkpoint on its own.

    Raises:
        UsageError: Names that checkpoint.
    """
    found: list[Path] = []
    if "SLURM_NTASKS" in os.environ and folder.is_dir():
        found += sorted(path for path in folder.iterdir() if HPC in path.name)
    kept = [callback for callback in callbacks(trainer) if isinstance(callback, OnExceptionCheckpoint)]
    if training and kept:
        found += [Path(callback.ckpt_path) for callback in kept]
        found += [path for callback in callbacks(trainer) for path in sorted(place(callback, trainer).glob(f"{LAST}*.ckpt"))]
    if left := next((path for path in found if path.exists()), None):
        raise UsageError(f"Lightning would start from {left}: name it with --ckpt_path to use it, or move it away")


def require_own_names(trainer: Trainer, folder: Path) -> None:
    """Refuse a user's callback that would write or delete one of the run's two checkpoints.

    Raises:
        UsageError: Names the callback and the checkpoint.
    """
    for callback in callbacks(trainer):
        if isinstance(callback, RunCheckpoint):
            continue
        last = getattr(callback, "CHECKPOINT_NAME_LAST", LAST) if getattr(callback, "save_last", None) else None
        written_too = [place(callback, trainer) / f"{name}.ckpt" for name in (getattr(callback, "filename", None), last) if name]
        for kept in (folder / "checkpoints" / f"{name}.ckpt" for name in (LAST, BEST)):
            if any(same(file, kept) for file in written_too):
                raise UsageError(
                    f"{type(callback).__name__} would write {kept}, which the run writes itself: give the callback another dirpath or "
                    "filename, and leave save_last out"
                )


def callbacks(trainer: Trainer) -> list[Checkpoint]:
    """The trainer's checkpoint callbacks."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]


def place(callback: Checkpoint, trainer: Trainer) -> Path:
    """The folder that a checkpoint callback writes into, as Lightning chooses it."""
    given = getattr(callback, "dirpath", None)
    if given is not None or not isinstance(callback, ModelCheckpoint):
        return Path(given or ".")
    if not trainer.loggers:
        return Path(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or str(trainer.default_root_dir), str(logger.name), str(version), "checkpoints")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a run folder during a training.

    Raises:
        UsageError: Another process trains into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock-fit")
    except Taken as error:
        who = error.owner or "this process"
        raise UsageError(
            f"{folder}: another training writes there ({who}); wait for it, stop it, or name another folder with --trainer.default_root_dir"
        ) from error
    try:
        clear_leftovers(folder)
        yield
    finally:
        lock.release()


# -- errors of libraries ---------------------------------------------------------------------------------------------------------------


def ours(error: BaseException) -> UsageError | DataError | None:
    """The UsageError or DataError that caused a library's error; None if there is none."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if isinstance(found, UsageError | DataError):
            return found
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return None


def of_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised an error. Such errors are about its settings."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "lightning"


@contextmanager
def lightning_in_a_line() -> Iterator[None]:
    """Turn Lightning's own errors, which are about settings, into one line. After a signal has stopped the command, ignore further ones."""
    try:
        yield
    except (UsageError, DataError, OSError, MemoryError):
        raise
    except Stopped:
        signals.ignore()
        raise
    except Exception as error:
        if not (isinstance(error, MisconfigurationException) or of_lightning(error)):
            raise
        raise ours(error) or UsageError(in_a_line(error)) from error


def in_a_line(error: BaseException) -> str:
    """The text of a library's error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return shown(text, 400)
