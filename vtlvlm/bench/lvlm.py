"""Cost of the language model on event sentences: scoring the NTU names in one pass, and training its prompts.

Times are processor times of this process on one thread (at LLaVA's width: wall time). Ratios are medians over rounds in which every
job runs once.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtlvlm.bench import paper_size, stored_states
from vtlvlm.bench import prompt_training as training
from vtlvlm.bench.harness import Measurement, alternate, ratio
from vtlvlm.bench.vtem import LLAVA, TOWER
from vtlvlm.data.ntu import ACTIONS
from vtlvlm.lvlm.compose import compose
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava, load_config, load_tokenizer, projector_width
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelTrie, score

EVENTS = 256
"""M, event tokens of a clip"""
NAMES = {60: (1.6, 35.0), 120: (1.9, 60.0)}
"""Number of NTU RGB+D names -> targets: most time over the context alone, and least speed-up over one pass per label"""
PART = 100
"""Label tokens per pass, if the label tree is divided"""
PROMPTS = {"last:9": 1_179_648, "all": 4_194_304}
"""Layers of LLaVA-1.5-7B with 16 prompt tokens -> trainable parameters"""


def measure(work: Path, *, repeats: int) -> tuple[list[Measurement], dict[str, Any]]:
    """All measurements of this bench."""
    llava = compose(work / "llava")
    figures, facts = label_scores(llava, repeats)
    costs = [*training.figures(llava, repeats), *stored_states.figures(llava, repeats), *trained_numbers(), *paper_size.figures()]
    return [*figures, *costs], {"events": EVENTS, "clips": 1, "repeats": repeats, **facts}


# -- label scores --------------------------------------------------------------------------------------------------------------------


def label_scores(llava: Path, repeats: int) -> tuple[list[Measurement], dict[str, Any]]:
    """One pass against the context alone, one pass per label, and labels as a batch, for each number of names; and sizes in tokens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [_label_scores(llava, number, repeats) for number in NAMES]
    finally:
        torch.set_num_threads(threads)
    return [figure for figures, _ in found for figure in figures], {"tokens": [sizes for _, sizes in found]}


@torch.inference_mode()
def _label_scores(llava: Path, number: int, repeats: int) -> tuple[list[Measurement], dict[str, int]]:
    names = ACTIONS[:number]
    width = projector_width(load_config(str(llava)))
    reasoner = EventReasoner(Llava(str(llava)), DeepPrompts(0), Instruction()).eval()
    reasoner.build(names, EVENTS, width)
    base, context, trie = reasoner.base, reasoner.context, reasoner.trie
    assert base is not None
    assert trie is not None
    labels = reasoner.instruction.labels(load_tokenizer(str(llava)), names)
    parts = LabelTrie(labels, PART)
    vectors = torch.randn(1, EVENTS, width, generator=torch.Generator().manual_seed(0))
    events, embedded = reasoner.project(vectors), reasoner.embed(vectors)
    # One pass per label is slow, so each round (also the warm-up) scores its share of the labels. All labels are scored once.
    edges = [round(i * number / (repeats + 1)) for i in range(repeats + 2)]
    shares = iter(list(pairwise(edges)))
    apart: list[Tensor] = []

    def score_apart() -> None:
        start, end = next(shares)
        apart.extend(one_label(base, events, context, label) for label in labels[start:end])

    jobs = {
        "context": lambda: forward(base, events, context, 1),
        "packed": lambda: score(base, embedded, trie),
        "parts": lambda: score(base, embedded, parts),
        "batched": lambda: score(base, embedded, trie, "batched"),
        "apart": score_apart,
    }
    with tqdm(total=len(jobs) * (repeats + 1), desc=f"scoring {number} names", unit="job") as bar:
        seconds = alternate(jobs, repeats=repeats, tick=bar.update)
    sizes = [end - start for start, end in pairwise(edges[1:])]
    rounds = zip(seconds["apart"], sizes, seconds["packed"], strict=True)
    faster = [spent * number / size / once for spent, size, once in rounds if size]
    packed, expected = score(base, embedded, trie)[0], torch.stack(apart, 1)[0]
    misplaced = int((packed.argsort() != expected.argsort()).sum())
    most, least = NAMES[number]
    work = f"{number} NTU names after {EVENTS} events, in one pass"
    sizes_text = f"{len(context)} context tokens, {len(trie)} label tokens; {statistics.median(seconds['context']):.2f} s context"
    figures = [
        Measurement(
            f"{work}: against one pass per label, largest difference of log P", float((packed - expected).abs().max()), "nats", 1e-3
        ),
        Measurement("... labels whose rank differs", misplaced, "labels", 0),
        Measurement(
            "... time over the context alone", ratio(seconds, "packed", "context"), "x", most, note=f"{sizes_text}, processor time"
        ),
        Measurement(
            "... speed-up over one pass per label",
            statistics.median(faster),
            "x",
            least,
            ">=",
            note=f"each round scores about {number // (repeats + 1)} labels one by one",
        ),
        Measurement(
            "... speed-up over labels as a padded batch with the cached context", ratio(seconds, "batched", "packed"), "x", 1, ">="
        ),
        Measurement(
            f"... in passes of at most {PART} label tokens: time over one pass", ratio(seconds, "parts", "packed"), note="not a target"
        ),
    ]
    return figures, {"names": number, "context": len(context), "nodes": len(trie)}


def forward(model: LlavaForConditionalGeneration, events: Tensor, ids: Tensor, keep: int) -> Tensor:
    """Logits at the last ``keep`` positions of a sequence of ids (n,), from a plain forward pass."""
    logits: Tensor = model(inputs_embeds=training.placed(model, ids[None], events), logits_to_keep=keep, use_cache=False).logits
    return logits


def one_label(model: LlavaForConditionalGeneration, events: Tensor, context: Tensor, label: list[int]) -> Tensor:
    """(1,) log P of one label, from its own forward pass."""
    tokens = torch.tensor(label)
    logits = forward(model, events, torch.cat([context, tokens[:-1]]), len(label))
    return logits.log_softmax(-1).gather(2, tokens[None, :, None]).sum((1, 2))


# -- trained numbers -----------------------------------------------------------------------------------------------------------------


def trained_numbers() -> Iterator[Measurement]:
    """Trainable parameters of LLaVA-1.5-7B with prompts, counted on the meta device."""
    for layers, expected in PROMPTS.items():
        prompts = DeepPrompts(16, layers)
        config = LlavaConfig(text_config=LlamaConfig(**LLAVA), vision_config=CLIPVisionConfig(**TOWER))
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config).requires_grad_(False)
            prompts.build(config.text_config)
        prompts.attach(model)
        count = sum(p.numel() for p in {*model.parameters(), *prompts.parameters()} if p.requires_grad)
        yield Measurement(
            f"LLaVA-1.5-7B with 16 prompt tokens in {len(prompts.chosen)} layers: trainable parameters", count, "", expected, "=="
        )
