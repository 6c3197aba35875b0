"""The codebook panel under real, tiny trainings on the CPU, straight from videos."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from modules import data_of
from pixels import PixelExtractor
from torch import Tensor
from videos import block_clips

from vtlvlm.callbacks.codebook_panel import OPTION, CodebookPanel, remedy
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.metrics.codebook import CodeTally
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.vtem import EMAQuantizer, EqualSaliencePooler, IdentityQuantizer, InfoNCE, Quantizer
from vtlvlm.vtem.learned_quantizers import LearnedQuantizer, SimVQQuantizer
from vtlvlm.vtem.quantizers import FactorisedQuantizer, FSQQuantizer, Quantized


class StuckQuantizer(EMAQuantizer):
    """Says its first code only."""

    def quantize(self, flat: Tensor) -> Quantized:
        found = super().quantize(flat)
        return found._replace(ids=torch.zeros_like(found.ids))


def stage1(quantizer: Quantizer) -> VTEMModule:
    seed_everything(0)
    return VTEMModule(PixelExtractor(image_size=32, copies=1), EqualSaliencePooler(4), quantizer, InfoNCE(), event_dim=8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training clips (people 1, 2, 4, 5) and four of the test (3, 6)."""
    return block_clips(tmp_path_factory.mktemp("panels"), people=(1, 2, 3, 4, 5, 6))


def clips(root: Path, validation: float) -> NTUDataModule:
    sampling = FrameSampling(frames=8, size=32)
    return data_of(root, sampling=sampling, batch_size=2, micro_batch_size=2, num_workers=0, validation=validation)


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks) or [CodebookPanel()],
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **settings,
    )


def images(folder: Path) -> dict[str, int]:
    """TensorBoard's pictures and how many there are of each."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    return {tag: len(found.Images(tag)) for tag in found.Tags()["images"]}


def read(folder: Path, split: str) -> dict[str, Any]:
    assert (folder / f"codebook_{split}.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((folder / f"codebook_{split}.json").read_text(), parse_constant=pytest.fail)
    return found


def test_training_with_validation_and_a_test(root: Path, tmp_path: Path) -> None:
    module, data = stage1(EMAQuantizer(codes=8)), clips(root, validation=0.25)
    running = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=1)
    running.fit(module, datamodule=data)
    found = read(tmp_path, "val")
    assert (found["split"], found["step"], found["num_codes"]) == ("val", 6, 8)
    assert found["tokens"] == sum(found["frequencies"]) == 2 * 16  # two clips of four windows and four cells, no sanity check among them
    assert found["frequencies"] == sorted(found["frequencies"], reverse=True)
    assert len(found["codes"]) == len(set(found["codes"])) == 8 - found["figures"]["dead_codes"]
    lengths = found["run_lengths"]
    assert sum((place + 1) * number for place, number in enumerate(lengths)) == 32
    assert found["reconstruction"] == pytest.approx(float(running.callback_metrics["val/reconstruction"]))
    logged = {name.removeprefix("codebook/val_"): float(value) for name, value in running.logged_metrics.items() if "codebook/val_" in name}
    assert logged == pytest.approx(found["figures"])
    assert set(logged) >= {"perplexity", "perplexity_share", "used_share", "dead_codes", "zipf_slope", "action_information_share"}
    assert not (tmp_path / "codebook_train.json").exists()
    running.logger.experiment.flush()  # type: ignore[union-attr]
    assert images(tmp_path) == {"codebook/val_panel": 2}  # after the first epoch, and with pictures at the end

    again = tmp_path / "again"
    testing = trainer(again)
    testing.test(module, datamodule=data, verbose=False)
    assert read(again, "test")["tokens"] == 4 * 16
    testing.logger.experiment.flush()  # type: ignore[union-attr]
    assert images(again) == {"codebook/test_panel": 1}


class Watch(Callback):
    """A clock that advances by ``seconds`` with each validation. Each time it notes the step in the JSON file and counts the pictures."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.now = folder, seconds, 0.0
        self.noted: list[tuple[int, int]] = []

    def __call__(self) -> float:
        return self.now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.logger.experiment.flush()  # type: ignore[union-attr]
        self.noted.append((json.loads((self.folder / "codebook_val.json").read_text())["step"], images(self.folder)["codebook/val_panel"]))
        self.now += self.seconds


@pytest.mark.parametrize(("seconds", "pictures"), [(600.0, [1, 1, 1, 2, 2]), pytest.param(1800.0, [1, 2, 3, 4, 5], marks=pytest.mark.slow)])
def test_a_training_draws_at_most_every_half_hour_and_writes_the_numbers_each_time(
    seconds: float, pictures: list[int], root: Path, tmp_path: Path
) -> None:
    watch = Watch(tmp_path, seconds)
    running = trainer(tmp_path, CodebookPanel(watch), watch, max_epochs=5, num_sanity_val_steps=0)
    running.fit(stage1(EMAQuantizer(codes=8)), datamodule=clips(root, validation=0.25))
    assert watch.noted == list(zip([3, 6, 9, 12, 15], pictures, strict=True))
    running.logger.experiment.flush()  # type: ignore[union-attr]
    assert images(tmp_path) == {"codebook/val_panel": pictures[-1] + 1}  # and with the pictures of codes at the end


def test_training_without_validation_shows_its_last_epoch(root: Path, tmp_path: Path) -> None:
    trainer(tmp_path, max_epochs=2).fit(stage1(EMAQuantizer(codes=8)), datamodule=clips(root, validation=0))
    assert read(tmp_path, "train")["tokens"] == 8 * 16
    assert not (tmp_path / "codebook_val.json").exists()


def test_without_a_codebook_there_is_nothing_to_draw(root: Path, tmp_path: Path) -> None:
    trainer(tmp_path, max_epochs=1).fit(stage1(IdentityQuantizer()), datamodule=clips(root, validation=0.25))
    assert not list(tmp_path.glob("codebook*"))


def test_collapse_is_warned_of_once(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """128 training tokens for 12 codes: enough to tell; the 32 of validation are not."""
    module = stage1(StuckQuantizer(codes=12))
    trainer(tmp_path, max_epochs=3).fit(module, datamodule=clips(root, validation=0))
    told = [
        entry.getMessage() for entry in caplog.records if entry.name == "vtlvlm.callbacks.codebook_panel" and entry.levelname == "WARNING"
    ]
    assert len(told) == 1
    assert "perplexity 1.0 of 12 codes (8.3%), 8.3% of them in use over 128 tokens (train tokens, step 4)" in told[0]
    assert "--model.init_args.quantizer.init_args.dead_code_threshold 0.25" in told[0]
    assert "\n" not in told[0]
    found = read(tmp_path, "train")
    assert found["collapse"] == ["perplexity", "unused"]
    assert found["remedy"] in told[0]
    assert found["figures"]["zipf_slope"] is None
    assert found["pairs"] == []
    caplog.clear()
    trainer(tmp_path / "few", max_epochs=1).fit(stage1(StuckQuantizer(codes=13)), datamodule=clips(root, validation=0))
    assert "COLLAPSE" not in caplog.text


TALLY = CodeTally(torch.tensor([9000, 9000, *[0] * 998]), *(torch.zeros(1000, 0, dtype=torch.int64),) * 2, torch.tensor([18000]))


@pytest.mark.parametrize(
    ("quantizer", "said", "unsaid"),
    [
        (EMAQuantizer(1000), [".codes 16)", ".dead_code_threshold 0.25)", ".commitment 0.5)", "SimVQQuantizer"], ["levels"]),
        (
            EMAQuantizer(1000, dead_code_threshold=0.0),
            ["remedies: revival of dead codes, which is off", ".dead_code_threshold 0.125)"],
            ["earlier"],
        ),
        (EMAQuantizer(16, dead_code_threshold=0.5), ["commitment"], [".codes", "dead_code_threshold"]),
        (FactorisedQuantizer(1000), [".dead_code_threshold"], ["levels"]),
        (LearnedQuantizer(1000, commitment=0.0), [".codes 16)", ".commitment 0.25)", "SimVQQuantizer"], ["dead_code_threshold"]),
        (SimVQQuantizer(1000), [".codes 16)", "(FSQQuantizer)"], ["dead_code_threshold", "SimVQ"]),
        (FSQQuantizer([10, 10, 10]), ["levels, [10, 10, 10] now"], ["dead_code_threshold", ".codes", "commitment"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Quantizer) else "",
)
def test_only_remedies_that_exist_are_named(quantizer: Quantizer, said: list[str], unsaid: list[str]) -> None:
    text = remedy(stage1(quantizer), TALLY)
    assert "--model.init_args.optimizer.learning_rate 3.3e-05" in text
    for words in said:
        assert words in text, text
    for words in unsaid:
        assert words not in text, text


def test_fewer_codes_come_first_where_the_used_ones_share_the_work() -> None:
    even = TALLY._replace(counts=torch.tensor([100] * 200 + [0] * 800))
    assert remedy(stage1(EMAQuantizer(1000)), even).startswith(f"Likely remedies: fewer codes ({OPTION}.codes 512); earlier revival")
    assert remedy(stage1(EMAQuantizer(1000)), TALLY).startswith("Likely remedies: earlier revival")
