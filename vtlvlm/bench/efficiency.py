"""Cost of the pipeline for one clip (the paper's Table IV): every stage of a configuration is measured, and the paper's sizes are counted.

The skeleton networks of Table I are measured and counted in the same way. Weights of stage 1, prompts and skeleton networks are untrained,
since cost does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vtlvlm.bench.data import CODECS, encode, rendered
from vtlvlm.bench.gpu_cost import Gpu
from vtlvlm.bench.harness import peak_bytes
from vtlvlm.bench.paper_size import LAYERS, NAMES, PROMPTS, label_tree, paper_reasoner
from vtlvlm.bench.vtem import CELLS, CODES, WIDTH, WINDOWS
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.ntu import ACTIONS
from vtlvlm.data.video import decode_sampled
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.compose import compose
from vtlvlm.lvlm.llava import Llava
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import score
from vtlvlm.recognizers.loading import made_on
from vtlvlm.report.provenance import device_of, environment
from vtlvlm.report.tables import Table, as_text
from vtlvlm.skeleton.backbone import Network, SkeletonNet
from vtlvlm.skeleton.curves import CurveTemporal
from vtlvlm.skeleton.datamodule import SkeletonDataModule
from vtlvlm.skeleton.heads import Head
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.stages.parts import settings_of
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.stage import Stage
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.system.files import write_json
from vtlvlm.vtem.extractors import Backbone, VideoExtractor
from vtlvlm.vtem.model import VTEM
from vtlvlm.vtem.poolers import EqualSaliencePooler
from vtlvlm.vtem.quantizers import EMAQuantizer

STAGE1, STAGE2 = ("stage1_small.yaml",), ("stage2_small.yaml",)
"""Configurations that are measured by default"""
DEMO_LLAVA = "runs/demo/llava"
"""The small configuration's LLaVA, which ``vtlvlm demo`` composes; composed anew if it is not there"""
FRAMES = 120
"""Frames of the video that is decoded: 4 seconds of 1080p"""
NUM_NAMES = 60
"""Scored categories: the names of NTU RGB+D 60"""
PAPER_FRAMES = 64
BASELINES = {
    "ST-GCN": "baselines/st_gcn.yaml",
    "Shift-GCN": "baselines/shift_gcn.yaml",
    "InfoGCN": "baselines/infogcn.yaml",
    "PoseC3D": "baselines/posec3d.yaml",
    "FR-Head": "baselines/fr_head.yaml",
    "Koopman": "baselines/koopman.yaml",
    "GAP": "baselines/gap.yaml",
    "HD-GCN": "baselines/hd_gcn.yaml",
    "STC-Net": "baselines/stc_net.yaml",
    "CTR-GCN": "baselines/ctr_gcn.yaml",
}
"""Skeleton networks that are measured by default: Table I's nine at full size, and CTR-GCN, which is the trunk of three of them"""
BODIES = 2


@dataclass(frozen=True)
class Row:
    """A stage of the pipeline, for one clip.

    Attributes:
        stage: Its name.
        trainable_parameters: Number of trained parameters; None if the stage trains none.
        flops: Floating-point operations of products, convolutions and attention; None if they were not counted.
        seconds: Median wall time; None if it was not measured.
        peak_bytes: Weights and tensors of the stage at its peak; None if they were not measured, as those of a decoder.
        note: What the figures are of.
        inference_parameters: Number of parameters that a trained network needs to recognise; None but for a skeleton network.
    """

    stage: str
    trainable_parameters: int | None
    flops: int | None
    seconds: float | None
    peak_bytes: int | None
    note: str = ""
    inference_parameters: int | None = None


@dataclass(frozen=True)
class Pipeline:
    """Both stages as configured, untrained.

    Attributes:
        name: What the tables call their configurations.
        mapper: Stage 1.
        reader: Stage 2.
        data: The data module of stage 1.
    """

    name: str
    mapper: Stage
    reader: Stage
    data: NTUDataModule


class Baseline(NamedTuple):
    """A skeleton network as configured, untrained."""

    name: str
    stage: Stage
    data: Any
    """Its data module, which is not set up"""


def measure(output: Path, work: Path, configured: Pipeline, baselines: Sequence[Baseline] = (), repeats: int = 5) -> None:
    """Measure the configured pipeline, count the paper's, print the tables, and write JSON that ``vtlvlm report`` reads as Table IV.

    Args:
        output: JSON file to write.
        work: Folder for the video, and for a composed LLaVA if the configuration's does not exist.
        configured: The measured pipeline.
        baselines: Skeleton networks to measure beside it.
        repeats: Runs to take medians over.

    Raises:
        UsageError: A configuration is of another stage, its LLaVA is not there, or a skeleton network does not fit NTU's joints.
    """
    _require_stages(configured)
    networks = [built(baseline) for baseline in baselines]
    gpu = Gpu(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    described = environment(None)
    machine = described["machine"]
    where = device_of(gpu.device.type, 1)["name"] if gpu.real else f"{machine['cpu']}, {machine['cores']} cores"
    skeletons = [skeleton_row(network, repeats, gpu) for network in networks]
    tables = {
        f"This code, {configured.name}: measured on {where}": pipeline(work, configured, repeats, gpu),
        "This code at the paper's size: counted on the meta device, not run": paper_rows(),
    }
    if skeletons:
        tables[f"Skeleton networks in this code, from joints to scores of {NUM_NAMES} actions: measured on {where}"] = skeletons
    for title, rows in tables.items():
        print(f"{title}\n\n{as_text(text_table(rows))}\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    written = [{"title": title, "rows": [asdict(row) for row in rows]} for title, rows in tables.items()]
    write_json(output, {"bench": "efficiency", **described, "repeats": repeats, "tables": written})
    print(f"{output} written; `vtlvlm report WORK --efficiency {output}` sets it beside the paper's Table IV")


def text_table(rows: Sequence[Row]) -> Table:
    """Rows as text for the terminal."""
    lines = [
        [
            row.stage,
            "" if row.trainable_parameters is None else f"{row.trainable_parameters / 1e6:,.2f}",
            "" if row.flops is None else f"{row.flops / 1e9:,.1f}",
            "" if row.seconds is None else f"{row.seconds:.3f}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}",
            row.note,
        ]
        for row in rows
    ]
    return Table(["one clip", "trained, M", "GFLOP", "seconds", "peak GiB", "note"], lines)


# -- the configured pipeline -------------------------------------------------------------------------------------------------------


def pipeline(work: Path, configured: Pipeline, repeats: int, gpu: Gpu) -> list[Row]:
    """Every stage from a video file to probabilities, and the whole way."""
    mapper, reader = _require_stages(configured)
    vtem, reasoner = mapper.vtem.to(gpu.device).eval(), reader.reasoner
    vtem.build()
    vtem.fitted.fill_(True)
    mapper.contrast.build(vtem.event_dim)
    vtem.to(gpu.device)
    if reasoner.llava.path == DEMO_LLAVA and not Path(DEMO_LLAVA).exists():
        settings = {**settings_of(reasoner.llava)["init_args"], "path": str(compose(work / "llava", event_dim=vtem.event_dim))}
        reasoner.llava = Llava(**settings)
    with made_on(gpu.device):  # as Lightning builds it: a GPU's kernels want an aligned label tree
        reasoner.build(ACTIONS[:NUM_NAMES], vtem.num_tokens, vtem.event_dim)
    reasoner.to(gpu.device).eval()
    codec, suffix, options = CODECS["MPEG-4"]
    file = work / f"efficiency.{suffix}"
    encode(file, list(islice(rendered(), FRAMES)), codec, options)
    sampling = configured.data.sampling

    def decoded() -> tuple[Tensor, Tensor]:
        clip = decode_sampled(file, sampling)
        return clip.frames[None], clip.times[None].float()

    @torch.inference_mode()
    def extracted(frames: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        return vtem.extractor(frames.to(gpu.device)), vtem.extractor.step_times(times.to(gpu.device))

    @torch.inference_mode()
    def mapped(features: Tensor, times: Tensor) -> Tensor:
        return vtem.tokens(features, times).vectors

    @torch.inference_mode()
    def reasoned(vectors: Tensor) -> Tensor:
        return reasoner.probabilities(reasoner(vectors).score).cpu()

    def whole() -> Tensor:
        return reasoned(mapped(*extracted(*decoded())))

    frames = decoded()
    features = extracted(*frames)
    vectors = mapped(*features)
    backbone = sum(p.numel() for p in vtem.extractor.parameters())
    trained = sum(p.numel() for p in mapper.parameters() if p.requires_grad)
    adapter, projector = reasoner.trainable_parameters()
    tokens = f"M = {vtem.num_tokens}, K = {vtem.num_codes}"
    language = sum(p.numel() for p in reasoner.parameters())
    rows = [
        _measured("decode", decoded, None, [], repeats, gpu, f"{sampling.frames} frames of {FRAMES} of 1080p", counted=False),
        _measured("extract", partial(extracted, *frames), None, [vtem.extractor], repeats, gpu, f"{_millions(backbone)} frozen parameters"),
        _measured("map to events", partial(mapped, *features), trained, _without(vtem), repeats, gpu, tokens),
        _measured(
            "reason",
            partial(reasoned, vectors),
            adapter.trained + projector.trained,
            [reasoner],
            repeats,
            gpu,
            f"{NUM_NAMES} names, {_millions(language)} parameters; adapter {adapter.trained:,}, projector {projector.trained:,} trained",
        ),
    ]
    flops = sum(row.flops or 0 for row in rows)
    every = _measured("file to probabilities", whole, None, [vtem, reasoner], repeats, gpu, "", counted=False)
    return [*rows, Row(every.stage, None, flops, every.seconds, every.peak_bytes, "both stages in memory")]


def _require_stages(configured: Pipeline) -> tuple[VTEMModule, PromptTuningModule]:
    mapper, reader = configured.mapper, configured.reader
    if not isinstance(mapper, VTEMModule) or not isinstance(reader, PromptTuningModule):
        raise UsageError("bench efficiency: --stage1 takes configurations of stage 1, --stage2 those of stage 2; exchange them")
    return mapper, reader


def _without(vtem: VTEM) -> list[nn.Module]:
    """The parts of a VTEM but its extractor."""
    return [module for name, module in vtem.named_children() if name != "extractor"]


def _measured(
    stage: str,
    job: Callable[[], object],
    trained: int | None,
    modules: Sequence[nn.Module],
    repeats: int,
    gpu: Gpu,
    note: str,
    counted: bool = True,
) -> Row:
    weights = sum(t.numel() * t.element_size() for module in modules for t in (*module.parameters(), *module.buffers()))
    cost = gpu.cost(job, repeats)
    flops = None
    if counted:
        with FlopCounterMode(display=False) as counting:
            job()
        flops = int(counting.get_total_flops())
    if cost.peak_bytes is not None:
        return Row(stage, trained, flops, cost.seconds, cost.peak_bytes, f"{note}; memory of the GPU, with all that is on it")
    return Row(stage, trained, flops, cost.seconds, weights + peak_bytes(job) if modules else None, note)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"


# -- skeleton networks -------------------------------------------------------------------------------------------------------------


class SkeletonNetwork(NamedTuple):
    """A skeleton network with weights, without those that only training needs."""

    name: str
    network: Network
    head: Head
    window: int
    """T, frames of a clip"""
    views: int
    """Views of a clip that a test averages"""
    trained: int
    """Number of trained parameters"""


def built(baseline: Baseline) -> SkeletonNetwork:
    """Make the weights for NTU's 25 joints, two bodies and 60 actions.

    Raises:
        UsageError: The configuration is not a skeleton network's, or does not fit these joints.
    """
    stage, data = baseline.stage, baseline.data
    network: Any = getattr(stage, "network", None)
    if not isinstance(stage, Recognition) or not isinstance(network, Network) or not isinstance(data, SkeletonDataModule):
        raise UsageError(f"{baseline.name}: no configuration of a skeleton network, which bench efficiency --baselines takes")
    head = stage.head
    for name in head.files:  # only a training opens them
        setattr(head, name, None)
    network.build(NTU25, BODIES)
    head.build(network.shapes(data.window), ACTIONS[:NUM_NAMES], NTU25)
    trained = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    head.drop_training_parts()
    return SkeletonNetwork(baseline.name, network.eval(), head.eval(), data.window, len(data.test_views), trained)


def skeleton_row(made: SkeletonNetwork, repeats: int, gpu: Gpu) -> Row:
    """Cost of one view of a clip, from the network's input to scores. Poses, reading and preparing are not in it."""
    network, head = made.network.to(gpu.device), made.head.to(gpu.device)
    joints = torch.rand(1, 3, made.window, NTU25.num_joints, BODIES, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def scored() -> Tensor:
        return head(network(joints.to(gpu.device))).logits.cpu()

    needed = sum(p.numel() for part in (network, head) for p in part.parameters())
    notes = [f"{made.window} frames, {BODIES} bodies of {NTU25.num_joints} joints"]
    if needed != made.trained:
        notes.append(f"{needed / 1e6:.2f} M parameters after training")
    if made.views > 1:
        notes.append(f"one of the {made.views} views of a test")
    if isinstance(network, SkeletonNet) and isinstance(network.temporal, CurveTemporal):
        notes.append("a reconstruction: no official code exists")
    row = _measured(made.name, scored, made.trained, [network, head], repeats, gpu, "; ".join(notes))
    network.cpu()
    head.cpu()
    return replace(row, inference_parameters=needed)


# -- the paper's size --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def paper_rows() -> list[Row]:
    """The paper's sizes: swin3d_t on 64 frames, M = 256, K = 2,048, LLaVA-1.5-7B with prompts in 9 layers or in all, or fully trained."""
    extractor = VideoExtractor("swin3d_t")
    extractor.build()
    vtem = VTEM(extractor, EqualSaliencePooler(WINDOWS), EMAQuantizer(CODES), event_dim=WIDTH)
    vtem.build()
    trained = sum(p.numel() for name, p in vtem.named_parameters() if p.requires_grad and not name.startswith("extractor."))
    tokens = vtem.num_tokens
    extracting, dim = _extractor_flops(vtem, extractor)
    mapping = 2 * tokens * WIDTH * (dim + CODES)  # matrix products alone; searches and sorts are no FLOPs
    nine, everywhere, none = (paper_reasoner(False, *prompts).eval() for prompts in ((PROMPTS, LAYERS), (PROMPTS, "all"), (0, LAYERS)))
    assert nine.base is not None
    language = sum(p.numel() for p in nine.base.parameters())
    context, nodes = NAMES[NUM_NAMES].context, NAMES[NUM_NAMES].nodes
    note = f"{NUM_NAMES} listed names: {context} context and {nodes} label tokens; weights {2 * language / 2**30:.1f} GiB in bfloat16"
    return [
        Row("extract (swin3d_t)", None, extracting, None, None, f"{PAPER_FRAMES} frames of 224 pixels"),
        Row("map to events", trained, mapping, None, None, f"M = {tokens}, K = {CODES}; a codebook of means beside the trained weights"),
        Row("reason, prompts in 9 layers", _prompts(nine), _reading_flops(nine), None, None, note),
        Row("reason, prompts in all 32 layers", _prompts(everywhere), _reading_flops(everywhere), None, None),
        Row("reason, full fine-tuning", language, _reading_flops(none), None, None, "without the vision tower, which events replace"),
    ]


def _prompts(reasoner: EventReasoner) -> int:
    """Trained parameters of the prompts."""
    return sum(p.numel() for p in reasoner.adapter.parameters())


def _extractor_flops(vtem: VTEM, extractor: Backbone) -> tuple[int, int]:
    """Operations of the backbone for a clip, and the width of its features."""
    vtem.to("meta")
    side = extractor.image_size
    with FlopCounterMode(display=False) as counting:
        features = extractor.extract(torch.empty(1, PAPER_FRAMES, 3, side, side, dtype=torch.uint8, device="meta"))
    return int(counting.get_total_flops()), features.shape[-1]


def _reading_flops(reasoner: EventReasoner) -> int:
    """Operations of scoring all names after one event sentence, with the projector."""
    base, size = reasoner.base, NAMES[NUM_NAMES]
    assert base is not None
    hidden = int(base.config.text_config.hidden_size)
    given = torch.empty(1, size.context, hidden, dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counting:
        score(base, given, label_tree(NUM_NAMES, size.nodes))
    projector = 2 * WINDOWS * CELLS * (WIDTH + hidden) * hidden
    return int(counting.get_total_flops()) + projector
