"""Loading processes under the limits of containers and of the kernel."""

import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline import Pipeline, alone
from torch.utils.data import Dataset

from vtlvlm.batches import VideoBatch
from vtlvlm.cli import told
from vtlvlm.data.cache import EventCache, EventCacheWriter
from vtlvlm.data.cache_rows import StoredViews
from vtlvlm.data.datasets import MOST_WORKERS, ClipLoader, EventDataset, Failure, batches_ahead, passed_on
from vtlvlm.data.datasets import loader as of_dataset
from vtlvlm.data.samplers import ExactSampler
from vtlvlm.errors import DataError
from vtlvlm.system.cpu import cores_of_a_process, usable_cores


class Clips(Dataset[Any]):
    """Clip i is grey of value i; what a worker does instead is in ``instead``."""

    def __init__(self, instead: Any = None) -> None:
        self.instead = instead

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> Any:
        if self.instead == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.instead is not None:
            return Failure(self.instead)
        clips = torch.tensor(rows)
        frames = clips[:, None, None, None, None].expand(-1, 4, 3, 64, 64).to(torch.uint8)
        return VideoBatch(frames.contiguous(), torch.zeros(len(rows), 4), clips % 2, clips, torch.zeros_like(clips))


def loader(dataset: Dataset[Any], **settings: Any) -> ClipLoader:
    return ClipLoader(dataset, batch_size=2, num_workers=2, collate_fn=passed_on, **settings)


def seen(loader: ClipLoader) -> list[int]:
    return [int(frames.unique()) for batch in loader for frames in batch.frames]


def test_user_has_no_shared_memory_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/pytorch/pytorch/issues/5040: the batches are the same, and a line says what would be faster."""

    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seen(loader(Clips())) == [*range(8)]
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # the workers are forked and have it too
    with pytest.warns(UserWarning, match=r"no room in /dev/shm .* --shm-size=2g"):
        assert seen(loader(Clips())) == [*range(8)]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can mount a small /dev/shm")
def test_user_extracts_in_a_container_with_a_small_shm(chain: Pipeline, tmp_path: Path) -> None:
    """https://github.com/pytorch/pytorch/issues/5040: tracebacks from threads, then it waited for ever."""
    small = "mount -t tmpfs -o size=128k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    command = [sys.executable, "-m", "vtlvlm", "extract", "--config", chain.stage1, "--data.num_workers", 2, "--output", tmp_path / "f"]
    line = f"{small} && exec {' '.join(map(str, command))}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", line], env=alone(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no room in /dev/shm") == 1
    assert "Traceback" not in done.stderr
    ours, theirs = (sorted(folder.glob("*.safetensors")) for folder in (tmp_path / "f", chain.features))
    assert sum(file.stat().st_size for file in ours) == sum(file.stat().st_size for file in theirs)


def test_the_kernel_kills_a_loading_process() -> None:
    """https://github.com/pytorch/pytorch/issues/5040: one line with the remedy, whichever way torch words it."""
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        seen(loader(Clips("killed")))
    code, line = told(caught.value, ["extract"])
    assert code == 1
    assert "use fewer workers (--data.num_workers) or a smaller --data.micro_batch_size" in line


@pytest.mark.parametrize(
    "error",
    [DataError("a.mp4: damaged"), OSError(24, "Too many open files", "a.mp4"), MemoryError("no room")],
    ids=lambda e: type(e).__name__,
)
def test_errors_of_loading_processes_arrive_as_they_were(error: Exception) -> None:
    """https://github.com/pytorch/pytorch/issues/108861: which clip and why, not a page from another process."""
    with pytest.raises(type(error)) as caught:
        seen(loader(Clips(error)))
    assert str(caught.value) == str(error)
    assert "Traceback" not in str(caught.value)


def events(folder: Path, table: torch.Tensor | None) -> EventDataset:
    keys = [(f"clip{number}", 0) for number in range(8)]
    with EventCacheWriter(folder, {}, table) as writer:
        writer.add(keys, torch.arange(8)[:, None].expand(-1, 3), torch.arange(8.0)[:, None, None].expand(-1, 3, 4), torch.zeros(8, 1, 2))
        writer.flush()
        writer.finish(keys)
    rows = np.arange(8)
    return EventDataset(rows, EventCache.open(folder), *StoredViews(np.zeros(1, dtype=np.int64), rows[None]))


def test_sentences_of_vectors_are_loaded_beside_the_training(tmp_path: Path) -> None:
    """Half a megabyte a clip, read at random: the training waited for it. Code numbers lie in memory and need no processes."""
    items = ExactSampler(np.arange(8), np.zeros(8, dtype=np.int64))
    loading = of_dataset(events(tmp_path / "vectors", None), items, 2, 2)
    assert (loading.num_workers, of_dataset(events(tmp_path / "codes", torch.randn(8, 4)), items, 2, 2).num_workers) == (2, 0)
    assert [int(vectors[0, 0]) for batch in loading for vectors in batch.vectors] == [*range(8)]


def test_workers_follow_the_cores_that_the_job_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    cores = usable_cores()
    assert [cores_of_a_process(ranks) for ranks in (1, cores, 8 * cores)] == [cores, 1, 1]
    items, data = ExactSampler(np.arange(8), np.zeros(8, dtype=np.int64)), events(tmp_path, None)
    assert of_dataset(data, items, 2, None, 1).num_workers == min(MOST_WORKERS, cores)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert cores_of_a_process(1) == of_dataset(data, items, 2, None, 1).num_workers == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4096")  # more than this machine has
    assert cores_of_a_process(8) == cores


def test_batches_ahead_leave_room_in_shared_memory(tmp_path: Path) -> None:
    """8 processes x 8 workers x 2 batches of 8 clips of 64 frames are 10 GB."""
    batch = 8 * 64 * 3 * 224**2
    assert [batches_ahead(8, batch, 8, free << 30) for free in (64, 20, 10, 0)] == [2, 2, 1, 1]
    assert of_dataset(events(tmp_path, None), ExactSampler(np.arange(8), np.arange(8) * 0), 2, 2).prefetch_factor == 2
