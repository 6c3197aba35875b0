"""The chain on tiny clips, in the form of jobs: configurations, a site file, and what its folders end with."""

import csv
import json
from functools import reduce
from pathlib import Path

import pytest
import torch
import yaml
from cluster import Cluster, wait
from pipeline import Pipeline
from videos import block_clips

from vtlvlm.data.cache import EventCache, FeatureCache

TESTS = Path(__file__).parents[1]
PEOPLE = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 3, 6, 7)
"""Twelve train, of whom three validate: 18 clips, four steps an epoch"""
EPOCHS, EPOCH = 4, 4
OVERLAY = """
data: {source: {validation: 0.25}, batch_size: 4, micro_batch_size: 1, num_workers: WORKERS}
trainer:
  max_epochs: 4
  val_check_interval: 3
  check_val_every_n_epoch: null
  strategy: {class_path: DDPStrategy, init_args: {broadcast_buffers: false}}
  callbacks: [{class_path: diary.Diary, init_args: {folder: FOLDER, seconds: SECONDS}}]
"""
SETUP = """
export PYTHONPATH=TESTS OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo   # both nodes are this machine
"""
FEW = ["--cpus-per-task=1", "--mem=1500", "--time=00:20:00"]


class Clips:
    """Tiny clips, a tiny LLaVA, and the site file of a cluster without GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pipeline = folder, Pipeline(folder)
        block_clips(self.pipeline.root, people=PEOPLE)
        steps = {name: ["--nodes=2"] for name in ("extract", "stage1", "tokenize", "stage2", "test")}
        setup = SETUP.replace("TESTS", str(TESTS))
        self.site = folder / "site.yaml"
        site = {"gpus_per_node": 0, "setup": setup, "options": FEW, "steps": steps, "restarts": 100}
        self.site.write_text(yaml.safe_dump(site))

    def overlay(self, run: Path, stage: int, seconds: float) -> Path:
        """A configuration on top of a stage's, with a diary beside the run folder."""
        path = run.with_name(f"{run.name}-{stage}.yaml")
        values = {"FOLDER": diary_of(run, stage), "SECONDS": seconds, "WORKERS": 2 - stage}
        path.write_text(reduce(lambda text, name: text.replace(name, str(values[name])), values, OVERLAY))
        return path

    def submit_words(self, run: Path, seconds: float) -> list[str]:
        """The command line that submits a chain."""
        one, two = (self.overlay(run, stage, seconds) for stage in (1, 2))
        configs = ["--stage1", self.pipeline.stage1, one, "--stage2", self.pipeline.stage2, two]
        return [str(word) for word in ("submit", run, self.pipeline.root, *configs, "--site", self.site)]


def diary_of(run: Path, stage: int) -> Path:
    return run.with_name(f"{run.name}-diary{stage}")


def keys(cache: FeatureCache | EventCache) -> list[tuple[str, int]]:
    return list(zip(cache.names.tolist(), cache.views.tolist(), strict=True))


def assert_same_features(one: Path, two: Path) -> None:
    """No clip is lost, none is doubled, and all have the same features."""
    first, second = FeatureCache.open(one), FeatureCache.open(two)
    assert len(set(keys(second))) == len(keys(second))
    assert sorted(keys(first)) == sorted(keys(second))
    for view in sorted(set(first.views.tolist())):
        names = first.names[first.views == view]
        torch.testing.assert_close(first.features(first.rows(names, view)), second.features(second.rows(names, view)), rtol=0, atol=2e-3)
        assert torch.equal(first.times(first.rows(names, view)), second.times(second.rows(names, view)))


def same(one: torch.Tensor, two: torch.Tensor, exact: bool) -> bool:
    """To the bit, or up to rounding: DDP adds the gradients of more than two processes in another order after a restart."""
    return torch.equal(one, two) if exact else torch.allclose(one.double(), two.double(), rtol=1e-4, atol=1e-6)


def assert_same_training(one: Path, two: Path, exact: bool = True) -> None:
    """Weights, optimiser and place of both checkpoints."""
    for name in ("last", "best"):
        first, second = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (one, two))
        assert first["global_step"] == second["global_step"], name
        assert first["state_dict"].keys() == second["state_dict"].keys()
        wrong = [key for key, tensor in first["state_dict"].items() if not same(tensor, second["state_dict"][key], exact)]
        assert not wrong, (name, wrong)
        moments, others = (found["optimizer_states"][0]["state"] for found in (first, second))
        assert all(same(t, others[key][part], exact) for key, state in moments.items() for part, t in state.items())


def assert_same_test(one: Path, two: Path, exact: bool = True) -> None:
    """Metrics, and the probabilities of every clip."""
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert first["num_clips"] == second["num_clips"]
    assert first["metrics"] == (second["metrics"] if exact else pytest.approx(second["metrics"], rel=1e-3, abs=1e-4))
    rows, others = (list(csv.reader((run / "predictions_test.csv").open())) for run in (one, two))
    assert (rows == others) if exact else ([row[0] for row in rows] == [row[0] for row in others])
    assert len(rows) == 1 + first["num_clips"]


def log(run: Path, step: str) -> str:
    return "".join(path.read_text() for path in sorted((run / "logs").glob(f"{step}-*.out")))


def until_done(cluster: Cluster, run: Path, numbers: dict[str, str]) -> None:
    """Wait until all jobs have ended well; an earlier end shows its log."""

    def ended() -> bool:
        states = {name: cluster.job(number)["JobState"] for name, number in numbers.items()}
        bad = [name for name, state in states.items() if state in ("FAILED", "CANCELLED", "TIMEOUT")]
        assert not bad, "\n".join([str(states), *(log(run, name)[-3000:] for name in bad)])
        return set(states.values()) == {"COMPLETED"}

    wait(ended, 900, f"{run.name}: {numbers}", every=1)


def numbers_of(run: Path) -> dict[str, str]:
    return {name: row["job"] for name, row in json.loads((run / "slurm.json").read_text())["jobs"].items()}
