"""Cost of a training step from stored hidden states, against the same step from events."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vtlvlm.bench.harness import Measurement, alternate
from vtlvlm.data.ntu import ACTIONS
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava, load_config, projector_width
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner, LabelScores

CLIPS, EVENTS, NAMES, PROMPTS, LAYERS = 2, 256, 60, 16, "last:9"
LEAST, MOST = 1.7, 1e-5
"""Targets: speed-up of a step, relative difference of the losses. SmolLM2's head has 49,152 words, and takes as long
with hidden states; at LLaVA-1.5-7B's size 2.2 times fewer operations are counted (``paper_size``)"""


def figures(llava: Path, repeats: int) -> Iterator[Measurement]:
    """Speed-up of a step by stored states, the difference of the losses, and the size of a clip's states.

    Args:
        llava: Folder of the small LLaVA.
        repeats: Rounds to take medians over.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        width = projector_width(load_config(str(llava)))
        reasoner = EventReasoner(Llava(str(llava)), DeepPrompts(PROMPTS, LAYERS, std=1.0), Instruction())
        reasoner.build(ACTIONS[:NAMES], EVENTS, width)
        reasoner.train()
        vectors, labels = torch.randn(CLIPS, EVENTS, width), torch.arange(CLIPS)
        with torch.no_grad():
            states = reasoner.states(vectors)
        losses: dict[str, Tensor] = {}

        def step(name: str, scores: Callable[[], LabelScores]) -> None:
            reasoner.zero_grad(set_to_none=True)
            loss = F.cross_entropy(scores().score, labels)
            loss.backward()
            losses[name] = loss.detach()

        jobs = {
            "events": lambda: step("events", lambda: reasoner(vectors)),
            "states": lambda: step("states", lambda: reasoner.score_states(states)),
        }
        with tqdm(total=len(jobs) * (repeats + 1), desc="steps from hidden states", unit="step") as bar:
            seconds = alternate(jobs, repeats=repeats, tick=bar.update)
    finally:
        torch.set_num_threads(threads)
    layers = reasoner.base.config.text_config.num_hidden_layers if reasoner.base is not None else 0
    faster = statistics.median(whole / upper for whole, upper in zip(seconds["events"], seconds["states"], strict=True))
    apart = float((losses["events"] - losses["states"]).abs() / losses["events"].abs())
    work = f"listwise step of {CLIPS} clips from hidden states ({NAMES} listed names, prompts in {LAYERS} of {layers})"
    note = f"{statistics.median(seconds['events']):.2f} s from events, processor time"
    yield Measurement(f"{work}: speed-up over a step from events", faster, "x", LEAST, ">=", note=note)
    yield Measurement("... relative difference of the loss", apart, "x", MOST)
    size = states[0].numel() * states.element_size() / 1e6
    yield Measurement(
        "... size of a clip and view", size, "MB", note=f"{states.shape[1]} positions of width {states.shape[2]}; not a target"
    )
