"""The data module of recordings: the same splits as for videos, every clip once, draws that depend on the clip alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from modules import Recorder, trainer
from skeletons import moving_body, of_bodies

from vtlvlm.batches import SkeletonBatch
from vtlvlm.data.ntu import ACTIONS
from vtlvlm.errors import DataError, UsageError
from vtlvlm.skeleton.datamodule import SkeletonDataModule
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.packing import pack
from vtlvlm.skeleton.preparing import BoxedFrames, CropAndResize, UniformFrames, WholeClips
from vtlvlm.skeleton.source import SkeletonSource
from vtlvlm.skeleton.streams import Stream

PEOPLE, ACTS = range(1, 7), (8, 58)


def write(root: Path, name: str, seed: int, bodies: int = 1) -> None:
    random = np.random.default_rng(seed)
    frames = int(random.integers(5, 30))
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(of_bodies({str(body): (0, moving_body(random, frames)) for body in range(bodies)}, frames))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two actions of six people before three cameras; the second action has two bodies. One file is damaged."""
    folder = tmp_path_factory.mktemp("set")
    for seed, (person, action, camera) in enumerate((p, a, c) for p in PEOPLE for a in ACTS for c in (1, 2, 3)):
        write(folder, f"S003C{camera:03}P{person:03}R001A{action:03}.skeleton", seed, 1 + (action == 58))
    (folder / "S003C001P001R002A008.skeleton").write_text("3\n0\n0\n0\n")
    return folder


def data_of(root: Path, protocol: str = "xsub60", **options: object) -> SkeletonDataModule:
    own = {name: options.pop(name) for name in ("labels", "validation", "exclude_missing_skeletons") if name in options}
    settings = {"preparation": CropAndResize(window=8), "batch_size": 4, "num_workers": 0, **options}
    return SkeletonDataModule(SkeletonSource(str(root), protocol, **{"validation": 0.0, **own}), **settings)  # type: ignore[arg-type]


def names(data: SkeletonDataModule, rows) -> set[str]:
    return set(data.clip_names(rows))


def test_splits_are_those_of_the_names(root):
    data = data_of(root, "cameras:1,2", validation=0.3)
    with pytest.warns(UserWarning, match=r"1 of 37 clips are left out: S003C001P001R002A008\.skeleton \(holds no body in any frame"):
        data.setup()
    assert {name[4:8] for name in names(data, data.split.test)} == {"C003"}
    assert len(data.split.test) == 12
    assert len(data.split.train) + len(data.split.val) == 24
    assert not {name[8:12] for name in names(data, data.split.train)} & {name[8:12] for name in names(data, data.split.val)}
    assert data.classes == ACTIONS[:60]
    assert (data.layout, data.bodies, data.window) == (NTU25, 2, 8)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_batches_through_a_trainer(root):
    recorder, data = Recorder(), data_of(root, batch_size=6, repeats=2, validation=0.3)
    runner = trainer()
    runner.fit(recorder, datamodule=data)
    batch = recorder.seen["train"][0]
    assert isinstance(batch, SkeletonBatch)
    assert batch.joints.shape == (6, 3, 8, 25, 2)
    assert batch.joints.dtype == torch.float32
    assert batch.labels.tolist() == data.index.label[batch.clips].tolist()
    clips = recorder.clips("train")
    assert len(clips) == 2 * len(data.split.train) // 6 * 6
    assert set(clips) <= set(data.split.train.tolist())
    assert max(clips.count(clip) for clip in clips) == 2
    assert recorder.clips("val") == data.split.val.tolist()
    runner.test(recorder, datamodule=data)
    assert recorder.clips("test") == data.split.test.tolist()
    one_body = data.index.label[data.split.test] == 7
    tested = torch.cat([batch.joints for batch in recorder.seen["test"]])
    assert not tested[one_body][..., 1].any()
    assert tested[~one_body][..., 1].any()
    runner.predict(recorder, datamodule=data)
    assert sorted(recorder.clips("predict")) == sorted(np.concatenate(list(map(list, (data.split.train, data.split.val, data.split.test)))))


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_an_evaluation_is_that_of_the_recording(root):
    data = data_of(root, stream="bone", batch_size=5)
    data.setup("test")
    for raw in data.test_dataloader():
        batch = data.on_after_batch_transfer(data.on_before_batch_transfer(raw, 0), 0)
        for place, clip in enumerate(batch.clips.tolist()):
            row = data.recordings.paths.index(data.index.path[clip])
            own = torch.from_numpy(data.recordings.values(row)[..., :3].copy())
            joints = torch.zeros(1, 3, own.shape[1], 25, 2)
            joints[0, ..., : len(own)] = own.permute(3, 1, 2, 0)
            alone = data.preparation(joints, torch.tensor([own.shape[1]]), NTU25, torch.zeros(1, 30), False)
            torch.testing.assert_close(batch.joints[place], Stream("bone", NTU25)(alone)[0], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_draws_do_not_depend_on_the_batch(root):
    def seen(batch_size: int, seed: int = 0) -> dict[tuple[int, int], torch.Tensor]:
        data = data_of(root, batch_size=batch_size, seed=seed, preparation=CropAndResize(window=8, least_frames=4, bones=0.2))
        data.setup("fit")
        batches = [data.on_after_batch_transfer(data.on_before_batch_transfer(raw, 0), 0) for raw in data.train_dataloader()]
        return {
            key: joints for b in batches for key, joints in zip(zip(b.clips.tolist(), b.views.tolist(), strict=True), b.joints, strict=True)
        }

    one, other = seen(2), seen(6)
    assert one.keys() == other.keys()
    for key, joints in one.items():
        torch.testing.assert_close(joints, other[key], atol=1e-5, rtol=0)
    assert not one.keys() & seen(2, seed=1).keys()


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_each_epoch_draws_anew(root):
    data, recorder = data_of(root), Recorder()
    runner = trainer()
    runner.fit_loop.max_epochs = 2
    runner.fit(recorder, datamodule=data)
    first, second = recorder.seen["train"][: len(recorder.seen["train"]) // 2], recorder.seen["train"][len(recorder.seen["train"]) // 2 :]
    joints = [{int(c): j for b in half for c, j in zip(b.clips, b.joints, strict=True)} for half in (first, second)]
    for clip in joints[0].keys() & joints[1].keys():
        assert not torch.allclose(joints[0][clip], joints[1][clip], atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_several_test_views_follow_each_other(root):
    data = data_of(root, preparation=UniformFrames(window=8, views=3))
    data.setup("test")
    assert data.test_views == (1000, 1001, 1002)
    batches = [data.on_after_batch_transfer(data.on_before_batch_transfer(raw, 0), 0) for raw in data.test_dataloader()]
    clips, views = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("clips", "views"))
    assert clips.tolist() == np.repeat(data.split.test, 3).tolist()
    assert views.tolist() == [1000, 1001, 1002] * len(data.split.test)
    joints = torch.cat([batch.joints for batch in batches])
    assert not torch.equal(joints[0], joints[1])
    again = [data.on_after_batch_transfer(data.on_before_batch_transfer(raw, 0), 0) for raw in data.test_dataloader()]
    assert torch.equal(joints, torch.cat([batch.joints for batch in again]))


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_pixels_have_a_confidence(root):
    data = data_of(root, coordinates="pixels", preparation=WholeClips(window=40))
    data.setup("test")
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(next(iter(data.test_dataloader())), 0), 0)
    expected = torch.stack([960.0 + torch.arange(25), 540.0 - torch.arange(25), torch.arange(25) % 3 / 2])
    torch.testing.assert_close(batch.joints[0, :, 0, :, 0], expected)
    length = int(data.index.frames[batch.clips[0]])
    assert not batch.joints[0, :, length:].any()
    with pytest.raises(UsageError, match="CropAndResize turns bodies in space, which pixels are not"):
        data_of(root, coordinates="pixels")


def test_missing_skeletons_are_those_of_ntu_alone(tmp_path):
    """S001C002P005R002A008 is on NTU's list of missing skeletons."""
    for number, name in enumerate(("S001C002P005R002A008", "S001C002P001R001A008", "S001C002P003R001A008")):
        write(tmp_path, f"{name}.skeleton", number)
    data = data_of(tmp_path)
    data.setup()
    assert names(data, data.split.train) == {"S001C002P001R001A008"}
    kept = data_of(tmp_path, exclude_missing_skeletons=False)
    kept.setup()
    assert len(kept.split.train) == 2
    (tmp_path / "classes.txt").write_text("A008 sitting down\n")
    other = data_of(tmp_path)
    other.setup()
    assert len(other.split.train) == 2
    assert other.classes == ("sitting down",)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_a_packed_folder_serves_without_the_files(root, tmp_path):
    pack(root, tmp_path / "packed", progress=False)
    here, there = data_of(root), data_of(tmp_path / "packed")
    for data in (here, there):
        data.setup("test")
    for one, other in zip(here.test_dataloader(), there.test_dataloader(), strict=True):
        torch.testing.assert_close(one.joints, other.joints)
        assert one.labels.tolist() == other.labels.tolist()
    assert here.train_hash == there.train_hash


def test_the_list_of_classes_goes_with_a_packed_folder(tmp_path):
    for person in (1, 3):
        write(tmp_path / "set", f"S003C001P{person:03}R001A008.skeleton", person)
    (tmp_path / "set/classes.txt").write_text("A008 sitting down\nA058 shaking hands\n")
    pack(tmp_path / "set", tmp_path / "packed", progress=False)
    data = data_of(tmp_path / "packed")
    data.setup()
    assert data.classes == ("sitting down", "shaking hands")


def test_class_folders_and_a_table_of_the_videos(tmp_path):
    for number in range(6):
        write(tmp_path, f"{'run' if number % 2 else 'walk'}/{number}.skeleton", number)
    data = data_of(tmp_path, "group")
    data.setup()
    assert data.classes == ("run", "walk")
    table = tmp_path / "table.csv"
    table.write_text(
        "path,label,split\n" + "".join(f"{'run' if n % 2 else 'walk'}/{n}.avi,{n % 3},{'test' if n < 2 else 'train'}\n" for n in range(6))
    )
    data = data_of(tmp_path, "csv", labels=str(table))
    data.setup()
    assert data.classes == ("0", "1", "2")
    assert names(data, data.split.test) == {"walk/0.skeleton", "run/1.skeleton"}


def test_nw_ucla(test_data):
    file = test_data / "skeletons/nw_ucla.npz"
    if not file.is_file():
        pytest.skip("VTLVLM_TEST_DATA holds no skeletons/nw_ucla.npz")
    data = data_of(file, "cameras:1,2", preparation=BoxedFrames(), repeats=5, batch_size=16)
    data.setup("fit")
    assert (len(data.split.train), len(data.split.test)) == (1020, 464)
    assert data.num_classes == 10
    assert (data.layout.name, data.bodies, data.window) == ("kinect20", 1, 52)
    assert len(data.train_dataloader()) == 5 * 1020 // 16
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0), 0)
    assert batch.joints.shape == (16, 3, 52, 20, 1)
    assert float(batch.joints.abs().max()) <= 1 + 1e-5


def test_nw_ucla_is_tested_as_by_the_official_code(test_data):
    file = test_data / "skeletons/nw_ucla.npz"
    if not file.is_file():
        pytest.skip("VTLVLM_TEST_DATA holds no skeletons/nw_ucla.npz")
    data = data_of(file, "cameras:1,2", preparation=BoxedFrames(), batch_size=16)
    data.setup("test")
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(next(iter(data.test_dataloader())), 0), 0)
    for place in range(16):
        value = data.recordings.values(data.recordings.paths.index(data.index.path[int(batch.clips[place])]))[0]
        value = value - value[0, 1]
        flat = value.reshape(-1, 3)
        flat = (flat - flat.min(0)) / (flat.max(0) - flat.min(0)) * 2 - 1
        frames = [step * (len(value) - 1) // 51 for step in range(52)]
        np.testing.assert_allclose(batch.joints[place, ..., 0].permute(1, 2, 0), flat.reshape(-1, 20, 3)[frames], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_settings_that_cannot_work_are_refused(root, tmp_path):
    for options, message in (
        ({"stream": "bones"}, "bones: no such stream"),
        ({"coordinates": "feet"}, "choose metres or pixels"),
        ({"bodies": 3}, "one or two bodies"),
        ({"repeats": 0}, "repeats from 1"),
        ({"batch_size": 0}, "sizes from 1"),
        ({"protocol": "cameras:7"}, "the clips have cameras 1-3"),
    ):
        with pytest.raises(UsageError, match=message):
            data_of(root, **options).setup()
    for kind, setting in (
        (CropAndResize, {"window": 0}),
        (CropAndResize, {"least_share": 0.0}),
        (CropAndResize, {"middle": 1.5}),
        (CropAndResize, {"bones": 1.0}),
        (CropAndResize, {"angle": -1.0}),
        (UniformFrames, {"views": 0}),
        (BoxedFrames, {"degrees": 181}),
    ):
        with pytest.raises(UsageError, match=next(iter(setting))):
            kind(**setting)
    with pytest.raises(DataError, match="no such file or folder of recordings"):
        data_of(tmp_path / "none").setup()
    np.savez(tmp_path / "plain.npz", joints=np.ones((2, 20, 3)), frames=np.array([1, 1]), name=np.array(["a/x", "b/y"]))
    with pytest.raises(UsageError, match="holds no pixels"):
        data_of(tmp_path / "plain.npz", "all", coordinates="pixels", preparation=WholeClips()).setup()
