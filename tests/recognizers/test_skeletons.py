"""A skeleton network as a recogniser: exported from a run, read by `classify`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from moves import write_moves
from safetensors.torch import load_file
from skeletons import moving_body, of_bodies

from vtlvlm.cli import main
from vtlvlm.errors import DataError
from vtlvlm.recognizers.recognizer import ActionRecognizer, require_kind
from vtlvlm.recognizers.skeletons import SkeletonRecognizer
from vtlvlm.skeleton.backbone import EmbeddedJoints, Network, NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.curves import CurveTemporal
from vtlvlm.skeleton.datamodule import SkeletonDataModule
from vtlvlm.skeleton.heads import BottleneckHead, Head, LinearHead
from vtlvlm.skeleton.heatmaps import HeatMaps
from vtlvlm.skeleton.hierarchical import HierarchicalGraph
from vtlvlm.skeleton.koopman import KoopmanHead
from vtlvlm.skeleton.packed import NW_UCLA_ACTIONS, open_recordings
from vtlvlm.skeleton.preparing import BoxedFrames, CropAndResize, Preparation, UniformFrames, WholeClips
from vtlvlm.skeleton.reading import read_skeleton
from vtlvlm.skeleton.refining import RefiningHead
from vtlvlm.skeleton.slowonly import PoseC3D
from vtlvlm.skeleton.source import SkeletonSource
from vtlvlm.skeleton.spatial import AttentionTopology, DilatedGraph, RefinedTopology, ShiftGraph
from vtlvlm.skeleton.temporal import MultiScaleTemporal, PlainTemporal, ShiftTemporal
from vtlvlm.skeleton.text_parts import TextPartsHead
from vtlvlm.skeleton.text_table import write_table
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.sgd import SGD

CLASSES = ["wave", "kick", "bow"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of three actions, four people and three cameras, of different lengths; the last action has two bodies."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "classes.txt").write_text("".join(f"A{number:03} {name}\n" for number, name in enumerate(CLASSES, 1)))
    for seed, (action, person, camera) in enumerate((a, p, c) for a in (1, 2, 3) for p in (1, 2, 3, 4) for c in (1, 2, 3)):
        random = np.random.default_rng(seed)
        frames = int(random.integers(12, 20))
        bodies = {str(body): (0, moving_body(random, frames)) for body in range(1 + (action == 3))}
        (folder / f"S001C{camera:03}P{person:03}R001A{action:03}.skeleton").write_text(of_bodies(bodies, frames))
    return folder


@pytest.fixture(scope="module")
def pictured(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recordings, whose pixels follow the joints; the pixels of one joint are unknown."""
    folder = tmp_path_factory.mktemp("pictured")
    (folder / "classes.txt").write_text((root / "classes.txt").read_text())
    for file in root.glob("*.skeleton"):
        lines = [line.split() for line in file.read_text().splitlines()]
        for words in lines:
            if len(words) == 12:
                unknown = words[5] == "967"
                words[5:7] = ["NaN", "NaN"] if unknown else [str(960 + 300 * float(words[0])), str(540 - 300 * float(words[1]))]
        (folder / file.name).write_text("".join(" ".join(words) + "\n" for words in lines))
    return folder


def data_of(root: Path, preparation: Preparation | None = None, **settings: Any) -> SkeletonDataModule:
    source = SkeletonSource(str(root), "cameras:1,2", validation=0.25)
    return SkeletonDataModule(source, preparation or CropAndResize(8), batch_size=6, num_workers=0, **settings)


def small(spatial: Any = None, temporal: Any = None, embedding: Any = None) -> SkeletonNet:
    return SkeletonNet(embedding or NormalisedJoints(), spatial or RefinedTopology(), temporal or MultiScaleTemporal(), (16, 16), (1, 2))


def trainer(folder: Path, steps: int = 6) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, max_steps=steps, use_distributed_sampler=False, **quiet)


def trained(folder: Path, data: SkeletonDataModule, network: Network | None = None, head: Head | None = None) -> Path:
    """The run folder of a short training."""
    torch.manual_seed(0)
    trainer(folder).fit(Recognition(network or small(), head or LinearHead(), SGD(0.01)), datamodule=data)
    return folder


def require_same(run: Path, data: SkeletonDataModule, bundle: Path, classes: Sequence[str] = CLASSES) -> None:
    """A bundle gives the probabilities that a test of the run gives, on every test clip, which differ among the clips."""
    (best,) = run.rglob("best.ckpt")
    stage, rows = Recognition.load_from_checkpoint(best), []

    class Keep(lightning.Callback):
        def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            rows.extend(zip(outputs["clips"].tolist(), outputs["probs"], strict=True))

    runner = trainer(run)
    runner.callbacks.append(Keep())
    runner.test(stage, datamodule=data, verbose=False)
    assert stage.temperature.item() != 1
    assert len(rows) == 12
    assert main(["export", str(run), str(bundle)]) == 0
    recognizer = ActionRecognizer.from_checkpoint(bundle, device="cpu")
    assert isinstance(recognizer, SkeletonRecognizer)
    for clip, expected in rows:
        found = recognizer.classify(data.index.file(clip), top=len(classes))
        assert found.events is None
        assert [probability for _, probability in sorted(found.actions, key=lambda one: classes.index(one[0]))] == pytest.approx(
            expected.tolist(), abs=1e-5
        )
    assert torch.stack([probs for _, probs in rows]).std(0).max() > 1e-4


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), data_of(root))


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bundles") / "b"
    assert main(["export", str(run), str(place)]) == 0
    return place


def test_probabilities_are_those_of_a_test_and_of_predict(root: Path, run: Path, tmp_path: Path) -> None:
    data = data_of(root)
    require_same(run, data, tmp_path / "b")
    predicted = torch.cat(trainer(run).predict(Recognition.load_from_checkpoint(next(run.rglob("best.ckpt"))), datamodule=data))
    recognizer = ActionRecognizer.from_checkpoint(tmp_path / "b", device="cpu")
    clips = torch.cat([batch.clips for batch in data.predict_dataloader()])
    for clip, expected in zip(clips.tolist(), predicted, strict=True):
        found = dict(recognizer.classify(data.index.file(clip)).actions)
        assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)


def test_drawn_views_and_pixels_are_those_of_a_test(pictured: Path, tmp_path: Path) -> None:
    """PoseC3D: three views of frames that are drawn by the recording's name, of pixels in the picture."""
    data = data_of(pictured, UniformFrames(4, 3, align=False), coordinates="pixels", seed=5)
    network = PoseC3D(HeatMaps(size=8, eval_size=12), width=4, blocks=[1, 1, 1])
    require_same(trained(tmp_path / "run", data, network), data, tmp_path / "b")


def long(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


KINDS = {
    "bone, InfoGCN": ({"stream": "bone"}, small(AttentionTopology(2), embedding=EmbeddedJoints(16)), BottleneckHead()),
    "motion, HD-GCN": ({"stream": "joint_motion", "bodies": 1}, small(HierarchicalGraph()), LinearHead()),
    "Shift-GCN": ({"preparation": WholeClips(24, "repeat", True)}, small(ShiftGraph(), ShiftTemporal()), LinearHead()),
    "FR-Head": ({}, small(), RefiningHead(blocks=(1, 2), block_weights=(0.1, 1.0), width=32)),
    "STC-Net": ({"bodies": 1}, small(DilatedGraph(2), CurveTemporal(length=3)), LinearHead()),
    "Koopman": ({}, small(temporal=PlainTemporal()), KoopmanHead()),
}


@pytest.mark.parametrize("name", [name if name.startswith(("bone", "FR")) else long(name) for name in KINDS])
def test_every_kind_of_part_comes_through_a_bundle(root: Path, tmp_path: Path, name: str) -> None:
    settings, network, head = KINDS[name]
    data = data_of(root, **settings)
    require_same(trained(tmp_path / "run", data, network, head), data, tmp_path / "b")


def test_what_only_training_needs_is_left_out(root: Path, tmp_path: Path) -> None:
    """GAP's texts and their maps; no file that the run named is named, or needed."""
    texts = tmp_path / "texts.safetensors"
    write_table(texts, CLASSES, torch.randn(3, 5, 6), "random numbers")
    data = data_of(root)
    trained(tmp_path / "run", data, head=TextPartsHead(str(texts), text_width=6))
    texts.unlink()
    require_same(tmp_path / "run", data, tmp_path / "b")
    held = load_file(tmp_path / "b" / "network.safetensors")
    assert {name for name in held if not name.startswith("network.")} == {"head.fc.weight", "head.fc.bias", "temperature"}
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert described["head"]["init_args"]["texts"] is None
    counts = described["origin"]["parameters"]
    assert counts["training"] - counts["inference"] == 5 * (16 * 6 + 6) + 5
    buffers = ("running_mean", "running_var", "num_batches_tracked", "temperature")
    assert sum(tensor.numel() for name, tensor in held.items() if not name.endswith(buffers)) == counts["inference"]


def test_a_bundle_says_what_it_is(bundle: Path) -> None:
    described = json.loads((bundle / "bundle.json").read_text())
    assert {name: described[name] for name in ("kind", "classes", "layout", "bodies", "stream", "coordinates", "seed")} == {
        **{"kind": "skeletons", "classes": CLASSES, "layout": "ntu25", "bodies": 2},
        **{"stream": "joint", "coordinates": "metres", "seed": 0},
    }
    assert described["preparation"]["class_path"] == "vtlvlm.skeleton.preparing.CropAndResize"
    assert described["preparation"]["init_args"]["window"] == 8
    assert described["origin"]["protocol"] == "cameras:1,2"


def test_a_run_folder_gives_what_its_bundle_gives(root: Path, run: Path, bundle: Path) -> None:
    file = root / "S001C003P001R001A003.skeleton"
    one, two = (ActionRecognizer.from_checkpoint(path, device="cpu").classify(file).actions for path in (run, bundle))
    assert one == two


def test_classify_prints_the_files_of_a_folder(root: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In its order; a damaged file does not stop the others."""
    broken = tmp_path / "broken.skeleton"
    broken.write_text("3\n")
    assert main(["classify", "--json", "--top", "3", "--device", "cpu", "--model", str(bundle), str(broken), str(root)]) == 1
    printed = capsys.readouterr()
    first, *lines = map(json.loads, printed.out.splitlines())
    assert "error" in first
    assert "broken.skeleton" in printed.err
    assert [line["file"] for line in lines] == sorted(map(str, root.rglob("*.skeleton")))
    assert all(sum(action["probability"] for action in line["actions"]) == pytest.approx(1, abs=1e-5) for line in lines)
    assert main(["classify", "--model", str(bundle), lines[0]["file"]]) == 0
    assert capsys.readouterr().out.splitlines()[1].strip().endswith(tuple(CLASSES))


def test_a_video_is_refused_with_the_way_to_skeletons(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.mp4").touch()
    for given in (tmp_path / "clip.mp4", tmp_path):
        assert main(["classify", "--model", str(bundle), str(given)]) == 1
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert str(given) in line
        assert "`vtlvlm poses`" in line
        assert not printed.out
    with pytest.raises(DataError, match="`vtlvlm poses`"):
        ActionRecognizer.from_checkpoint(bundle, device="cpu").classify(tmp_path / "clip.mp4")


def test_options_for_other_models_are_refused(run: Path, root: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(next(root.glob("*.skeleton")))
    for model in (bundle, run):
        assert main(["classify", "--model", str(model), "--dtype", "float32", file]) == 2
        assert "a skeleton network, which has no language model: leave dtype out" in capsys.readouterr().err
    assert main(["export", str(run), str(bundle)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["export", str(run), str(bundle.with_name("c")), "--vtem", "x.ckpt"]) == 2
    assert "leave --vtem out" in capsys.readouterr().err
    assert main(["export", str(run), str(bundle.with_name("c")), "--format", "peft"]) == 2
    assert "of stage 'recognition'" in capsys.readouterr().err
    assert not bundle.with_name("c").exists()


@pytest.fixture(scope="module")
def moves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 20 joints in one file."""
    return write_moves(tmp_path_factory.mktemp("moves") / "moves.npz", repetitions=1)


@pytest.fixture(scope="module")
def of_20_joints(moves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose probabilities are those of a test, on every recording."""
    folder = tmp_path_factory.mktemp("kinect20")
    data = SkeletonDataModule(SkeletonSource(str(moves), "cameras:1,2", validation=0.25), BoxedFrames(8), batch_size=6, num_workers=0)
    torch.manual_seed(0)
    trainer(folder / "run").fit(Recognition(small(), LinearHead(), SGD(0.01)), datamodule=data)
    require_same(folder / "run", data, folder / "b", NW_UCLA_ACTIONS)
    return folder / "b"


def test_a_network_of_20_joints_reads_a_file_of_recordings(moves: Path, of_20_joints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each recording has a result; one of them can be named."""
    assert main(["classify", "--json", "--device", "cpu", "--model", str(of_20_joints), str(moves)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [f"{moves}/{name}" for name in open_recordings(moves).paths]
    assert main(["classify", "--json", "--device", "cpu", "--model", str(of_20_joints), lines[5]["file"]]) == 0
    (again,) = capsys.readouterr().out.splitlines()
    assert json.loads(again)["actions"] == lines[5]["actions"] != lines[6]["actions"]
    assert json.loads((of_20_joints / "bundle.json").read_text())["layout"] == "kinect20"


def test_a_file_of_25_joints_gives_what_the_files_of_its_recordings_give(root: Path, bundle: Path, tmp_path: Path) -> None:
    """Of one body or two, under the same names."""
    files = sorted(root.glob("*.skeleton"))[:6]
    read = [read_skeleton(file).joints for file in files]
    sizes = {"frames": [one.shape[1] for one in read], "bodies": [len(one) for one in read]}
    assert {*sizes["bodies"]} == {1, 2}
    np.savez(tmp_path / "p.npz", joints=np.concatenate([one.reshape(-1, 25, 3) for one in read]), name=[f.stem for f in files], **sizes)
    recognizer = ActionRecognizer.from_checkpoint(bundle, device="cpu")
    for file in files:
        assert recognizer.classify(tmp_path / "p.npz" / file.stem).actions == recognizer.classify(file).actions


def test_recordings_that_do_not_fit_are_refused_in_a_line(
    root: Path, moves: Path, bundle: Path, of_20_joints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK")
    cases = (
        (of_20_joints, next(root.glob("*.skeleton")), "reads the joints of kinect20, which are in .npz files of recordings"),
        (of_20_joints, broken, "broken.npz: not an .npz file of recordings"),
        (of_20_joints, tmp_path / "none.npz", "none.npz: no such file or folder of recordings"),
        (of_20_joints, moves / "nobody", "moves.npz has no recording of this name"),
        (bundle, moves / "S001C001P001R001A001", "holds the 20 joints of kinect20, this model reads the 25 of ntu25"),
    )
    for model, file, words in cases:
        assert main(["classify", "--device", "cpu", "--model", str(model), str(file)]) == 1
        printed = capsys.readouterr()
        assert words in printed.err.splitlines()[0]
        assert not printed.out
    with pytest.raises(DataError, match="this model reads videos"):
        require_kind(moves, None)


def test_pixels_are_in_no_file_of_recordings(pictured: Path, root: Path, tmp_path: Path) -> None:
    data = data_of(pictured, UniformFrames(4, align=False), coordinates="pixels")
    trained(tmp_path / "run", data, PoseC3D(HeatMaps(size=8, eval_size=12), width=4, blocks=[1, 1, 1]))
    joints = read_skeleton(next(root.glob("*.skeleton"))).joints[0]
    np.savez(tmp_path / "p.npz", joints=joints, frames=[len(joints)], name=["one"])
    with pytest.raises(DataError, match=r"p\.npz: holds no pixels"):
        ActionRecognizer.from_checkpoint(tmp_path / "run", device="cpu").classify(tmp_path / "p.npz")
