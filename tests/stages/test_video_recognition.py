"""Video networks through the trainer, from decoded clips and from cached features."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from baseline_configs import STEPS, VIDEO, shrunk
from moves import write_moves
from pipeline import launch_pair
from shipped import data_of as data_module
from shipped import holders, put, resolved, write_features
from videos import block_clips

from vtlvlm.cli import main
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.source import ClipSource
from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import ClipNetwork, NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.datamodule import SkeletonDataModule
from vtlvlm.skeleton.heads import LinearHead
from vtlvlm.skeleton.koopman import KoopmanHead
from vtlvlm.skeleton.preparing import BoxedFrames
from vtlvlm.skeleton.source import SkeletonSource
from vtlvlm.skeleton.spatial import FixedGraph
from vtlvlm.skeleton.temporal import PlainTemporal
from vtlvlm.skeleton.video_networks import FrozenFeatures, VideoNetwork
from vtlvlm.stages.checkpoints import RECORD
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.sgd import SGD
from vtlvlm.vtem.extractors import VideoExtractor

PEOPLE = (1, 2, 4, 5, 8, 9, 3, 6, 7, 10)
"""The first six train"""
WIDTH = 512


def trainer(folder: Path, epochs: int, **more: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, **more}
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, max_epochs=epochs, use_distributed_sampler=False, **quiet)


def best(folder: Path) -> Path:
    (found,) = folder.rglob("best.ckpt")
    return found


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return block_clips(tmp_path_factory.mktemp("clips"), PEOPLE)


# -- a network that is trained whole ---------------------------------------------------------------------------------------------------


def videos(root: Path, views: int = 1, features: str | None = None, **sampling: Any) -> NTUDataModule:
    source = ClipSource(str(root), "xsub60", validation=0.34)
    chosen = FrameSampling(**{"frames": 4, "size": 16, "views": views, **sampling})
    return NTUDataModule(source, features=features, sampling=chosen, batch_size=4, num_workers=0)


def network(**settings: Any) -> Recognition:
    torch.manual_seed(0)
    return Recognition(VideoNetwork("mc3_18", image_size=16), LinearHead(deviation=0.01), SGD(0.01), **settings)


@pytest.fixture(scope="module")
def trained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a network that is trained whole."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, 24, check_val_every_n_epoch=24).fit(network(), datamodule=videos(clips))
    return folder


def test_a_network_learns_which_way_a_block_moves(trained: Path, clips: Path) -> None:
    found = Recognition.load_from_checkpoint(best(trained))
    (metrics,) = trainer(trained, 1).test(found, datamodule=videos(clips), verbose=False)
    assert metrics["test/top1"] > 0.8
    assert metrics["test/temperature"] == pytest.approx(found.temperature.item())
    assert found.temperature.item() != 1
    made = found.provenance()
    count = sum(p.numel() for p in found.parameters())
    assert made["parameters"] == {"training": count, "inference": count}
    assert made["sampling"]["init_args"]["frames"] == 4
    assert made["classes"] == ["fall down", "slide right"]
    json.dumps(made)


def test_probabilities_are_the_softmax_of_the_checkpoints_scores(trained: Path, clips: Path) -> None:
    found, data = Recognition.load_from_checkpoint(best(trained)), videos(clips)
    predicted = torch.cat(trainer(trained, 1).predict(found, datamodule=data))
    again = Recognition.load_from_checkpoint(best(trained))
    with torch.no_grad():
        logits = torch.cat([again.head(again.network(batch.frames)).logits for batch in data.predict_dataloader()])
    assert torch.allclose(predicted, (logits / again.temperature).softmax(-1), atol=1e-6)


@pytest.mark.slow
def test_training_resumes_to_the_bit(clips: Path, tmp_path: Path) -> None:
    """With batch norms and several views of a clip."""

    def stage() -> Recognition:
        made = network()
        made.optimizer = SGD(0.01, milestones=[5])  # a cosine would end with the stopped training
        return made

    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    lightning.seed_everything(0, verbose=False)
    trainer(whole, 2).fit(a := stage(), datamodule=videos(clips, views=3))
    stopped = trainer(first, 2)
    stopped.fit_loop.max_epochs = 1
    stopped.fit(stage(), datamodule=videos(clips, views=3))
    checkpoint = next(first.rglob("last.ckpt"))
    trainer(second, 2).fit(b := stage(), datamodule=videos(clips, views=3), ckpt_path=checkpoint, weights_only=True)
    assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items() if name != "temperature")


def test_starting_weights_are_read_by_a_new_training_alone(clips: Path, trained: Path, tmp_path: Path) -> None:
    """A training starts from the numbers of the file; whoever opens its checkpoint later does not need the file."""
    from torchvision.models import get_model

    official, file = get_model("mc3_18", weights=None), tmp_path / "weights.pth"
    torch.save(official.state_dict(), file)
    stage = Recognition(VideoNetwork("mc3_18", str(file), 16), LinearHead(), SGD(1e-9))
    trainer(tmp_path, 1).fit(stage, datamodule=videos(clips))
    file.write_text("no weights")
    found = Recognition.load_from_checkpoint(best(tmp_path))
    name = "layer3.0.conv1.0.weight"
    assert torch.allclose(found.state_dict()[f"network.trunk.backbone.{name}"], official.state_dict()[name], atol=1e-6)
    torch.save(official.state_dict(), file)
    moved = Recognition(VideoNetwork("mc3_18", str(tmp_path / "gone.pth"), 16), LinearHead())
    trainer(tmp_path, 1).test(moved, datamodule=videos(clips), ckpt_path=best(tmp_path), weights_only=True, verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 8}, "another sampling .data.sampling: frames: 4 there, 8 asked for"),
        ({"mode": "dense"}, "mode: 'uniform' there, 'dense' asked for"),
        ({"features": "nothing"}, "leave data.features out, or take FrozenFeatures"),
    ],
)
def test_another_sampling_than_the_trainings_is_refused(trained: Path, clips: Path, settings: dict[str, Any], message: str) -> None:
    found, data = Recognition.load_from_checkpoint(best(trained)), videos(clips, **{k: v for k, v in settings.items() if k != "features"})
    if "features" in settings:
        write_features(trained / "features", data_of(clips), torch.zeros(len(data_of(clips).predict_keys()), 1, 1, 4), {"extractor": "x"})
        data = videos(clips, features=str(trained / "features"))
    with pytest.raises(UsageError, match=message):
        trainer(trained, 1).test(found, datamodule=data, verbose=False)


def test_more_views_than_the_trainings_are_tested(trained: Path, clips: Path) -> None:
    found, data = Recognition.load_from_checkpoint(best(trained)), videos(clips, views=2, test_clips=2)
    (metrics,) = trainer(trained, 1).test(found, datamodule=data, verbose=False)
    assert metrics["test/top1"] > 0.5


# -- a linear head on frozen features --------------------------------------------------------------------------------------------------


def data_of(root: Path) -> NTUDataModule:
    data = videos(root, views=2)
    data.prepare_data()
    data.setup()
    return data


EXTRACTOR = {"model": "r3d_18", "grid": 2, "image_size": 16, "chunk": 4}
MADE = {"extractor": "VideoExtractor", "model": "r3d_18", "grid": 2, "image_size": 16, "chunk": "4", "weights_sha256": "a" * 64}


@pytest.fixture(scope="module")
def features(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose features tell the actions apart, but not without noise."""
    data, folder = data_of(clips), tmp_path_factory.mktemp("features") / "cache"
    actions = torch.tensor(["A001" in name for name, _ in data.predict_keys()])
    found = torch.randn(len(actions), 1, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    found[..., 0] += torch.where(actions, 2.0, -2.0)[:, None, None]
    write_features(folder, data, found, MADE)
    return folder


def frozen(**settings: Any) -> Recognition:
    torch.manual_seed(0)
    extractor = VideoExtractor(**{**EXTRACTOR, **settings.pop("extractor", {})})
    return Recognition(FrozenFeatures(extractor), LinearHead(deviation=0.01), SGD(0.05, weight_decay=0), **settings)


def cached(clips: Path, features: Path) -> NTUDataModule:
    return videos(clips, features=str(features))


@pytest.fixture(scope="module")
def linear(clips: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a linear head."""
    folder = tmp_path_factory.mktemp("linear")
    trainer(folder, 3).fit(frozen(), datamodule=cached(clips, features))
    return folder


def test_the_head_is_a_linear_layer_on_the_mean_of_the_cached_features(linear: Path, clips: Path, features: Path) -> None:
    """The same training by hand, over the same batches."""
    torch.manual_seed(0)
    data, weight, bias = cached(clips, features), torch.empty(2, WIDTH), torch.empty(2)
    torch.nn.init.kaiming_uniform_(weight, 5**0.5)  # nn.Linear's own draws come first
    bias.uniform_(-(WIDTH**-0.5), WIDTH**-0.5)
    weight.normal_(0, 0.01)
    data.prepare_data()
    data.setup()
    epochs, loader = 3, data.train_dataloader()
    moved, step, total = [torch.zeros_like(weight), torch.zeros_like(bias)], 0, 3 * len(loader)
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            mean = batch.features.float().mean((1, 2))
            wrong = ((mean @ weight.T + bias).softmax(-1) - torch.eye(2)[batch.labels]) / len(mean)
            rate = 0.05 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / total)))
            for value, held, gradient in zip((weight, bias), moved, (wrong.T @ mean, wrong.sum(0)), strict=True):
                held.mul_(0.9).add_(gradient)
                value.sub_(rate * (gradient + 0.9 * held))
            step += 1
    found = torch.load(next(linear.rglob("last.ckpt")), weights_only=True)["state_dict"]
    torch.testing.assert_close(found["head.fc.weight"], weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["head.fc.bias"], bias, atol=1e-5, rtol=1e-4)


def test_a_linear_head_is_tested_and_its_extractor_is_not_in_the_checkpoint(linear: Path, clips: Path, features: Path) -> None:
    assert not [name for name in torch.load(best(linear), weights_only=True)["state_dict"] if "extractor" in name]
    found = Recognition.load_from_checkpoint(best(linear))
    (metrics,) = trainer(linear, 1).test(found, datamodule=cached(clips, features), verbose=False)
    assert metrics["test/top1"] == 1
    made = found.provenance()
    assert made["parameters"] == {"training": 2 * (WIDTH + 1), "inference": 33_197_052 - 60 * (WIDTH + 1) + 2 * (WIDTH + 1)}
    assert made["extractor"] == MADE
    assert made["dim"] == WIDTH
    assert isinstance(made["features"], str)


@pytest.mark.parametrize("change", [{"extractor": {**MADE, "weights_sha256": "b" * 64}}, {"frames": 8}])
def test_other_features_than_the_trainings_are_refused(linear: Path, clips: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    data = videos(clips, frames=change.get("frames", 4))
    data.prepare_data()
    data.setup()
    features = torch.zeros(len(data.predict_keys()), 1, 4, WIDTH)
    write_features(tmp_path / "other", data, features, change.get("extractor", MADE))
    found = Recognition.load_from_checkpoint(best(linear))
    with pytest.raises(UsageError, match="was made by another extractor or sampling than this module was trained on: extract anew"):
        trainer(linear, 1).test(found, datamodule=cached(clips, tmp_path / "other"), verbose=False)


def test_a_configuration_of_another_extractor_than_the_caches_is_refused(clips: Path, features: Path, tmp_path: Path) -> None:
    for settings, message in (({"model": "mc3_18"}, "model = 'r3d_18', .* has 'mc3_18'"), ({"grid": 1}, "grid = 2, .* has 1")):
        with pytest.raises(UsageError, match=f"was made with {message}"):
            trainer(tmp_path, 1).fit(frozen(extractor=settings), datamodule=cached(clips, features))


def test_features_of_videos_are_those_of_the_cache(clips: Path, tmp_path: Path) -> None:
    """``extract`` with the configuration, a training from the cache, and a test from the videos with the same extractor."""
    from torchvision.models import get_model

    weights = tmp_path / "weights.pth"
    torch.save(get_model("r3d_18", weights=None).state_dict(), weights)
    config = tmp_path / "frozen.yaml"
    config.write_text(f"""
seed_everything: 0
model:
  class_path: Recognition
  init_args:
    network:
      class_path: FrozenFeatures
      init_args:
        extractor: {{class_path: VideoExtractor, init_args: {{model: r3d_18, weights: {weights}, grid: 1, image_size: 16, chunk: 4}}}}
    head: LinearHead
data:
  source: {{root: {clips}, validation: 0.34}}
  sampling: {{frames: 4, size: 16}}
  batch_size: 4
  num_workers: 0
trainer: {{accelerator: cpu, max_epochs: 2, enable_progress_bar: false, logger: false, default_root_dir: {tmp_path / "run"}}}
""")
    cache, scores = ["--data.features", str(tmp_path / "features")], []
    assert main(["extract", "--config", str(config), "--output", str(tmp_path / "features")]) == 0
    assert main(["fit", "--config", str(config), *cache]) == 0
    for more in (cache, []):
        assert main(["test", "--config", str(config), *more, "--ckpt_path", "best"]) == 0
        lines = (tmp_path / "run" / "predictions_test.csv").read_text().splitlines()[1:]
        scores.append(torch.tensor([[float(value) for value in line.split(",")[-2:]] for line in lines]))
    torch.testing.assert_close(*scores, atol=2e-3, rtol=0)  # the cache holds 16 bits
    torch.save(get_model("r3d_18", weights=None).state_dict(), weights)
    assert main(["test", "--config", str(config), "--ckpt_path", "best"]) == 2


# -- what does not go together ---------------------------------------------------------------------------------------------------------


def joints(folder: Path) -> SkeletonDataModule:
    file = write_moves(folder / "moves.npz", repetitions=1)
    return SkeletonDataModule(SkeletonSource(str(file), "cameras:1,2", validation=0.25), BoxedFrames(8), batch_size=4, num_workers=0)


def test_data_of_another_kind_are_refused(clips: Path, features: Path, tmp_path: Path) -> None:
    graph = SkeletonNet(NormalisedJoints(), FixedGraph(), PlainTemporal(), (8,), (1,))
    targets = NTUDataModule(ClipSource(str(clips)), features=str(features), target_features=str(features), batch_size=4, num_workers=0)
    cases: tuple[tuple[ClipNetwork, Callable[[], Any], str], ...] = (
        (VideoNetwork("mc3_18"), lambda: joints(tmp_path), "VideoNetwork reads videos or features: leave data.class_path out"),
        (frozen().network, lambda: joints(tmp_path), "FrozenFeatures reads videos or features: leave data.class_path out"),
        (graph, lambda: videos(clips), "SkeletonNet reads joints: give data.class_path SkeletonDataModule"),
        (VideoNetwork("mc3_18"), lambda: cached(clips, features), "leave data.features out, or take FrozenFeatures"),
        (frozen().network, lambda: targets, "leave data.target_features out"),
    )
    for one, data, message in cases:
        with pytest.raises(UsageError, match=message):
            trainer(tmp_path, 1).fit(Recognition(one, LinearHead()), datamodule=data())


def test_heads_of_skeleton_networks_are_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="KoopmanHead reads a skeleton network: choose LinearHead for videos"):
        trainer(tmp_path, 1).fit(Recognition(VideoNetwork("mc3_18", image_size=16), KoopmanHead()), datamodule=videos(clips))


@pytest.mark.parametrize("entry", ["dim", "extractor"])
def test_a_checkpoint_that_lacks_an_entry_is_refused(linear: Path, tmp_path: Path, entry: str) -> None:
    checkpoint = torch.load(best(linear), weights_only=True)
    del checkpoint[RECORD]["provenance"][entry]
    torch.save(checkpoint, tmp_path / "lacks.ckpt")
    with pytest.raises(UsageError, match=rf"lacks\.ckpt: not a readable checkpoint \(provenance\.{entry} is missing\)"):
        Recognition.load_from_checkpoint(tmp_path / "lacks.ckpt")


def test_a_checkpoint_of_another_width_is_refused_before_it_takes_memory(linear: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(best(linear), weights_only=True)
    checkpoint[RECORD]["provenance"]["dim"] = 10**12
    torch.save(checkpoint, tmp_path / "wide.ckpt")
    with pytest.raises(UsageError, match=r"its weights do not fit its settings \(head\.fc\.weight\)"):
        Recognition.load_from_checkpoint(tmp_path / "wide.ckpt")


# -- several processes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_and_test(clips: Path, tmp_path: Path) -> None:
    shared = ["--config", "baselines/r3d_18_small.yaml", "--data.source.root", clips, "--data.batch_size", 4, "--data.num_workers", 0]
    shared += ["--model.init_args.network.init_args.model", "mc3_18", "--model.init_args.network.init_args.image_size", 16]
    shared += [
        "--data.sampling.frames",
        4,
        "--data.sampling.size",
        16,
        "--trainer.devices",
        2,
        "--trainer.strategy",
        "ddp",
        "--trainer.max_epochs",
        2,
    ]
    shared += ["--trainer.logger", "false", "--trainer.default_root_dir", tmp_path / "run", "--data.source.validation", 0.34]
    launch_pair(["fit", *shared], ["test", *shared, "--ckpt_path", "best"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_clips"] == 8


# -- the shipped configurations --------------------------------------------------------------------------------------------------------


def tiny(name: str, clips: Path, folder: Path) -> Path:
    """A shipped configuration at a size for tests: two steps on tiny clips, or on a cache of random features."""
    config = resolved(f"baselines/{name}.yaml")
    put(config, size=16)
    put(config, image_size=32 if name.startswith("swin3d") else 16, frames=4)
    if name.endswith("frozen"):
        put(config, chunk=4)
        place = shrunk(config, clips, folder, "xsub60")
        settings = setting_of(place, "extractor")
        made = {"extractor": "VideoExtractor", **{key: settings[key] for key in ("model", "grid", "image_size", "chunk")}}
        data = data_module(yaml.safe_load(place.read_text()))
        rows = len(data.predict_keys()), 1, settings["grid"] ** 2, WIDTH
        write_features(folder / "features", data, torch.randn(rows), made)
        put(config, features=str(folder / "features"))
    return shrunk(config, clips, folder, "xsub60")


def setting_of(place: Path, name: str) -> dict[str, Any]:
    """The settings of a configuration's part."""
    (holder,) = holders(yaml.safe_load(place.read_text())["model"], name)
    return dict(holder[name]["init_args"])


@pytest.mark.parametrize("name", [name if "frozen" in name else pytest.param(name, marks=pytest.mark.slow) for name in VIDEO])
def test_a_shipped_configuration_trains(name: str, clips: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(tiny(name, clips, tmp_path))]) == 0
    losses = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    found = [float.fromhex(values[0]) for label, values in losses if label.startswith("loss")]
    assert len(found) == STEPS
    assert all(map(math.isfinite, found))
