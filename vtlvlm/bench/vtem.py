"""Cost of the Video-to-Event Mapper: pooling with quantisation against quantisation alone, a long video, FLOPs, a training step."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vtlvlm.bench.harness import Measurement, alternate, ratio
from vtlvlm.vtem.clip_extractor import ClipExtractor
from vtlvlm.vtem.extractors import Backbone, TimmExtractor, VideoExtractor
from vtlvlm.vtem.losses import InfoNCE
from vtlvlm.vtem.model import VTEM
from vtlvlm.vtem.poolers import EqualSaliencePooler, abs_delta
from vtlvlm.vtem.quantizers import EMAQuantizer

BATCH, STEPS, CELLS, DIM, WINDOWS, WIDTH, CODES = 8, 32, 16, 768, 16, 1024, 2048
"""The paper's size: M = WINDOWS · CELLS = 256"""
LONG_STEPS, LONG_WINDOWS = 54_000, 256
"""30 minutes at 30 steps a second"""
LLAVA = {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32_064}
"""LLaVA-1.5-7B's language model"""
TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""LLaVA-1.5-7B's CLIP tower"""
STEP_CLIPS = 160
TEXT_TOKENS, LISTED_TOKENS, TRIE_NODES = 23, 329, 232
"""Tokens of LLaVA-1.5's prompt with the plain instruction, and with the 60 categories of NTU RGB+D; inner nodes of these categories' label
tree. They are counted with a SentencePiece vocabulary of 32,000 words of the same family, since LLaVA-1.5's own is not freely available"""


def measure(work: Path, *, repeats: int) -> tuple[list[Measurement], dict[str, Any]]:
    """All measurements of this bench."""
    figures = [*pooling_and_quantisation(repeats), *long_video(), *shares(), training_step(work)]
    return figures, {"batch": BATCH, "tokens": WINDOWS * CELLS, "codes": CODES, "width": WIDTH, "repeats": repeats}


def saved_bytes(job: Callable[[], object]) -> int:
    """Bytes that a forward pass keeps for its backward pass. Each storage counts once, including inputs and parameters."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = job()
    total = sum(seen.values())
    del result
    return total


def pooling_and_quantisation(repeats: int) -> list[Measurement]:
    """Features to event tokens, forward and backward, against the library's quantisation of tensors of the same size."""
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    pooler, quantizer = EqualSaliencePooler(WINDOWS), EMAQuantizer(CODES)
    pooler.build(WIDTH)
    quantizer.build(WIDTH)
    bare = VectorQuantize(WIDTH, codebook_size=CODES, decay=0.99, threshold_ema_dead_code=2, rotation_trick=False, commitment_weight=0.25)
    features = torch.randn(BATCH, STEPS, CELLS, WIDTH, requires_grad=True)
    vectors = torch.randn(BATCH, WINDOWS * CELLS, WIDTH, requires_grad=True)

    def quantised(tokens: Tensor) -> Tensor:
        found = quantizer(tokens)
        quantizer.update(tokens.detach(), found.ids)
        return found.vectors.square().mean() + found.loss

    def ours() -> Tensor:
        return quantised(pooler(features).segments.flatten(1, 2))

    def with_movement() -> Tensor:
        pooled = pooler(features)
        moved = pooler.pool(abs_delta(features), pooled.cumulative)
        return quantised((pooled.segments + moved).flatten(1, 2))

    def theirs() -> Tensor:
        quantized, _, loss = bare(vectors)
        return quantized.square().mean() + loss.sum()

    jobs = {"ours": ours, "movement": with_movement, "bare": theirs}
    seconds = alternate({name: lambda job=job: job().backward() for name, job in jobs.items()}, repeats=repeats)  # type: ignore[misc]
    work = f"pooling and quantisation, forward and backward, M = {WINDOWS * CELLS}, over bare vector-quantize-pytorch"
    note = f"{statistics.median(seconds['bare']):.2f} s bare, processor time"
    return [
        Measurement(f"{work}: time", ratio(seconds, "ours", "bare"), "x", 1.25, note=note),
        Measurement("... with movement pooled beside the means: time", ratio(seconds, "movement", "bare"), "x", 1.25),
        Measurement("... memory kept for the backward pass", saved_bytes(ours) / max(saved_bytes(theirs), 1), "x", 1.25),
    ]


_LONG = """
import pathlib, re, sys, time, torch
from vtlvlm.vtem.poolers import EqualSaliencePooler
steps, windows, dim = map(int, sys.argv[1:])
pooler = EqualSaliencePooler(windows)
pooler.build(dim)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1)) * 1024
with torch.no_grad():
    pooler(torch.randn(1, 64, 1, dim))
    features = torch.randn(1, steps, 1, dim)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak excludes the imports
    before = peak()
    start = time.perf_counter()
    pooler(features)
    print(time.perf_counter() - start, (peak() - before) / 1e6)
"""


def long_video() -> list[Measurement]:
    """Pooling of half an hour of video. Linux reports its memory."""
    if not Path("/proc/self/clear_refs").exists():
        return [Measurement("pooling of a 30-minute video", None, "s", note="measured on Linux only")]
    arguments = [sys.executable, "-c", _LONG, str(LONG_STEPS), str(LONG_WINDOWS), str(DIM)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    work = f"pooling of a 30-minute video ({LONG_STEPS:,} steps, W = {LONG_WINDOWS})"
    return [Measurement(f"{work}: time", seconds, "s", 1), Measurement("... memory beyond its input", megabytes, "MB", 500)]


def shares() -> list[Measurement]:
    """FLOPs of mapping a clip to its event sentence over FLOPs of LLaVA-1.5-7B on the same clip, counted on the meta device.

    LLaVA reads the event sentence and the instruction of ``stage2_prompt.yaml`` with its 60 categories, and scores them in one pass.
    """
    bare, reading = llava_flops(TEXT_TOKENS), llava_flops(LISTED_TOKENS + TRIE_NODES)
    arms: dict[str, tuple[Backbone, int]] = {
        "swin3d_t, 64 frames": (VideoExtractor("swin3d_t"), 64),
        "swin3d_t, 64 frames at 112": (VideoExtractor("swin3d_t", image_size=112), 64),
        "swin3d_b, 64 frames": (VideoExtractor("swin3d_b"), 64),
        "r3d_18, 64 frames at 112": (VideoExtractor("r3d_18", image_size=112), 64),
        "EfficientNet-Lite0, 32 frames at 128": (TimmExtractor(), 32),
        "CLIP tower, 64 frames": (_MetaTower(grid=4), 64),
    }
    figures = []
    for name, (extractor, frames) in arms.items():
        flops = vtem_flops(extractor, frames)
        share = 100 * flops / reading
        target = 3.0 if name == "swin3d_t, 64 frames" else None
        note = f"{flops / 1e9:,.0f} GFLOP; {100 * flops / bare:.2g} % if the instruction lists no categories and none are scored"
        note += "; costs more than LLaVA itself" * (share > 100)
        figures.append(Measurement(f"VTEM with {name}, FLOPs over LLaVA-1.5-7B's on the same clip", share, "%", target, note=note))
    return figures


class _MetaTower(ClipExtractor):
    """LLaVA-1.5's tower from its settings, without a checkpoint."""

    def make(self) -> Backbone.Made:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        self.layers, self.image_size = [23], int(TOWER["image_size"])
        return self.Made(CLIPVisionModel(CLIPVisionConfig(**TOWER)), self.MEAN, self.STD)


def vtem_flops(extractor: Backbone, frames: int) -> int:
    """FLOPs of backbone, pooling, projection and quantisation for one clip."""
    extractor.build()
    vtem = VTEM(extractor, EqualSaliencePooler(WINDOWS), EMAQuantizer(CODES), event_dim=WIDTH)
    vtem.build()
    vtem.to("meta")
    side = extractor.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counting:
        features = extractor.extract(torch.empty(1, frames, 3, side, side, dtype=torch.uint8, device="meta"))
    # the rest is three matrix products, one of them with all codes; searches and sorts are no FLOPs
    tokens, dim = WINDOWS * extractor.cells, features.shape[-1]
    return int(counting.get_total_flops()) + 2 * tokens * WIDTH * (dim + CODES)


def llava_flops(text_tokens: int) -> int:
    """FLOPs of LLaVA-1.5-7B's forward pass over an event sentence and ``text_tokens`` of text, including the projector."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = WINDOWS * CELLS
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAVA)).eval()
        words = torch.empty(1, tokens + text_tokens, LLAVA["hidden_size"])
        mask = torch.empty(1, 1, tokens + text_tokens, tokens + text_tokens)  # given, since making one needs values
    with torch.no_grad(), FlopCounterMode(display=False) as counting:
        model(inputs_embeds=words, attention_mask=mask, logits_to_keep=1, use_cache=False)
    projector = 2 * tokens * (WIDTH + LLAVA["hidden_size"]) * LLAVA["hidden_size"]
    return int(counting.get_total_flops()) + projector


def training_step(work: Path) -> Measurement:
    """Share of a stage-1 step outside forward, backward and optimiser, in a training from a feature cache."""
    from lightning import Trainer
    from lightning.pytorch.profilers import SimpleProfiler

    from vtlvlm.data.cache import FeatureCacheWriter
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.data.ntu import clip_name, official_clips
    from vtlvlm.data.source import ClipSource
    from vtlvlm.stages.vtem import VTEMModule

    root, cache = work / "names", work / "features"
    names = [clip_name(number) for number in official_clips(60)[:: 56_880 // STEP_CLIPS][:STEP_CLIPS]]
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / f"{name}_rgb.avi").touch()
    if not (cache / "meta.json").is_file():
        with FeatureCacheWriter(cache, {"extractor": {}}) as writer:
            for name in names:
                writer.add([(name, 0)], torch.randn(1, STEPS, CELLS, DIM), torch.arange(STEPS).float()[None])
            writer.flush()
            writer.finish(writer.done())
    data = NTUDataModule(ClipSource(str(root), validation=0), features=str(cache), batch_size=BATCH, micro_batch_size=BATCH, num_workers=1)
    module = VTEMModule(VideoExtractor("swin3d_t"), EqualSaliencePooler(WINDOWS), EMAQuantizer(CODES), InfoNCE(), event_dim=WIDTH)
    profiler = SimpleProfiler(dirpath=work, filename="profile")
    trainer = Trainer(
        default_root_dir=work,
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=profiler,
    )
    trainer.fit(module, datamodule=data)
    found = profiler.recorded_durations
    busy = sum(found["[LightningModule]VTEMModule.optimizer_step"])  # Lightning runs forward and backward inside it
    share = 100 * (1 - busy / sum(found["run_training_epoch"]))
    return Measurement(
        "stage-1 step from the feature cache, time outside forward, backward and optimiser", share, "%", 5, note=f"{BATCH} clips"
    )
