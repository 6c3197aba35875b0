"""The Python interface: a video file in, the likeliest actions out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from vtlvlm import __version__
from vtlvlm.batches import EventTokens
from vtlvlm.bundles import BUNDLE, FORMAT, digest, load_into, new_folder, read_description, read_weights
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip, decode_sampled
from vtlvlm.errors import DataError, UsageError, naming
from vtlvlm.lvlm.llava import load_config, looks_local, require_same_base
from vtlvlm.lvlm.peft_format import write_prefix
from vtlvlm.lvlm.prefix import chosen_layers, plain_state
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.stages.checkpoints import METADATA, RECORD, load_checkpoint, read_record
from vtlvlm.stages.origin import content_hash, require_classes, require_numbers, require_record, require_same_extractor
from vtlvlm.stages.parts import build_from, is_part, settings_of
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.system.files import appearing, write_json
from vtlvlm.system.places import real, require_apart
from vtlvlm.system.saving import saving
from vtlvlm.system.text import shown
from vtlvlm.vtem.extractors import FeatureExtractor
from vtlvlm.vtem.model import VTEM

VTEM_FILE, ADAPTER_FILE = "vtem.safetensors", "adapter.safetensors"
MOST_PIXELS, LONGEST_PATH = 4 << 30, 4_096
"""Bytes of a clip's frames, and of a path"""


class Recognition(NamedTuple):
    """What was recognised in one file."""

    file: Path
    actions: list[tuple[str, float]]
    """likeliest first: category and its probability; the probabilities of all categories sum to one"""
    events: EventTokens | None
    """the clip's event sentence, B = 1; None from a linear probe, which has none"""
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
    if content_hash(stage1) != made["hash"] or stage1.vtem.num_tokens != record["provenance"]["num_tokens"]:
        raise UsageError(f"{source} is not the stage-1 checkpoint that {checkpoint} was trained with: name that one with --vtem")
    require_same_extractor(stage1.extractor, stage1.provenance()["extractor"], str(source))
    require_modest(build_from(stage1.provenance()["sampling"], FrameSampling, source), stage1.extractor)
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
    require_stage2(record, checkpoint)
    build_from(record["settings"], PromptTuningModule, checkpoint)  # what cannot be loaded again is not exported
    stage1 = load_stage1(record, checkpoint, vtem)
    reasoner = record["settings"]["init_args"]["reasoner"]
    adapter = reasoner["init_args"]["adapter"]["init_args"]
    adapter |= {name: None for name in ("init_from", "reparameterise") if name in adapter}
    described: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "classes": record["provenance"]["classes"],
        "sampling": stage1.provenance()["sampling"],
        "vtem": settings_of(stage1.vtem),
        "reasoner": reasoner,
        "origin": {"reasoning": record["provenance"], "vtem": stage1.provenance()},
    }
    require_apart(folder, [checkpoint, vtem], "the bundle")
    if (llava := Path(reasoner["init_args"]["llava"])).is_dir():
        described["llava"] = os.path.relpath(real(llava), real(folder.parent) / folder.name)
    weights = {VTEM_FILE: stage1.vtem.state_dict(), ADAPTER_FILE: trained_state(loaded["state_dict"])}
    with saving(folder), appearing(folder) as partial:
        for name, state in weights.items():
            save_file({k: v.contiguous() for k, v in state.items()}, partial / name)
        described["sha256"] = {name: digest(partial / name) for name in weights}
        write_json(partial / BUNDLE, described)
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
    build_from(loaded[RECORD]["settings"], PromptTuningModule, checkpoint)
    settings = loaded[RECORD]["settings"]["init_args"]["reasoner"]["init_args"]
    prompts = settings["adapter"]["init_args"]
    require_apart(folder, [checkpoint], "the adapter")
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
    with saving(folder), appearing(folder) as partial:
        keys, values = trained["adapter.key"], trained["adapter.value"]
        write_prefix(partial, keys, values, settings["llava"], settings["revision"], loaded[RECORD]["provenance"]["llava"])
    return folder


def found_device(name: str) -> torch.device:
    """A device by name; ``auto`` is the first GPU, if there is one.

    Raises:
        UsageError: no such device here.
    """
    if name.partition(":")[0] == "mps":
        raise UsageError(f"device {shown(name, 40)}: has no float64, in which windows are cut; use cpu")
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise UsageError(f"device {name}: cannot be used here ({str(error).splitlines()[0]}); use cpu") from error
    return device


def changed_for(settings: dict[str, Any], device: str, computed: dict[str, Any]) -> dict[str, Any]:
    """What to change in a reasoner's settings, to run it on a device: what is asked for, and float32 instead of half precision, which
    most CPUs compute far slower.

    Raises:
        UsageError: asked for what would make another model of it.
    """
    if not is_part(settings):
        raise UsageError("the model's settings have no reasoner; get the file again, or make it again")
    if wrong := sorted(computed.keys() - {"llava", *(name.partition(".")[2] for name in PromptTuningModule.machine_only)}):
        raise UsageError(f"{wrong[0]}: part of what was trained; it cannot be changed afterwards")
    made = settings["init_args"]
    whole = computed.get("quantization", made.get("quantization")) is None
    slow = found_device(device).type == "cpu" and whole and made.get("dtype") in ("bfloat16", "float16")
    return ({"dtype": "float32"} if slow else {}) | computed


def require_bundle(folder: Path, described: dict[str, Any]) -> None:
    """Refuse a bundle's description that lacks something.

    Raises:
        UsageError: Naming it.
    """
    path = folder / BUNDLE
    origin, digests, place = described.get("origin"), described.get("sha256"), described.get("llava", "")
    if (
        not isinstance(origin, dict)
        or not isinstance(digests, dict)
        or not isinstance(place, str)
        or len(place) > LONGEST_PATH
        or "\0" in place
        or not is_part(described.get("reasoner"))
        or not all(isinstance(digests.get(name), str) for name in (VTEM_FILE, ADAPTER_FILE))
    ):
        raise UsageError(f"{path}: lacks what a bundle describes; get the folder again, or export it again")
    record = {"stage": PromptTuningModule.stage, "settings": described["reasoner"], "provenance": origin.get("reasoning")}
    require_record(record, path)
    described["classes"] = require_classes(described.get("classes"), path)
    if described["classes"] != list(origin["reasoning"]["classes"]):
        raise UsageError(f"{path}: its categories are not those it was trained with; get the folder again, or export it again")


def base_place(model: Path, relative: str | None, recorded: Any) -> str:
    """Where the LLaVA of a model lies: where it lay as seen from the bundle, else where it was trained.

    Args:
        model: Bundle, run folder or checkpoint.
        relative: The LLaVA's place as seen from the bundle; None if that is not known.
        recorded: Folder or hub name as it was trained.

    Raises:
        UsageError: In neither place.
    """
    beside = None if relative is None else real(Path(real(model), relative))
    if beside is not None and beside.is_dir():
        return str(beside)
    if not isinstance(recorded, str) or len(recorded) > LONGEST_PATH:
        raise UsageError(f"{model}: names no LLaVA; get the model again")
    if not Path(recorded).is_dir() and (beside is not None or looks_local(recorded)):
        places = f"{shown(recorded, 200)}, where it was trained" + ("" if beside is None else f", nor at {shown(beside, 200)}")
        raise UsageError(f"{model}: its LLaVA is not at {places}; say with --llava where it lies now")
    return recorded


def require_modest(sampling: FrameSampling, extractor: FeatureExtractor) -> None:
    """Refuse settings of a file that would take all memory for a single clip."""
    pictures = sampling.frames * sampling.size**2 * 3
    seen = min(sampling.frames, extractor.chunk) * extractor.image_size**2 * 3 * 4
    if max(pictures, seen) > MOST_PIXELS:
        raise UsageError(
            f"{sampling.frames} frames of {sampling.size} pixels, {extractor.image_size} in the extractor: more than "
            f"{MOST_PIXELS >> 30} GiB a clip; get the model again, or train it with fewer"
        )


class ActionRecognizer:
    """A trained pipeline for single files.

    Args:
        vtem: trained VTEM.
        reasoner: LLaVA with its adapter, built for ``classes``.
        classes: category names, in label order.
        sampling: how frames are taken from a file, as in training.
        device: where to run, ``auto`` for the first GPU if there is one.
    """

    suspects = "its weights or its LLaVA"
    """what is damaged where there are no probabilities"""

    def __init__(
        self,
        vtem: VTEM,
        reasoner: EventReasoner,
        classes: list[str],
        sampling: FrameSampling,
        device: str = "auto",
    ) -> None:
        require_modest(sampling, vtem.extractor)
        self.device = found_device(device)
        vtem.extractor.run = vtem.extractor.feature_map  # a model's file may ask for compiling, which takes minutes
        self.vtem = vtem.to(self.device).eval()
        self.reasoner = reasoner.to(self.device).eval()
        self.classes, self.sampling = list(classes), sampling

    # -- loading -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, vtem: str | Path | None = None, device: str = "auto", **computed: Any
    ) -> ActionRecognizer:
        """A recogniser from a bundle, a stage-2 run folder or a stage-2 checkpoint. The bundle of a linear probe, which ``vtlvlm probe
        --export`` makes, gives a ``ProbeRecognizer``, which has no event sentences.

        Args:
            path: folder with ``bundle.json``, folder with ``checkpoints/``, or a ``.ckpt`` file.
            vtem: where the stage-1 checkpoint lies now, if not where it was; bundles hold their own.
            device: ``auto``, ``cpu``, ``cuda``, …
            computed: what is another matter here than where it was trained, by :class:`EventReasoner`'s names: ``llava``, the place of the
                base model, ``dtype`` (on a CPU float32 instead of half precision, unless it is given), ``attention``,
                ``quantization`` and the like.

        Raises:
            UsageError: if something is missing or is not what it should be.
        """
        path = Path(path)
        found_device(device)  # a wrong one is no fault of the file
        with naming(path):
            if not (path / BUNDLE).is_file():
                return cls._from_run(path, vtem, device, computed)
            described = read_description(path)
            return _probe(path, described, computed, device) if "kind" in described else cls._from_bundle(path, described, computed, device)

    @classmethod
    def _from_run(cls, path: Path, vtem: str | Path | None, device: str, computed: dict[str, Any]) -> Self:
        checkpoint = stage2_checkpoint(path)
        record = read_record(checkpoint)
        require_stage2(record, checkpoint)
        settings = record["settings"]["init_args"].get("reasoner")
        changed = changed_for(settings, device, computed)
        if "llava" not in computed:
            base_place(path, None, settings["init_args"].get("llava"))
        overrides = {f"reasoner.{name}": value for name, value in changed.items()}
        stage1 = load_stage1(record, checkpoint, vtem)
        module = PromptTuningModule.load_from_checkpoint(checkpoint, overrides=overrides)
        sampling = build_from(stage1.provenance()["sampling"], FrameSampling, checkpoint)
        return cls(stage1.vtem, module.reasoner, list(module.classes), sampling, device)

    @classmethod
    def _from_bundle(cls, folder: Path, described: dict[str, Any], computed: dict[str, Any], device: str) -> Self:
        require_bundle(folder, described)
        settings, made = described["reasoner"], described["origin"]["reasoning"]["llava"]
        settings["init_args"] |= changed_for(settings, device, computed)
        if "llava" not in computed:
            settings["init_args"]["llava"] = base_place(folder, described.get("llava"), settings["init_args"].get("llava"))
        vtem, reasoner = build_from(described.get("vtem"), VTEM, folder), build_from(settings, EventReasoner, folder)
        sampling = build_from(described.get("sampling"), FrameSampling, folder)
        first, second = (read_weights(folder, name, described["sha256"]) for name in (VTEM_FILE, ADAPTER_FILE))
        vtem.require_fit({name: tensor.shape for name, tensor in first.items()}, folder)
        reasoner.adapter.require_fit({name: tensor.shape for name, tensor in second.items()}, folder)
        require_same_base(made, reasoner.llava, reasoner.revision, str(folder))
        vtem.build()
        load_into(vtem, first, folder / VTEM_FILE)
        reasoner.build(described["classes"], vtem.num_tokens, vtem.event_dim, fresh=False)
        require_numbers(second, reasoner.trainable_state(), folder / ADAPTER_FILE)
        reasoner.load_trainable_state(second)
        return cls(vtem, reasoner, described["classes"], sampling, device)

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
        probabilities, events = self.recognise(clip)
        if not bool(torch.isfinite(probabilities).all()):
            raise DataError(f"{file}: the model gives no probabilities for it (NaN); {self.suspects} are damaged")
        best = probabilities.topk(min(top, len(self.classes)))
        actions = [(self.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return Recognition(Path(file), actions, events, time.perf_counter() - start)

    def recognise(self, clip: Clip) -> tuple[Tensor, EventTokens | None]:
        """(A,) probabilities of a clip, and its event sentence; None where the recogniser makes none."""
        events = self.vtem(clip.frames[None].to(self.device), clip.times[None].to(self.device))
        return self.reasoner.probabilities(self.reasoner(events.vectors))[0].cpu(), events


def _probe(folder: Path, described: dict[str, Any], computed: dict[str, Any], device: str) -> ActionRecognizer:
    from vtlvlm.probes.recognizer import KIND, ProbeRecognizer  # which is built on this module

    if described["kind"] != KIND:
        raise UsageError(f"{folder}: a bundle of kind {shown(repr(described['kind']), 60)}; use the version that wrote the file")
    if computed:
        raise UsageError(f"{folder}: a linear probe, which has no language model: leave {min(computed)} out")
    return ProbeRecognizer.from_bundle(folder, described, device)
