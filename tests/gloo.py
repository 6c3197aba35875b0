"""Functions run by several processes that form a gloo group. They are forked from one that has imported everything, once."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(work: Callable[..., object], folder: Path, *arguments: object, ranks: int = 2, group: bool = True) -> list[Any]:
    """What ``work(rank, *arguments)`` returned in each process, kept in ``folder`` in between.

    ``work`` stands at the top of a module. It makes the group itself if ``group`` is false.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload(["vtlvlm.stages.prompt_tuning", "vtlvlm.stages.vtem"])
    mp.start_processes(_work, (port, ranks, group, work, str(folder), arguments), nprocs=ranks, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def _work(rank: int, port: int, ranks: int, group: bool, work: Callable[..., object], folder: str, arguments: tuple[object, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if group:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.save(work(rank, *arguments), Path(folder) / f"rank{rank}.pt")
    if group:
        dist.destroy_process_group()
