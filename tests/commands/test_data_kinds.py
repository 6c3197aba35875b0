"""A configuration whose data section names a class gets that data module; all others get the one of videos and features."""

from pathlib import Path

import pytest

from vtlvlm.cli import main
from vtlvlm.commands.data_kinds import data_module
from vtlvlm.configs import config
from vtlvlm.data.datamodule import NTUDataModule

NAMED = "class_path: SkeletonDataModule\ninit_args:\n  source:\n    root: x\n"
PLAIN = "source:\n  root: x\n"


def skeletons(*arguments: str) -> bool:
    found = data_module(("fit", *arguments))
    assert found == {"datamodule_class": NTUDataModule} or found["subclass_mode_data"] is True
    return "subclass_mode_data" in found


@pytest.mark.parametrize(("text", "wanted"), [(NAMED, True), (PLAIN, False)])
def test_a_section_in_a_configuration_or_in_its_own_file(tmp_path: Path, text: str, wanted: bool):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/data.yaml").write_text(text)
    (tmp_path / "inside.yaml").write_text("data:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    (tmp_path / "beside.yaml").write_text("data: inner/data.yaml\n")
    (tmp_path / "without.yaml").write_text("seed_everything: 1\n")
    assert skeletons("--config", str(tmp_path / "inside.yaml")) is wanted
    assert skeletons(f"--config={tmp_path / 'beside.yaml'}") is wanted
    assert skeletons("-c", str(tmp_path / "without.yaml"), "--data", str(tmp_path / "inner/data.yaml")) is wanted
    assert not skeletons("--config", str(tmp_path / "without.yaml"))


def test_words_of_the_command_line():
    assert skeletons("--data", "SkeletonDataModule", "--data.source.root", "x")
    assert skeletons("--data.class_path=vtlvlm.skeleton.datamodule.SkeletonDataModule")
    assert not skeletons("--data.source.root", "SkeletonDataModule")
    assert not skeletons("--data", "{source: {root: x}}")


def test_the_stages_configurations_keep_their_data_module():
    assert not skeletons("--config", config("stage1_small.yaml"), "--data.source.root", "x")
    assert not skeletons("--config", config("stage2_prompt.yaml"))


def test_what_cannot_be_read_is_left_to_the_parser(tmp_path: Path):
    (tmp_path / "broken.yaml").write_text("data: [")
    assert not skeletons("--config", str(tmp_path / "broken.yaml"), "--config", str(tmp_path / "none.yaml"), "--data", "[")


@pytest.mark.parametrize("command", [["extract", "--output", "x"], ["tokenize", "--output", "x"], ["fetch"]], ids=lambda words: words[0])
def test_commands_that_read_no_skeletons_refuse_them_in_a_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], "--config", "baselines/ctr_gcn_small.yaml", *command[1:]]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"vtlvlm: {command[0]} takes configurations of stage 1 or 2")
    assert said.count("\n") == 1
