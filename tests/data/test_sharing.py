"""One process reads the folder for all of them."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from gloo import in_processes
from lightning.pytorch.strategies import DDPStrategy
from pipeline import Pipeline, _in_turn
from videos import block_clips

from vtlvlm.data.sharing import on_first
from vtlvlm.errors import DataError, UsageError

FAILURES: dict[str, Exception] = {
    "usage": UsageError("another protocol"),
    "data": DataError("no clip"),
    "system": OSError(13, "Permission denied", "videos"),
    "other": ZeroDivisionError("by zero"),
}


def shared(rank: int, kind: str) -> list[str]:
    """The error on this rank, and then a result: nobody waits for ever."""
    trainer: Any = SimpleNamespace(world_size=2, is_global_zero=rank == 0, strategy=DDPStrategy())
    calls = []

    def work() -> list[str]:
        calls.append(rank)
        if kind and len(calls) == 1:
            raise FAILURES[kind]
        return ["found by", str(os.getpid())]

    told = []
    if kind:
        try:
            on_first(trainer, work)
        except (UsageError, DataError, OSError, ZeroDivisionError) as error:
            told = [type(error).__name__, str(error)]
    result = on_first(trainer, work)
    dist.barrier()
    return [str(len(calls)), *told, *result]


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("", [], []),
        ("usage", ["UsageError", "another protocol"], None),
        ("data", ["DataError", "no clip"], None),
        ("system", ["PermissionError", "[Errno 13] Permission denied: 'videos'"], None),
        ("other", ["ZeroDivisionError", "by zero"], ["DataError", "the first process failed (ZeroDivisionError: by zero)"]),
    ],
)
def test_the_result_and_the_error_of_the_first_process(tmp_path: Path, kind: str, first: list[str], second: list[str] | None) -> None:
    one, two = in_processes(shared, tmp_path, kind)
    assert one[1:-2] == first
    assert two[1:-2] == (first if second is None else second)
    assert one[-2:] == two[-2:]
    assert (int(one[0]), int(two[0])) == (1 + bool(kind), 0)


def counted(rank: int, commands: list[list[str]], folder: str, root: str) -> list[list[str]]:
    """What a process lists and opens below a folder, and the indexes of event caches that it opens, during each of some commands."""
    seen: list[list[str]] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        name = str(arguments[0]) if seen and event in ("os.scandir", "open", "os.listdir") else ""
        if name.startswith(root) or name.endswith("events/index.parquet"):
            seen[-1].append(f"{event} {name.removeprefix(root)}")

    sys.addaudithook(hook)
    for command in commands:
        seen.append([])
        _in_turn(rank, [command], folder, 2)
    return seen


@pytest.mark.slow
def test_one_process_lists_the_folder_and_opens_the_files(tmp_path: Path) -> None:
    """Of two that `torchrun` started. With 64 processes, NTU RGB+D 120 would be 7 million files."""
    run = Pipeline(tmp_path / "pair")
    block_clips(run.root, people=(1, 2, 3, 4, 5, 6))
    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.micro_batch_size", 1]
    commands = [
        ["extract", "--config", run.stage1, "--output", run.features, *two],
        ["fit", *run.on_features, "--trainer.default_root_dir", run.run1, *two],
        ["tokenize", *run.on_features, "--ckpt_path", run.best1, "--output", run.events, *two],
        ["fit", *run.on_events, "--trainer.default_root_dir", run.run2, *two],
        ["fit", *run.on_events, "--data.source.root", "gone", "--trainer.default_root_dir", tmp_path / "away", *two],
    ]
    said = tmp_path / "said"
    said.mkdir()
    lines = [[str(part) for part in command] for command in commands]
    first, second = in_processes(counted, said, lines, str(said), str(run.root), group=False)
    assert [sum(event.startswith("os.scandir") for event in events) for events in first] == [1, 1, 1, 1, 0]
    assert len({event for event in first[0] if event.endswith(".avi")}) == 12
    assert {event.split()[0] for event in second[0]} == {"open"}
    assert len(set(second[0])) <= 10  # to decode its half of the 20 clips and views; a scan opens all 12 files
    assert first[-1] == [f"open {run.events / 'index.parquet'}"]
    assert second[1:] == [[], [], [], []]
