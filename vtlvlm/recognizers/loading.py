"""Loads a recogniser from a bundle of any kind, or from a run folder or checkpoint. All are untrusted."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.dictionary import EventDictionary
from vtlvlm.errors import UsageError, naming
from vtlvlm.lvlm.base_identity import require_same_base
from vtlvlm.lvlm.fused import has_liger
from vtlvlm.lvlm.llava import looks_local
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.recognizers import probe, skeletons, video_networks
from vtlvlm.recognizers.bundles import (
    ADAPTER_FILE,
    BUNDLE,
    DICTIONARY,
    REJECTION_FILE,
    VTEM_FILE,
    is_clip_length,
    load_into,
    read_description,
    read_weights,
)
from vtlvlm.recognizers.export import load_stage1, require_stage2, stage2_checkpoint
from vtlvlm.recognizers.recognizer import ActionRecognizer, Recognizer, found_device
from vtlvlm.rejection import RejectionRule
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.stages.checkpoints import read_record
from vtlvlm.stages.compatibility import require_classes, require_numbers, require_record
from vtlvlm.stages.parts import build_from, is_part
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.recognition import Recognition
from vtlvlm.system.places import real
from vtlvlm.system.renamed import present_name
from vtlvlm.system.text import shown
from vtlvlm.vtem.model import VTEM

LEAST_CHANGE, MOST_CHANGE = 1e-6, 1e9
"""Change of features in a second, in deviations"""
LONGEST_PATH = 4_096
"""Characters of a path, at most"""


def load(path: Path, vtem: str | Path | None, device: str, computed: dict[str, Any]) -> Recognizer:
    """A recogniser from a file or folder. :meth:`ActionRecognizer.from_checkpoint` describes the arguments."""
    found_device(device)  # a wrong device is no error of the file
    with naming(path):
        if not (path / BUNDLE).is_file():
            return _from_run(path, vtem, device, computed)
        described = read_description(path)
        return _of_kind(path, described, computed, device) if "kind" in described else _from_bundle(path, described, computed, device)


def layout_read(path: Path) -> str | None:
    """The name of the joints that a skeleton network reads; None for a model of videos. Loads no weights.

    Raises:
        UsageError: The bundle or checkpoint cannot be read.
    """
    if (path / BUNDLE).is_file():
        described = read_description(path)
        found = described.get("layout", NTU25.name) if described.get("kind") == skeletons.KIND else None
    else:
        record = read_record(stage2_checkpoint(path))
        found = record["provenance"].get("layout") if record["stage"] == Recognition.stage else None
    return None if found is None else str(found)  # one that is no layout is refused when the model is loaded


def made_on(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which new tensors and loaded weights are directly on a GPU, and never in main memory. On a CPU it does nothing."""
    return nullcontext() if device.type == "cpu" else device


def _from_run(path: Path, vtem: str | Path | None, device: str, computed: dict[str, Any]) -> Recognizer:
    checkpoint = stage2_checkpoint(path)
    record = read_record(checkpoint)
    if record["stage"] == Recognition.stage:
        if "layout" in record["provenance"]:
            _require_unchanged(path, "skeleton network", computed)
            return skeletons.SkeletonRecognizer.from_run(checkpoint, device)
        _require_unchanged(path, "video network", computed)
        return video_networks.NetworkRecognizer.from_run(checkpoint, device)
    require_stage2(record, checkpoint)
    settings = record["settings"]["init_args"].get("reasoner")
    changed = changed_for(settings, device, computed)
    if "path" not in changed:
        base_place(path, None, llava_settings(settings).get("path"))
    overrides = {f"reasoner.llava.{name}": value for name, value in changed.items()}
    stage1 = load_stage1(record, checkpoint, vtem)
    place = found_device(device)
    with made_on(place):
        module = PromptTuningModule.load_from_checkpoint(checkpoint, place, overrides=overrides)
    sampling = build_from(stage1.provenance()["sampling"], FrameSampling, checkpoint)
    return ActionRecognizer(stage1.vtem, module.reasoner, list(module.classes), sampling, device)


def _from_bundle(folder: Path, described: dict[str, Any], computed: dict[str, Any], device: str) -> ActionRecognizer:
    require_bundle(folder, described)
    settings, made = described["reasoner"], described["origin"]["reasoning"]["llava"]
    changed, base = changed_for(settings, device, computed), llava_settings(settings)
    base |= changed
    if "path" not in changed:
        base["path"] = base_place(folder, described.get("llava"), base.get("path"))
    reasoner = build_from(settings, EventReasoner, folder)
    sampling = build_from(described.get("sampling"), FrameSampling, folder)
    second = read_weights(folder, ADAPTER_FILE, described["sha256"])
    reasoner.adapter.require_fit({name: tensor.shape for name, tensor in second.items()}, folder)
    require_same_base(made, reasoner.llava.path, reasoner.llava.revision, str(folder))
    vtem = vtem_of(folder, described)
    with made_on(found_device(device)):
        reasoner.build(described["classes"], vtem.num_tokens, vtem.event_dim, fresh=False)
    require_numbers(second, reasoner.trainable_state(), folder / ADAPTER_FILE)
    reasoner.load_trainable_state(second)
    recognizer = ActionRecognizer(vtem, reasoner, described["classes"], sampling, device)
    if (folder / DICTIONARY).is_dir():
        recognizer.dictionary = EventDictionary.open(folder / DICTIONARY)
    if REJECTION_FILE in described["sha256"]:
        state = read_weights(folder, REJECTION_FILE, described["sha256"])
        rule = RejectionRule.of_state(state, vtem.event_dim, folder / REJECTION_FILE)
        recognizer.rejection = replace(rule, training=rule.training.to(recognizer.device))
    recognizer.clip_seconds, recognizer.moving = described.get("clip_seconds"), described.get("moving")
    return recognizer


def vtem_of(folder: Path, described: dict[str, Any]) -> VTEM:
    """The VTEM of a bundle, with its weights.

    Args:
        folder: The bundle.
        described: Its description, which :func:`require_bundle` has checked.

    Raises:
        UsageError: Its weights are damaged, or do not fit its settings.
    """
    vtem, state = build_from(described.get("vtem"), VTEM, folder), read_weights(folder, VTEM_FILE, described["sha256"])
    vtem.require_fit({name: tensor.shape for name, tensor in state.items()}, folder)
    vtem.build()
    load_into(vtem, state, folder / VTEM_FILE)
    return vtem


def _of_kind(folder: Path, described: dict[str, Any], computed: dict[str, Any], device: str) -> Recognizer:
    if described["kind"] == probe.KIND:
        _require_unchanged(folder, "linear probe", computed)
        return probe.ProbeRecognizer.from_bundle(folder, described, device)
    if described["kind"] == skeletons.KIND:
        _require_unchanged(folder, "skeleton network", computed)
        return skeletons.SkeletonRecognizer.from_bundle(folder, described, device)
    if described["kind"] == video_networks.KIND:
        _require_unchanged(folder, "video network", computed)
        return video_networks.NetworkRecognizer.from_bundle(folder, described, device)
    raise UsageError(f"{folder}: a bundle of kind {shown(repr(described['kind']), 60)}; use the version that wrote the file")


def _require_unchanged(path: Path, model: str, computed: dict[str, Any]) -> None:
    if computed:
        raise UsageError(f"{path}: a {model}, which has no language model: leave {min(computed)} out")


def llava_settings(reasoner: Any) -> dict[str, Any]:
    """The settings of a reasoner's LLaVA. They can be changed in place.

    Raises:
        UsageError: There are none.
    """
    llava: Any = reasoner["init_args"].get("llava") if is_part(reasoner) else None
    if isinstance(llava, str):
        raise UsageError(f"made by an older version: llava is called {present_name('llava')} now; train and export again")
    if not is_part(llava):
        raise UsageError("the model's settings have no reasoner with a LLaVA; get the file again, or make it again")
    found: dict[str, Any] = llava["init_args"]
    return found


def changed_for(settings: dict[str, Any], device: str, computed: dict[str, Any]) -> dict[str, Any]:
    """The changes to the settings of a reasoner's LLaVA: those in ``computed``, and what a CPU needs.

    Most CPUs compute half precision far slower.

    Raises:
        UsageError: A change would make it another model.
    """
    made = llava_settings(settings)
    if wrong := sorted(computed.keys() - {"llava", *(name.rpartition(".")[2] for name in PromptTuningModule.machine_only)}):
        raise UsageError(f"{wrong[0]}: part of the trained model; it cannot be changed")
    whole = computed.get("quantization", made.get("quantization")) is None
    slow = found_device(device).type == "cpu" and whole and made.get("dtype") in ("bfloat16", "float16")
    asked = {"path" if name == "llava" else name: value for name, value in computed.items()}
    plain = made.get("kernels") == "liger" and (found_device(device).type == "cpu" or not has_liger())
    return ({"dtype": "float32"} if slow else {}) | ({"kernels": "torch"} if plain else {}) | asked


def require_bundle(folder: Path, described: dict[str, Any]) -> None:
    """Refuse an incomplete description of a bundle.

    Raises:
        UsageError: The description lacks something.
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
        or not isinstance(digests.get(REJECTION_FILE, ""), str)
        or not is_clip_length(described.get("clip_seconds"))
        or not is_change(described.get("moving"))
    ):
        raise UsageError(f"{path}: an incomplete description of a bundle; get the folder again, or export it again")
    record = {"stage": PromptTuningModule.stage, "settings": described["reasoner"], "provenance": origin.get("reasoning")}
    require_record(record, path)
    described["classes"] = require_classes(described.get("classes"), path)
    if described["classes"] != list(origin["reasoning"]["classes"]):
        raise UsageError(f"{path}: its categories are not those it was trained with; get the folder again, or export it again")


def is_change(value: Any) -> bool:
    """Whether a value is a change of features in a second, or none."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and LEAST_CHANGE < value < MOST_CHANGE)


def base_place(model: Path, relative: str | None, recorded: Any) -> str:
    """The place of a model's LLaVA: its path relative to the bundle if it exists, else its place in training.

    Args:
        model: Bundle, run folder or checkpoint.
        relative: The LLaVA's path relative to the bundle; None if unknown.
        recorded: Folder or hub name in training.

    Raises:
        UsageError: The LLaVA is in neither place.
    """
    beside = None if relative is None else real(Path(real(model), relative))
    if beside is not None and beside.is_dir():
        return str(beside)
    if not isinstance(recorded, str) or len(recorded) > LONGEST_PATH:
        raise UsageError(f"{model}: names no LLaVA; get the model again")
    if not Path(recorded).is_dir() and (beside is not None or looks_local(recorded)):
        places = f"{shown(recorded, 200)}, its place in training" + ("" if beside is None else f", nor at {shown(beside, 200)}")
        raise UsageError(f"{model}: its LLaVA is not at {places}; name its place with --llava")
    return recorded
