"""Skeleton networks through the trainer: they learn, their checkpoints give the same scores, and what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from moves import write_moves

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.datamodule import SkeletonDataModule
from vtlvlm.skeleton.heads import BottleneckHead, Head, LinearHead
from vtlvlm.skeleton.koopman import KoopmanHead, normalised_maps
from vtlvlm.skeleton.packed import NW_UCLA_ACTIONS
from vtlvlm.skeleton.preparing import BoxedFrames
from vtlvlm.skeleton.source import SkeletonSource
from vtlvlm.skeleton.spatial import RefinedTopology
from vtlvlm.skeleton.temporal import MultiScaleTemporal
from vtlvlm.skeleton.text_parts import TextPartsHead
from vtlvlm.skeleton.text_table import write_table
from vtlvlm.stages.checkpoints import RECORD
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.sgd import SGD


def data_of(file: Path, stream: str = "joint", window: int = 8, **source: Any) -> SkeletonDataModule:
    settings = {"protocol": "cameras:1,2", "validation": 0.25, **source}
    return SkeletonDataModule(SkeletonSource(str(file), **settings), BoxedFrames(window, degrees=10), stream, batch_size=12, num_workers=0)


def module(head: Head | None = None, widths: tuple[int, ...] = (16, 16), **settings: Any) -> Recognition:
    torch.manual_seed(0)
    network = SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal(), widths, (1, 2))
    return Recognition(network, head or LinearHead(), SGD(0.05, warmup_epochs=1, milestones=(25,)), **settings)


def trainer(folder: Path, epochs: int = 30) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, max_epochs=epochs, use_distributed_sampler=False, **quiet)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moves(tmp_path_factory.mktemp("moves") / "moves.npz")


@pytest.fixture(scope="module")
def trained(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small CTR-GCN."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).fit(module(), datamodule=data_of(file))
    return folder


def best(folder: Path) -> Path:
    (found,) = folder.rglob("best.ckpt")
    return found


def test_a_small_ctr_gcn_learns_the_movements(trained: Path, file: Path) -> None:
    found = Recognition.load_from_checkpoint(best(trained))
    (metrics,) = trainer(trained).test(found, datamodule=data_of(file), verbose=False)
    assert metrics["test/top1"] > 0.9
    assert metrics["test/nll_calibrated"] < 0.7
    assert metrics["test/temperature"] == pytest.approx(found.temperature.item())
    assert found.temperature.item() != 1
    assert found.provenance()["layout"] == "kinect20"
    assert found.provenance()["sampling"]["stream"] == "joint"


def test_probabilities_are_the_softmax_of_the_networks_logits_over_the_temperature(trained: Path, file: Path) -> None:
    found, data = Recognition.load_from_checkpoint(best(trained)), data_of(file)
    runner = trainer(trained)
    predicted = torch.cat(runner.predict(found, datamodule=data))
    batches = [data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0) for batch in data.predict_dataloader()]
    with torch.no_grad():
        logits = torch.cat([found.head(found.network(batch.joints)).logits for batch in batches])
    assert torch.allclose(predicted, (logits / found.temperature).softmax(-1), atol=1e-6)


def test_the_rate_follows_the_epochs_and_a_step_takes_the_temperature_back(file: Path, tmp_path: Path) -> None:
    rates = []

    class Rates(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            assert pl_module.temperature.item() == 1

    stage = module()
    stage.optimizer = SGD(0.1, warmup_epochs=2, milestones=(3,))
    runner = trainer(tmp_path, epochs=4)
    runner.callbacks.append(Rates())
    runner.fit(stage, datamodule=data_of(file))
    steps = len(rates) // 4
    assert rates == pytest.approx([0.05] * steps + [0.1] * 2 * steps + [0.01] * steps)


def test_the_loss_is_the_cross_entropy_and_what_the_head_adds(file: Path) -> None:
    stage, data = module(BottleneckHead(), label_smoothing=0.1), data_of(file)
    data.setup("fit")
    logged: dict[str, torch.Tensor] = {}
    stage._provenance = {"layout": "kinect20", "bodies": 1, "window": 8, "classes": list(data.classes)}
    stage.classes = data.classes
    stage.configure_model()
    stage.log_terms = lambda split, terms, count: logged.update(terms)  # type: ignore[method-assign]
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0), 0)
    torch.manual_seed(1)
    loss = stage.training_step(batch, 0)
    torch.manual_seed(1)
    scores = stage.head(stage.network(batch.joints), batch.labels)
    log_probs = scores.logits.log_softmax(-1)
    entropy = -(0.9 * log_probs.gather(1, batch.labels[:, None])[:, 0] + 0.1 * log_probs.mean(1)).mean()
    assert loss.item() == pytest.approx((entropy + scores.losses["prior"] + scores.losses["norm"]).item(), rel=1e-4)
    assert logged.keys() == {"loss", "cross_entropy", "prior", "norm", "top1"}


def test_training_resumes_to_the_bit(file: Path, tmp_path: Path) -> None:
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    lightning.seed_everything(0, verbose=False)
    trainer(whole, 4).fit(a := module(), datamodule=data_of(file))
    stopped = trainer(first, 4)
    stopped.fit_loop.max_epochs = 2
    stopped.fit(module(), datamodule=data_of(file))
    trainer(second, 4).fit(b := module(), datamodule=data_of(file), ckpt_path=next(first.rglob("last.ckpt")), weights_only=True)
    assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items() if name != "temperature")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stream": "bone"}, "another input .stream: joint there, bone here"),
        ({"window": 6}, "8 frames, the data has 6"),
        ({"protocol": "cameras:1,3"}, "cameras:1,2 .* this is cameras:1,3"),
    ],
)
def test_other_data_than_the_trainings_are_refused(trained: Path, file: Path, settings: dict[str, Any], message: str) -> None:
    found = Recognition.load_from_checkpoint(best(trained))
    with pytest.raises(UsageError, match=message):
        trainer(trained).test(found, datamodule=data_of(file, **settings), verbose=False)


def test_weights_that_do_not_fit_their_settings_are_refused(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(best(trained), weights_only=True)
    network = checkpoint[RECORD]["settings"]["init_args"]["network"]["init_args"]
    network["widths"] = [4000, 4000]  # too much for this machine, if it was built
    torch.save(checkpoint, tmp_path / "large.ckpt")
    with pytest.raises(UsageError, match=r"large\.ckpt: its weights do not fit its settings \(network\."):
        Recognition.load_from_checkpoint(tmp_path / "large.ckpt")


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="label_smoothing=1"):
        module(label_smoothing=1.0)


def test_numbers_of_parameters_are_in_the_provenance(trained: Path) -> None:
    found = Recognition.load_from_checkpoint(best(trained))
    count = sum(p.numel() for p in [*found.network.parameters(), *found.head.parameters()])
    assert found.provenance()["parameters"] == {"training": count, "inference": count}
    assert json.dumps(found.provenance())


def test_a_second_training_starts_from_the_first(file: Path, tmp_path: Path) -> None:
    """Koopman pooling's: the maps are changed once, and not trained."""
    first, second = module(KoopmanHead(), widths=(8, 8)), module(KoopmanHead(second=True, leading=8), widths=(8, 8))
    first.optimizer = SGD(0.001)
    trainer(tmp_path / "first", 1).fit(first, datamodule=data_of(file))
    made = torch.load(best(tmp_path / "first"), weights_only=True)["state_dict"]
    second.init_from = str(best(tmp_path / "first"))
    second.optimizer = SGD(0.001)
    trainer(tmp_path / "second", 1).fit(second, datamodule=data_of(file))
    found = Recognition.load_from_checkpoint(best(tmp_path / "second")).state_dict()
    assert torch.allclose(found["head.maps"], normalised_maps(made["head.maps"], 8), atol=1e-5)
    assert not torch.equal(found["network.blocks.0.spatial.values.weight"], made["network.blocks.0.spatial.values.weight"])
    other = module(KoopmanHead(second=True), widths=(8, 8), init_from=str(best(tmp_path / "first")))
    with pytest.raises(UsageError, match="joint there, bone here"):
        trainer(tmp_path / "third", 1).fit(other, datamodule=data_of(file, stream="bone"))


def test_a_checkpoint_opens_no_file_that_it_names(file: Path, tmp_path: Path) -> None:
    """GAP's texts are in the checkpoint; their file may be gone, or be any other."""
    texts = tmp_path / "texts.safetensors"
    write_table(texts, NW_UCLA_ACTIONS, torch.randn(10, 5, 6), "random numbers")
    made = module(TextPartsHead(str(texts), text_width=6))
    trainer(tmp_path, 1).fit(made, datamodule=data_of(file))
    texts.write_text("another file, which would be refused")
    found = Recognition.load_from_checkpoint(best(tmp_path))
    assert torch.equal(found.head.contrast.texts, made.head.contrast.texts)
    counts = found.provenance()["parameters"]
    assert counts["training"] - counts["inference"] == 5 * (16 * 6 + 6) + 5  # the maps to the texts' width, and the scales
