"""A cache carries the index of its clips: it is read where the videos are not."""

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from modules import Recorder, make_caches, module, trainer
from pipeline import Pipeline

from vtlvlm.cli import main
from vtlvlm.data.cache_format import main_files
from vtlvlm.data.carried import INDEX, carried_index, carry_index
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.source import ClipSource
from vtlvlm.errors import DataError, UsageError


def require_equal(one: ClipIndex, two: ClipIndex, *but: str) -> None:
    """All fields, but those that only a search of the folder can tell."""
    for name in (field.name for field in fields(ClipIndex)):
        if name not in ("root", "notes", "lost", *but):
            first, second = getattr(one, name), getattr(two, name)
            if isinstance(first, np.ndarray):
                np.testing.assert_array_equal(first, second, err_msg=name)
            else:
                assert first == second, name


@pytest.fixture
def tree(ntu_tree: Path, tmp_path: Path) -> Path:
    """The clips with a broken one and a twin, which the index leaves out."""
    root = tmp_path / "tree"
    shutil.copytree(ntu_tree, root, ignore=shutil.ignore_patterns(".vtlvlm"))
    (root / "S001C001P007R001A007_rgb.avi").touch()
    (root / "s2").mkdir()
    (root / "s2/S001C002P001R001A007_rgb.avi").hardlink_to(root / "s1/S001C001P001R001A007_rgb.avi")
    return root


LISTS = {
    "classes.txt": "A007 walking\nA009 waving\n",
    "fewer.txt": "A009 waving\n",
    "t.csv": "path,label,split,group\n"
    + "".join(f"s1/S001C001P{p:03}R001A007_rgb.avi,{'x' if p < 4 else 'y'},{'val' if p == 2 else 'train'},g{p}\n" for p in range(1, 7))
    + "s1/none.avi,x,test,g9\n s1/S001C001P001R001A009_rgb.avi ,z,test,g1\ns1/S001C001P001R001A007_rgb.avi,x,train,g1\n",
}


@pytest.mark.parametrize("name", [None, *LISTS])
def test_labels_apply_as_if_the_folder_were_there(tree: Path, tmp_path: Path, name: str | None) -> None:
    """With the folder's own list of classes, another one, one that leaves out an action, and a table."""
    carry_index(tmp_path, ClipIndex.scan(tree, progress=False))
    if name is not None:
        (tmp_path / name).write_text(LISTS[name])
    given = {} if name is None else {"csv" if name.endswith("csv") else "classes": tmp_path / name}
    expected = ClipIndex.scan(tree, fast=True, progress=False, store=tmp_path / "new.parquet", **given)
    shutil.rmtree(tree)
    found = carried_index(tmp_path, **given)
    require_equal(found, expected, *(["name"] if "csv" in given else []))  # the cache knows its clips by NTU names
    assert found.root == tmp_path
    assert len(found.usable) > 4


def test_labels_apply_to_class_folders(tmp_path: Path, ntu_tree: Path) -> None:
    root = tmp_path / "tree"
    for number, clip in enumerate(sorted(ntu_tree.rglob("*.avi"))):
        place = root / ("train", "test")[number % 2] / ("run", "sit", "jump")[number % 3] / f"{number}.avi"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, place)
    carry_index(tmp_path, ClipIndex.scan(root, progress=False))
    (tmp_path / "names.txt").write_text("sit\nrun\nwalk\n")
    expected = ClipIndex.scan(root, tmp_path / "names.txt", fast=True, progress=False)
    with pytest.raises(AssertionError):
        require_equal(ClipIndex.read(tmp_path / INDEX), expected)
    shutil.rmtree(root)
    require_equal(carried_index(tmp_path, classes=tmp_path / "names.txt"), expected)


def test_a_table_may_name_the_clips(tree: Path, tmp_path: Path) -> None:
    """For features that were made from NTU names: they are found under these, whatever the table calls the classes."""
    carry_index(tmp_path, ClipIndex.scan(tree, progress=False))
    (tmp_path / "t.csv").write_text("path,label\nS001C001P001R001A007,x\ns1/S001C001P002R001A009_rgb.avi,y\n")
    found = carried_index(tmp_path, csv=tmp_path / "t.csv")
    assert found.name.tolist() == ["S001C001P001R001A007", "S001C001P002R001A009"]
    assert (found.classes, found.label.tolist()) == (("x", "y"), [0, 1])
    assert all(found.identity != "")


@pytest.mark.parametrize("kind", ["features", "events"])
@pytest.mark.parametrize("root", ["gone", None])
def test_a_data_module_reads_a_cache_without_videos(ntu_tree: Path, tmp_path: Path, kind: str, root: str | None) -> None:
    """The same batches in the same order, and no folder is looked for."""
    made = dict(zip(("features", "events"), make_caches(ntu_tree, tmp_path), strict=True))[kind]
    here = module(ntu_tree, **{kind: str(made)})
    here.setup("fit")
    carry_index(made, here.index)
    there = module(ntu_tree, **{kind: str(made)})
    there.source.__dict__["root"] = root
    one, two = Recorder(), Recorder()
    trainer().fit(one, datamodule=here)
    trainer().fit(two, datamodule=there)
    assert (here.source.has_videos, there.source.has_videos) == (True, False)
    for side in ("train", "val"):
        assert [batch.clips.tolist() for batch in one.seen[side]] == [batch.clips.tolist() for batch in two.seen[side]] != []
    assert (here.train_hash, here.split_description) == (there.train_hash, there.split_description)


def test_a_cache_that_carries_no_index(ntu_tree: Path, tmp_path: Path) -> None:
    """It was made by an earlier version: it works with the videos, and one line says what to do without."""
    features, _ = make_caches(ntu_tree, tmp_path)
    module(ntu_tree, features=str(features)).setup("fit")
    with pytest.raises(DataError, match=r"features: .*gone is not here, and this cache carries no index .*; name the folder") as caught:
        module(tmp_path / "gone", features=str(features)).setup("fit")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"no folder of videos: give --data\.source\.root, or a cache"):
        NTUDataModule(ClipSource()).setup("fit")


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 1000, None])
def test_an_index_that_is_none(ntu_tree: Path, tmp_path: Path, damage: bytes | None) -> None:
    """A stranger's file: it is checked, and one line names it."""
    features, _ = make_caches(ntu_tree, tmp_path)
    carry_index(features, ClipIndex.scan(ntu_tree, fast=True, progress=False))
    whole = (features / INDEX).read_bytes()
    (features / INDEX).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(DataError, match=r"index\.parquet: not an index of this version .*; copy the cache again") as caught:
        module(tmp_path / "gone", features=str(features)).setup("fit")
    assert "\n" not in str(caught.value)


def test_an_index_is_no_shard_and_a_link_is_not_followed(ntu_tree: Path, tmp_path: Path) -> None:
    features, _ = make_caches(ntu_tree, tmp_path)
    shards, precious = main_files(features), tmp_path / "precious.txt"
    precious.write_text("mine")
    (features / INDEX).symlink_to(precious)
    carry_index(features, ClipIndex.scan(ntu_tree, fast=True, progress=False))
    assert (precious.read_text(), (features / INDEX).is_symlink()) == ("mine", False)
    assert main_files(features) == shards


def test_a_moved_cache_does_all_that_it_did(chain: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both caches in another place, no videos: stage 1, tokenise, stage 2, its test and the probes give the same files."""
    features, events, again = tmp_path / "f", tmp_path / "e", tmp_path / "again"
    shutil.copytree(chain.features, features)
    shutil.copytree(chain.events, events)
    away = ["--data.source.root", tmp_path / "gone"]

    def run(*arguments: object) -> None:
        assert main([str(a) for a in arguments]) == 0

    on_features = [*chain.on_features[:2], *away, "--data.features", features]
    run("fit", *on_features, "--trainer.default_root_dir", tmp_path / "run1")
    run("validate", *on_features, "--trainer.default_root_dir", tmp_path / "run1", "--ckpt_path", "best")
    run("tokenize", *on_features, "--ckpt_path", tmp_path / "run1/checkpoints/best.ckpt", "--output", again)
    require_equal(ClipIndex.read(again / INDEX), ClipIndex.read(events / INDEX))
    assert [path.read_bytes() for path in main_files(again)] == [path.read_bytes() for path in main_files(events)]
    on_events = [*chain.on_events[:2], *away, "--data.events", events]
    run("fit", *on_events, "--trainer.default_root_dir", tmp_path / "run2")
    run("test", *on_events, "--trainer.default_root_dir", tmp_path / "run2", "--ckpt_path", "best")
    run("predict", *on_events, "--trainer.default_root_dir", tmp_path / "run2", "--ckpt_path", "best")
    run("probe", "--features", features, "--output", tmp_path / "probe.json")
    assert (tmp_path / "run2/predictions_test.csv").read_text() == (chain.run2 / "predictions_test.csv").read_text()
    assert (tmp_path / "run1/codebook_val.png").is_file()  # without pictures of codes
    assert "the clips are those of the cache's index; no videos are here" in caplog.text
    assert not (tmp_path / "gone").exists()


def test_changed_videos_are_refused_where_they_are(tree: Path, tmp_path: Path) -> None:
    features, _ = make_caches(tree, tmp_path)
    carry_index(features, ClipIndex.scan(tree, progress=False))
    changed = tree / "s1/S001C001P001R001A007_rgb.avi"
    changed.write_bytes(changed.read_bytes() + b"more")
    with pytest.raises(DataError, match="videos have changed since it was made"):
        module(tree, features=str(features)).setup("fit")
