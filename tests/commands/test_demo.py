"""The demo's commands, as far as they can be checked without its half hour."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from vtlvlm.cli import main
from vtlvlm.commands.demo import DEMO_SUBJECTS, steps
from vtlvlm.commands.trainer import NTUDataModule  # beside the stages, whose names configurations use
from vtlvlm.stages.stage import Stage
from vtlvlm.synth import dataset

TRAINER = [step for step in steps(Path("out"), 0) if step.arguments[0] in ("fit", "test")]


@pytest.mark.parametrize("step", TRAINER, ids=[step.title for step in TRAINER])
def test_only_what_trains_is_tested_with_a_checkpoint(step) -> None:
    arguments, checkpoint = step.arguments[1:], None
    if "--ckpt_path" in arguments:
        at = arguments.index("--ckpt_path")
        checkpoint = arguments[at + 1]
        del arguments[at : at + 2]
    settings = {"use_distributed_sampler": False, "logger": False}
    cli = LightningCLI(
        Stage,
        NTUDataModule,
        subclass_mode_model=True,
        save_config_callback=None,
        trainer_defaults=settings,
        auto_configure_optimizers=False,
        run=False,
        args=arguments,
    )
    needed = step.arguments[0] == "test" and getattr(cli.model, "needs_checkpoint", True)
    assert (checkpoint is not None) is needed


def test_results_of_another_seed_are_not_taken_for_this_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"version": dataset.SYNTH_VERSION, "seed": 1, "subjects": DEMO_SUBJECTS}
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "synth.json").write_text(json.dumps(settings))
    assert main(["demo", str(tmp_path), "--seed", "2"]) == 2
    assert "videos: made with seed 1 and not 2; choose another folder, or delete this one" in capsys.readouterr().err
