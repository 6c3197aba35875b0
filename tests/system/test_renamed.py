"""An old name of a setting is refused in one line that says the new one: in a configuration, on the command line, in a file."""

from pathlib import Path

import pytest

from vtlvlm.cli import main
from vtlvlm.configs import config
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.recognizers.loading import llava_settings
from vtlvlm.stages.parts import build_from, part_class, settings_of
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.system.renamed import RENAMED, in_refusal
from vtlvlm.vtem import EMAQuantizer, InfoNCE, TimmExtractor, UniformPooler

REASONER = "--model.init_args.reasoner.init_args"


@pytest.mark.parametrize(
    ("stage", "asked", "said"),
    [
        ("stage1_small.yaml", ["--data.root", "x"], "root is called data.source.root now"),
        ("stage1_small.yaml", ["--model.init_args.motion", "1"], "motion is called model.init_args.inputs.delta_weight now"),
        (
            "stage2_small.yaml",
            [f"{REASONER}.mean_share", "0.5"],
            "mean_share is called model.init_args.reasoner.init_args.sentence_mean_weight now",
        ),
        ("stage2_small.yaml", [f"{REASONER}.llava", "runs/llava"], "llava is called model.init_args.reasoner.init_args.llava.path now"),
    ],
)
def test_on_the_command_line(stage: str, asked: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", config(stage), *asked]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("text", "name"), [("data: {protocol: group}", "protocol"), ("model: {init_args: {centre: 1}}", "centre")])
def test_in_a_configuration(text: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.yaml").write_text(text)
    assert main(["fit", "--config", config("stage1_small.yaml"), "--config", str(tmp_path / "old.yaml")]) == 2
    assert f"{name} is called {RENAMED[name]} now" in capsys.readouterr().err


def test_in_a_checkpoint_or_bundle() -> None:
    settings = settings_of(DeepPrompts(4))
    settings["init_args"]["reparameterise"] = settings["init_args"].pop("reparam_hidden_dim")
    with pytest.raises(
        UsageError, match=r"old\.ckpt: DeepPrompts has no setting reparameterise.*adapter\.init_args\.reparam_hidden_dim now"
    ):
        build_from(settings, DeepPrompts, "old.ckpt")


def test_other_names_get_no_advice() -> None:
    assert in_refusal("Option 'tokenz' is not accepted") == ""
    settings = settings_of(FrameSampling())
    settings["init_args"]["nonsense"] = 1
    with pytest.raises(UsageError, match="use the version that wrote the file"):
        build_from(settings, FrameSampling, "x")


def test_in_the_record_of_a_checkpoint() -> None:
    """Where a run is continued or tested: no configuration can set the old name any more."""
    module = VTEMModule(TimmExtractor(), UniformPooler(4), EMAQuantizer(32), InfoNCE())
    settings = settings_of(module)
    settings["init_args"]["motion"] = 0.6
    with pytest.raises(
        UsageError, match=r"old\.ckpt was made by an older version: motion is called .*inputs\.delta_weight now; train anew"
    ):
        module.require_same_settings({"stage": "vtem", "settings": settings}, "old.ckpt", training=False)


def test_a_class_that_has_moved() -> None:
    with pytest.raises(UsageError, match=r"has no such part; it is vtlvlm\.vtem\.clip_extractor\.ClipExtractor now; make the file again"):
        part_class("vtlvlm.vtem.extractors.ClipExtractor")


def test_a_llava_that_was_a_text() -> None:
    reasoner = {"class_path": "vtlvlm.lvlm.reasoner.EventReasoner", "init_args": {"llava": "runs/llava"}}
    with pytest.raises(UsageError, match=r"older version: llava is called .*llava\.path now; train and export again"):
        llava_settings(reasoner)
