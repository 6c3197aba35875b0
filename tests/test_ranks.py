"""Stage 1 on one, two and four processes, and in smaller parts: every logged term and the codebook of one process, at the same batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from pipeline import launch_pair
from shipped import data_of, holders, put, resolved, write_features
from videos import block_clips

from vtlvlm.cli import main

STEPS, BATCH, CODES, WIDTH = 50, 8, 48, 96
TRAINING = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18)
"""People of whom there are two clips each: 24 clips, three batches an epoch"""


class Terms(Callback):
    """Writes the logged terms of every step, and this process's codebook at the end.

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
