"""The kernel on its own: one layer's attention against the plain formula with a mask over everything."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from vtlvlm.lvlm.llava import load_llava
from vtlvlm.lvlm.prefix import ContextStates, DeepPrompts, attention, has_kernel, use_kernel

HEADS, SHARED, WIDTH = 4, 2, 8
CONTEXT, NODES, PROMPT = 5, 3, 2
VISIBLE = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
"""Two nodes in a row and one beside them"""


class Layer(NamedTuple):
    module: nn.Module
    prompts: DeepPrompts | None


def layer(prompted: bool, **settings: object) -> Layer:
    module = nn.Module()
    module.layer_idx, module.num_key_value_groups, module.is_causal = 3, HEADS // SHARED, True
    if not prompted:
        return Layer(module, None)
    prompts = DeepPrompts(PROMPT, **settings)
    prompts.key, prompts.value = (nn.Parameter(torch.randn(1, SHARED, PROMPT, WIDTH)) for _ in range(2))
    module.deep_prompts = (prompts, 0)
    return Layer(module, prompts)


def plain(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k) v in float64, every head with keys of its own."""
    q, k, v = query.double(), *(x.double().repeat_interleave(HEADS // SHARED, 1) for x in (key, value))
    weights = (q @ k.mT * WIDTH**-0.5).masked_fill(~visible, -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).float()


def tree() -> Tensor:
    """(8, 8): a causal context, and the tree behind it."""
    visible = torch.ones(CONTEXT + NODES, CONTEXT + NODES, dtype=torch.bool).tril()
    visible[CONTEXT:, CONTEXT:] = VISIBLE
    return visible


def states() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, heads, CONTEXT + NODES, WIDTH) for heads in (HEADS, SHARED, SHARED))  # type: ignore[return-value]


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("prompted", [False, True])
def test_a_mask_for_the_tree_alone(prompted: bool, additive: bool):
    module, prompts = layer(prompted)
    query, key, value = states()
    mask = tree()[None, None, CONTEXT:]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found, _ = attention(module, query, key, value, mask, scaling=WIDTH**-0.5)
    visible = tree()
    if prompts is not None:
        key, value = (torch.cat([own.expand(2, -1, -1, -1), x], 2) for own, x in ((prompts.key, key), (prompts.value, value)))
        visible = torch.nn.functional.pad(visible, (PROMPT, 0), value=True)
    torch.testing.assert_close(found, plain(query, key, value, visible), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("prompted", [False, True])
def test_a_tree_after_a_context_that_was_kept(prompted: bool, dropout: float):
    """In one pass or in two, also where dropout hides prompt tokens."""
    module, _ = layer(prompted, dropout=dropout)
    query, key, value = states()
    mask, kept = tree()[None, None, CONTEXT:], ContextStates()
    torch.manual_seed(0)
    whole, _ = attention(module, query, key, value, mask, scaling=WIDTH**-0.5)
    torch.manual_seed(0)
    first, _ = attention(module, *(x[:, :, :CONTEXT] for x in (query, key, value)), None, keep=kept, scaling=WIDTH**-0.5)
    second, _ = attention(module, *(x[:, :, CONTEXT:] for x in (query, key, value)), mask, after=kept, scaling=WIDTH**-0.5)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-5, rtol=1e-5)
    assert list(kept) == [3]
    assert kept[3].key.shape[2] == CONTEXT + (PROMPT if prompted else 0)
    assert (kept[3].hidden is not None) == (prompted and dropout > 0)


def test_what_is_kept_is_not_replaced():
    """Layers that checkpointing computes anew leave the tensors alone that gradients go through."""
    module, kept = layer(False).module, ContextStates()
    query, key, value = states()
    attention(module, query, key, value, None, keep=kept, scaling=1.0)
    attention(module, query, key + 1, value, None, keep=kept, scaling=1.0)
    assert kept[3].key is key


def test_without_trees_and_prompts_it_is_transformers_own_to_the_bit(llava_path: Path):
    plain_model, model = (load_llava(str(llava_path))[0] for _ in range(2))
    use_kernel(model)
    assert has_kernel(model)
    assert not has_kernel(plain_model)
    ids = torch.randint(20, 300, (2, 9))
    padding = (torch.arange(9) >= torch.tensor([[0], [3]])).long()
    for mask in (None, padding):
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain_model(input_ids=ids, attention_mask=mask).logits)
