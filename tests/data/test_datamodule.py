import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from modules import data_of
from videos import damaged

from vtlvlm.batches import EventBatch, FeatureBatch, VideoBatch
from vtlvlm.data.cache import EventCacheWriter, FeatureCacheWriter
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.samplers import ExactSampler, TrainSampler
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import DataError, UsageError

SMALL = FrameSampling(frames=4, size=16, views=2)


def module(root: Path, **options: object) -> NTUDataModule:
    settings = {"sampling": SMALL, "batch_size": 4, "micro_batch_size": 2, "num_workers": 0, "validation": 0.25, **options}
    return data_of(root, **settings)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("workers", [0, 1])
def test_fit_and_test_from_video(ntu_tree: Path, workers: int) -> None:
    data, model, run = module(ntu_tree, num_workers=workers), Recorder(), trainer()
    run.fit(model, datamodule=data)
    assert run.accumulate_grad_batches == 2
    assert data.classes == ("wave", "walk")
    assert data.split_description["clips"] == {"train": 6, "val": 2, "test": 4}  # people 1, 2, 4, 5; one of them validates; 3 and 6 test
    assert sorted(model.clips("train")) == data.split.train.tolist()
    assert model.clips("val") == data.split.val.tolist()
    batch = model.seen["train"][0]
    assert batch.frames.shape == (2, 4, 3, 16, 16)
    assert (batch.frames.dtype, batch.times.dtype, batch.labels.dtype) == (torch.uint8, torch.float32, torch.int64)
    assert batch.labels.tolist() == data.index.label[batch.clips].tolist()
    assert data.keys(batch.clips, batch.views)[0] == (data.index.name[batch.clips[0]], int(batch.views[0]))
    trainer().test(model, datamodule=data)
    assert model.clips("test") == data.split.test.tolist()
    assert torch.cat([b.views for b in model.seen["test"]]).tolist() == [0] * 4
    # 13 frames, person 3: segment centres 1, 4, 8, 11 of brightness 30 + 10 i
    first = model.seen["test"][0].frames[0].float().mean((1, 2, 3))
    assert (first - torch.tensor([40.0, 70.0, 110.0, 140.0])).abs().max() <= 2


def test_predict_covers_every_view_once_and_skips_what_is_done(ntu_tree: Path) -> None:
    data, model = module(ntu_tree), Recorder()
    trainer().predict(model, datamodule=data, return_predictions=False)
    seen = [key for batch in model.seen["predict"] for key in data.keys(batch.clips, batch.views)]
    assert seen == data.predict_keys()
    assert len(seen) == len(set(seen)) == 8 * 2 + 4
    assert {name for name, view in seen if view == 1} == set(data.clip_names([*data.split.train, *data.split.val]))
    again = module(ntu_tree)
    again.setup("predict")
    again.skip(set(seen[:15]))
    assert [key for batch in again.predict_dataloader() for key in again.keys(batch.clips, batch.views)] == seen[15:]


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


def test_batches_from_caches(ntu_tree: Path, tmp_path: Path) -> None:
    features, events = make_caches(ntu_tree, tmp_path)
    data, model = module(ntu_tree, features=str(features), sampling=FrameSampling()), Recorder()
    trainer(reload_dataloaders_every_n_epochs=1).fit(model, datamodule=data)
    for batch in model.seen["train"]:
        assert isinstance(batch, FeatureBatch)
        assert batch.features.shape == (2, 3, 4, 2)
        assert batch.features[:, 0, 0, 0].tolist() == (batch.clips + batch.views / 2).tolist()
    assert data.sampling_settings["init_args"] == asdict(SMALL)
    assert len(data.predict_keys()) == 20
    data, model = module(ntu_tree, features=str(features), events=str(events)), Recorder()
    trainer().fit(model, datamodule=data)
    assert data.features_cache is None
    for batch in model.seen["train"] + model.seen["val"]:
        assert isinstance(batch, EventBatch)
        assert batch.vectors is None
        assert batch.ids.tolist() == batch.clips[:, None].expand(-1, 5).tolist()


def make_targets(root: Path, folder: Path, sampling: FrameSampling = SMALL, **other: object) -> Path:
    """Targets (n, 6, 4, 3) of value 100 + row + view / 2, stored in the reverse order of the features'."""
    data = module(root, sampling=sampling)
    data.setup("predict")
    keys = data.predict_keys()[::-1]
    rows = torch.tensor([data.index.name.tolist().index(name) for name, _ in keys])
    values = 100 + rows + torch.tensor([view / 2 for _, view in keys])
    provenance = {"sampling": data.sampling_settings, "extractor": {"model": "y"}, **other}
    with FeatureCacheWriter(folder, provenance) as writer:
        writer.add(keys, values[:, None, None, None].expand(-1, 6, 4, 3), torch.zeros(len(keys), 6), data.identities(rows))
    writer.finish(keys)
    return folder


def test_targets_are_of_the_same_clips_and_views_as_the_features(ntu_tree: Path, tmp_path: Path) -> None:
    """The pictures may be of another size, and the target cache may hold more views than are drawn."""
    features, _ = make_caches(ntu_tree, tmp_path)
    targets = make_targets(ntu_tree, tmp_path / "targets", FrameSampling(frames=4, size=32, views=3))
    data, model = module(ntu_tree, features=str(features), target_features=str(targets)), Recorder()
    trainer().fit(model, datamodule=data)
    trainer().test(model, datamodule=data)
    loader = data.train_dataloader()
    for epoch in range(2):  # each draws another view of every clip
        loader.sampler.set_epoch(epoch)
        model.seen["train"] += list(loader)
    assert {view for batch in model.seen["train"] for view in batch.views.tolist()} == {0, 1}
    for batch in model.seen["train"] + model.seen["val"] + model.seen["test"]:
        assert batch.targets.shape == (2, 6, 4, 3)
        assert batch.targets[:, 0, 0, 0].tolist() == (100 + batch.clips + batch.views / 2).tolist()
        assert batch.features[:, 0, 0, 0].tolist() == (batch.clips + batch.views / 2).tolist()
    trainer().predict(model, datamodule=data, return_predictions=False)
    assert all(batch.targets is None for batch in model.seen["predict"])  # nothing that is predicted needs them


def test_targets_of_test_views(ntu_tree: Path, tmp_path: Path) -> None:
    several = FrameSampling(frames=4, size=16, views=2, test_clips=3)
    features, _ = make_caches(ntu_tree, tmp_path, several)
    targets = make_targets(ntu_tree, tmp_path / "targets", several)
    model = Recorder()
    trainer().test(model, datamodule=module(ntu_tree, features=str(features), target_features=str(targets), micro_batch_size=4))
    for batch in model.seen["test"]:
        assert batch.views.tolist() == [1000, 1001, 1002]
        assert torch.equal(batch.targets[:, 0, 0, 0], 100 + batch.features[:, 0, 0, 0])


@pytest.mark.parametrize(
    ("sampling", "other", "key"),
    [
        (FrameSampling(frames=5, size=16, views=2), {}, "sampling.frames = 5, not 4"),
        (FrameSampling(frames=4, size=16, views=2, crop="pad"), {}, "sampling.crop = 'pad', not 'center'"),
        (FrameSampling(frames=4, size=16, views=2, test_clips=2), {}, "sampling.test_clips = 2, not 1"),
        (SMALL, {"view_seed": 1}, "view_seed = 1, not None"),
        (SMALL, {"augmentation": {"erase": 0.5}}, "augmentation.*, not None"),
    ],
)
def test_targets_of_other_frames(ntu_tree: Path, tmp_path: Path, sampling: FrameSampling, other: dict[str, object], key: str) -> None:
    features, _ = make_caches(ntu_tree, tmp_path)
    targets = make_targets(ntu_tree, tmp_path / "targets", sampling, **other)
    with pytest.raises(DataError, match=rf"targets: shows other frames .*features \({key}\); run `vtlvlm extract`") as caught:
        module(ntu_tree, features=str(features), target_features=str(targets)).setup("fit")
    assert "\n" not in str(caught.value)


def test_the_seed_of_views_does_not_matter_where_there_is_one_view(ntu_tree: Path, tmp_path: Path) -> None:
    one = FrameSampling(frames=4, size=16)
    features, _ = make_caches(ntu_tree, tmp_path, one)
    targets = make_targets(ntu_tree, tmp_path / "targets", one, view_seed=1)
    data = module(ntu_tree, features=str(features), target_features=str(targets))
    data.setup("fit")
    assert data.targets_cache is not None
    assert data.targets_cache.steps == 6


def test_targets_that_lack_views_clips_or_features(ntu_tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    features, events = make_caches(root, tmp_path)
    plain = make_targets(root, tmp_path / "plain", FrameSampling(frames=4, size=16))
    with pytest.raises(
        DataError, match=r"plain: lacks 8 of the 20 clips and views of .*features, the first being view 1 of S001.*views 2\)"
    ):
        module(root, features=str(features), target_features=str(plain)).setup("fit")
    for caches in ({}, {"features": str(features), "events": str(events)}):
        with pytest.raises(UsageError, match=r"data\.target_features needs .*: give data\.features, and no data\.events"):
            module(root, target_features=str(plain), **caches)
    (root / "s1/S001C001P001R001A007_rgb.avi").unlink()
    fewer = make_targets(root, tmp_path / "fewer")
    shutil.copy(root / "s1/S001C001P002R001A007_rgb.avi", root / "s1/S001C001P001R001A007_rgb.avi")
    module(root).setup()  # looks into the changed file
    other = make_targets(root, tmp_path / "other")
    shutil.copy(ntu_tree / "s1/S001C001P001R001A007_rgb.avi", root / "s1/S001C001P001R001A007_rgb.avi")
    module(root).setup()
    with pytest.raises(DataError, match=r"fewer: lacks 1 of 12 clips, the first being S001C001P001R001A007; run `vtlvlm extract`"):
        module(root, features=str(features), target_features=str(fewer)).setup("fit")
    with pytest.raises(DataError, match=r"other: 1 videos have changed since it was made, the first being .*S001C001P001R001A007"):
        module(root, features=str(features), target_features=str(other)).setup("fit")


@pytest.mark.parametrize("source", ["videos", "features", "events"])
def test_test_views_stand_side_by_side_from_every_source(ntu_tree: Path, tmp_path: Path, source: str) -> None:
    several = FrameSampling(frames=4, size=16, views=2, test_clips=3)
    features, events = make_caches(ntu_tree, tmp_path, several)
    caches = {"features": str(features)} if source == "features" else {"events": str(events)} if source == "events" else {}
    data, model = module(ntu_tree, sampling=several if source == "videos" else SMALL, micro_batch_size=4, **caches), Recorder()
    trainer().test(model, datamodule=data)
    assert data.test_views == (1000, 1001, 1002)
    assert data.num_views == 2
    assert [batch.views.tolist() for batch in model.seen["test"]] == [[1000, 1001, 1002]] * 4  # whole clips only, at most 4 rows
    assert model.clips("test") == np.repeat(data.split.test, 3).tolist()
    if source == "features":
        for batch in model.seen["test"]:
            assert batch.features[:, 0, 0, 0].tolist() == (batch.clips + batch.views / 2).tolist()
    keys = data.predict_keys()
    assert len(keys) == len(set(keys)) == 8 * 2 + 4 * 4
    trained, fitted = Recorder(), module(ntu_tree, sampling=several, **caches)
    trainer().fit(trained, datamodule=fitted)
    assert {view for batch in trained.seen["train"] for view in batch.views.tolist()} <= {0, 1}


def test_caches_that_do_not_fit_the_videos(ntu_tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    features, _ = make_caches(root, tmp_path)
    shutil.copy(root / "s1/S001C001P002R001A007_rgb.avi", root / "s1/S001C001P001R001A007_rgb.avi")
    for looked_into in (False, True):  # its size tells before
        if looked_into:
            module(root).setup()
        with pytest.raises(DataError, match=r"1 videos have changed since it was made, the first being .*S001C001P001R001A007"):
            module(root, features=str(features)).setup("fit")
    shutil.copy(root / "s1/S001C001P002R001A007_rgb.avi", root / "S001C001P008R001A007_rgb.avi")
    with pytest.raises(DataError, match=r"features: lacks 1 of 13 clips, the first being S001C001P008R001A007; run `vtlvlm extract`"):
        module(root, features=str(features)).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_stops_decoding_is_named_not_replaced(workers: int, ntu_tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    damaged(root / "S001C001P008R001A007.avi")
    data = module(root, num_workers=workers)
    with pytest.raises(DataError, match=r"S001C001P008R001A007\.avi: damaged: a frame is corrupt .*--verify") as caught:
        trainer().predict(Recorder(), datamodule=data, return_predictions=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_vanishes_during_the_run_is_named(workers: int, ntu_tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    data = module(root, num_workers=workers)
    data.setup("fit")
    (root / "s1/S001C001P001R001A007_rgb.avi").unlink()
    with pytest.raises(DataError, match=r"S001C001P001R001A007_rgb\.avi: no such file or directory") as caught:
        list(data.predict_dataloader())
    assert "\n" not in str(caught.value)


def test_left_out_clips_are_told_once(ntu_tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    (root / "S001C001P008R001A007_rgb.avi").touch()
    data = module(root)
    with pytest.warns(UserWarning, match=r"1 of 13 clips are left out: S001C001P008R001A007_rgb\.avi \(empty file"):
        data.setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("test")
    assert data.split_description["excluded"] == 1


def test_sizes_that_do_not_divide(ntu_tree: Path) -> None:
    with pytest.raises(UsageError, match="batch_size=5 is not a multiple of micro_batch_size=2 times 1 processes"):
        trainer().fit(Recorder(), datamodule=module(ntu_tree, batch_size=5))


def test_empty_sides(ntu_tree: Path) -> None:
    data = module(ntu_tree, protocol="xview60", validation=0.0)
    assert data.validates is False
    with pytest.raises(DataError, match=r"protocol xview60 leaves no clip for train: .*cameras 1"):
        data.setup("fit")
    data.setup("test")
    assert len(data.split.test) == 12


def test_no_validation_side(ntu_tree: Path) -> None:
    data, model = module(ntu_tree, validation=0.0), Recorder()
    trainer().fit(model, datamodule=data)
    assert len(model.clips("train")) == 8
    assert model.seen["val"] == []
    assert module(ntu_tree).validates is True
    other = module(ntu_tree)
    other.setup("fit")
    assert other.train_hash == data.train_hash


def test_labels_file_decides_the_layout(ntu_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,group\n" + "".join(f"s1/S001C001P{p:03}R001A007_rgb.avi,x,{p}\n" for p in range(1, 7)))
    data = module(ntu_tree, labels=str(tmp_path / "t.csv"), protocol="group")
    data.setup("fit")
    assert data.classes == ("x",)
    assert data.split_description["clips"] == {"train": 3, "val": 1, "test": 2}
    (tmp_path / "c.txt").write_text("A007 walking\n")
    data = module(ntu_tree, labels=str(tmp_path / "c.txt"))
    with pytest.warns(UserWarning, match="6 of 12 clips are left out"):
        data.setup("fit")
    assert data.classes == ("walking",)


def test_train_sampler_divides_an_epoch_over_ranks() -> None:
    clips, views = np.arange(100, 111), np.full(11, 3)
    ranks = [TrainSampler(clips, views, seed=1, rank=rank, world=2) for rank in range(2)]
    seen = [list(sampler) for sampler in ranks]
    assert [len(items) for items in seen] == [5, 5] == [len(sampler) for sampler in ranks]
    everything = seen[0] + seen[1]
    assert len({clip for clip, _ in everything}) == 10
    assert {view for _, view in everything} == {0, 1, 2}
    assert list(ranks[0]) == seen[0]
    ranks[0].set_epoch(1)
    assert list(ranks[0]) != seen[0]
    assert [len(list(TrainSampler(clips[:1], views, seed=0, rank=rank, world=2))) for rank in range(2)] == [1, 1]


def test_exact_sampler_repeats_nothing() -> None:
    parts = [list(ExactSampler(np.arange(13), np.zeros(13, dtype=int), rank=rank, world=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [7, 6]
    assert sorted(clip for part in parts for clip, _ in part) == list(range(13))


def test_more_processes_than_clips(ntu_tree: Path) -> None:
    data = module(ntu_tree)
    data.setup("test")
    data.trainer = SimpleNamespace(global_rank=0, world_size=5)  # type: ignore[assignment]
    with pytest.raises(UsageError, match="4 clips are too few for 5 processes"):
        data.test_dataloader()
    data.skip(set(data.predict_keys()[3:]))
    with pytest.raises(UsageError, match="3 clips are too few for 5 processes; start 3 or fewer"):
        data.predict_dataloader()


def test_index_and_names_need_no_torch() -> None:
    code = "import sys; import vtlvlm.data.split, vtlvlm.data.scan, vtlvlm.commands.prepare; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_fewer_clips_than_processes_are_left_of_a_cache(ntu_tree: Path) -> None:
    """An interrupted ``extract`` on eight processes, with one clip left: seven of them have nothing to do."""
    data = module(ntu_tree)
    data.setup("predict")
    keys = data.predict_keys()
    lengths = []
    for rank in range(8):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=8, training=False)  # type: ignore[assignment]
        data.skip(keys[1:], idle=True)
        lengths.append(len(data.predict_dataloader()))
    assert lengths == [1, 0, 0, 0, 0, 0, 0, 0]
    assert data.allow_zero_length_dataloader_with_multiple_devices


def test_clips_of_one_person_have_one_number_and_those_without_a_group_their_own(tmp_path: Path) -> None:
    data = module(tmp_path)
    data._index = SimpleNamespace(group=np.array(["P003", "", "P001", "P003", ""]))  # type: ignore[assignment]
    data._split = SimpleNamespace(train=np.array([0, 1, 2]))  # type: ignore[assignment]
    assert data.groups(torch.tensor([0, 3, 2, 1, 4, 1])).tolist() == [2, 2, 1, 6, 9, 6]


def test_clips_of_the_only_training_person_are_groups_of_their_own(tmp_path: Path) -> None:
    """Views of one clip stay together: in a fold of their own they would foretell each other."""
    data = module(tmp_path)
    data._index = SimpleNamespace(group=np.array(["P001", "P001", "P002", "P001"]))  # type: ignore[assignment]
    data._split = SimpleNamespace(train=np.array([0, 1, 3]))  # type: ignore[assignment]
    assert data.groups(torch.tensor([0, 0, 1, 3])).tolist() == [0, 0, 1, 3]
