"""Both stages on one, two and four processes, and in smaller parts: every logged term and the weights of one process, at the same batch.
A test counts every clip once, for any number of processes."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from events import EventRun
from lightning import Callback, LightningModule, Trainer
from pipeline import launch_pair
from shipped import data_of, holders, put, resolved, write_features
from videos import block_clips

from vtlvlm.cli import main

STEPS, BATCH, CODES, WIDTH = 50, 8, 48, 96
TRAINING = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18)
"""People of whom there are two clips each: 24 clips, three batches an epoch"""


class Prompted(Callback):
    """Writes the logged terms of every step of stage 2, and this process's trained weights at the end.

    Args:
        path: Of the files, without their endings.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > len(self.lines):
            self.lines.append({name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        Path(f"{self.path}-{trainer.global_rank}.json").write_text(json.dumps([*self.lines, last]))
        trained = {name: one.detach() for name, one in pl_module.named_parameters() if one.requires_grad}
        torch.save(torch.cat([one.flatten() for _, one in sorted(trained.items())]), f"{self.path}-{trainer.global_rank}.pt")


class Terms(Callback):
    """Writes the logged terms of every step of stage 1, and this process's codebook at the end.

    Args:
        path: Of the files, without their endings.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[dict[str, float]] = []
        self.restarted = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.lines.append({name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")})
        sizes = pl_module.quantizer.vq._codebook.cluster_size
        self.restarted += int((sizes == BATCH * pl_module.vtem.num_tokens / CODES).sum())  # such a code begins with an average count

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.eval()
        last = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(("val/", "codebook/train"))}
        last["restarted"] = self.restarted
        Path(f"{self.path}-{trainer.global_rank}.json").write_text(json.dumps([*self.lines, last]))
        torch.save(pl_module.quantizer.table(), f"{self.path}-{trainer.global_rank}.pt")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small stage 1 on features that show one of 24 things at a time, with more codes than these keep alive. Plain noise would lie on
    the borders of codes, where the last bit decides."""
    folder = tmp_path_factory.mktemp("ranks")
    found = resolved("stage1_small.yaml")
    put(next(holders(found, "image_size")), model="test_resnet", weights=None)
    put(found, root=str(block_clips(folder / "videos", (*TRAINING, 3, 6))), num_workers=0, max_steps=STEPS, batch_size=BATCH)
    put(found, event_dim=64, codes=CODES, decay=0.9, dead_code_threshold=0.5, log_every_n_steps=1, enable_progress_bar=False)
    put(found, max_anchors=256, max_negatives=320, val_check_interval=25)
    data = data_of(found)
    generator = torch.Generator().manual_seed(1)
    things = 3 * torch.randn(24, WIDTH, generator=generator)
    shown = torch.randint(24, (len(data.predict_keys()), 8, 4), generator=generator).repeat_interleave(4, 1)
    cells = things[shown] + 0.3 * torch.randn(*shown.shape, WIDTH, generator=generator)
    write_features(folder / "features", data, cells, {"extractor": "TimmExtractor"})
    put(found, features=str(folder / "features"))
    return found


def run(
    config: dict[str, Any], folder: Path, name: str, ranks: int, micro: int | None
) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    path, file = folder / name, folder / f"{name}.yaml"
    put(config, micro_batch_size=micro, default_root_dir=str(path))
    config["trainer"]["callbacks"] = [{"class_path": "test_ranks.Terms", "init_args": {"path": str(path)}}]
    file.write_text(yaml.safe_dump(config))
    if ranks == 1:
        assert main(["fit", "--config", str(file)]) == 0
    else:
        launch_pair(["fit", "--config", file, "--trainer.devices", ranks, "--trainer.strategy", "ddp"], ranks=ranks)
    books = [torch.load(f"{path}-{rank}.pt", weights_only=True) for rank in range(ranks)]
    return json.loads(Path(f"{path}-0.json").read_text()), books


@pytest.fixture(scope="module")
def one_process(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], torch.Tensor]:
    lines, (book,) = run(config, tmp_path_factory.mktemp("alone"), "alone", 1, None)
    assert len(lines) == STEPS + 1
    assert {"train/loss", "train/reconstruction", "train/commitment", "train/coherence", "train/event_norm"} == lines[0].keys()
    assert any(name.startswith("val/") for name in lines[-1])
    assert lines[-1]["restarted"] > 5
    return lines, book


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "micro"), [(1, 2), (2, None), (4, None), (4, 1)])
def test_every_term_is_that_of_one_process(
    config: dict[str, Any], one_process: tuple[list[dict[str, float]], torch.Tensor], ranks: int, micro: int | None, tmp_path: Path
) -> None:
    alone, book = one_process
    found, books = run(config, tmp_path, "run", ranks, micro)
    for step, (one, other) in enumerate(zip(alone, found, strict=True)):
        assert other == pytest.approx(one, rel=1e-4), step
    assert all(torch.equal(books[0], other) for other in books)
    torch.testing.assert_close(books[0], book, rtol=1e-3, atol=1e-3)


SAME = ["--data.source.validation", 0.25, "--data.batch_size", 8, "--model.init_args.reasoner.init_args.train_projector", "true"]
PROMPTED = [
    *(*SAME, "--trainer.max_steps", STEPS, "--trainer.max_epochs", -1, "--trainer.logger", "false"),
    *("--trainer.val_check_interval", 25, "--trainer.check_val_every_n_epoch", "null"),
]
"""Stage 2 in 50 steps of eight clips"""
DDP = ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.broadcast_buffers", "false", "--trainer.devices"]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    """Ten people train; of three, there are five test clips, an odd number."""
    made = EventRun(tmp_path_factory.mktemp("prompted"), people=(*TRAINING, 3, 6, 7), without=("S001C001P007R001A002",))
    path = made.folder / "alone"
    assert made("fit", *PROMPTED, "--data.micro_batch_size", 8, *terms_into(path), run="alone") == 0
    return made


def terms_into(path: Path) -> list[object]:
    return ["--trainer.callbacks+", "test_ranks.Prompted", "--trainer.callbacks.path", path]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "micro"), [(1, 2), (2, 4), (2, 1), (4, 2)])
def test_every_term_of_stage_2_is_that_of_one_process(events: EventRun, ranks: int, micro: int, tmp_path: Path) -> None:
    path, run, best = tmp_path / "terms", tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.ckpt"
    more = DDP[:4] if ranks > 1 else []
    common = ["--config", events.config, "--trainer.default_root_dir", run, *more, "--trainer.devices", ranks]
    fit = ["fit", *common, *PROMPTED, "--data.micro_batch_size", micro, *terms_into(path)]
    test = ["test", *common, *SAME, "--ckpt_path", best]
    launch_pair(fit, test, ranks=ranks) if ranks > 1 else [events.command(*fit), events.command(*test)]
    alone, found = (json.loads(Path(f"{one}-0.json").read_text()) for one in (events.folder / "alone", path))
    assert len(alone) == STEPS + 1
    for step, (one, other) in enumerate(zip(alone, found, strict=True)):
        assert one, step
        assert other == pytest.approx(one, rel=1e-4), step
    weights = [torch.load(f"{path}-{rank}.pt", weights_only=True) for rank in range(ranks)]
    assert all(torch.equal(weights[0], other) for other in weights)
    torch.testing.assert_close(weights[0], torch.load(f"{events.folder / 'alone'}-0.pt", weights_only=True), rtol=1e-3, atol=1e-4)
    again = tmp_path / "again"  # the same weights, tested by one process
    assert events.command("test", "--config", events.config, "--trainer.default_root_dir", again, *SAME, "--ckpt_path", best) == 0
    several, single = (json.loads((folder / "metrics.json").read_text()) for folder in (run, again))
    assert several["num_clips"] == single["num_clips"] == 5
    assert several["metrics"] == pytest.approx(single["metrics"], rel=1e-5, abs=1e-7)
    rows, others = (list(csv.reader((folder / "predictions_test.csv").open())) for folder in (run, again))
    assert [row[:3] for row in rows] == [row[:3] for row in others]
    assert len(rows) == 1 + 5
