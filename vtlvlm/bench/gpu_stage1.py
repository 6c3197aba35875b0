"""Stage 1 on a GPU: its start, training steps from pinned features, the same codes in other precisions, and the extractor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vtlvlm.bench.gpu_cost import Setting, flops, step_figures
from vtlvlm.bench.harness import Measurement
from vtlvlm.vtem.extractors import VideoExtractor
from vtlvlm.vtem.losses import InfoNCE, reconstruction
from vtlvlm.vtem.model import VTEM
from vtlvlm.vtem.poolers import EqualSaliencePooler
from vtlvlm.vtem.precision import Precision, computing
from vtlvlm.vtem.quantizers import EMAQuantizer


def random_extractor(setting: Setting, precision: Precision = "float32") -> VideoExtractor:
    """An extractor with random weights, the same each time, on the device."""
    sizes = setting.sizes
    torch.manual_seed(0)
    extractor = VideoExtractor(sizes.backbone, grid=sizes.grid, image_size=sizes.image_size, chunk=sizes.frames, precision=precision)
    extractor.build()
    extractor.loaded = True  # trained weights take as long
    return extractor.to(setting.gpu.device)


class Mapper:
    """Stage 1 with random features, started as a training starts it."""

    def __init__(self, setting: Setting) -> None:
        self.setting, sizes, device = setting, setting.sizes, setting.gpu.device
        self.vtem = VTEM(random_extractor(setting), EqualSaliencePooler(sizes.windows), EMAQuantizer(sizes.codes), sizes.event_dim)
        self.vtem.build()
        self.contrast = InfoNCE()
        self.contrast.build(sizes.event_dim)
        self.vtem.to(device).train()
        self.contrast.to(device).train()
        width, cells = self.vtem.extractor.dim, sizes.grid**2
        start = torch.randn(sizes.start_clips, sizes.steps, cells, width, device=device).half()
        self.start = partial(self.vtem.fit_statistics, start)
        features = torch.randn(max(sizes.clips), sizes.steps, cells, width).half()
        self.features = features.pin_memory() if setting.gpu.real else features
        self.times = torch.arange(sizes.steps, device=device).float().expand(max(sizes.clips), -1)
        trained = [p for p in (*self.vtem.parameters(), *self.contrast.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 1e-4)

    def step(self, clips: int) -> None:
        """A training step from pinned features (eq. 4), as ``VTEMModule`` makes it: the codebook moves after the backward pass."""
        gpu = self.setting.gpu
        with gpu.mixed():
            found = self.vtem.encode(self.features[:clips].to(gpu.device, non_blocking=True), self.times[:clips])
            ids, vectors = found.tokens.ids, found.tokens.vectors
            loss = reconstruction(found.reconstruction, found.target) + found.commitment
            loss = loss + 0.1 * self.contrast(vectors, ids, windows=self.setting.sizes.windows, seed=0)
        loss.backward()
        self.vtem.quantizer.update(found.continuous.detach(), ids, seed=0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def steps(setting: Setting, work: Path) -> Iterator[Measurement]:
    """The start of a training, a step for each number of clips, and codes in other precisions."""
    del work
    gpu, sizes = setting.gpu, setting.sizes
    mapper = Mapper(setting)
    yield Measurement(f"stage 1: statistics and k-means of {sizes.start_clips:,} clips", gpu.cost(mapper.start, 1, 0).seconds, "s")
    for clips in sizes.clips:
        job = partial(mapper.step, clips)
        cost = gpu.cost(job, 10, 3)
        yield from step_figures(f"stage 1: a step with {clips} clips", cost, flops(job), gpu.waits(job))
    mapper.vtem.eval()
    features, times = mapper.features[:16].to(gpu.device), mapper.times[:16]
    exact = codes(mapper, features, times, "float32")
    with torch.autocast(gpu.device.type, dtype=torch.bfloat16):
        mixed = mapper.vtem.tokens(features, times).ids
    for name, ids in (("under bf16 autocast", mixed), ("where TF32 is allowed", codes(mapper, features, times, "tf32"))):
        same = float((exact == ids).float().mean())
        yield Measurement(f"stage 1: codes {name} that are those of float32", 100 * same, "%", 100, "==")


@torch.no_grad()
def codes(mapper: Mapper, features: Tensor, times: Tensor, precision: Precision) -> Tensor:
    """(B, M) the codes of features."""
    with computing(precision, features.device.type):
        return mapper.vtem.tokens(features, times).ids


def extractor(setting: Setting, work: Path) -> Iterator[Measurement]:
    """One clip through the extractor in each precision, and how far its features are from those of float32."""
    del work
    gpu, sizes = setting.gpu, setting.sizes
    torch.manual_seed(0)
    side = sizes.image_size
    frames = torch.randint(0, 256, (1, sizes.frames, 3, side, side), dtype=torch.uint8, device=gpu.device)
    exact: Tensor | None = None
    kinds: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
    for precision in kinds:
        model = random_extractor(setting, precision)
        job: Callable[[], Tensor] = partial(model, frames)
        found = job()
        exact = found if exact is None else exact
        note = f"features differ by {float((found - exact).norm() / exact.norm()):.1e} of their size"
        yield Measurement(f"{sizes.backbone}, one clip of {sizes.frames} frames, {precision}", gpu.cost(job).seconds, "s", note=note)
