"""Caches are of the clips and frames that are read: the clips' own, and stage 1's targets beside the features."""

import shutil
from pathlib import Path

import pytest
import torch
from modules import SMALL, Recorder, make_caches, module, trainer

from vtlvlm.data.cache import FeatureCacheWriter
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import DataError, UsageError


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
