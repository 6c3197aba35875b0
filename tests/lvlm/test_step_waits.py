"""A training step of the reasoner never waits for the device, whatever is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reasoners import reasoner_of
from torch import Tensor
from waits import count_waits

from vtlvlm.lvlm.adapters import Adapter, FullFineTuning, LoRA, NoAdapter
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner

ARMS: dict[str, tuple[Callable[[], Adapter], dict]] = {
    "prompts": (lambda: DeepPrompts(4, "last:2", dropout=0.2), {}),
    "mlp": (lambda: DeepPrompts(4, reparam_hidden_dim=6), {"gradient_checkpointing": True}),
    "parts": (lambda: DeepPrompts(4), {"max_positions": 3, "label_score": "pmi"}),
    "projector": (NoAdapter, {"train_projector": True, "sentence_mean_weight": 0.5}),
    "lora": (lambda: LoRA(2), {"dtype": "bfloat16"}),
    "full": (FullFineTuning, {}),
    "eager": (NoAdapter, {"train_projector": True, "attention": "eager"}),
}


def listwise(reasoner: EventReasoner, vectors: Tensor, labels: Tensor) -> Tensor:
    scores = reasoner(vectors)
    return F.cross_entropy(scores.score, labels) + scores.in_list_mass.detach().mean()


def generative(reasoner: EventReasoner, vectors: Tensor, labels: Tensor) -> Tensor:
    return reasoner.generative_loss(vectors, labels)


@pytest.mark.parametrize("loss", [listwise, generative])
@pytest.mark.parametrize("arm", ARMS)
def test_a_training_step_has_no_wait(arm: str, loss: Callable, llava_path: Path, classes: tuple[str, ...]) -> None:
    adapter, settings = ARMS[arm]
    reasoner = reasoner_of(llava_path, adapter(), Instruction(list_categories=False), **settings)
    reasoner.build(classes, 6, 16)
    reasoner.train()
    vectors, labels = torch.randn(3, 6, 16), torch.tensor([0, 5, 2])
    with count_waits() as waits:
        loss(reasoner, vectors, labels).backward()
    assert waits.names == []
    assert any(parameter.grad is not None for parameter in reasoner.parameters())
