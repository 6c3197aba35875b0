"""The same tests on the CPU, where they show that they work, and on a GPU (`pytest -m gpu`), for which they are written."""

from typing import Any

import pytest
import torch

CPU = pytest.param("cpu")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=[CPU, CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of a test."""
    return torch.device(request.param)


@pytest.fixture
def on_device(device: torch.device) -> list[Any]:
    """Options that train on the device, on a GPU in bfloat16. Many CPUs are slow in 16 bits."""
    if device.type == "cuda":
        return ["--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed"]
    return ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
