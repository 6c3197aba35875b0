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
from modules import SMALL, Recorder, make_caches, module, trainer
from videos import damaged

from vtlvlm.batches import EventBatch, FeatureBatch
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import DataError, UsageError
from vtlvlm.stages.checkpoint_writing import run_checkpoints


@pytest.mark.parametrize("workers", [0, 1])
def test_fit_and_test_from_video(ntu_tree: Path, workers: int) -> None:
    data, model, run = module(ntu_tree, num_workers=workers), Recorder(), trainer()
    run.fit(model, datamodule=data)
    assert run.accumulate_grad_batches == 2
    assert data.classes == ("wave", "walk")
    assert data.split_description["clips"] == {"train": 6, "val": 2, "test": 4}  # people 1, 2, 4, 5; one of them validates; 3 and 6 test
    assert len(model.clips("train")) == len(set(model.clips("train")) & {*data.split.train.tolist()}) == 4  # one whole batch
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


def test_a_share_that_the_micro_batch_does_not_divide(ntu_tree: Path) -> None:
    """Two at most, but they do not divide five: one at a time."""
    run, model = trainer(), Recorder()
    run.fit(model, datamodule=module(ntu_tree, batch_size=5))
    assert run.accumulate_grad_batches == 5
    assert [len(batch.labels) for batch in model.seen["train"]] == [1] * 5


def test_a_batch_that_takes_several_passes_is_never_cut_short(ntu_tree: Path) -> None:
    with pytest.raises(UsageError, match=r"batch_size=8 in 4 passes, but the split has only 6 training clips: set --data\.batch_size 6"):
        trainer().fit(Recorder(), datamodule=module(ntu_tree, batch_size=8))
    run, model = trainer(), Recorder()
    run.fit(model, datamodule=module(ntu_tree, batch_size=8, micro_batch_size=None))  # nothing is accumulated: all six at once
    assert [len(batch.labels) for batch in model.seen["train"]] == [6]


class WholeBatch(Recorder):
    whole_batch = True


@pytest.mark.parametrize(("batch", "most", "part"), [(4, 2, 2), (4, None, 4), (6, 4, 3)])
def test_a_stage_that_needs_whole_batches_gets_them(ntu_tree: Path, tmp_path: Path, batch: int, most: int | None, part: int) -> None:
    """Evaluations keep the micro-batch, at most 8 videos."""
    features, _ = make_caches(ntu_tree, tmp_path)
    data, model, run = module(ntu_tree, features=str(features), batch_size=batch, micro_batch_size=most), WholeBatch(), trainer()
    run.fit(model, datamodule=data)
    assert (run.accumulate_grad_batches, data.micro_batch_size, data.global_micro_batch) == (1, part, batch)
    assert [len(found.labels) for found in model.seen["train"]] == [batch]
    trainer().test(model, datamodule=data)
    assert [len(found.labels) for found in model.seen["test"]] == ([4] if part == 4 else [part, 4 - part])
    other = Recorder()
    run = trainer()
    run.fit(other, datamodule=data)  # the same data for a stage that does not
    assert (run.accumulate_grad_batches, len(other.seen["train"])) == (batch // part, batch // part)


def test_evaluations_decode_few_videos_at_once(ntu_tree: Path, tmp_path: Path) -> None:
    features, _ = make_caches(ntu_tree, tmp_path)
    for cache, sizes in ((None, [8, 8, 4]), (str(features), [20])):
        data = module(ntu_tree, features=cache, batch_size=128, micro_batch_size=None)
        data.setup("predict")
        assert [len(batch.labels) for batch in data.predict_dataloader()] == sizes


def test_empty_sides(ntu_tree: Path) -> None:
    data = module(ntu_tree, protocol="xview60", validation=0.0)
    with pytest.raises(DataError, match=r"protocol xview60 leaves no clip for train: .*cameras 1"):
        data.setup("fit")
    data.setup("test")
    assert len(data.split.test) == 12


def test_no_validation_side(ntu_tree: Path) -> None:
    data, model = module(ntu_tree, validation=0.0), Recorder()
    trainer().fit(model, datamodule=data)
    assert len(model.clips("train")) == 8
    assert model.seen["val"] == []
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


def test_groups_of_a_batch_are_those_of_its_clips(ntu_tree: Path) -> None:
    data = module(ntu_tree)
    data.setup("fit")
    clips = torch.tensor([3, 0, 3, 1])
    people = data.index.group[clips.numpy()]
    found = data.groups(clips)
    assert found.dtype == torch.int64
    assert (found[:, None] == found).tolist() == (people[:, None] == people).tolist()


class Scored(Recorder):
    """Logs a validation figure."""

    def validation_step(self, batch: EventBatch, index: int) -> None:
        super().validation_step(batch, index)
        self.log("val/loss", float(index), batch_size=len(batch.labels))


def test_a_table_with_validation_rows_gets_a_best_checkpoint(ntu_tree: Path, tmp_path: Path) -> None:
    """Though ``validation`` is 0: the table's own rows validate."""
    sides = ["train", "train", "train", "train", "val", "test"]
    rows = [f"s1/S001C001P{p:03}R001A007_rgb.avi,{'xy'[p % 2]},{side}\n" for p, side in enumerate(sides, 1)]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "".join(rows))
    data = module(ntu_tree, labels=str(tmp_path / "t.csv"), protocol="csv", validation=0.0)
    found = run_checkpoints(tmp_path, "val/loss", "min")
    run = lightning.Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=found, enable_progress_bar=False)
    run.fit(Scored(), datamodule=data)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
