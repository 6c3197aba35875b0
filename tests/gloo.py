"""Functions run by several processes that form a gloo group."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(work: Callable[..., object], folder: Path, *arguments: object, ranks: int = 2) -> list[Any]:
    """What ``work(rank, *arguments)`` returned in each process, kept in ``folder`` in between. ``work`` stands at the top of a module."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_work, (port, ranks, work, str(folder), arguments), nprocs=ranks)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def _work(rank: int, port: int, ranks: int, work: Callable[..., object], folder: str, arguments: tuple[object, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.save(work(rank, *arguments), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
