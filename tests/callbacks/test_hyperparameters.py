"""What TensorBoard and other loggers get: names by stage, settings with final metrics, pictures."""

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pipeline import Pipeline
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vtlvlm.callbacks.hyperparameters import METRICS
from vtlvlm.report.curves import Absent, Curves, add_picture, begin_session, by_split, end_session, named_by_split, takes_pictures
from vtlvlm.report.runs import Run
from vtlvlm.report.style import new_figure


def hparams(folder: Path) -> dict[str, HParamsPluginData]:
    """The contents of TensorBoard's HPARAMS tab by tag."""
    content = EventAccumulator(str(folder / "tensorboard")).Reload().PluginTagToContent("hparams")
    return {tag.rpartition("/")[2]: HParamsPluginData.FromString(data) for tag, data in content.items()}


def values(found: HParamsPluginData) -> dict[str, Any]:
    return {name: value.string_value or value.number_value for name, value in found.session_start_info.hparams.items()}


def test_names_begin_with_stage_and_split(chain: Pipeline) -> None:
    for run, stage, split in (("run1", "stage1", "train"), ("run2", "stage2", "val"), ("run2", "stage2", "test")):
        tags = EventAccumulator(str(chain.folder / run / "tensorboard"), size_guidance={"scalars": 0}).Reload().Tags()["scalars"]
        assert all(tag.startswith(tuple(f"{stage}/{s}/" for s in ("train", "val", "test"))) for tag in tags)
        wanted = {"train": "loss", "val": "nll_calibrated", "test": "top1"}[split]
        assert f"{stage}/{split}/{wanted}" in tags
    drawn = {f"{split}/{name}" for split in ("train", "val") for name in ("reconstruction", "codebook_perplexity")}  # in the demo's report
    assert drawn | {"train/loss", "train/seconds_per_step"} <= set(Run.open(chain.folder / "run1").scalars())
    assert {"train/loss", "val/nll", "val/top1"} <= set(Run.open(chain.folder / "run2").scalars())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val/top1", "val/top1"),
        ("codebook/train_perplexity_share", "train/codebook_perplexity_share"),
        ("speed/clips_per_second", "train/clips_per_second"),
        ("lr-AdamW/pg1", "train/lr-AdamW/pg1"),
        ("epoch", "train/epoch"),
    ],
)
def test_names_are_found_again_also_in_older_runs(name: str, expected: str) -> None:
    assert by_split(name) == named_by_split(name) == named_by_split(f"stage1/{by_split(name)}") == expected


def test_the_tab_shows_both_stages_settings_and_final_metrics(chain: Pipeline) -> None:
    one, two = hparams(chain.folder / "run1"), hparams(chain.folder / "run2")
    found = values(two["session_start_info"])
    assert (found["M"], found["K"], found["windows"], found["seed"]) == (16, 8, 4, 3)
    assert (found["Pooler"], found["Quantizer"], found["Adapter"]) == ("EqualSaliencePooler", "EMAQuantizer", "DeepPrompts")
    assert "Adapter" not in values(one["session_start_info"])
    names = [info.name for info in two["experiment"].experiment.hparam_infos]
    assert sorted(names)[:5] == ["Adapter", "K", "M", "Pooler", "Quantizer"]  # what the tab shows at first
    assert one["experiment"] == two["experiment"]  # TensorBoard takes the columns of any one run
    assert [metric.name.tag for metric in two["experiment"].experiment.metric_infos] == list(METRICS)
    assert two["session_end_info"].session_end_info.status == 1  # STATUS_SUCCESS
    tags = EventAccumulator(str(chain.folder / "run2" / "tensorboard")).Reload().Tags()["scalars"]
    assert {metric for metric in METRICS if metric.startswith("stage2/")} <= set(tags)


def test_pictures_and_settings_reach_csv_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="csv")
    add_picture([logger], "test/confusion", new_figure(1, 1), 7)
    assert (tmp_path / "csv" / "pictures" / "test-confusion-7.png").read_bytes().startswith(b"\x89PNG")
    begin_session([logger], {"stage2.objective": "listwise"}, {"M": 3.0}, METRICS)
    logger.log_metrics({"val/top1": 0.5}, 1)
    logger.save()
    assert "stage2.objective: listwise" in (tmp_path / "csv" / "hparams.yaml").read_text()


def test_a_plain_tensorboard_logger_gets_them_too(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    begin_session([logger], {}, {"M": 3.0, "pooler": Absent("")}, ["val/top1"])
    end_session([logger])
    found = hparams(tmp_path)
    assert values(found["session_start_info"]) == {"M": 3.0}
    assert [info.name for info in found["experiment"].experiment.hparam_infos] == ["M", "pooler"]


def test_a_logger_that_has_given_up_takes_none(tmp_path: Path) -> None:
    logger = Curves(stage="stage1", save_dir=tmp_path, name="", version="tensorboard")
    assert takes_pictures([logger])
    logger.given_up = True
    assert not takes_pictures([logger])
    begin_session([logger], {}, {"M": 3.0}, METRICS)
    end_session([logger])
    assert not list(tmp_path.rglob("events*"))


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    begin_session([logger], {"a.b": 1}, {"M": 3.0}, METRICS)
    add_picture([logger], "test/confusion", new_figure(1, 1), 7)
    assert logger.experiment.config["a.b"] == 1
    logger.experiment.finish()
    assert list(tmp_path.rglob("*.png"))


def test_mlflow_in_a_local_store(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path / 'runs.db'}", artifact_location=(tmp_path / "artifacts").as_uri())
    begin_session([logger], {"a.b": 1}, {"M": 3.0}, METRICS)
    add_picture([logger], "test/confusion", new_figure(1, 1), 7)
    assert logger.experiment.get_run(logger.run_id).data.params == {"a.b": "1"}
    assert [path.name for path in tmp_path.rglob("*.png")] == ["confusion-7.png"]


def test_logging_takes_little_of_a_step(tmp_path: Path) -> None:
    """Two per cent of a step of 100 ms, when every fifth step is logged, are 10 ms a log."""
    logger = Curves(stage="stage1", save_dir=tmp_path, name="", version="tensorboard")
    terms = {f"train/{name}": torch.tensor(0.5) for name in ("loss", "reconstruction", "commitment", "coherence", "event_norm")}
    seconds = []
    for step in range(50):
        start = time.perf_counter()
        logger.log_metrics(terms, step)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.01
