"""Converts parts to plain settings and back. A file can name only the classes of one fixed table.

Checkpoints, bundles and caches describe parts as ``{"class_path", "init_args"}``. Such a file may come from anywhere. A class that it names
is imported and called only if it stands in :data:`PARTS`, has the base class that is expected there, and gets settings of the types that
its constructor declares. A configuration (YAML) is different: it is the user's own code, and may name any class.
"""

from __future__ import annotations

import importlib
import inspect
import math
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vtlvlm.errors import UsageError
from vtlvlm.system.renamed import present_name
from vtlvlm.system.text import encodable, shown

Part = TypeVar("Part")

PARTS = frozenset(
    f"vtlvlm.{name}"
    for name in (
        "data.augment.ClipAugmentation",
        "data.sampling.FrameSampling",
        "lvlm.adapters.FullFineTuning",
        "lvlm.adapters.LoRA",
        "lvlm.adapters.NoAdapter",
        "lvlm.instruction.Instruction",
        "lvlm.llava.Llava",
        "lvlm.prefix.DeepPrompts",
        "lvlm.reasoner.EventReasoner",
        "skeleton.backbone.EmbeddedJoints",
        "skeleton.backbone.NormalisedJoints",
        "skeleton.backbone.SkeletonNet",
        "skeleton.curves.CurveTemporal",
        "skeleton.heads.BottleneckHead",
        "skeleton.heads.LinearHead",
        "skeleton.heatmaps.HeatMaps",
        "skeleton.hierarchical.HierarchicalGraph",
        "skeleton.koopman.KoopmanHead",
        "skeleton.preparing.BoxedFrames",
        "skeleton.preparing.CropAndResize",
        "skeleton.preparing.UniformFrames",
        "skeleton.preparing.WholeClips",
        "skeleton.refining.RefiningHead",
        "skeleton.slowonly.PoseC3D",
        "skeleton.spatial.AttentionTopology",
        "skeleton.spatial.DilatedGraph",
        "skeleton.spatial.FixedGraph",
        "skeleton.spatial.RefinedTopology",
        "skeleton.spatial.ShiftGraph",
        "skeleton.temporal.MultiScaleTemporal",
        "skeleton.temporal.PlainTemporal",
        "skeleton.temporal.ShiftTemporal",
        "skeleton.text_parts.TextPartsHead",
        "skeleton.video_networks.FrozenFeatures",
        "skeleton.video_networks.VideoNetwork",
        "stages.optimizers.AdamW",
        "stages.prompt_tuning.PromptTuningModule",
        "stages.recognition.Recognition",
        "stages.sgd.Decay",
        "stages.sgd.SGD",
        "stages.stage.AdamW",
        "stages.vtem.VTEMModule",
        "vtem.clip_extractor.ClipExtractor",
        "vtem.extractors.TimmExtractor",
        "vtem.extractors.VideoExtractor",
        "vtem.poolers.TokenInputs",
        "vtem.losses.InfoNCE",
        "vtem.model.VTEM",
        "vtem.poolers.EqualSaliencePooler",
        "vtem.poolers.UniformPooler",
        "vtem.quantizers.EMAQuantizer",
        "vtem.quantizers.FSQQuantizer",
        "vtem.quantizers.FactorisedQuantizer",
        "vtem.quantizers.IdentityQuantizer",
        "vtem.learned_quantizers.LearnedQuantizer",
        "vtem.learned_quantizers.SimVQQuantizer",
    )
)
"""Full names of the classes that a file may name; add new parts here"""

LARGEST = {
    "frames": 16_384,
    "size": 4_096,
    "image_size": 2_048,
    "chunk": 2**20,
    "grid": 64,
    "windows": 65_536,
    "widths": 2**16,
    "width": 2**16,
    "channels": 2**16,
    "codes": 2**20,
    "code_dim": 65_536,
    "event_dim": 2**20,
    "hidden": 2**20,
    "head_dim": 2**20,
    "tokens": 65_536,
    "rank": 65_536,
    "reparam_hidden_dim": 2**20,
    "window": 16_384,
    "views": 1_000,
    "eval_size": 4_096,
    "dilations": 1_024,
    "text_width": 2**20,
}
"""The largest integers that a file may give, by the setting's name; the memory of the computation grows with them"""
WHOLE, REAL, TEXT, LONG, DEEP = 2**31 - 1, 1e9, 65_536, 4_096, 16
"""Limits of other integers, of floats, of characters in a text, of entries in a list, and of nested parts"""


# -- parts to settings ---------------------------------------------------------------------------------------------------------------


def settings_of(part: object) -> dict[str, Any]:
    """A part as ``{"class_path", "init_args"}`` in plain types, read from the attributes named like its constructor's settings."""
    kind = next(c for c in type(part).__mro__ if not c.__module__.startswith("torch.distributed."))  # FSDP2 derives its own class
    names = [f.name for f in fields(part)] if is_dataclass(part) else _settings(kind)
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "init_args": {name: _plain_value(getattr(part, name)) for name in names},
    }


def is_ours(part: object) -> bool:
    """Whether a part's class is in :data:`PARTS`; a configuration may also name other classes."""
    return f"{type(part).__module__}.{type(part).__qualname__}" in PARTS


def _settings(kind: type) -> list[str]:
    """The names of a constructor's settings (a part without settings has nn.Module's ``*args``)."""
    return [p.name for p in _parameters(kind)]


def _parameters(kind: type) -> list[inspect.Parameter]:
    listed = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    return [p for p in listed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain_value(v) for k, v in value.items()}
    return settings_of(value)


# -- settings to parts ---------------------------------------------------------------------------------------------------------------


def build_from(settings: Any, base: type[Part], source: str | Path) -> Part:
    """The inverse of :func:`settings_of`, for settings from an untrusted file.

    Args:
        settings: The file's value; can be anything.
        base: The part's required base class.
        source: The file, for the message.

    Returns:
        The part, without its weights.

    Raises:
        UsageError: The settings name no part of :data:`PARTS` or a part of another base class, or a setting is unknown in this version,
            missing, of another type or out of range. Nothing was imported or called for them.
    """
    try:
        return cast(Part, _part(settings, base, base.__name__, 0))
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _part(settings: Any, base: type, place: str, depth: int) -> Any:
    if not is_part(settings):
        raise UsageError(f"{place} is {_told(settings)}, expected a {base.__name__} with class_path and init_args; make the file again")
    if depth > DEEP:
        raise UsageError(f"{place}: parts are nested too deeply; make the file again")
    kind = part_class(settings["class_path"])
    name = kind.__name__
    if not issubclass(kind, base):
        raise UsageError(f"{place} is a {name}, expected a {base.__name__}; make the file again")
    given, known = settings["init_args"], _parameters(kind)
    unknown = sorted(map(str, given.keys() - {p.name for p in known}))
    if unknown:
        now = present_name(unknown[0])
        remedy = f"{shown(unknown[0])} is called {now} now; make the file again" if now else "use the version that wrote the file"
        raise UsageError(f"{name} has no setting {shown(', '.join(unknown), 100)} in this version of vtlvlm: {remedy}")
    missing = [p.name for p in known if p.default is p.empty and p.name not in given]
    if missing:
        raise UsageError(f"{name} lacks its setting {', '.join(missing)}; make the file again")
    hints = get_type_hints(kind if is_dataclass(kind) else kind.__init__)
    values = {key: _value(value, hints[key], f"{name}.{key}", key, depth) for key, value in given.items()}
    try:
        return kind(**values)
    except UsageError:
        raise
    except Exception as error:  # an unexpected combination
        raise UsageError(f"{name} cannot be made with the file's settings ({shown(error, 100)}); make the file again") from error


def is_part(settings: Any) -> bool:
    """Whether a value has the form of a part's settings."""
    return (
        isinstance(settings, dict)
        and set(settings) == {"class_path", "init_args"}
        and isinstance(settings["class_path"], str)
        and isinstance(settings["init_args"], dict)
    )


def part_class(class_path: str) -> type:
    """A class of :data:`PARTS` by its full name. Imports nothing else.

    Raises:
        UsageError: The name is not in the table.
    """
    if class_path not in PARTS:
        name = shown(class_path, 100)
        if class_path.split(".")[0] == "vtlvlm":
            moved = next((part for part in PARTS if part.rpartition(".")[2] == class_path.rpartition(".")[2]), None)
            remedy = f"it is {moved} now; make the file again" if moved else "use the version that wrote the file"
            raise UsageError(f"{name}: this version of vtlvlm has no such part; {remedy}")
        raise UsageError(
            f"{name}: not a part of vtlvlm, and classes that a file names are never imported; use fit, validate, test or predict with the "
            "configuration that names it"
        )
    module, _, name = class_path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _value(value: Any, hint: Any, place: str, name: str, depth: int) -> Any:
    """A setting's value, checked against the constructor's annotation."""
    parts = [kind for kind in _kinds(hint) if isinstance(kind, type) and kind is not type(None)]
    for kind in _kinds(hint):
        if kind is type(None):
            if value is None:
                return None
        elif get_origin(kind) is Literal:
            if any(value == known and type(value) is type(known) for known in get_args(kind)):
                return value
        elif get_origin(kind) in (list, tuple, Sequence):
            if isinstance(value, list | tuple):
                if len(value) > LONG:
                    raise UsageError(f"{place} has {len(value):,} entries, at most {LONG:,} are taken; make the file again")
                return [_value(one, get_args(kind)[0], place, name, depth) for one in value]
        elif kind in (bool, int, float, str):
            if type(value) is kind or (kind is float and type(value) is int):
                return _bounded(value, kind, place, name)
        elif is_part(value) and (kind is parts[-1] or issubclass(part_class(value["class_path"]), kind)):
            return _part(value, kind, place, depth + 1)
    raise UsageError(f"{place} is {_told(value)}, expected {_expected(hint)}; make the file again")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _bounded(value: Any, kind: type, place: str, name: str) -> Any:
    if kind is str:
        if len(value) > TEXT:
            raise UsageError(f"{place} is a text of {len(value):,} characters, at most {TEXT:,} are taken; make the file again")
        if not encodable(value):
            raise UsageError(f"{place} holds half a character ({_told(value)}); make the file again")
    elif kind is not bool:
        most = LARGEST.get(name, WHOLE) if kind is int else REAL
        if not (math.isfinite(value) if isinstance(value, float) else True) or abs(value) > most:
            raise UsageError(f"{place} is {_told(value)}, at most {most:,} is taken; make the file again")
    return value


def _told(value: Any) -> str:
    """A value from a file, shortened for the message."""
    if isinstance(value, bool | float | str) or value is None:
        return shown(repr(value[:60] if isinstance(value, str) else value), 60)
    if isinstance(value, int):
        return str(value) if value.bit_length() < 64 else f"a number of {value.bit_length()} bits"
    return f"a {type(value).__name__}"


def _expected(hint: Any) -> str:
    names = []
    for kind in _kinds(hint):
        if kind is type(None):
            names.append("None")
        elif get_origin(kind) is Literal:
            names += map(repr, get_args(kind))
        elif get_origin(kind) is not None:
            names.append(f"a list of {getattr(get_args(kind)[0], '__name__', get_args(kind)[0])}")
        else:
            names.append(kind.__name__)
    return " or ".join(names)


# -- settings compared -----------------------------------------------------------------------------------------------------------------


def with_defaults(settings: Any) -> Any:
    """Settings of an older file with the defaults of newer settings. Classes that are not parts stay unchanged."""
    if isinstance(settings, list):
        return [with_defaults(v) for v in settings]
    if not is_part(settings):
        return settings
    given = {k: with_defaults(v) for k, v in settings["init_args"].items()}
    try:
        kind = part_class(settings["class_path"])
    except UsageError:
        return {"class_path": settings["class_path"], "init_args": given}
    defaults = {p.name: _plain_value(p.default) for p in _parameters(kind) if p.default is not p.empty}
    return {"class_path": settings["class_path"], "init_args": defaults | given}


def flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as dotted names and values, in order."""
    if is_part(settings):
        yield f"{prefix}class" if prefix else "class", settings["class_path"].rpartition(".")[2]
        settings = settings["init_args"]
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
