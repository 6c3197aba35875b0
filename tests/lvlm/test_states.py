"""Stored inputs of the first layer with prompts: what is computed from them is what is computed from the events."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reasoners import reasoner_of
from tiny import tiny_llava
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config
from waits import count_waits

from vtlvlm.lvlm.adapters import Adapter, FullFineTuning, LoRA, NoAdapter
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.lower_layers import above, below
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner

LAYERS = 6


@pytest.fixture(scope="module")
def deep_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature LLaVA of six layers."""
    return tiny_llava(tmp_path_factory.mktemp("deep") / "llava", layers=LAYERS)


def make(path: Path, classes: tuple[str, ...], layers: Any = "last:2", prompts: dict | None = None, **settings: Any) -> EventReasoner:
    torch.manual_seed(1)
    adapter = DeepPrompts(4, layers, std=1.0, **(prompts or {}))
    reasoner = reasoner_of(path, adapter, Instruction(list_categories=False), **settings)
    reasoner.build(classes, 6, 16)
    return reasoner.train()


def listwise(reasoner: EventReasoner, states: Tensor | None, vectors: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((reasoner(vectors) if states is None else reasoner.score_states(states)).score, labels)


def generative(reasoner: EventReasoner, states: Tensor | None, vectors: Tensor, labels: Tensor) -> Tensor:
    if states is None:
        return reasoner.generative_loss(vectors, labels)
    return reasoner.generative_loss_of_states(states, labels)


ARMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "last": ("last:2", {}),
    "every": ("every:3", {}),
    "listed": ([1, 4], {"gradient_checkpointing": True}),
    "mlp": ("last:3", {"prompts": {"reparam_hidden_dim": 6}}),
    "mean": ("last:2", {"sentence_mean_weight": 0.3, "label_score": "pmi"}),
    "dropout": ("last:2", {"prompts": {"dropout": 0.3}}),
    "half": ("last:2", {"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("loss", [listwise, generative])
@pytest.mark.parametrize("arm", ARMS)
def test_losses_and_gradients_are_those_from_events(arm: str, loss: Callable, deep_path: Path, classes: tuple[str, ...]) -> None:
    layers, settings = ARMS[arm]
    reasoner = make(deep_path, classes, layers, **settings)
    vectors, labels, found = torch.randn(4, 6, 16), torch.tensor([1, 0, 7, 3]), []
    with torch.no_grad():
        states = reasoner.states(vectors)
        assert states.shape == (4, len(reasoner.context) + len(reasoner.trie), 32)
    for given in (None, states):
        torch.manual_seed(5)
        value = loss(reasoner, given, vectors, labels)
        found.append((value.detach(), torch.autograd.grad(value, [p for p in reasoner.parameters() if p.requires_grad])))
    rounded = 100.0 if (arm, loss) == ("half", generative) else 1.0  # the tree's kernel rounds to 16 bits elsewhere
    torch.testing.assert_close(found[1][0], found[0][0], atol=0, rtol=1e-5 * rounded)
    assert max(float(gradient.abs().max()) for gradient in found[0][1]) > 1e-4
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(two, one, atol=1e-6 + 1e-4 * rounded * float(one.abs().max()), rtol=1e-4)


def test_an_aligned_tree_reads_the_same_states(deep_path: Path, classes: tuple[str, ...]) -> None:
    """A cache that was written on one machine is read on another, whose kernels want other sizes."""
    reasoner = make(deep_path, classes).eval()
    vectors = torch.randn(2, 6, 16)
    with torch.no_grad():
        states, expected = reasoner.states(vectors), reasoner(vectors).score
        reasoner.trie.align(reasoner.adapter.tokens + len(reasoner.context), 16)
        torch.testing.assert_close(reasoner.score_states(states).score, expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(reasoner.states(vectors), states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", [LlamaConfig, MistralConfig, Qwen2Config])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_two_parts_are_the_whole_model(kernel: str, language: type[PretrainedConfig], tmp_path: Path) -> None:
    path = tiny_llava(tmp_path, layers=5, language=language)
    reasoner = reasoner_of(path, NoAdapter(), Instruction(list_categories=False), attention=kernel)
    reasoner.build(("walk", "sit down"), 6, 16)
    model, words = reasoner.base.model.language_model, torch.randn(2, 9, 32)
    modules, parts = list(model.modules()), [(below(model, first), above(model, first)) for first in range(6)]
    with torch.no_grad():
        whole = model(inputs_embeds=words, use_cache=False).last_hidden_state
        for lower, upper in parts:
            between = lower(inputs_embeds=words, use_cache=False).last_hidden_state
            assert torch.equal(upper(inputs_embeds=between, use_cache=False).last_hidden_state, whole)
    assert list(model.modules()) == modules  # the model itself stays as it was


@pytest.mark.parametrize(
    ("adapter", "first"),
    [(DeepPrompts(4, "last:2"), 4), (DeepPrompts(4, "every:3"), 2), (DeepPrompts(4, [3, 1]), 1), (DeepPrompts(4), 0), (DeepPrompts(0), 6),
     (NoAdapter(), 6), (LoRA(2), 0), (FullFineTuning(), 0)],
)  # fmt: skip
def test_the_first_layer_that_changes(adapter: Adapter, first: int) -> None:
    assert adapter.first_layer(LAYERS) == first


def test_a_step_from_states_has_no_wait(deep_path: Path, classes: tuple[str, ...]) -> None:
    reasoner = make(deep_path, classes)
    vectors, labels = torch.randn(3, 6, 16), torch.tensor([0, 5, 2])
    with torch.no_grad():
        states = reasoner.states(vectors)
    with count_waits() as waits:
        for loss in (listwise, generative):
            loss(reasoner, states, vectors, labels).backward()
    assert waits.names == []
