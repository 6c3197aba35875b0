"""Data modules for tests, small caches for them, and a module that keeps the batches it is given."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning
import torch

from vtlvlm.batches import VideoBatch
from vtlvlm.data.cache import EventCacheWriter, FeatureCacheWriter
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.source import ClipSource


def data_of(root: str | Path, protocol: str = "xsub60", **settings: Any) -> NTUDataModule:
    """A data module that is not set up yet; each setting goes to the part that has it."""
    own = {name: settings.pop(name) for name in {field.name for field in fields(ClipSource)} & settings.keys()}
    return NTUDataModule(ClipSource(str(root), protocol, **own), **settings)


SMALL = FrameSampling(frames=4, size=16, views=2)


def module(root: Path, **options: object) -> NTUDataModule:
    settings = {"sampling": SMALL, "batch_size": 4, "micro_batch_size": 2, "num_workers": 0, "validation": 0.25, **options}
    return data_of(root, **settings)  # type: ignore[arg-type]


def make_caches(root: Path, folder: Path, sampling: FrameSampling = SMALL) -> tuple[Path, Path]:
    """Features (n, 3, 4, 2) of value row + view / 2, events ids (n, 5) = row, for all keys."""
    data = module(root, sampling=sampling)
    data.setup("predict")
    keys = data.predict_keys()
    rows = torch.tensor([data.index.name.tolist().index(name) for name, _ in keys])
    values = rows + torch.tensor([view / 2 for _, view in keys])
    identities = data.identities(rows)
    with FeatureCacheWriter(folder / "features", {"sampling": data.sampling_settings, "extractor": {"model": "x"}}) as writer:
        writer.add(keys, values[:, None, None, None].expand(-1, 3, 4, 2), torch.zeros(len(keys), 3), identities)
    writer.finish(keys)
    with EventCacheWriter(folder / "events", {"vtem": "v"}, torch.eye(32)) as events:
        events.add(keys, rows[:, None].expand(-1, 5), None, torch.zeros(len(keys), 2, 2), identities)
    events.finish(keys)
    return folder / "features", folder / "events"


class Recorder(lightning.LightningModule):
    """Keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: VideoBatch, index: int) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: VideoBatch, index: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: VideoBatch, index: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: VideoBatch, index: int) -> None:
        self.seen["predict"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def clips(self, side: str) -> list[int]:
        return torch.cat([batch.clips for batch in self.seen[side]]).tolist()


def trainer(**options: object) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", max_epochs=1, use_distributed_sampler=False, num_sanity_val_steps=0, **quiet, **options)  # type: ignore[arg-type]
