"""Cost of training the prompts: a step against transformers with peft, memory with and without checkpointing, LLaVA's width.

Memory is the peak of tensors beyond those from before (:func:`~vtlvlm.bench.harness.peak_bytes`). It excludes the model's weights.
"""

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtlvlm.bench.harness import Measurement, alternate, peak_bytes, ratio
from vtlvlm.bench.vtem import LLAVA, TOWER
from vtlvlm.data.ntu import ACTIONS
from vtlvlm.lvlm.context import embed_context, first_event
from vtlvlm.lvlm.generative import PADDING
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava, load_config, load_llava, load_tokenizer, projector_width
from vtlvlm.lvlm.peft_format import prefix_table
from vtlvlm.lvlm.prefix import DeepPrompts, use_kernel
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelTrie, score

CLIPS, EVENTS, PROMPTS, NAMES = 4, 64, 16, 60
"""A step of the small model: clips, M, prompt tokens in all layers, categories"""
WIDE_EVENTS, WIDE_LAYERS, WIDE_WORDS = 256, 4, 32_000
"""The step at LLaVA-1.5-7B's width: M, layers, words"""
PAPER_LAYERS, MEGABYTES = "last:9", 25
GIBIBYTES = 24
RATE = 1e-3


class Steps:
    """Training steps of our model, with fixed prompts and clips. The prompts are large enough to affect the loss.

    Args:
        llava: Folder of a LLaVA.
        checkpointing: Recompute layers in the backward pass.
    """

    def __init__(self, llava: Path, checkpointing: bool = False) -> None:
        torch.manual_seed(0)
        width = projector_width(load_config(str(llava)))
        self.reasoner = EventReasoner(
            Llava(str(llava), gradient_checkpointing=checkpointing), DeepPrompts(PROMPTS, std=1.0), Instruction(list_categories=False)
        )
        self.reasoner.build(ACTIONS[:NAMES], EVENTS, width)
        self.reasoner.train()
        with torch.no_grad():
            self.vectors = torch.randn(CLIPS, EVENTS, width)
            self.projected = self.reasoner.project(self.vectors)
        self.labels = torch.arange(CLIPS) * (NAMES // CLIPS)
        self.optimizer = torch.optim.AdamW(self.prompts, lr=RATE)

    @property
    def prompts(self) -> list[nn.Parameter]:
        return list(self.reasoner.adapter.parameters())

    def _step(self, loss: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def generative(self) -> float:
        """A step with the language model's own loss."""
        return self._step(self.reasoner.generative_loss(self.vectors, self.labels))

    def listwise(self) -> float:
        """A step with the cross-entropy over the categories."""
        return self._step(F.cross_entropy(self.reasoner(self.vectors).score, self.labels))

    def gradients(self) -> list[Tensor]:
        """Gradients of the prompts for the listwise loss, without a step."""
        loss = F.cross_entropy(self.reasoner(self.vectors).score, self.labels)
        return list(torch.autograd.grad(loss, self.prompts))


class BareSteps:
    """The same training step with peft's prefix tuning around transformers' model, with its ``labels``.

    Args:
        llava: Folder of a LLaVA.
        like: The source of clips, sequences and prompt values.
    """

    def __init__(self, llava: Path, like: Steps) -> None:
        from peft import PrefixTuningConfig, get_peft_model

        reasoner, prompts = like.reasoner, like.reasoner.adapter
        assert isinstance(prompts, DeepPrompts)
        assert prompts.key is not None
        assert prompts.value is not None
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPTS)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft uses an old name of transformers
            self.model = get_peft_model(load_llava(str(llava))[0], config).train()
        with torch.no_grad():
            self.model.prompt_encoder["default"].embedding.weight.copy_(prefix_table(prompts.key, prompts.value))
        answers = reasoner.answers[like.labels]
        self.ids = torch.cat([reasoner.context.expand(CLIPS, -1), torch.where(answers == PADDING, answers[:, :1], answers)], 1)
        self.targets = torch.cat([torch.full((CLIPS, len(reasoner.context)), PADDING), answers], 1)
        self.projected = like.projected
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE)

    def generative(self) -> float:
        """A step with the language model's own loss."""
        embedded = placed(self.model.get_base_model(), self.ids, self.projected)
        mask = torch.ones_like(self.ids)
        loss = self.model(inputs_embeds=embedded, attention_mask=mask, labels=self.targets, use_cache=False).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def placed(model: LlavaForConditionalGeneration, ids: Tensor, projected: Tensor) -> Tensor:
    """Embeddings (B, n, L) of token ids (B, n) with the events (B, M, L) at their placeholders, as transformers places images."""
    table: Tensor = model.get_input_embeddings()(ids)
    return table.masked_scatter((ids == model.config.image_token_id)[..., None], projected.to(table.dtype))


def figures(llava: Path, repeats: int) -> Iterator[Measurement]:
    """All measurements of prompt training.

    Args:
        llava: Folder of the small LLaVA.
        repeats: Rounds to take medians over.
    """
    yield from steps(llava, repeats)
    yield checkpoint_size()
    yield from wide_step(llava)


def steps(llava: Path, repeats: int) -> Iterator[Measurement]:
    """A training step against transformers with peft, the cost of the listwise loss, and the memory that checkpointing saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = Steps(llava)
        bare = BareSteps(llava, ours)
        losses = ours.generative(), bare.generative()
        jobs = {"ours": ours.generative, "bare": bare.generative, "listwise": ours.listwise}
        with tqdm(total=len(jobs) * (repeats + 1), desc="training steps", unit="step") as bar:
            seconds = alternate(jobs, repeats=repeats, tick=bar.update)
        thrifty = Steps(llava, checkpointing=True)
        thrifty.gradients()
        measured = {**jobs, "kept": ours.gradients, "recomputed": thrifty.gradients}
        peaks = {name: peak_bytes(job) for name, job in tqdm(measured.items(), desc="memory", unit="job")}
        pairs = list(zip(ours.gradients(), _same_prompts(thrifty, ours).gradients(), strict=True))
    finally:
        torch.set_num_threads(threads)
    size = f"{CLIPS} clips of {EVENTS} events, {PROMPTS} prompt tokens in all layers"
    yield Measurement(f"first loss of a generative step ({size}): difference to peft's", abs(losses[0] - losses[1]), "nats", 1e-4)
    note = f"{statistics.median(seconds['bare']):.2f} s peft, processor time"
    yield Measurement("... time over transformers + peft", ratio(seconds, "ours", "bare"), "x", 1.10, note=note)
    yield Measurement(
        "... peak memory over transformers + peft", peaks["ours"] / peaks["bare"], "x", 1.05, note=f"{peaks['bare'] / 2**20:,.0f} MiB there"
    )
    note = f"{NAMES} names instead of one; not a target"
    yield Measurement("... listwise step: time over transformers + peft", ratio(seconds, "listwise", "bare"), "x", note=note)
    yield Measurement("... listwise step: peak memory over transformers + peft", peaks["listwise"] / peaks["bare"], "x", note=note)
    work = f"listwise step with checkpointing ({size})"
    yield Measurement(
        f"{work}: peak memory over a step without",
        peaks["recomputed"] / peaks["kept"],
        "x",
        0.5,
        note=f"{peaks['kept'] / 2**20:,.0f} MiB there",
    )
    apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    yield Measurement("... largest difference of a gradient, over the largest gradient", apart, "x", 1e-4)


def _same_prompts(steps: Steps, like: Steps) -> Steps:
    """Copy the trained prompts of another model into ``steps``."""
    steps.reasoner.adapter.load_state_dict(like.reasoner.adapter.state_dict())
    return steps


def _paper_config(layers: int = 32, words: int = int(LLAVA["vocab_size"])) -> LlavaConfig:
    text = LlamaConfig(**{**LLAVA, "num_hidden_layers": layers, "vocab_size": words})
    return LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**TOWER), image_token_id=words - 1)


def checkpoint_size() -> Measurement:
    """Size of LLaVA-1.5-7B's prompts in stage 2's ``last.ckpt``: the prompts and the optimiser's two moments, written to memory."""
    prompts = DeepPrompts(PROMPTS, PAPER_LAYERS)
    prompts.build(_paper_config().text_config)
    optimizer = torch.optim.AdamW(prompts.parameters(), lr=RATE)
    for parameter in prompts.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    file = io.BytesIO()
    torch.save({"state_dict": prompts.state_dict(), "optimizer_states": [optimizer.state_dict()]}, file)
    layers = len(prompts.chosen)
    work = f"checkpoint of {PROMPTS} prompt tokens in {layers} layers of LLaVA-1.5-7B with optimiser state"
    return Measurement(work, file.getbuffer().nbytes / 1e6, "MB", MEGABYTES, note="and a few kilobytes of settings")


def wide_step(llava: Path) -> Iterator[Measurement]:
    """A listwise training step of a language model with LLaVA-1.5-7B's width, a few layers and random weights, in float32.

    The token ids are SmolLM2's, renumbered to fit. Context and label tree have about the size that they have with LLaVA.
    """
    torch.manual_seed(0)
    names, tokenizer = ACTIONS[:NAMES], load_tokenizer(str(llava))
    instruction, image = Instruction(), load_config(str(llava)).image_token_id
    found = instruction.context(tokenizer, WIDE_EVENTS, names)
    context = torch.where(found == image, WIDE_WORDS - 1, found % (WIDE_WORDS - 1))
    trie = LabelTrie([[word % (WIDE_WORDS - 1) for word in label] for label in instruction.labels(tokenizer, names)])
    config = _paper_config(WIDE_LAYERS, WIDE_WORDS)
    first = first_event(context, config.image_token_id, WIDE_EVENTS)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).requires_grad_(False)
        model.model.vision_tower = None
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.model.language_model.rotary_emb = type(model.model.language_model.rotary_emb)(config.text_config)  # its frequencies
    use_kernel(model)
    prompts = DeepPrompts(PROMPTS)
    prompts.build(config.text_config)
    prompts.attach(model)
    optimizer = torch.optim.AdamW(prompts.parameters(), lr=RATE)
    events = torch.randn(1, WIDE_EVENTS, int(LLAVA["hidden_size"])) * 0.02
    spent: list[float] = []

    def step() -> None:
        start = time.perf_counter()
        embedded = embed_context(model, context, first, events)
        F.cross_entropy(score(model, embedded, trie), torch.tensor([0])).backward()
        optimizer.step()
        spent.append(time.perf_counter() - start)

    more = peak_bytes(step)
    held = sum(parameter.numel() * 4 for parameter in model.parameters())
    size = f"width {LLAVA['hidden_size']}, {WIDE_LAYERS} layers, {WIDE_WORDS:,} words, float32, M = {WIDE_EVENTS}"
    note = f"{held / 2**30:.1f} GiB are weights; {len(context)} + {len(trie)} tokens"
    yield Measurement(f"training step with {NAMES} names ({size}): weights and peak", (held + more) / 2**30, "GiB", GIBIBYTES, note=note)
    yield Measurement("... time, the first step", spent[0], "s", note="wall time while the profiler counts memory, not a target")
