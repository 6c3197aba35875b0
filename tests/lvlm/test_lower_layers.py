"""The layers below the first that is trained: they record nothing for the backward pass, with and without checkpointing."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
import torch.nn.functional as F
from reasoners import reasoner_of
from tiny import tiny_llava
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vtlvlm.lvlm.adapters import Adapter, FullFineTuning, LoRA, NoAdapter
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner

LAYERS, FIRST = 6, 4
PROMPTED = f"last:{LAYERS - FIRST}"


@pytest.fixture(scope="module")
def deep_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature LLaVA of six layers."""
    return tiny_llava(tmp_path_factory.mktemp("deep") / "llava", layers=LAYERS)


def make(path: Path, classes: tuple[str, ...], adapter: Adapter, **settings: object) -> EventReasoner:
    torch.manual_seed(3)
    reasoner = reasoner_of(path, adapter, Instruction(list_categories=False), **settings)
    reasoner.build(classes, 6, 16)
    return reasoner.train()


def listwise(reasoner: EventReasoner, vectors: Tensor) -> Tensor:
    return F.cross_entropy(reasoner(vectors).score, torch.arange(len(vectors)))


def generative(reasoner: EventReasoner, vectors: Tensor) -> Tensor:
    return reasoner.generative_loss(vectors, torch.arange(len(vectors)))


class Kept:
    """A tensor kept for the backward pass, and the layer that keeps it; it lives as long as autograd holds it."""

    def __init__(self, tensor: Tensor, place: int) -> None:
        self.tensor, self.place = tensor, place


def recording(reasoner: EventReasoner, loss: Callable[[], Tensor]) -> tuple[list[bool], Counter[int]]:
    """Whether the input of each layer requires a gradient, and the number of tensors that each layer keeps; -1 is what no layer does."""
    requires, alive, place = [], WeakSet(), [-1]
    layers = reasoner.base.model.language_model.layers

    def before(index: int, hidden: Tensor) -> None:
        requires.append(hidden.requires_grad)
        place[0] = index

    def after() -> None:
        place[0] = -1

    handles = [layer.register_forward_pre_hook(lambda _, args, index=index: before(index, args[0])) for index, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(lambda *_: after()) for layer in layers]

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor, place[0])
        alive.add(kept)
        return kept

    with saved_tensors_hooks(keep, lambda kept: kept.tensor):
        found = loss()
    for handle in handles:
        handle.remove()
    assert found.requires_grad
    return requires, Counter(kept.place for kept in alive)


@pytest.mark.parametrize("loss", [listwise, generative])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_below_the_first_prompt_nothing_is_recorded(
    checkpointing: bool, loss: Callable, deep_path: Path, llava_path: Path, classes: tuple[str, ...]
) -> None:
    """A model with three more layers below the prompts keeps no more tensors for the backward pass."""
    vectors, kept = torch.randn(3, 6, 16), []
    for path, first in ((deep_path, FIRST), (llava_path, FIRST - 3)):
        reasoner = make(path, classes, DeepPrompts(4, PROMPTED), gradient_checkpointing=checkpointing)
        requires, saved = recording(reasoner, lambda reasoner=reasoner: loss(reasoner, vectors))
        assert requires == [False] * (first + 1) + [True] * (len(requires) - first - 1)  # the prompts enter inside the first such layer
        assert [saved[index] for index in range(first)] == [0] * first
        kept.append(sum(saved.values()))
    assert kept[0] == kept[1] > 0


ARMS: dict[str, tuple[Callable[[], Adapter], bool]] = {
    "prompts": (lambda: DeepPrompts(4, PROMPTED, std=1.0), False),
    "prompts and projector": (lambda: DeepPrompts(4, PROMPTED, std=1.0), True),
    "projector": (NoAdapter, True),
    "lora": (lambda: LoRA(2, 4.0, dropout=0.0), False),
    "full": (FullFineTuning, False),
}


@pytest.mark.parametrize("arm", ARMS)
def test_checkpointing_changes_no_gradient(arm: str, deep_path: Path, classes: tuple[str, ...]) -> None:
    """Also where transformers makes the embeddings require gradients, as it does for reentrant checkpointing."""
    adapter, projector = ARMS[arm]
    vectors, found = torch.randn(3, 6, 16), []
    for checkpointing, hook in ((False, False), (True, False), (True, True)):
        reasoner = make(deep_path, classes, adapter(), train_projector=projector, gradient_checkpointing=checkpointing)
        if hook:
            reasoner.base.enable_input_require_grads()
        listwise(reasoner, vectors).backward()
        found.append({name: p.grad for name, p in reasoner.named_parameters() if p.requires_grad})
    assert max(float(gradient.abs().max()) for gradient in found[0].values()) > 1e-4
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-7, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
