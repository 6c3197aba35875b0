"""Two commands for one folder: one wins, the other is refused, whenever it comes."""

import json
from pathlib import Path

import pytest
from events import EventRun
from pipeline import Pipeline

from vtlvlm.data.cache import EventCache, FeatureCache


def meanwhile(tmp_path: Path, *commands: list[object]) -> list[object]:
    (tmp_path / "commands.json").write_text(json.dumps([[str(part) for part in command] for command in commands]))
    files = ["--trainer.callbacks.commands", tmp_path / "commands.json", "--trainer.callbacks.codes", tmp_path / "codes.json"]
    return ["--trainer.callbacks+", "happening.Meanwhile", *files]


def test_a_second_training_is_refused_and_an_evaluation_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = EventRun(tmp_path)
    there = ["--config", run.config, "--trainer.default_root_dir", tmp_path / "run", "--trainer.logger", False]
    others = [["fit", *there], ["fit", *there, "--ckpt_path", "last"], ["validate", *there, "--ckpt_path", "last"]]
    assert run("fit", *meanwhile(tmp_path, *others), "--trainer.logger", False) == 0
    assert json.loads((tmp_path / "codes.json").read_text()) == [2, 2, 0]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtlvlm: ")]
    assert "already holds a run" in lines[0]
    assert "another training writes there" in lines[1]
    assert json.loads((tmp_path / "run" / "metrics_val.json").read_text())["num_clips"] == 4
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["sessions"][-1]["last_step"] == 2


def test_a_second_extract_is_refused_however_unlucky_the_pause(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One waits between finding out what is left and writing it; the other one then wrote the same clips first."""
    there = ["--config", chain.stage1, "--output", tmp_path / "features"]
    assert chain("extract", *there, *meanwhile(tmp_path, ["extract", *there])) == 0
    assert json.loads((tmp_path / "codes.json").read_text()) == [1]
    assert "already writes to it" in capsys.readouterr().err
    cache = FeatureCache.open(tmp_path / "features")
    assert len(cache.names) == 10
    assert len({(name, view) for name, view in zip(cache.names.tolist(), cache.views.tolist(), strict=True)}) == 10
    assert chain("extract", *there, "--verify") == 0


def test_tokenize_knows_the_words_of_the_run_folder(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["tokenize", *chain.on_features, "--output", tmp_path / "events", "--ckpt_path", "best", "--trainer.default_root_dir"]
    assert chain(*there, tmp_path / "none") == 2
    assert f"no {tmp_path / 'none' / 'checkpoints' / 'best.ckpt'}" in capsys.readouterr().err
    assert chain(*there, chain.run1) == 0
    assert EventCache.open(tmp_path / "events").provenance["vtem"] == str(chain.best1)
