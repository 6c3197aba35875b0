"""The same work by transformers and peft, without and with Liger's kernels: training steps, and written answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vtlvlm.bench.gpu_cost import Setting, flops, step_figures
from vtlvlm.bench.gpu_stage2 import END, PROMPTS, Reader
from vtlvlm.bench.harness import Measurement

WRITTEN = 8
"""Tokens of a written answer"""


def steps(setting: Setting, work: Path) -> Iterator[Measurement]:
    """A step with the generative loss and prompts in all layers: ours, and peft's."""
    del work
    gpu = setting.gpu
    ours = Reader(setting, layers="all")
    job = ours.job(ours.generative)
    cost = gpu.cost(job)
    yield from step_figures("generative step, prompts in all layers: ours", cost, flops(job), gpu.waits(job))
    del ours, job
    gpu.clear()
    theirs = PeftSteps(setting)
    peer = gpu.cost(theirs.step)
    yield from step_figures("... transformers + peft", peer, flops(theirs.step), None)
    yield Measurement("... time over transformers + peft", cost.seconds / peer.seconds, "x", 1)
    if cost.peak_bytes is not None and peer.peak_bytes is not None:
        yield Measurement("... peak memory over transformers + peft, with the weights", cost.peak_bytes / peer.peak_bytes, "x", 1)


def answers(setting: Setting, work: Path) -> Iterator[Measurement]:
    """An answer that transformers' ``generate`` writes, beside the scores of all names."""
    del work
    reader, gpu = Reader(setting), setting.gpu
    with torch.inference_mode():
        scoring = gpu.cost(partial(reader.scores, reader.events(1)))
        writing = gpu.cost(written(reader))
    work_done = f"an answer of {WRITTEN} tokens by transformers' generate"
    yield Measurement(work_done, writing.seconds, "s", note=f"{scoring.seconds:.3f} s for the scores of {reader.names} names")
    yield Measurement("... time of the scores over it", scoring.seconds / writing.seconds, "x", 1)


def written(reader: Reader) -> Callable[[], Tensor]:
    """Writes an answer."""
    before = reader.embedded(reader.events(1))
    mask = torch.ones(before.shape[:2], dtype=torch.int64, device=before.device)
    settings = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False, "pad_token_id": END}
    return lambda: reader.model.generate(inputs_embeds=before, attention_mask=mask, **settings)


def liger(setting: Setting, work: Path) -> Iterator[Measurement]:
    """Steps with Liger's kernels, ours and peft's. They stay in transformers' classes, so nothing is measured without them afterwards."""
    del work
    gpu = setting.gpu
    if gpu.real:  # the kernels need one
        ours = Reader(setting, kernels="liger")
        for names in setting.sizes.text:
            ours.read(names)
            for loss, job in (("all names", ours.job(ours.listwise)), ("generative", ours.job(ours.generative))):
                name = f"stage 2 with Liger's kernels: {names} names, loss: {loss}"
                yield from step_figures(name, gpu.cost(job), flops(job), gpu.waits(job))
            with torch.inference_mode():
                scoring = gpu.cost(partial(ours.scores, ours.events(setting.sizes.micro_batch)))
            yield Measurement("... scores of a micro-batch", scoring.seconds, "s")
        del ours, job
        gpu.clear()
        ours = Reader(setting, layers="all", kernels="liger")
        job = ours.job(ours.generative)
        yield from step_figures(
            "generative step, prompts in all layers: ours with Liger's kernels", gpu.cost(job), flops(job), gpu.waits(job)
        )
        del ours, job
        gpu.clear()
    from liger_kernel.transformers import apply_liger_kernel_to_llama  # type: ignore[import-not-found]

    apply_liger_kernel_to_llama()
    theirs = PeftSteps(setting)
    yield from step_figures(
        "generative step: transformers + peft with Liger's kernels", setting.gpu.cost(theirs.step), flops(theirs.step), None
    )


class PeftSteps:
    """Training steps of peft's prefix tuning around transformers' model, on the sequences of a :class:`Reader`."""

    def __init__(self, setting: Setting) -> None:
        from peft import PrefixTuningConfig, get_peft_model

        reader = Reader(setting, prompts=0)
        clips = setting.sizes.micro_batch
        with torch.no_grad():
            before = reader.embedded(reader.events(clips))
            answers = reader.answers[:clips]
            words = torch.where(answers < 0, END, answers)
            self.embedded = torch.cat([before, reader.model.get_input_embeddings()(words)], 1)
        self.labels = torch.cat([torch.full(before.shape[:2], -100, device=before.device), answers], 1)
        self.mask = torch.ones_like(self.labels)
        self.setting = setting
        reader.model.set_attn_implementation("sdpa")
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft uses an old name of transformers
            config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPTS)
            self.model = get_peft_model(reader.model, config).train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 1e-6)

    def step(self) -> None:
        with self.setting.gpu.mixed():
            loss = self.model(inputs_embeds=self.embedded, attention_mask=self.mask, labels=self.labels, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
