"""Counts the operations at which the host would wait for a GPU, on the CPU."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense",  # item, bool, float, tolist
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "equal",
    "is_nonzero",
}
"""Operations of aten whose result's value or shape the host needs"""


class Waits(TorchDispatchMode):
    """Notes every waiting operation, with the line of our package or of Lightning that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if (name in WAITING or masks or repeats) and not _in_optimiser():
            self.names.append(f"{name}: {_asked_by()}")
        return func(*args, **(kwargs or {}))


def _in_optimiser() -> bool:
    """Whether torch's optimiser asks. Its step counters are on the CPU, also for parameters on a GPU. A training step inside the
    optimiser's closure counts as Lightning's."""
    asked = [frame.filename for frame in traceback.extract_stack() if "/torch/" not in frame.filename or "/torch/optim/" in frame.filename]
    return "/torch/optim/" in asked[-3]  # the last two are of this file


def _asked_by() -> str:
    frames = [f for f in traceback.extract_stack() if not any(part in f.filename for part in ("/torch/", "waits.py", "/pytest", "pluggy"))]
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames[:-4:-1])


@contextmanager
def count_waits() -> Iterator[Waits]:
    """Within the block, ``names`` of the result lists every wait."""
    with Waits() as mode:
        yield mode
