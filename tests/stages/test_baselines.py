"""Every configuration of a baseline trains: the small ones and, in the long tests, those with the papers' sizes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from baseline_configs import NAMES, SMALL, STEPS, shrunk
from moves import write_moves
from shipped import resolved

from vtlvlm.cli import main


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moves(tmp_path_factory.mktemp("moves") / "moves.npz", repetitions=1)


def require_training(name: str, file: Path, folder: Path) -> None:
    require_steps(resolved(f"baselines/{name}.yaml"), file, folder)


def require_steps(config: dict[str, Any], file: Path, folder: Path) -> None:
    assert config["trainer"]["max_epochs"] > max(config["model"]["init_args"]["optimizer"]["init_args"]["milestones"] or [0])
    assert main(["fit", "--config", str(shrunk(config, file, folder))]) == 0
    lines = map(json.loads, (folder / "losses.jsonl").read_text().splitlines())
    losses = [float.fromhex(values[0]) for label, values in lines if label.startswith("loss")]
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_baseline_trains(name: str, file: Path, tmp_path: Path) -> None:
    require_training(name, file, tmp_path)


def test_a_trained_baseline_is_tested_and_predicts(file: Path, tmp_path: Path) -> None:
    """The run folder has what every run has."""
    config = shrunk(resolved("baselines/ctr_gcn_small.yaml"), file, tmp_path)
    for command in (["fit"], ["test", "--ckpt_path", "best"], ["predict", "--ckpt_path", "best"]):
        assert main([command[0], "--config", str(config), *command[1:]]) == 0
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_clips"] == 12
    assert metrics["provenance"]["parameters"] == {"training": 105_716, "inference": 105_716}
    assert metrics["metrics"].keys() >= {"top1", "nll_calibrated", "temperature"}
    assert len((run / "predictions_test.csv").read_text().splitlines()) == 13
    assert len((run / "predictions.csv").read_text().splitlines()) == 37


@pytest.mark.slow
def test_koopman_pooling_trains_twice(file: Path, tmp_path: Path) -> None:
    """The second configuration changes the head and the rate, and keeps the first one's other settings."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    require_steps(resolved("baselines/koopman_small.yaml"), file, first)
    config = resolved("baselines/koopman_small.yaml", "baselines/koopman_second.yaml")
    assert config["model"]["init_args"]["optimizer"]["init_args"] == {
        **resolved("baselines/koopman_small.yaml")["model"]["init_args"]["optimizer"]["init_args"],
        "learning_rate": 0.01,
    }
    config["model"]["init_args"]["init_from"] = str(first / "run" / "checkpoints" / "best.ckpt")
    require_steps(config, file, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
def test_a_baseline_of_the_papers_size_trains(name: str, file: Path, tmp_path: Path) -> None:
    require_training(name, file, tmp_path)
