"""Every configuration of a baseline trains: the small ones and, in the long tests, those with the papers' sizes."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from moves import write_moves
from shipped import FOLDER, put, resolved

from vtlvlm.cli import main

NAMES = sorted(path.stem for path in (FOLDER / "baselines").glob("*.yaml"))
SMALL = [name for name in NAMES if name.endswith("_small")]
STEPS = 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moves(tmp_path_factory.mktemp("moves") / "moves.npz", repetitions=1)


def shrunk(config: dict[str, Any], file: Path, folder: Path) -> Path:
    """A configuration for two steps on the small recordings, each of two clips; it records its losses beside it."""
    small = copy.deepcopy(config)
    put(small, root=str(file), protocol="cameras:1,2", validation=0.25, batch_size=2, micro_batch_size=None, num_workers=0)
    put(small, default_root_dir=str(folder / "run"))
    for holder in [small["model"]["init_args"]["network"]["init_args"].get("spatial") or {}]:
        if "root" in (holder.get("init_args") or {}):
            holder["init_args"]["root"] = "spine"
    record = {"class_path": "golden.Record", "init_args": {"path": str(folder / "losses.jsonl")}}
    small["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "callbacks": [record], "enable_model_summary": False}
    small["trainer"] |= {"max_epochs": None, "max_steps": STEPS, "limit_val_batches": 1, "enable_progress_bar": False, "strategy": "ddp"}
    (folder / "losses.jsonl").write_text("")
    (folder / "config.yaml").write_text(yaml.safe_dump(small))
    return folder / "config.yaml"


def require_training(name: str, file: Path, folder: Path) -> None:
    config = resolved(f"baselines/{name}.yaml")
    assert config["trainer"]["max_epochs"] > max(config["model"]["init_args"]["optimizer"]["milestones"] or [0])
    assert main(["fit", "--config", str(shrunk(config, file, folder))]) == 0
    lines = map(json.loads, (folder / "losses.jsonl").read_text().splitlines())
    losses = [float.fromhex(values[0]) for label, values in lines if label.startswith("loss")]
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("name", SMALL)
def test_a_small_baseline_trains(name: str, file: Path, tmp_path: Path) -> None:
    require_training(name, file, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
def test_a_baseline_of_the_papers_size_trains(name: str, file: Path, tmp_path: Path) -> None:
    require_training(name, file, tmp_path)
