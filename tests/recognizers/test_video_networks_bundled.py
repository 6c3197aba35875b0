"""Video networks as recognisers: exported from a run, read by `classify`, `segment` and the app."""

import csv
import io
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from starlette.testclient import TestClient
from videos import block_clips, encode, moving_block

from vtlvlm.app.server import Settings, application
from vtlvlm.cli import main
from vtlvlm.data.video import decode
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.limits import largest_value
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.recognizers.video_networks import NetworkRecognizer

CLASSES = ["fall down", "slide right"]
PEOPLE = (1, 2, 4, 5, 8, 9, 3, 6)
"""The first six train"""
WHOLE = "{class_path: VideoNetwork, init_args: {model: mc3_18, image_size: 16}}"


def fit(folder: Path, clips: Path, network: str, sampling: str = "frames: 4, size: 16", *more: str) -> Path:
    """The run folder of a short training, with a temperature that validation has fitted."""
    (folder.parent / f"{folder.name}.yaml").write_text(f"""
seed_everything: 0
model: {{class_path: Recognition, init_args: {{network: {network}, head: LinearHead, optimizer: {{learning_rate: 1.0e-3}}}}}}
data:
  source: {{root: {clips}, validation: 0.34}}
  sampling: {{{sampling}}}
  batch_size: 4
  num_workers: 0
trainer:
  {{accelerator: cpu, max_epochs: 12, check_val_every_n_epoch: 12, enable_model_summary: false, enable_progress_bar: false, logger: false,
   default_root_dir: {folder}}}
""")
    assert main(["fit", "--config", str(folder.parent / f"{folder.name}.yaml"), *more]) == 0
    return folder


def of_run(run: Path, command: str, *more: str) -> dict[tuple[str, str], list[float]]:
    """The probabilities in the table that `test` or `predict` writes, by clip and view."""
    config = run.parent / f"{run.name}.yaml"
    assert main([command, "--config", str(config), "--ckpt_path", "best", *more]) == 0
    table = run / ("predictions_test.csv" if command == "test" else "predictions.csv")
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    return {(row["clip"], row.get("view", "")): [float(row[name]) for name in CLASSES] for row in rows}


def classified(model: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[float]]:
    """The probabilities that `classify` prints, by clip."""
    capsys.readouterr()
    assert main(["classify", "--json", "--device", "cpu", "--model", str(model), str(clips)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [(Path(line["file"]).stem, {one["action"]: one["probability"] for one in line["actions"]}) for line in lines]
    return {name.removesuffix("_rgb"): [actions[action] for action in CLASSES] for name, actions in found}


def require_same(expected: dict[tuple[str, str], list[float]], found: dict[str, list[float]], tolerance: float = 2e-6) -> None:
    """On every clip; the clips have different probabilities, which no other column or row would give."""
    assert expected
    for (name, _), row in expected.items():
        assert found[name] == pytest.approx(row, abs=tolerance)
    assert torch.tensor(list(expected.values())).std(0).max() > 20 * tolerance


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return block_clips(tmp_path_factory.mktemp("clips"), PEOPLE)


@pytest.fixture(scope="module")
def run(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that was trained whole."""
    return fit(tmp_path_factory.mktemp("whole") / "run", clips, WHOLE)


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bundles") / "b"
    assert main(["export", str(run), str(place)]) == 0
    return place


# -- trained whole ---------------------------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_test_and_predict(run: Path, bundle: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = classified(bundle, clips, capsys)
    tested, predicted = of_run(run, "test"), of_run(run, "predict")
    assert len(tested) == 4
    assert len(predicted) == 16
    require_same(tested, found)
    require_same(predicted, found)
    assert classified(run, clips, capsys) == found


def test_probabilities_are_those_of_torchvisions_network_by_hand(bundle: Path, clips: Path) -> None:
    """From the frames in the middles of four parts of the video to the softmax."""
    from torchvision.models import get_model, get_model_weights

    state = load_file(bundle / "network.safetensors")
    official = get_model("mc3_18", weights=None, num_classes=2).eval()
    names = {"network.trunk.backbone.": "", "head.": ""}
    official.load_state_dict(
        {name.removeprefix(old): one for name, one in state.items() for old in names if name.startswith(old)}, strict=True
    )
    colours = get_model_weights("mc3_18").DEFAULT.transforms()
    mean, std = (torch.tensor(value).view(1, 3, 1, 1, 1) for value in (colours.mean, colours.std))
    file = clips / "S001C001P003R001A001_rgb.avi"  # 15 frames
    frames = decode(file, [1, 5, 9, 13], size=16).frames
    with torch.no_grad():
        scores = official((frames.transpose(0, 1)[None].float() / 255 - mean) / std)
    expected = (scores[0] / state["temperature"]).softmax(-1)
    found = ActionRecognizer.from_checkpoint(bundle, device="cpu").classify(file)
    assert dict(found.actions) == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5)
    assert state["temperature"] != 1
    assert found.events is None
    assert found.sampled is not None
    assert found.sampled.frames == [1, 5, 9, 13]


def test_a_bundle_says_what_it_is_and_names_no_place(run: Path, bundle: Path) -> None:
    described = json.loads((bundle / "bundle.json").read_text())
    assert (described["kind"], described["classes"]) == ("video network", CLASSES)
    people = described["origin"]["split"]["groups"]["train"]
    assert len(people) == 4
    frames = [12 + int(str(person).removeprefix("P")) for person in people]
    assert described["clip_seconds"] == pytest.approx(statistics.median(frames) / 25)
    assert described["sampling"]["init_args"]["frames"] == 4
    assert described["origin"]["protocol"] == "xsub60"
    held = load_file(bundle / "network.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked", "temperature")
    assert (
        sum(tensor.numel() for name, tensor in held.items() if not name.endswith(buffers)) == described["origin"]["parameters"]["training"]
    )
    assert str(run.parent) not in (bundle / "bundle.json").read_text()


def test_several_test_views_are_averaged_as_in_a_test(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pieces of three crops each, of wide pictures."""
    wide = tmp_path / "wide"
    for file in sorted(clips.glob("*.avi")):
        pictures = decode(file, range(12), size=64).frames.permute(0, 2, 3, 1).numpy()
        encode(wide / file.name, pictures[:, 8:56])
    shutil.copy(clips / "classes.txt", wide)
    run = fit(tmp_path / "run", wide, WHOLE, "frames: 4, size: 16, mode: dense, test_clips: 2, test_crops: 3")
    assert main(["export", str(run), str(tmp_path / "b")]) == 0
    found = classified(tmp_path / "b", wide, capsys)
    require_same(of_run(run, "test"), found)
    plain = of_run(run, "test", "--data.sampling.test_clips", "1", "--data.sampling.test_crops", "1")
    assert max(abs(found[name][0] - row[0]) for (name, _), row in plain.items()) > 1e-4
    recognizer = ActionRecognizer.from_checkpoint(tmp_path / "b", device="cpu")
    result = recognizer.classify(wide / "S001C001P003R001A001_rgb.avi")
    assert result.sampled is not None  # dense pieces of frames 0, 2, 4, 6 on: at a quarter and at three quarters of the room
    assert result.sampled.frames == sorted({*range(1, 9, 2), *range(4, 12, 2)})
    assert result.sampled.times == pytest.approx([number / 25 for number in result.sampled.frames])


def test_classify_prints_tables_and_writes_subtitles(bundle: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.avi"
    broken.write_text("no video")
    capsys.readouterr()
    file = sorted(clips.glob("*.avi"))[0]
    assert main(["classify", "--csv", "--srt", str(tmp_path / "srt"), "--model", str(bundle), str(broken), str(clips)]) == 1
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert len(rows) == 17
    assert "broken.avi" in rows[0]["error"]
    assert {row["action"] for row in rows[1:]} <= set(CLASSES)
    assert all(row["unlike"] == "" and 0.5 <= float(row["probability"]) <= 1 for row in rows[1:])
    assert rows[1]["action"] in (tmp_path / "srt" / f"{file.stem}.srt").read_text()
    for given in (tmp_path / "body.skeleton", tmp_path / "bodies.npz"):
        given.touch()
        assert main(["classify", "--model", str(bundle), str(given)]) == 1
        assert "this model reads videos" in capsys.readouterr().err
    recognizer = ActionRecognizer.from_checkpoint(bundle, device="cpu")
    singly = [recognizer.classify(one).actions for one in sorted(clips.glob("*.avi"))]
    together = [one.actions for one in recognizer.classify_each(sorted(clips.glob("*.avi")))]  # type: ignore[union-attr]
    assert together == singly


def test_options_for_other_models_are_refused(run: Path, bundle: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, new = str(next(clips.glob("*.avi"))), str(bundle.with_name("c"))
    for model in (bundle, run):
        assert main(["classify", "--model", str(model), "--llava", "x", file]) == 2
        assert "a video network, which has no language model: leave llava out" in capsys.readouterr().err
    cases = {
        ("--vtem", "x.ckpt"): "of a network without stage 1: leave --vtem out",
        ("--dictionary", "x"): "without event sentences: leave --dictionary out",
        ("--acceptance", "0.9"): "without event sentences: leave --acceptance out",
        ("--weights", "x.pth"): "trained whole, whose weights are its own: leave --weights out",
        ("--format", "peft"): "of stage 'recognition'",
        ("--format", "peft", "--weights", "x.pth"): "--weights goes into the bundle of a video network",
    }
    for options, words in cases.items():
        assert main(["export", str(run), new, *options]) == 2
        assert words in capsys.readouterr().err
    assert main(["export", str(run), str(bundle)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert not Path(new).exists()


def test_the_length_of_clips_is_left_out_where_the_videos_are_gone(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint alone, without its run folder; the bundle is whole but for this."""
    (alone,) = run.rglob("best.ckpt")
    shutil.copy(alone, tmp_path / "best.ckpt")
    assert main(["export", str(tmp_path / "best.ckpt"), str(tmp_path / "b")]) == 0
    assert "does not know the length of its training clips" in capsys.readouterr().err
    recognizer = ActionRecognizer.from_checkpoint(tmp_path / "b", device="cpu")
    assert isinstance(recognizer, NetworkRecognizer)
    assert recognizer.clip_seconds is None
    assert recognizer.grid().clip == 3


def test_segment_and_the_app_take_it(bundle: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows have the length of the training clips; a segment has the probabilities of its windows. The page shows no event sentence."""
    import numpy as np

    parts = [moving_block(16, falls=falls, shade=60) for falls in (True, False, True)]
    film = encode(tmp_path / "film.mp4", np.concatenate(parts))
    capsys.readouterr()
    assert main(["segment", str(film), "--model", str(bundle), "--json", "--least", "0.05"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    seconds = json.loads((bundle / "bundle.json").read_text())["clip_seconds"]
    assert line["clip"] == seconds < 1
    assert line["segments"]
    assert {one["action"] for one in line["segments"]} <= set(CLASSES)
    recognizer = ActionRecognizer.from_checkpoint(bundle, device="cpu")
    assert isinstance(recognizer, NetworkRecognizer)
    found = recognizer.segments(film)
    assert found.windows.shape[1] == 2
    assert found.windows.sum(1) == pytest.approx(np.ones(len(found.windows)), abs=1e-6)
    file = clips / "S001C001P003R001A001_rgb.avi"
    (tmp_path / "store").mkdir()
    with TestClient(application(recognizer, "mine", Settings(folder=tmp_path / "store")), base_url="http://127.0.0.1") as client:
        facts = client.get("/api/model").json()
        assert (facts["sentence"], facts["dictionary"], facts["clip"]) == (False, False, seconds)
        answer = client.post("/api/classify", content=file.read_bytes()).json()
    expected = recognizer.classify(file)
    assert {one["action"]: one["probability"] for one in answer["actions"]} == pytest.approx(dict(expected.actions), abs=1e-5)
    assert answer["events"] is None


# -- a linear head on frozen features --------------------------------------------------------------------------------------------------


class Frozen:
    """A run on the features of a frozen extractor, whose weights lie in a file."""

    def __init__(self, folder: Path, clips: Path) -> None:
        from torchvision.models import get_model

        torch.manual_seed(0)
        self.clips, self.weights = clips, folder / "weights.pth"
        torch.save(get_model("r3d_18", weights=None).state_dict(), self.weights)
        settings = f"{{model: r3d_18, weights: {self.weights}, grid: 1, image_size: 16, chunk: 8, clips: 2}}"
        network = f"{{class_path: FrozenFeatures, init_args: {{extractor: {{class_path: VideoExtractor, init_args: {settings}}}}}}}"
        self.features = ["--data.features", str(folder / "features")]
        sampling = "frames: 12, size: 16"  # of two pieces: 8 frames and 4
        self.direct = fit(folder / "direct", clips, network, sampling)
        assert main(["extract", "--config", str(folder / "direct.yaml"), "--output", str(folder / "features")]) == 0
        self.run = fit(folder / "run", clips, network, sampling, *self.features)


@pytest.fixture(scope="module")
def frozen(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    return Frozen(tmp_path_factory.mktemp("frozen"), clips)


@pytest.fixture(scope="module")
def linear(frozen: Frozen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the run on cached features, from a time when the weights lay in their place."""
    place = tmp_path_factory.mktemp("linear") / "b"
    assert main(["export", str(frozen.run), str(place)]) == 0
    return place


def test_a_linear_heads_probabilities_are_those_of_a_test_from_its_cache(
    frozen: Frozen, linear: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The features are rounded as in the cache."""
    found = classified(linear, clips, capsys)
    require_same(of_run(frozen.run, "test", *frozen.features), found, 2e-5)  # a last bit of 16 may be rounded the other way
    assert classified(frozen.run, clips, capsys) == found
    read = [ActionRecognizer.from_checkpoint(model, device="cpu") for model in (linear, frozen.run, frozen.direct)]
    assert [model.cached for model in read if isinstance(model, NetworkRecognizer)] == [True, True, False]


def test_without_a_cache_they_are_those_of_a_test_of_videos(
    frozen: Frozen, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(frozen.direct), str(tmp_path / "b")]) == 0
    require_same(of_run(frozen.direct, "test"), classified(tmp_path / "b", clips, capsys))


def test_the_bundle_holds_the_extractors_weights(
    frozen: Frozen, linear: Path, tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs no other file. A run needs them: in their place, or at export."""
    described = json.loads((linear / "bundle.json").read_text())
    extractor = described["network"]["init_args"]["extractor"]["init_args"]
    assert (extractor["weights"], extractor["compiled"]) == (None, False)
    assert str(frozen.weights) not in (linear / "bundle.json").read_text()
    held, given = load_file(linear / "network.safetensors"), torch.load(frozen.weights, weights_only=True)
    assert torch.equal(held["network.extractor.backbone.layer4.0.conv1.0.weight"], given["layer4.0.conv1.0.weight"])
    before = classified(linear, clips, capsys)
    moved = frozen.weights.rename(tmp_path / "moved.pth")
    try:
        assert classified(linear, clips, capsys) == before
        file = str(next(clips.glob("*.avi")))
        for command in (["classify", "--model", str(frozen.run), file], ["export", str(frozen.run), str(tmp_path / "b")]):
            assert main(command) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "weights.pth: no such weights file" in line
            assert "--weights" in line
        assert main(["export", str(frozen.run), str(tmp_path / "b"), "--weights", str(moved)]) == 0
        assert classified(tmp_path / "b", clips, capsys) == before
        torch.save({name: tensor + 1 if "layer1" in name else tensor for name, tensor in given.items()}, frozen.weights)
        for command in (["classify", "--model", str(frozen.run), file], ["export", str(frozen.run), str(tmp_path / "c")]):
            assert main(command) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "was made by an extractor with weights_sha256" in line
            assert "--weights" in line
        assert not (tmp_path / "c").exists()
    finally:
        frozen.weights.unlink(missing_ok=True)
        moved.rename(frozen.weights)


# -- memory ----------------------------------------------------------------------------------------------------------------------------


def test_the_largest_value_is_found_without_computing() -> None:
    """A product of 3 x 5 numbers is the largest here; one of a petabyte takes no memory."""

    def small() -> Any:
        return torch.relu(torch.ones(3, 2) @ torch.ones(2, 5)).sum()

    assert largest_value(small) == 60
    assert largest_value(lambda: torch.ones(10**8, 1) @ torch.ones(1, 10**7)) == 4 * 10**15


@pytest.mark.parametrize(("model", "frames", "size"), [("swin3d_t", 32, 224), ("r3d_18", 16, 112), ("swin3d_b", 64, 224)])
def test_networks_of_usual_sizes_are_modest(model: str, frames: int, size: int) -> None:
    from vtlvlm.data.sampling import FrameSampling
    from vtlvlm.recognizers.video_networks import require_modest_network
    from vtlvlm.skeleton.video_networks import VideoNetwork

    require_modest_network(VideoNetwork(model, None, size), FrameSampling(frames=frames, size=size, test_clips=4, test_crops=3), Path("b"))
    with pytest.raises(UsageError, match=rf"b: 2048 frames of 448 pixels, from which {model} computes values of more than 4 GiB"):
        require_modest_network(VideoNetwork(model, None, 448), FrameSampling(frames=2048, size=32), Path("b"))
