"""Commands on the device: the chain in bfloat16, equal codes, resuming, the shipped configurations, and the waits of a training step."""

import json
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

pytest.importorskip("av")

from baseline_configs import SMALL, shrunk
from moves import write_moves
from pipeline import Pipeline
from shipped import resolved
from test_configs import STEPS, Small, losses_of, stage_file

from vtlvlm.cli import main
from vtlvlm.data.cache import EventCache
from vtlvlm.report.runs import Run

DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
"""Where a test of the CPU is a long one: other tests do the same there"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("configs"))


@pytest.mark.parametrize("base", ["stage1_vtem.yaml", "stage2_prompt.yaml"])
def test_a_configuration_of_the_papers_size_trains(base: str, on_device: list[Any], small: Small) -> None:
    """With tiny parts, and its own bf16-mixed."""
    file = small.written(stage_file(base), name=base)
    assert main(["fit", "--config", str(file), *map(str, on_device), "--trainer.strategy", "auto"]) == 0
    found = losses_of(file)
    assert len(found) == STEPS
    assert all(loss == loss and abs(loss) < 1e4 for loss in found)


def recorded(folder: Path, device: torch.device) -> None:
    """A run names its device, and its memory if that is a GPU."""
    run = Run.open(folder)
    for record in filter(None, (run.fit, run.test)):
        assert record.device is not None
        if device.type == "cuda":
            assert record.peak_gpu_bytes is not None
            assert record.peak_gpu_bytes > 0
            assert record.device == {"name": torch.cuda.get_device_name(), "count": 1}
        else:
            assert (record.peak_gpu_bytes, record.device) == (None, {"name": "cpu", "count": 1})


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_the_chain_trains_tokenises_tests_and_resumes(device: torch.device, on_device: list[Any], chain: Pipeline, tmp_path: Path) -> None:
    run1, run2, there = tmp_path / "run1", tmp_path / "run2", tmp_path / "events"
    assert chain("tokenize", *chain.on_features, "--ckpt_path", chain.best1, "--output", there, *on_device[:2]) == 0
    one, two = EventCache.open(chain.events), EventCache.open(there)
    names = one.names[one.views == 0]
    same = (one.ids(one.rows(names, 0)) == two.ids(two.rows(names, 0))).float().mean()
    assert same >= (0.99 if device.type == "cuda" else 1)

    features, events = [*chain.on_features, *on_device], ["--config", chain.stage2, "--data.events", there, *on_device]
    for data, run in ((features, run1), (events, run2)):
        place = ["--trainer.default_root_dir", run]
        assert chain("fit", *data, *place, "--trainer.max_steps", 2) == 0
        recorded(run, device)
        assert chain("fit", *data, *place, "--trainer.max_steps", 4, "--trainer.max_epochs", 4, "--ckpt_path", "last") == 0
        fit = Run.open(run).fit
        assert fit is not None
        assert [(session["first_step"], session["last_step"]) for session in fit.sessions] == [(0, 2), (2, 4)]
    assert chain("test", *events, "--trainer.default_root_dir", run2, "--ckpt_path", "last") == 0
    recorded(run2, device)


class CountGpuWaits(Callback):
    """Notes where the host waits for the GPU in each optimiser step after the first ones, and writes the places.

    Args:
        path: Of the file.
    """

    def __init__(self, path: str) -> None:
        self.path, self.open = Path(path), ExitStack()
        self.counts: dict[int, list[Any]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.open.close()
        if 3 <= trainer.global_step < 7:  # not the last one, at whose end comes the validation
            seen = self.open.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self.open.callback(torch.cuda.set_sync_debug_mode, "default")
            self.counts.setdefault(trainer.global_step, []).append(seen)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()
        found = [
            [f"{w.filename}:{w.lineno}" for seen in parts for w in seen if "called a synchronizing" in str(w.message)]
            for parts in self.counts.values()
        ]
        self.path.write_text(json.dumps(found))


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [1, 2])
def test_an_optimiser_step_waits_at_most_once(stage: int, chain: Pipeline, tmp_path: Path) -> None:
    """The look at NaN. ``test_waits.py`` counts the same on the CPU. The codebook panel takes one batch an epoch, here of every step."""
    said = tmp_path / "waits.json"
    own = chain.on_features if stage == 1 else [*chain.on_events, "--model.init_args.reasoner.init_args.init_projector", "keep"]
    settings = ["--data.batch_size", 2, "--data.micro_batch_size", 1, "--trainer.max_steps", 8, "--trainer.max_epochs", -1]
    settings += ["--trainer.log_every_n_steps", 1000, "--trainer.check_val_every_n_epoch", 100, "--trainer.accelerator", "gpu"]
    watch = ["--trainer.callbacks+", "test_commands.CountGpuWaits", "--trainer.callbacks.path", said]
    assert chain("fit", *own, "--trainer.default_root_dir", tmp_path / "run", *settings, *watch) == 0
    found = [[place for place in places if "codebook_panel" not in place] for places in json.loads(said.read_text())]
    assert found
    assert max(map(len, found)) <= 1, found


@pytest.mark.gpu
@pytest.mark.parametrize("name", SMALL)
def test_a_skeleton_network_trains_and_waits_at_most_once(name: str, tmp_path: Path) -> None:
    file, said = write_moves(tmp_path / "moves.npz"), tmp_path / "waits.json"
    config = shrunk(resolved(f"baselines/{name}.yaml"), file, tmp_path)
    settings = ["--trainer.strategy", "auto", "--trainer.accelerator", "gpu", "--trainer.max_steps", 8, "--trainer.val_check_interval", 8]
    settings += ["--trainer.log_every_n_steps", 1000, "--trainer.callbacks", "test_commands.CountGpuWaits"]
    assert main(["fit", "--config", *map(str, [config, *settings, "--trainer.callbacks.path", said])]) == 0
    found = json.loads(said.read_text())
    assert found
    assert max(map(len, found)) <= 1, found
