"""Both stages, and their caches, by two processes over gloo: the same on every rank, and every clip exactly once."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import Pipeline, launch_pair
from videos import block_clips

from vtlvlm.data.cache import EventCache, FeatureCache, FeatureCacheWriter
from vtlvlm.metrics.calibration import fit_temperature
from vtlvlm.stages.prompt_tuning import PromptTuningModule

DDP = ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.broadcast_buffers", "false"]
"""As in the trainers for several GPUs"""
TWO = ["--trainer.devices", 2, *DDP, "--data.micro_batch_size", 1]
DUMP = ["--trainer.callbacks+", "rank_dump.RankDump"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Two processes from features to a test of five clips (an odd number over two ranks)."""
    run = Pipeline(tmp_path_factory.mktemp("pair"))
    block_clips(run.root, people=(1, 2, 3, 4, 5, 6, 7))
    (run.root / "S001C001P007R001A002_rgb.avi").unlink()
    launch_pair(
        ["extract", "--config", run.stage1, "--output", run.features, *TWO],
        ["fit", *run.on_features, "--trainer.default_root_dir", run.run1, *TWO, *DUMP],
        ["test", *run.on_features, "--trainer.default_root_dir", run.run1, "--ckpt_path", run.best1, *TWO],
        ["tokenize", *run.on_features, "--ckpt_path", run.best1, "--output", run.events, *TWO],
        ["fit", *run.on_events, "--trainer.default_root_dir", run.run2, *TWO, *DUMP],
        ["test", *run.on_events, "--trainer.default_root_dir", run.run2, "--ckpt_path", run.best2, *TWO],
    )
    return run


@pytest.mark.parametrize("stage", [1, 2])
def test_ranks_end_with_the_same_weights(pair: Pipeline, stage: int) -> None:
    """Codebook, standardisation, projection and prompts: to the bit."""
    folder = pair.run1 if stage == 1 else pair.run2
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert any("codebook" in name or "adapter" in name for name in first)
    for name, tensor in first.items():
        if not name.startswith(("train_codes", "val_codes")):  # metrics hold each rank's own share until they are computed
            assert torch.equal(tensor, second[name]), name


def test_codebook_health_of_two_ranks_is_that_of_one(pair: Pipeline) -> None:
    """Five test clips, an odd number: every token, pair and run is counted once."""
    alone = pair.folder / "health_alone"
    assert pair("test", *pair.on_features, "--trainer.default_root_dir", alone, "--ckpt_path", pair.best1) == 0
    two, one = (json.loads((folder / "codebook_test.json").read_text()) for folder in (pair.run1, alone))
    assert two.pop("reconstruction") == pytest.approx(one.pop("reconstruction"), rel=1e-5)
    assert two == one
    assert one["tokens"] == 5 * 16
    logged, alone_logged = (json.loads((folder / "metrics.json").read_text())["metrics"] for folder in (pair.run1, alone))
    assert logged["reconstruction"] == pytest.approx(alone_logged["reconstruction"], rel=1e-5)
    assert logged["commitment"] == pytest.approx(alone_logged["commitment"], rel=1e-5)


def test_caches_hold_every_clip_once_and_as_one_process_makes_them(pair: Pipeline) -> None:
    alone = pair.folder / "alone"
    assert pair("tokenize", *pair.on_features, "--ckpt_path", pair.best1, "--output", alone) == 0
    two, one = EventCache.open(pair.events), EventCache.open(alone)
    keys = list(zip(two.names.tolist(), two.views.tolist(), strict=True))
    assert len(keys) == len(set(keys)) == 8 * 2 + 5
    for view in (0, 1):
        names = one.names[one.views == view]
        assert torch.equal(two.ids(two.rows(names, view)), one.ids(one.rows(names, view)))


def test_odd_number_of_clips_is_tested_exactly_once(pair: Pipeline) -> None:
    found = json.loads((pair.run2 / "metrics.json").read_text())
    matrix = json.loads((pair.run2 / "confusion_test.json").read_text())["matrix"]
    assert found["num_clips"] == sum(map(sum, matrix)) == 5
    alone = pair.folder / "test_alone"
    assert pair("test", *pair.on_events, "--trainer.default_root_dir", alone, "--ckpt_path", pair.best2) == 0
    single = json.loads((alone / "metrics.json").read_text())
    assert found["metrics"] == pytest.approx(single["metrics"], abs=1e-5)
    assert found["probe"] == single["probe"]
    assert (found["probe"]["num_train"], found["probe"]["num_test"]) == (8, 5)
    one, two = (list(csv.reader((run / "predictions_test.csv").open())) for run in (alone, pair.run2))
    assert [row[:3] for row in two] == [row[:3] for row in one]
    assert len(two) == 1 + 5
    for mine, theirs in zip(two[1:], one[1:], strict=True):
        assert list(map(float, mine[3:])) == pytest.approx(list(map(float, theirs[3:])), abs=1e-5)


def test_temperature_of_two_ranks_is_that_of_one(pair: Pipeline) -> None:
    """What the two fitted together is what one process finds on all validation clips of the same weights."""
    module, cache = PromptTuningModule.load_from_checkpoint(pair.best2), EventCache.open(pair.events)
    people = json.loads((pair.run2 / "metrics.json").read_text())["provenance"]["split"]["groups"]["val"]
    names = sorted({name for name in cache.names.tolist() if int(name[9:12]) in people})
    with torch.inference_mode():
        scores = module.reasoner(torch.nn.functional.embedding(cache.ids(cache.rows(names)), cache.table)).score
    labels = torch.tensor([int(name.endswith("A002")) for name in names])
    found = float(module.reasoner.temperature)
    assert found != 1
    assert found == pytest.approx(fit_temperature(scores, labels), rel=1e-3)


@pytest.mark.slow
def test_an_extract_with_one_clip_left_is_finished_by_two_processes(chain: Pipeline, tmp_path: Path) -> None:
    """It was killed just before its end: one of the two has nothing to do."""
    whole, folder = FeatureCache.open(chain.features), tmp_path / "features"
    rows = np.arange(len(whole) - 1)
    with FeatureCacheWriter(folder, whole.provenance) as writer:
        keys = list(zip(whole.names[rows], whole.views[rows].tolist(), strict=True))
        writer.add(keys, whole.features(rows), whole.times(rows), whole.identities[rows].tolist())
    launch_pair(["extract", "--config", chain.stage1, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--output", folder])
    assert len(FeatureCache.open(folder)) == len(whole)
