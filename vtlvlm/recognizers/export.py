"""Exports a trained run as a bundle, or its prompts as an adapter of peft."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vtlvlm import __version__
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.dictionary import EventDictionary
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import load_config
from vtlvlm.lvlm.peft_format import write_prefix
from vtlvlm.lvlm.prompt_encoder import chosen_layers, plain_state
from vtlvlm.recognizers.bundles import ADAPTER_FILE, BUNDLE, DICTIONARY, FORMAT, VTEM_FILE, digest, new_folder
from vtlvlm.recognizers.limits import require_modest
from vtlvlm.recognizers.skeletons import export_recognition
from vtlvlm.recognizers.video_networks import export_video_network
from vtlvlm.stages.checkpoints import METADATA, RECORD, load_checkpoint
from vtlvlm.stages.compatibility import module_hash, require_same_extractor
from vtlvlm.stages.parts import build_from, settings_of
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.system.files import appearing, write_json
from vtlvlm.system.places import real, require_apart
from vtlvlm.system.saving import saving


def stage2_checkpoint(path: Path) -> Path:
    """The given checkpoint, or the best checkpoint of a run folder, or else its last."""
    if not path.is_dir() or (path / METADATA).is_file():
        return path
    found = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    return next((p for p in found if p.exists()), found[0])


def require_stage2(record: dict[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint of another stage."""
    if record["stage"] != PromptTuningModule.stage:
        raise UsageError(f"{checkpoint} is a checkpoint of stage {record['stage']!r}: give the one of stage 2")


def trained_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reasoner's tensors in a checkpoint's state dict, by the reasoner's names, with the prompts as plain keys and values."""
    own = {name.removeprefix("reasoner."): tensor for name, tensor in state.items()}
    adapter = {name.removeprefix("adapter."): tensor for name, tensor in own.items() if name.startswith("adapter.")}
    others = {name: tensor for name, tensor in own.items() if not name.startswith("adapter.")}
    return others | {f"adapter.{name}": tensor for name, tensor in plain_state(adapter).items()}


def load_stage1(record: dict[str, Any], checkpoint: Path, vtem: str | Path | None) -> VTEMModule:
    """The stage 1 that a stage-2 checkpoint was trained with.

    Raises:
        UsageError: It is missing, or another one.
    """
    require_stage2(record, checkpoint)
    made = record["provenance"]["stage1"]
    source = vtem or made["checkpoint"]
    if not Path(source).is_file():
        raise UsageError(f"{source}: the stage-1 checkpoint of {checkpoint} is not there: name its place with --vtem")
    stage1 = VTEMModule.load_from_checkpoint(source)
    if module_hash(stage1) != made["hash"] or stage1.vtem.num_tokens != record["provenance"]["num_tokens"]:
        raise UsageError(f"{source} is not the stage-1 checkpoint that {checkpoint} was trained with: name that one with --vtem")
    require_same_extractor(stage1.extractor, stage1.provenance()["extractor"], str(source))
    require_modest(build_from(stage1.provenance()["sampling"], FrameSampling, source), stage1.extractor)
    return stage1


def export_bundle(
    run: str | Path,
    output: str | Path,
    vtem: str | Path | None = None,
    dictionary: str | Path | None = None,
    finish: Callable[[Path], object] | None = None,
    weights: str | None = None,
) -> Path:
    """Bundle everything that ``classify`` needs except the base model: ``bundle.json``, ``vtem.safetensors``, ``adapter.safetensors``.

    The adapter of ``FullFineTuning`` is the whole language model. Prompts are stored as plain keys and values, without their
    reparametrisation and initialisation. A skeleton or video network has one file of weights, ``network.safetensors``.

    Args:
        run: run folder or checkpoint, of stage 2, of a skeleton network or of a video network.
        output: folder to create; it appears whole or not at all.
        vtem: the stage-1 checkpoint, if it has moved since training.
        dictionary: event dictionary of this stage 1 to put into the bundle, with its pictures. They show people.
        finish: called with the bundle of a stage 2 before it appears, to add to it.
        weights: the weights of a video network's frozen extractor, if they have moved since training; a file or ``package:NAME``.

    Raises:
        UsageError: The folder exists, a checkpoint is missing or of another kind, or the dictionary is of another stage 1.
        DataError: The dictionary is damaged.
    """
    folder, checkpoint = new_folder(output), stage2_checkpoint(Path(run))
    loaded = load_checkpoint(checkpoint)
    record = loaded[RECORD]
    if record["stage"] == Recognition.stage:
        if vtem is not None:
            raise UsageError(f"{checkpoint} is a checkpoint of a network without stage 1: leave --vtem out")
        if dictionary is not None:
            raise UsageError(f"{checkpoint} is a checkpoint of a network without event sentences: leave --dictionary out")
        if finish is not None:
            raise UsageError(f"{checkpoint} is a checkpoint of a network without event sentences: leave --acceptance out")
        if "layout" not in record["provenance"]:
            return export_video_network(folder, checkpoint, weights)
        if weights is not None:
            raise UsageError(f"{checkpoint} is a checkpoint of a skeleton network, which has no extractor: leave --weights out")
        return export_recognition(folder, checkpoint)
    require_stage2(record, checkpoint)
    if weights is not None:
        raise UsageError(f"{checkpoint} is a checkpoint of stage 2: --weights is for a frozen video network; leave it out")
    build_from(record["settings"], PromptTuningModule, checkpoint)  # refuse what could not be loaded again
    stage1 = load_stage1(record, checkpoint, vtem)
    words = None if dictionary is None else EventDictionary.open(dictionary)
    if words is not None and words.facts.get("vtem") != record["provenance"]["stage1"]["hash"]:
        raise UsageError(f"{dictionary}: the dictionary of another stage 1 than that of {checkpoint}; make one of its event cache")
    reasoner = record["settings"]["init_args"]["reasoner"]
    adapter = reasoner["init_args"]["adapter"]["init_args"]
    adapter |= {name: None for name in ("init_from", "reparam_hidden_dim") if name in adapter}
    described: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "classes": record["provenance"]["classes"],
        "sampling": stage1.provenance()["sampling"],
        "vtem": settings_of(stage1.vtem),
        "reasoner": reasoner,
        "origin": {"reasoning": record["provenance"], "vtem": stage1.provenance()},
    }
    require_apart(folder, [checkpoint, vtem, dictionary], "the bundle")
    if (llava := Path(reasoner["init_args"]["llava"]["init_args"]["path"])).is_dir():
        described["llava"] = os.path.relpath(real(llava), real(folder.parent) / folder.name)
    states = {VTEM_FILE: stage1.vtem.state_dict(), ADAPTER_FILE: trained_state(loaded["state_dict"])}
    with saving(folder), appearing(folder) as partial:
        for name, state in states.items():
            save_file({k: v.contiguous() for k, v in state.items()}, partial / name)
        described["sha256"] = {name: digest(partial / name) for name in states}
        write_json(partial / BUNDLE, described)
        if words is not None:
            words.copy(partial / DICTIONARY)
        if finish is not None:
            finish(partial)
    return folder


def export_prefix(run: str | Path, output: str | Path) -> Path:
    """Write a run's prompts as an adapter for ``peft.PeftModel.from_pretrained``.

    Args:
        run: stage-2 run folder or checkpoint.
        output: folder to create; it appears whole or not at all.

    Raises:
        UsageError: The folder exists, or peft's prefix format cannot hold the run: it has no prompts, has them in some layers only, or
            trained the projector.
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
        raise UsageError(f"{checkpoint}: its projector was trained, but peft's prefix format holds prompts only: export a bundle")
    llava = settings["llava"]["init_args"]
    layers = load_config(llava["path"], llava["revision"]).text_config.num_hidden_layers
    if len(chosen_layers(prompts["layers"], layers)) < layers:
        raise UsageError(
            f"{checkpoint} has prompts in {prompts['layers']} of {layers} layers, but a peft prefix has them in all: export a bundle, "
            "or train with layers: all"
        )
    with saving(folder), appearing(folder) as partial:
        keys, values = trained["adapter.key"], trained["adapter.value"]
        write_prefix(partial, keys, values, llava["path"], llava["revision"], loaded[RECORD]["provenance"]["llava"])
    return folder
