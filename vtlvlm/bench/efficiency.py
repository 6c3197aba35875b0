"""Cost of the pipeline for one clip (the paper's Table IV): every stage of a configuration is measured, and the paper's sizes are counted.

Weights of stage 1 and prompts are untrained, since cost does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

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
from vtlvlm.stages.parts import settings_of
from vtlvlm.stages.prompt_tuning import PromptTuningModule
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
    """

    stage: str
    trainable_parameters: int | None
    flops: int | None
    seconds: float | None
    peak_bytes: int | None
    note: str = ""


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


def measure(output: Path, work: Path, configured: Pipeline, repeats: int = 5) -> None:
    """Measure the configured pipeline, count the paper's, print both tables, and write JSON that ``vtlvlm report`` reads as Table IV.

    Args:
        output: JSON file to write.
        work: Folder for the video, and for a composed LLaVA if the configuration's does not exist.
        configured: The measured pipeline.
        repeats: Runs to take medians over.

    Raises:
        UsageError: A configuration is of the other stage, or its LLaVA is not there.
    """
    gpu = Gpu(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    described = environment(None)
    machine = described["machine"]
    where = device_of(gpu.device.type, 1)["name"] if gpu.real else f"{machine['cpu']}, {machine['cores']} cores"
    tables = {
        f"This code, {configured.name}: measured on {where}": pipeline(work, configured, repeats, gpu),
        "This code at the paper's size: counted on the meta device, not run": paper_rows(),
    }
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
    mapper, reader = configured.mapper, configured.reader
    if not isinstance(mapper, VTEMModule) or not isinstance(reader, PromptTuningModule):
        raise UsageError("bench efficiency: --stage1 takes configurations of stage 1, --stage2 those of stage 2; exchange them")
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
        return Row(stage, trained, flops, cost.seconds, cost.peak_bytes, f"{note}; memory of the GPU, with all stages on it")
    return Row(stage, trained, flops, cost.seconds, weights + peak_bytes(job) if modules else None, note)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"


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
