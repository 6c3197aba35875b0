"""The Python door: a video file in, the likeliest actions out."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtlvlm import __version__
from vtlvlm.batches import EventTokens
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import decode_sampled
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import load_config, require_same_base
from vtlvlm.lvlm.peft_format import write_prefix
from vtlvlm.lvlm.prefix import chosen_layers, plain_state
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.stages.checkpoints import METADATA, RECORD, load_checkpoint, read_record
from vtlvlm.stages.origin import content_hash, require_same_extractor
from vtlvlm.stages.parts import build_from, settings_of
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.vtem.model import VTEM

BUNDLE = "bundle.json"
FORMAT = 2


class Recognition(NamedTuple):
    """What was recognised in one file."""

    file: Path
    actions: list[tuple[str, float]]
    """likeliest first: category and its probability; the probabilities of all categories sum to one"""
    events: EventTokens
    """the clip's event sentence, B = 1"""
    seconds: float
    """wall time from file to answer"""


def stage2_checkpoint(path: Path) -> Path:
    """A checkpoint, or the best one (else the last) of a run folder."""
    if not path.is_dir() or (path / METADATA).is_file():
        return path
    found = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    return next((p for p in found if p.exists()), found[0])


def require_stage2(record: dict[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint of another stage."""
    if record["stage"] != PromptTuningModule.stage:
        raise UsageError(f"{checkpoint} is a checkpoint of stage {record['stage']!r}: give the one of stage 2")


def trained_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a reasoner needs of a checkpoint's state dict, by its own names, the prompts plain."""
    own = {name.removeprefix("reasoner."): tensor for name, tensor in state.items()}
    adapter = {name.removeprefix("adapter."): tensor for name, tensor in own.items() if name.startswith("adapter.")}
    others = {name: tensor for name, tensor in own.items() if not name.startswith("adapter.")}
    return others | {f"adapter.{name}": tensor for name, tensor in plain_state(adapter).items()}


def load_stage1(record: dict[str, Any], checkpoint: Path, vtem: str | Path | None) -> VTEMModule:
    """The stage 1 that a stage-2 checkpoint with this record was trained with.

    Raises:
        UsageError: if it is missing or another one.
    """
    require_stage2(record, checkpoint)
    made = record["provenance"]["stage1"]
    source = vtem or made["checkpoint"]
    if not Path(source).is_file():
        raise UsageError(f"{source}: the stage-1 checkpoint of {checkpoint} is not there: say where it lies now with --vtem")
    stage1 = VTEMModule.load_from_checkpoint(source)
    if content_hash(stage1) != made["hash"]:
        raise UsageError(f"{source} is not the stage-1 checkpoint that {checkpoint} was trained with: name that one with --vtem")
    require_same_extractor(stage1.extractor, stage1.provenance()["extractor"], str(source))
    return stage1


def export_bundle(run: str | Path, output: str | Path, vtem: str | Path | None = None) -> Path:
    """Bundle all that ``classify`` needs except the base model: ``bundle.json``, ``vtem.safetensors``, ``adapter.safetensors``.

    The adapter of ``FullFineTuning`` is the whole language model. Prompts are stored as plain keys and values, without what trained them
    or what they started from.

    Args:
        run: stage-2 run folder or checkpoint.
        output: folder to make; it appears whole or not at all.
        vtem: where the stage-1 checkpoint lies now, if not where it was.

    Raises:
        UsageError: if the folder exists, or a checkpoint is missing or of another kind.
    """
    folder, checkpoint = new_folder(output), stage2_checkpoint(Path(run))
    loaded = load_checkpoint(checkpoint)
    record = loaded[RECORD]
    stage1 = load_stage1(record, checkpoint, vtem)
    reasoner = record["settings"]["init_args"]["reasoner"]
    adapter = reasoner["init_args"]["adapter"]["init_args"]
    adapter |= {name: None for name in ("init_from", "reparameterise") if name in adapter}
    described = {
        "format": FORMAT,
        "version": __version__,
        "classes": record["provenance"]["classes"],
        "sampling": stage1.provenance()["sampling"],
        "vtem": settings_of(stage1.vtem),
        "reasoner": reasoner,
        "origin": {"reasoning": record["provenance"], "vtem": stage1.provenance()},
    }
    with appearing(folder) as partial:
        (partial / BUNDLE).write_text(json.dumps(described, indent=2), encoding="utf-8")
        save_file({k: v.contiguous() for k, v in stage1.vtem.state_dict().items()}, partial / "vtem.safetensors")
        save_file({k: v.contiguous() for k, v in trained_state(loaded["state_dict"]).items()}, partial / "adapter.safetensors")
    return folder


def export_prefix(run: str | Path, output: str | Path) -> Path:
    """Write a run's prompts as an adapter for ``peft.PeftModel.from_pretrained``.

    Args:
        run: stage-2 run folder or checkpoint.
        output: folder to make; it appears whole or not at all.

    Raises:
        UsageError: if the folder exists, or the run trained what a prefix of peft cannot say: prompts in some layers only, the projector.
    """
    folder, checkpoint = new_folder(output), stage2_checkpoint(Path(run))
    loaded = load_checkpoint(checkpoint)
    require_stage2(loaded[RECORD], checkpoint)
    settings = loaded[RECORD]["settings"]["init_args"]["reasoner"]["init_args"]
    prompts = settings["adapter"]["init_args"]
    trained = trained_state(loaded["state_dict"])
    if "adapter.key" not in trained:
        raise UsageError(f"{checkpoint} has no prompts to export: export a bundle")
    if settings["train_projector"]:
        raise UsageError(f"{checkpoint}: its projector was trained too, which peft's prefix format has no place for: export a bundle")
    layers = load_config(settings["llava"], settings["revision"]).text_config.num_hidden_layers
    if len(chosen_layers(prompts["layers"], layers)) < layers:
        raise UsageError(
            f"{checkpoint} has prompts in {prompts['layers']} of {layers} layers, peft's prefixes are for all: export a bundle, or train "
            "with layers: all"
        )
    with appearing(folder) as partial:
        keys, values = trained["adapter.key"], trained["adapter.value"]
        write_prefix(partial, keys, values, settings["llava"], settings["revision"], loaded[RECORD]["provenance"]["llava"])
    return folder


def new_folder(path: str | Path) -> Path:
    """Refuse a folder that exists."""
    folder = Path(path)
    if folder.exists():
        raise UsageError(f"{folder} already exists: name a new folder")
    return folder


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when it is complete."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def found_device(name: str) -> torch.device:
    """A device by name; ``auto`` is the first GPU, if there is one.

    Raises:
        UsageError: no such device here.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise UsageError(f"device {name}: cannot be used here ({str(error).splitlines()[0]}); use cpu") from error
    return device


def changed_for(settings: dict[str, Any], device: str, computed: dict[str, Any]) -> dict[str, Any]:
    """What to change in a reasoner's settings, to run it on a device: what is asked for, and float32 in the place of half precision, which
    most CPUs compute far slower.

    Raises:
        UsageError: asked for what would make another model of it.
    """
    if wrong := sorted(computed.keys() - {"llava", *(name.partition(".")[2] for name in PromptTuningModule.machine_only)}):
        raise UsageError(f"{wrong[0]}: part of what was trained; it cannot be changed afterwards")
    made = settings["init_args"]
    whole = computed.get("quantization", made["quantization"]) is None
    slow = found_device(device).type == "cpu" and whole and made["dtype"] in ("bfloat16", "float16")
    return ({"dtype": "float32"} if slow else {}) | computed


class ActionRecognizer:
    """A trained pipeline for single files.

    Args:
        vtem: trained VTEM.
        reasoner: LLaVA with its adapter, built for ``classes``.
        classes: category names, in label order.
        sampling: how frames are taken from a file, as in training.
        device: where to run, ``auto`` for the first GPU if there is one.
    """

    def __init__(
        self,
        vtem: VTEM,
        reasoner: EventReasoner,
        classes: list[str],
        sampling: FrameSampling,
        device: str = "auto",
    ) -> None:
        self.device = found_device(device)
        self.vtem = vtem.to(self.device).eval()
        self.reasoner = reasoner.to(self.device).eval()
        self.classes, self.sampling = list(classes), sampling

    # -- loading -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, vtem: str | Path | None = None, device: str = "auto", **computed: Any) -> Self:
        """A recogniser from a bundle, a stage-2 run folder or a stage-2 checkpoint.

        Args:
            path: folder with ``bundle.json``, folder with ``checkpoints/``, or a ``.ckpt`` file.
            vtem: where the stage-1 checkpoint lies now, if not where it was; bundles hold their own.
            device: ``auto``, ``cpu``, ``cuda``, …
            computed: what is another matter here than where it was trained, by :class:`EventReasoner`'s names: ``llava``, the place of the
                base model, ``dtype`` (on a CPU float32 in the place of half precision, unless it is given), ``attention``,
                ``quantization`` and the like.

        Raises:
            UsageError: if something is missing or is not what it should be.
        """
        path = Path(path)
        if (path / BUNDLE).is_file():
            return cls._from_bundle(path, computed, device)
        checkpoint = stage2_checkpoint(path)
        record = read_record(checkpoint)
        require_stage2(record, checkpoint)
        changed = changed_for(record["settings"]["init_args"]["reasoner"], device, computed)
        overrides = {f"reasoner.{name}": value for name, value in changed.items()}
        stage1 = load_stage1(record, checkpoint, vtem)
        module = PromptTuningModule.load_from_checkpoint(checkpoint, overrides=overrides)
        sampling = build_from(stage1.provenance()["sampling"], FrameSampling, checkpoint)
        return cls(stage1.vtem, module.reasoner, list(module.classes), sampling, device)

    @classmethod
    def _from_bundle(cls, folder: Path, computed: dict[str, Any], device: str) -> Self:
        described = json.loads((folder / BUNDLE).read_text())
        if described.get("format") != FORMAT:
            raise UsageError(f"{folder}: a bundle of format {described.get('format')}, this version reads format {FORMAT}; export it again")
        settings = described["reasoner"]
        settings["init_args"] |= changed_for(settings, device, computed)
        vtem, reasoner = build_from(described["vtem"], VTEM, folder), build_from(settings, EventReasoner, folder)
        require_same_base(described["origin"]["reasoning"]["llava"], reasoner.llava, reasoner.revision, str(folder))
        vtem.build()
        vtem.load_state_dict(load_file(folder / "vtem.safetensors"))
        reasoner.build(described["classes"], vtem.num_tokens, vtem.event_dim, fresh=False)
        reasoner.load_trainable_state(load_file(folder / "adapter.safetensors"))
        return cls(vtem, reasoner, described["classes"], build_from(described["sampling"], FrameSampling, folder), device)

    # -- use ---------------------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def classify(self, file: str | Path, top: int = 5) -> Recognition:
        """The likeliest actions in a video file.

        Args:
            file: any video FFmpeg can read.
            top: how many actions to return, likeliest first.

        Raises:
            DataError: if the file cannot be decoded.
        """
        start = time.perf_counter()
        clip = decode_sampled(file, self.sampling)
        events = self.vtem(clip.frames[None].to(self.device), clip.times[None].to(self.device))
        probabilities = self.reasoner.probabilities(self.reasoner(events.vectors))[0].cpu()
        best = probabilities.topk(min(top, len(self.classes)))
        actions = [(self.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return Recognition(Path(file), actions, events, time.perf_counter() - start)
