"""Prompts on two gloo processes with half of the clips each: gradients and steps are those of one process with all clips."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gloo import in_processes
from reasoners import reasoner_of
from torch.nn.parallel import DistributedDataParallel

from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts

CLASSES = ("drink water", "drink", "eat meal", "clap")
RANKS, STEPS = 2, 3
ARMS = {
    "plain": {},
    "some layers": {"layers": [0, 2]},
    "mlp": {"reparam_hidden_dim": 6},
}


def trained(llava: str, arm: str, vectors: torch.Tensor, labels: torch.Tensor, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Gradients of the first step, and the weights after three."""
    torch.manual_seed(3)
    prompts = DeepPrompts(4, std=0.5, **ARMS[arm])
    reasoner = reasoner_of(llava, prompts, Instruction(list_categories=False), train_projector=True, gradient_checkpointing=checkpointing)
    reasoner.build(CLASSES, 6, 16)
    model = DistributedDataParallel(reasoner.train()) if dist.is_initialized() else reasoner.train()
    parameters = {name: p for name, p in reasoner.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), 0.1)
    found = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(vectors).score, labels).backward()
        if step == 0:
            found |= {f"gradient of {name}": p.grad.clone() for name, p in parameters.items()}
        optimizer.step()
    return found | {name: p.detach().clone() for name, p in parameters.items()}


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def work(rank: int, llava: str) -> dict[str, dict[str, torch.Tensor]]:
    vectors, labels = (column[rank::RANKS] for column in clips())
    return {f"{arm} {c}": trained(llava, arm, vectors, labels, c) for arm in ARMS for c in (False, True)}


@pytest.fixture(scope="module")
def two(llava_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return in_processes(work, tmp_path_factory.mktemp("ranks"), str(llava_path))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_two_processes_train_like_one(llava_path: Path, two: list[dict], arm: str, checkpointing: bool) -> None:
    one = trained(str(llava_path), arm, *clips(), checkpointing)
    first, second = (found[f"{arm} {checkpointing}"] for found in two)
    assert first.keys() == second.keys() == one.keys()
    assert any("adapter" in name for name in one)
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
