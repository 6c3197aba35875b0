"""Floating-point operations of a training step of stage 2 at LLaVA-1.5-7B's size, counted on the meta device: no weights, no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtlvlm.bench.harness import Measurement
from vtlvlm.bench.vtem import LLAVA, TOWER
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelTrie, score, score_states

CLIPS, PROMPTS, LAYERS = 8, 16, "last:9"
"""A micro-batch of the paper's configuration, and its prompts"""


class Size(NamedTuple):
    """Tokens of a number of listed names, counted with a SentencePiece vocabulary of 32,000 words, and the most TFLOP of a step."""

    context: int
    nodes: int
    most: float
    most_checkpointed: float
    most_stored: float


NAMES = {60: Size(587, 232, 115, 135, 52), 120: Size(888, 453, 192, 224, 90)}


def figures() -> Iterator[Measurement]:
    """Operations of a step with and without gradient checkpointing, for each number of names."""
    for names, size in NAMES.items():
        work = f"training step of LLaVA-1.5-7B, {CLIPS} clips, {names} listed names, prompts in {LAYERS}: operations"
        note = f"{size.context} context and {size.nodes} label tokens, counted on the meta device"
        yield Measurement(work, step_flops(names, False) / 1e12, "TFLOP", size.most, note=note)
        yield Measurement("... with gradient checkpointing", step_flops(names, True) / 1e12, "TFLOP", size.most_checkpointed)
        stored = step_flops(names, False, stored=True) / 1e12
        note = f"{(size.context + size.nodes) * int(LLAVA['hidden_size']) * 2 / 1e6:.1f} MB a clip"
        yield Measurement("... from stored hidden states", stored, "TFLOP", size.most_stored, note=note)


def step_flops(names: int, checkpointing: bool, stored: bool = False) -> int:
    """Operations of the products and attentions of one micro-batch: forward, backward and what is computed again.

    Args:
        names: A key of :data:`NAMES`.
        checkpointing: Recompute each layer in the backward pass.
        stored: The input of the first layer with prompts is given.
    """
    size = NAMES[names]
    reasoner, trie = paper_reasoner(checkpointing), label_tree(names, size.nodes)
    base = reasoner.base
    assert base is not None
    positions = size.context + (size.nodes if stored else 0)
    given = torch.empty(CLIPS, positions, int(LLAVA["hidden_size"]), dtype=torch.bfloat16, device="meta")
    labels = torch.empty(CLIPS, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counting:
        scores = score_states(base, given, trie, reasoner.first_layer) if stored else score(base, given, trie)
        F.cross_entropy(scores, labels).backward()
    return int(counting.get_total_flops())


def paper_reasoner(checkpointing: bool, tokens: int = PROMPTS, layers: str = LAYERS) -> EventReasoner:
    """A reasoner of LLaVA-1.5-7B's size in bfloat16 on the meta device, with its prompts, in training mode."""
    text, tower = LlamaConfig(**LLAVA, max_position_embeddings=4096), CLIPVisionConfig(**TOWER)
    reasoner = EventReasoner(Llava("none", gradient_checkpointing=checkpointing), DeepPrompts(tokens, layers), Instruction())
    with torch.device("meta"):
        base = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=tower)).to(torch.bfloat16).requires_grad_(False)
        base.model.vision_tower = None
        reasoner.adapter.build(text)
    reasoner.take(base)
    return reasoner.train()


def label_tree(names: int, nodes: int) -> LabelTrie:
    """Labels on the meta device whose tree has this number of nodes: names of about equal length that share no token."""
    tokens: Iterator[int] = iter(range(nodes))
    end = nodes
    labels = [[*(next(tokens) for _ in range(nodes * (row + 1) // names - nodes * row // names)), end] for row in range(names)]
    return LabelTrie(labels).to("meta")
