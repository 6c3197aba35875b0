"""Stage 2 on a GPU at the size of LLaVA-1.5-7B: training steps, the kernels of a scoring pass, and what 16 bits change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtlvlm.bench.gpu_cost import Setting, flops, step_figures
from vtlvlm.bench.harness import Measurement
from vtlvlm.lvlm.context import embed_context
from vtlvlm.lvlm.fused import Kernels
from vtlvlm.lvlm.generative import answer_table, language_loss
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava
from vtlvlm.lvlm.lower_layers import below
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import ALIGNMENT, Form, LabelTrie, packed, run_packed, score, score_states
from vtlvlm.lvlm.vocabulary import token_log_probabilities

GOAL = 360
"""TFLOP/s of a step on an H100"""
FIRST, PROMPTS, END = 4, 16, 2
"""Tokens before the events, prompt tokens, and the end token of a label"""
SHOWN = 10


def random_llava(setting: Setting, dtype: torch.dtype = torch.bfloat16) -> LlavaForConditionalGeneration:
    """A frozen LLaVA with random weights, made on the device, without its vision tower."""
    sizes, device = setting.sizes, setting.gpu.device
    words = sizes.llava["vocab_size"]
    tower = CLIPVisionConfig(
        hidden_size=sizes.event_dim, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    text = LlamaConfig(**sizes.llava, max_position_embeddings=4096, eos_token_id=END)
    config = LlavaConfig(text_config=text, vision_config=tower, image_token_id=words - 1)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).to(dtype).requires_grad_(False)
    model.model.vision_tower = None
    model.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
    rotary = type(model.model.language_model.rotary_emb)(text)  # its frequencies stay float32
    model.model.language_model.rotary_emb = rotary.to(device)
    return model.eval()


class Reader:
    """A random LLaVA with prompts that reads random events and scores labels of the right sizes.

    Args:
        setting: Device and sizes.
        checkpointing: Recompute layers in the backward pass.
        layers: Layers with prompts; the setting's if None.
        prompts: Prompt tokens.
        dtype: Of the frozen weights.
        kernels: Of the language model.
    """

    def __init__(
        self,
        setting: Setting,
        checkpointing: bool = False,
        layers: str | None = None,
        prompts: int = PROMPTS,
        dtype: torch.dtype = torch.bfloat16,
        kernels: Kernels = "torch",
    ) -> None:
        sizes, self.device = setting.sizes, setting.gpu.device
        self.setting, self.model = setting, random_llava(setting, dtype)
        torch.manual_seed(1)
        self.prompts = DeepPrompts(prompts, layers or sizes.layers, std=1.0)  # as large as keys, so that they count
        self.prompts.build(self.model.config.text_config)
        self.reasoner = EventReasoner(Llava("random", gradient_checkpointing=checkpointing, kernels=kernels), self.prompts, Instruction())
        self.reasoner.take(self.model)
        self.reasoner.to(self.device).train()
        trained = list(self.prompts.parameters())
        self.optimizer = torch.optim.AdamW(trained, 1e-6) if trained else None
        self.read(min(sizes.text))

    def read(self, names: int) -> None:
        """Take that many names."""
        sizes = self.setting.sizes
        text, nodes = sizes.text[names]
        words, number = sizes.llava["vocab_size"] - 1, count(3)
        lengths = [nodes // names + (row < nodes % names) for row in range(names)]
        self.labels = [[3 + next(number) % (words - 3) for _ in range(length)] + [END] for length in lengths]
        self.answers = answer_table(self.labels).to(self.device)
        self.context = torch.tensor([1] + [5] * (FIRST - 1) + [words] * sizes.events + [6] * (text - FIRST), device=self.device)
        self.names, trie = names, LabelTrie(self.labels)
        if self.setting.gpu.real:  # as the reasoner does
            trie.align(self.prompts.tokens + len(self.context), ALIGNMENT)
        self.trie = trie.to(self.device)

    def events(self, clips: int) -> Tensor:
        """Random event vectors (clips, M, E), the same each time."""
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(clips, self.setting.sizes.events, self.setting.sizes.event_dim, generator=generator, device=self.device)

    def embedded(self, vectors: Tensor) -> Tensor:
        """What the language model reads before the labels (B, C, L)."""
        return embed_context(self.model, self.context, FIRST, self.reasoner.project(vectors))

    def scores(self, vectors: Tensor, form: Form | None = None) -> Tensor:
        """(B, A) log-likelihoods."""
        return score(self.model, self.embedded(vectors), self.trie, form)

    def listwise(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The loss over all names."""
        return F.cross_entropy(self.scores(vectors), labels)

    def generative(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The language model's own loss."""
        return language_loss(self.model, self.embedded(vectors), self.answers[labels])

    def job(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        """A training step of a micro-batch."""
        clips = self.setting.sizes.micro_batch
        vectors, labels = self.events(clips), torch.arange(clips, device=self.device)
        assert self.optimizer is not None
        optimizer = self.optimizer

        def step() -> None:
            with self.setting.gpu.mixed():
                found = loss(vectors, labels)
            found.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def gradients(self) -> Tensor:
        """All gradients of the prompts for the loss over all names, in one row."""
        clips = self.setting.sizes.micro_batch
        with self.setting.gpu.mixed():
            loss = self.listwise(self.events(clips), torch.arange(clips, device=self.device))
        return torch.cat([found.flatten() for found in torch.autograd.grad(loss, list(self.prompts.parameters()))])


def steps(setting: Setting, work: Path) -> Iterator[Measurement]:
    """Training steps for each number of names, without and with gradient checkpointing, and their gradients."""
    del work
    gpu, sizes = setting.gpu, setting.sizes
    gradients: dict[str, Tensor] = {}
    for how, checkpointing in (("without checkpointing", False), ("with checkpointing", True)):
        reader = Reader(setting, checkpointing)
        gradients[how] = reader.gradients()
        for names in sizes.text:
            reader.read(names)
            positions = f"{len(reader.context)} + {len(reader.trie)} positions"
            work_done = f"stage 2: micro-batch of {sizes.micro_batch}, {names} names, {positions}, {how}"
            job = reader.job(reader.listwise)
            cost = gpu.cost(job)
            yield from step_figures(work_done, cost, flops(job), gpu.waits(job), None if checkpointing else GOAL)
            if not checkpointing:
                job = reader.job(reader.generative)
                yield from step_figures(f"stage 2: the same, generative loss, {names} names", gpu.cost(job), flops(job), gpu.waits(job))
        del reader, job
        gpu.clear()
    kept, again = gradients.values()
    apart = float((kept - again).norm() / kept.norm())
    yield Measurement("stage 2: gradients with checkpointing, difference over their size", apart, "x", 1e-2)


def stored(setting: Setting, work: Path) -> Iterator[Measurement]:
    """A training step from the stored output of the layers below the first prompt, against the whole step."""
    del work
    gpu, reader = setting.gpu, Reader(setting)
    first, language, clips = min(reader.prompts.chosen), reader.model.model.language_model, setting.sizes.micro_batch
    vectors, labels = reader.events(clips), torch.arange(clips, device=reader.device)
    with torch.no_grad(), gpu.mixed():
        whole = float(reader.listwise(vectors, labels))
        sequence = packed(reader.model, reader.embedded(vectors), reader.trie)
        states = run_packed(reader.model, below(language, first), sequence, reader.trie)
        upper = float(F.cross_entropy(score_states(reader.model, states, reader.trie, first), labels))

    def loss(_: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(score_states(reader.model, states, reader.trie, first), labels)

    full, job = gpu.cost(reader.job(reader.listwise)), reader.job(loss)
    cost = gpu.cost(job)
    name = f"stage 2: micro-batch of {clips}, {reader.names} names, from the stored output of {first} layers"
    yield from step_figures(name, cost, flops(job), gpu.waits(job), GOAL)
    yield Measurement("... speed-up over the whole step", full.seconds / cost.seconds, "x", 2.2, ">=")
    yield Measurement("... difference of the loss, over the loss", abs(upper - whole) / whole, "x", 1e-3)
    yield Measurement("... stored for a clip", states[0].nbytes / 1e6, "MB")


def kernels(setting: Setting, work: Path) -> Iterator[Measurement]:
    """The kernels that take most of a scoring pass."""
    del work
    reader, gpu = Reader(setting), setting.gpu
    vectors = reader.events(setting.sizes.micro_batch)
    with torch.inference_mode():
        reader.scores(vectors)
        gpu.wait()
        with profile(activities=[ProfilerActivity.CUDA if gpu.real else ProfilerActivity.CPU]) as seen:
            reader.scores(vectors)
            gpu.wait()
    rows = seen.key_averages()
    spent = {row.key: (row.self_device_time_total if gpu.real else row.self_cpu_time_total, row.count) for row in rows}
    whole = sum(time for time, _ in spent.values())
    for name, (time, calls) in sorted(spent.items(), key=lambda row: -row[1][0])[:SHOWN]:
        yield Measurement(f"kernel {name[:90]}", 100 * time / max(whole, 1), "%", note=f"{calls} calls")


@torch.no_grad()
def numerics(setting: Setting, work: Path) -> Iterator[Measurement]:
    """The vocabulary head against float32 products, and log-likelihoods in bfloat16 against the same weights in float32."""
    del work
    reader, sizes, device = Reader(setting), setting.sizes, setting.gpu.device
    weight = reader.model.lm_head.weight
    hidden = torch.randn(sizes.micro_batch, len(reader.trie) + 1, weight.shape[1], device=device).to(weight.dtype)
    head = partial(token_log_probabilities, hidden, weight, reader.trie.slots, reader.trie.targets)
    logits = F.linear(hidden.float(), weight.float()).log_softmax(-1)  # torch's default: no TF32
    exact = logits[:, reader.trie.slots, reader.trie.targets]
    yield Measurement("vocabulary head, time of a micro-batch", setting.gpu.cost(head).seconds, "s")
    yield Measurement("... largest difference of log P to float32 products", float((head() - exact).abs().max()), "nats", 1e-3)
    del logits, hidden

    vectors = reader.events(sizes.micro_batch)
    few, many = reader.scores(vectors[:2]), reader.scores(vectors)
    yield Measurement("log P of a clip in a batch of 2, difference to the whole batch", float((few - many[:2]).abs().max()), "nats")
    reader.model.float()
    whole = reader.scores(vectors[:2])
    note = f"spread over names {float(whole.std(-1).mean()):.2f} nats, size {float(whole.abs().mean()):.1f}"
    yield Measurement("log P in bfloat16, largest difference to float32", float((few - whole).abs().max()), "nats", note=note)
    same = float((few.argmax(-1) == whole.argmax(-1)).float().mean())
    yield Measurement("... clips with the same best name", 100 * same, "%")
