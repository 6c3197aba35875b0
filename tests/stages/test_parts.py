"""Parts as plain settings and back; nothing but parts, of the kind that their place expects, is ever built from a file."""

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from reasoners import reasoner_of

import vtlvlm
from vtlvlm.data.augment import ClipAugmentation
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.adapters import Adapter, FullFineTuning, LoRA, NoAdapter
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.skeleton.backbone import ClipNetwork, EmbeddedJoints, Embedding, NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.curves import CurveTemporal
from vtlvlm.skeleton.heads import BottleneckHead, Head, LinearHead
from vtlvlm.skeleton.heatmaps import HeatMaps
from vtlvlm.skeleton.hierarchical import HierarchicalGraph
from vtlvlm.skeleton.koopman import KoopmanHead
from vtlvlm.skeleton.preparing import BoxedFrames, CropAndResize, Preparation, UniformFrames, WholeClips
from vtlvlm.skeleton.refining import RefiningHead
from vtlvlm.skeleton.slowonly import PoseC3D
from vtlvlm.skeleton.spatial import AttentionTopology, DilatedGraph, FixedGraph, RefinedTopology, ShiftGraph, Spatial
from vtlvlm.skeleton.temporal import MultiScaleTemporal, PlainTemporal, ShiftTemporal, Temporal
from vtlvlm.skeleton.text_parts import TextPartsHead
from vtlvlm.skeleton.video_networks import FrozenFeatures, VideoNetwork
from vtlvlm.stages import optimizers
from vtlvlm.stages.parts import PARTS, build_from, flat, settings_of, with_defaults
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.sgd import SGD, Decay
from vtlvlm.stages.stage import AdamW, Stage
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.vtem import VTEM, EMAQuantizer, EqualSaliencePooler, IdentityQuantizer, InfoNCE, TimmExtractor, UniformPooler
from vtlvlm.vtem.clip_extractor import ClipExtractor
from vtlvlm.vtem.extractors import FeatureExtractor, VideoExtractor
from vtlvlm.vtem.learned_quantizers import LearnedQuantizer, SimVQQuantizer
from vtlvlm.vtem.poolers import TemporalPooler, TokenInputs
from vtlvlm.vtem.quantizers import FactorisedQuantizer, FSQQuantizer, Quantizer


def stage1(codes: int = 8) -> VTEMModule:
    return VTEMModule(TimmExtractor(image_size=32), EqualSaliencePooler(4), EMAQuantizer(codes), InfoNCE(), event_dim=16)


def reasoner(adapter: Adapter) -> EventReasoner:
    return reasoner_of("a folder", adapter, Instruction("What?", False), dtype="bfloat16", label_score="pmi", max_positions=9)


def examples() -> Iterator[object]:
    """Each part at least once."""
    yield from (stage1(9), PromptTuningModule(reasoner(DeepPrompts(4, layers=[0, 2], init_text="a")), vtem="x.ckpt"))
    for adapter in (NoAdapter(), LoRA(4, targets=["q_proj"]), LoRA(), FullFineTuning(), DeepPrompts(layers="last:2", reparam_hidden_dim=8)):
        yield reasoner(adapter)
    quantizers: list[Quantizer] = [FactorisedQuantizer(8, 4), FSQQuantizer((3, 4)), LearnedQuantizer(7), SimVQQuantizer(7, rotation=True)]
    for quantizer in (*quantizers, IdentityQuantizer(), EMAQuantizer(5)):
        yield VTEM(VideoExtractor("r3d_18"), UniformPooler(3), quantizer, inputs=TokenInputs(delta_weight=0.5, subtract_clip_mean=1))
    yield VTEM(ClipExtractor("a folder"), EqualSaliencePooler(), IdentityQuantizer(), target="llava")
    yield from networks()
    yield from (FrameSampling(mode="fps", fps=2, test_crops=3), ClipAugmentation(blur=0.5))


def networks() -> Iterator[object]:
    """Each part of the skeleton networks at least once."""
    spatial = (FixedGraph(), ShiftGraph(), AttentionTopology(2), HierarchicalGraph("neck"), DilatedGraph(2), RefinedTopology())
    temporal = (PlainTemporal(7, 0.0), ShiftTemporal(), MultiScaleTemporal(relu=True), CurveTemporal(length=3))
    for number, unit in enumerate(spatial):
        embedding = EmbeddedJoints(16) if number else NormalisedJoints(shared=True)
        yield SkeletonNet(embedding, unit, temporal[number % len(temporal)], [16, 32], [1, 2])
    shift = SkeletonNet(NormalisedJoints(), ShiftGraph(), ShiftTemporal())
    recipe = SGD(0.2, decays=[Decay("mask", 0.0)], milestones=[3, 5])
    heads = (LinearHead(0.5), BottleneckHead(), KoopmanHead(True), RefiningHead(), TextPartsHead("t", parts=[[0], [1, 2], [3], [4]]))
    yield from (Recognition(shift, head, recipe, 0.1, init_from="x.ckpt") for head in heads)
    yield Recognition(VideoNetwork("swin3d_t"), LinearHead(), optimizers.AdamW(weight_decay=0.02))
    yield PoseC3D(HeatMaps("limb"), blocks=[1, 1, 1])
    yield from (FrozenFeatures(VideoExtractor("r3d_18")), VideoNetwork("mc3_18", "weights.pth", 64))
    yield from (CropAndResize(bones=0.2), UniformFrames(48, 10, False), WholeClips(rest="repeat"), BoxedFrames(degrees=10))


def named(settings: Any) -> Iterator[str]:
    if isinstance(settings, dict) and "class_path" in settings:
        yield settings["class_path"]
        for value in settings["init_args"].values():
            for one in value if isinstance(value, list) else [value]:
                yield from named(one)


def test_every_part_comes_back_as_it_was() -> None:
    seen = set()
    for part in examples():
        settings = settings_of(part)
        again = build_from(settings, type(part), "x")
        assert type(again) is type(part)
        assert settings_of(again) == settings
        seen.update(named(settings))
    assert seen == PARTS


ABSTRACT = {"vtlvlm.stages.stage.Stage", "vtlvlm.stages.calibrated.CalibratedStage"}
"""Bases of parts that happen to have no abstract method"""


def modules() -> list[Any]:
    """All modules of the package that can be imported here."""
    found = []
    for info in pkgutil.walk_packages(vtlvlm.__path__, "vtlvlm."):
        if not info.name.endswith("__main__"):
            found.append(importlib.import_module(info.name))
    return found


def test_every_concrete_subclass_of_a_parts_base_is_in_the_table() -> None:
    """A new part that is not entered could not be loaded again."""
    bases = (FeatureExtractor, TemporalPooler, Quantizer, Adapter, Stage, InfoNCE, Instruction, EventReasoner, VTEM)
    bases += (ClipNetwork, Head, Embedding, Spatial, Temporal, Preparation)
    found = set()
    for module in modules():
        for kind in vars(module).values():
            own = inspect.isclass(kind) and kind.__module__.startswith("vtlvlm.") and not kind.__name__.startswith("_")
            if own and issubclass(kind, bases) and not inspect.isabstract(kind):
                found.add(f"{kind.__module__}.{kind.__qualname__}")
    assert found - PARTS <= ABSTRACT


def test_annotations_of_all_parts_can_be_checked() -> None:
    for name in PARTS:
        module, _, kind = name.rpartition(".")
        found = getattr(importlib.import_module(module), kind)
        assert get_type_hints(found.__init__) is not None
        assert found.__qualname__ == kind


def test_nothing_else_of_the_package_is_built() -> None:
    """Each callable that any module holds under any name, imported ones too."""
    tried = 0
    for module in modules():
        for name, value in vars(module).items():
            path = f"{module.__name__}.{name}"
            if callable(value) and path not in PARTS:
                tried += 1
                with pytest.raises(UsageError, match="no such part"):
                    build_from({"class_path": path, "init_args": {}}, object, "x")
    assert tried > 1400


@pytest.mark.parametrize(
    "name", ["subprocess.Popen", "os.system", "mine.Extractor", "builtins.eval", "", ".", "vtlvlmx.a.B", "importlib.x"]
)
def test_foreign_classes_are_never_imported(name: str) -> None:
    with pytest.raises(UsageError, match="never imported"):
        build_from({"class_path": name, "init_args": {"args": "true"}}, object, "x")


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("quantizer", settings_of(UniformPooler(3)), "quantizer is a UniformPooler, expected a Quantizer"),
        ("pooler", settings_of(AdamW()), "pooler is a AdamW, expected a TemporalPooler"),
        ("pooler", {"class_path": "vtlvlm.cli.main", "init_args": {"arguments": ["demo"]}}, "vtlvlm.cli.main: this version"),
        ("pooler", {"class_path": "vtlvlm.recognizers.export.save_file", "init_args": {}}, "export.save_file: this version"),
        ("pooler", {"class_path": "vtlvlm.stages.parts.importlib.import_module", "init_args": {"name": "x"}}, "no such part"),
        ("pooler", {"class_path": ["vtlvlm.vtem.poolers.UniformPooler"], "init_args": {}}, "pooler is a dict, expected TemporalPooler"),
        ("pooler", {"class_path": "vtlvlm.vtem.poolers.UniformPooler", "init_args": [1]}, "pooler is a dict"),
        ("pooler", None, "VTEMModule.pooler is None"),
        ("pooler", [settings_of(UniformPooler(3))], "VTEMModule.pooler is a list"),
        ("pooler.windows", "4", "EqualSaliencePooler.windows is '4', expected int"),
        ("pooler.windows", True, "windows is True"),
        ("pooler.windows", 4.0, "windows is 4.0"),
        ("pooler.windows", 10**9, "windows is 1000000000, at most 65,536"),
        ("pooler.windows", 2**999, "windows is a number of 1000 bits"),
        ("pooler.windows", 0, "pooler.windows=0: must be at least 1"),
        ("pooler.windows", settings_of(UniformPooler(3)), "windows is a dict, expected int"),
        ("contrast.temperature", float("nan"), "temperature is nan"),
        ("alpha", float("inf"), "alpha is inf"),
        ("alpha", 10**400, "alpha is a number of 1329 bits"),
        ("target", "llama", "target is 'llama', expected 'features' or 'llava'"),
        ("extractor.weights", 3, "weights is 3, expected str or None"),
        ("extractor.weights", "x" * 10**6, "a text of 1,000,000 characters"),
        ("extractor.trainable", 1, "trainable is 1, expected bool"),
        ("extractor.__class__", 1, "TimmExtractor has no setting __class__"),
        ("extractor.model\n", 1, r"no setting model\n in"),
    ],
)
def test_settings_of_another_kind_are_refused_in_a_line(path: str, settings: Any, message: str) -> None:
    wrong = copy.deepcopy(settings_of(stage1()))
    *inner, last = path.split(".")
    place = wrong["init_args"]
    for name in inner:
        place = place[name]["init_args"]
    place[last] = settings
    with pytest.raises(UsageError) as refused:
        build_from(wrong, VTEMModule, "the file")
    assert str(refused.value).startswith("the file: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_list_without_end_and_a_missing_setting_are_refused() -> None:
    levels = {"class_path": "vtlvlm.vtem.quantizers.FSQQuantizer", "init_args": {"levels": [3] * 10**5}}
    with pytest.raises(UsageError, match=r"x: FSQQuantizer\.levels has 100,000 entries"):
        build_from(levels, Quantizer, "x")
    with pytest.raises(UsageError, match=r"x: EventReasoner lacks its setting llava, adapter, instruction"):
        build_from({"class_path": "vtlvlm.lvlm.reasoner.EventReasoner", "init_args": {}}, EventReasoner, "x")


def test_parts_without_settings_take_none() -> None:
    settings = settings_of(IdentityQuantizer())
    assert settings == {"class_path": "vtlvlm.vtem.quantizers.IdentityQuantizer", "init_args": {}}
    assert isinstance(build_from(settings, Quantizer, "x"), IdentityQuantizer)
    with pytest.raises(UsageError, match="no setting args"):
        build_from({**settings, "init_args": {"args": 1}}, Quantizer, "x")


def test_settings_survive_a_weights_only_checkpoint(tmp_path: Path) -> None:
    torch.save(settings_of(stage1()), tmp_path / "settings.pt")
    assert torch.load(tmp_path / "settings.pt", weights_only=True) == settings_of(stage1())


def test_flat_names_nested_settings() -> None:
    settings = settings_of(VTEMModule(TimmExtractor(), UniformPooler(3), EMAQuantizer(5), InfoNCE()))
    named = dict(flat(settings))
    assert named["quantizer.codes"] == 5
    assert named["pooler.class"] == "UniformPooler"
    assert named["optimizer.learning_rate"] == 1e-4


def test_classes_that_are_no_parts_are_compared_as_they_are() -> None:
    """A configuration may name the user's own class; its checkpoint goes on and is tested with that configuration."""
    own = {"class_path": "mine.Extractor", "init_args": {"codes": 3, "inner": settings_of(UniformPooler(3))}}
    assert with_defaults(own) == own
    gone = {"class_path": "vtlvlm.vtem.quantizers.Gone", "init_args": {"codes": 3}}
    assert with_defaults(gone) == gone
    assert with_defaults({"class_path": "vtlvlm.vtem.poolers.UniformPooler", "init_args": {}})["init_args"] == {"windows": 16}
