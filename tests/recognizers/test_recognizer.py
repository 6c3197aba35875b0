"""Bundles, run folders and checkpoints as recognisers of single files."""

import csv
import io
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from pipeline import Pipeline
from safetensors.torch import load_file

from vtlvlm.data.cache import EventCache
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Stopped, decode_sampled, probe
from vtlvlm.errors import DataError, UsageError
from vtlvlm.recognizers import recognizer as recognizer_module
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.vtem import extractors


def test_bundle_and_checkpoint_give_the_same_probabilities(chain: Pipeline) -> None:
    file = chain.root / "S001C001P003R001A001_rgb.avi"
    one, two = (ActionRecognizer.from_checkpoint(path, device="cpu").classify(file) for path in (chain.bundle, chain.run2))
    assert one.actions == two.actions
    assert sum(p for _, p in one.actions) == pytest.approx(1, abs=1e-5)
    assert {name for name, _ in one.actions} == {"fall down", "slide right"}


def test_a_machine_of_its_own(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained in half precision and quantised: on a CPU it is whole float32 numbers, unless other ones are asked for. Stage 1 has moved."""
    bundle = Path(shutil.copytree(chain.bundle, tmp_path / "bundle"))
    described = json.loads((bundle / "bundle.json").read_text())
    described["reasoner"]["init_args"]["llava"]["init_args"] |= {"dtype": "bfloat16", "quantization": "4bit"}
    (bundle / "bundle.json").write_text(json.dumps(described))

    def dtype(**computed: object) -> torch.dtype:
        reasoner = ActionRecognizer.from_checkpoint(bundle, device="cpu", **computed).reasoner
        return reasoner.base.lm_head.weight.dtype

    assert dtype(quantization=None) == torch.float32
    assert dtype(quantization=None, dtype="bfloat16") == torch.bfloat16
    with pytest.raises(UsageError, match="label_score: part of the trained model"):
        dtype(label_score="pmi")
    file = chain.root / "S001C001P003R001A001_rgb.avi"
    moved = Path(shutil.copy(chain.best1, tmp_path / "stage1.ckpt"))
    checkpoint = torch.load(chain.best2, weights_only=True)
    checkpoint["vtlvlm"]["provenance"]["stage1"]["checkpoint"] = "gone.ckpt"
    torch.save(checkpoint, tmp_path / "best.ckpt")
    there = ["--model", tmp_path / "best.ckpt", "--json", file]
    assert chain("classify", *there) == 2
    assert "name its place with --vtem" in capsys.readouterr().err
    assert chain("classify", *there, "--vtem", moved, "--dtype", "float32", "--quantization", "none") == 0
    found = json.loads(capsys.readouterr().out)["actions"]
    expected = ActionRecognizer.from_checkpoint(chain.run2, device="cpu").classify(file).actions
    assert {one["action"]: one["probability"] for one in found} == pytest.approx(dict(expected), abs=1e-6)


def test_a_cpu_reads_frames_in_float32(chain: Pipeline, tmp_path: Path) -> None:
    """The features were computed in 16 bits on a GPU."""
    file = chain.root / "S001C001P003R001A001_rgb.avi"
    bundle = Path(shutil.copytree(chain.bundle, tmp_path / "bundle"))
    described = json.loads((bundle / "bundle.json").read_text())
    described["vtem"]["init_args"]["extractor"]["init_args"] |= {"precision": "bfloat16", "clips": 8}
    (bundle / "bundle.json").write_text(json.dumps(described))
    recognizer = ActionRecognizer.from_checkpoint(bundle, device="cpu")
    assert recognizer.vtem.extractor.clips == 8  # read from the file
    assert recognizer.classify(file).actions == ActionRecognizer.from_checkpoint(chain.bundle, device="cpu").classify(file).actions


def test_weights_of_another_extractor_are_refused(
    chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file name holds other weights by now: the codes would mean something else. A bundle has its own."""
    file = chain.root / "S001C001P003R001A001_rgb.avi"
    on_video = ["--data.sampling.frames", 8, "--data.sampling.size", 64, "--model.init_args.vtem", chain.best1]
    asked: dict[str, list[object]] = {
        "stage 1 ": ["test", "--config", chain.stage2, *on_video, "--ckpt_path", chain.best2, "--trainer.default_root_dir", tmp_path],
        f"{chain.best1} ": ["classify", "--model", chain.best2, file],
    }
    named = extractors.named_weights
    monkeypatch.setattr(extractors, "named_weights", lambda name: {key: tensor * 1.01 for key, tensor in named(name).items()})
    for what, arguments in asked.items():
        assert chain(*arguments) == 2
        assert f"{what}was trained on features of an extractor with weights_sha256 " in capsys.readouterr().err
    assert chain("classify", "--model", chain.bundle, file) == 0


def test_a_device_that_is_not_there(chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    file = chain.root / "S001C001P003R001A001_rgb.avi"
    for device in ("cuda:77", "gpu", "meta"):
        assert chain("classify", "--model", chain.bundle, "--device", device, file) == 2
        assert f"device {device}: cannot be used here" in capsys.readouterr().err


def test_bundles_hold_plain_prompts(chain: Pipeline, tmp_path: Path) -> None:
    """Trained through an MLP: the bundle has keys and values alone, knows of no MLP, and answers as the checkpoint does."""
    width = ["--model.init_args.reasoner.init_args.adapter.init_args.reparam_hidden_dim", 6]
    assert chain("fit", *chain.on_events, *width, "--trainer.default_root_dir", tmp_path / "run") == 0
    assert chain("export", tmp_path / "run", tmp_path / "bundle") == 0
    held = load_file(tmp_path / "bundle" / "adapter.safetensors")
    assert {name for name in held if name.startswith("adapter.")} == {"adapter.key", "adapter.value"}
    assert held["temperature"] != 1
    file = chain.root / "S001C001P003R001A001_rgb.avi"
    one, two = (ActionRecognizer.from_checkpoint(path, device="cpu") for path in (tmp_path / "bundle", tmp_path / "run"))
    assert one.reasoner.adapter.encoder is None
    assert any(float(parameter.detach().abs().max()) > 0 for parameter in two.reasoner.adapter.encoder.outer.parameters())
    assert dict(one.classify(file).actions) == pytest.approx(dict(two.classify(file).actions), abs=1e-5)


def test_recognizer_agrees_with_the_cached_route(chain: Pipeline) -> None:
    """From the file through the bundle, or through both caches: the same event sentence and the same scores."""
    recognizer = ActionRecognizer.from_checkpoint(chain.bundle, device="cpu")
    cache = EventCache.open(chain.events)
    module = PromptTuningModule.load_from_checkpoint(chain.best2)
    name = "S001C001P003R001A002"
    row = cache.rows([name])
    found = recognizer.classify(chain.root / f"{name}_rgb.avi", top=2)
    assert torch.equal(found.events.ids, cache.ids(row))
    with torch.inference_mode():
        scores = module.reasoner(torch.nn.functional.embedding(cache.ids(row), cache.table)).score
        expected = module.reasoner.probabilities(scores)[0]
    torch.testing.assert_close(torch.tensor(dict(found.actions)["fall down"]), expected[0], atol=1e-4, rtol=1e-3)


def test_classify_goes_on_after_an_unreadable_file(chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    broken = chain.folder / "broken.avi"
    broken.write_text("no video")
    capsys.readouterr()
    assert chain("classify", "--model", chain.bundle, "--json", "--top", 1, broken, chain.root) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 7
    assert "error" in lines[0]
    assert all(len(line["actions"]) == 1 for line in lines[1:])
    assert "broken.avi" in err
    assert "1 of 7" in err


def test_json_says_what_the_model_looked_at(chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """The frames are those of the plain view, with the times of a full decode; the spans and codes are those of the event sentence."""
    video = sorted(chain.root.glob("*.avi"))[0]
    capsys.readouterr()
    assert chain("classify", "--model", chain.bundle, "--json", video) == 0
    told = json.loads(capsys.readouterr().out)
    recognizer = ActionRecognizer.from_checkpoint(chain.bundle, device="cpu")
    info = probe(video)
    frames = recognizer.sampling.view(0, num_frames=info.frames, name="", seed=0).indices.tolist()
    assert told["sampled"]["frames"] == frames
    with av.open(str(video)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert told["sampled"]["times"] == pytest.approx([times[at] - times[0] for at in frames], abs=1e-3)
    assert told["sampled"]["rate"] == pytest.approx(info.fps, abs=1e-3)
    assert told["sampled"]["seconds"] == pytest.approx(info.duration, abs=1e-3)
    found = recognizer.classify(video)
    assert found.events is not None
    assert np.allclose(told["events"]["spans"], found.events.spans[0].numpy(), atol=1e-4)
    assert [code for window in told["events"]["codes"] for code in window] == found.events.ids[0].tolist()
    assert (told["action"], told["probability"]) == tuple(told["actions"][0].values())


def test_csv_and_subtitles_have_one_action_each(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = sorted(chain.root.glob("*.avi"))[0]
    broken = tmp_path / "=broken.avi"
    broken.write_text("no video")
    capsys.readouterr()
    assert chain("classify", "--model", chain.bundle, "--csv", "--srt", tmp_path / "texts", video, broken) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    best, probability = ActionRecognizer.from_checkpoint(chain.bundle, device="cpu").classify(video).actions[0]
    assert [row["action"] for row in rows] == [best, ""]
    assert float(rows[0]["probability"]) == pytest.approx(probability, abs=1e-5)
    assert rows[0]["error"] == ""
    assert "=broken.avi" in rows[1]["error"]
    length = probe(video).duration
    assert [path.name for path in (tmp_path / "texts").iterdir()] == [f"{video.stem}.srt"]
    end = f"{length:06.3f}".replace(".", ",")
    assert (tmp_path / "texts" / f"{video.stem}.srt").read_text() == f"1\n00:00:00,000 --> 00:00:{end}\n{best} {probability:.0%}\n"
    other = tmp_path / video.name
    shutil.copy(video, other)
    assert chain("classify", "--model", chain.bundle, "--srt", tmp_path / "more", video, other) == 2
    assert "one name" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_many_files_are_answered_in_their_order_and_as_one_by_one(chain: Pipeline) -> None:
    """Threads decode ahead. A file that is no video gives its error in its place, and the others go on."""
    recognizer = ActionRecognizer.from_checkpoint(chain.bundle, device="cpu")
    broken = chain.folder / "no_video.avi"
    broken.write_text("no video")
    videos = sorted(chain.root.glob("*.avi"))
    files = [*videos[:2], broken, *reversed(videos)]
    found = list(recognizer.classify_each(files, top=2))
    assert isinstance(found[2], DataError)
    assert "no_video.avi" in str(found[2])
    del files[2], found[2]
    assert [one.file for one in found] == files
    assert [one.actions for one in found] == [recognizer.classify(file, top=2).actions for file in files]


def test_decoding_goes_on_while_the_model_computes_and_no_further_than_a_few_clips(
    chain: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = ActionRecognizer.from_checkpoint(chain.bundle, device="cpu")
    files = sorted(chain.root.glob("*.avi"))[:6]
    decoded: list[str] = []
    one = threading.Event()

    def noted(file: Path, *args: object, **kwargs: object) -> object:
        clip = decode_sampled(file, *args, **kwargs)
        decoded.append(file.name)
        one.set()
        return clip

    monkeypatch.setattr(recognizer_module, "decode_sampled", noted)
    results = recognizer.classify_each(files)
    for number in range(len(files)):
        next(results)
        until = min(number + 1 + recognizer.ahead, len(files))
        while len(decoded) < until:  # the next ones come without being asked for
            assert one.wait(60)
            one.clear()
        time.sleep(0.05)
        assert decoded == [file.name for file in files[:until]]
    assert next(results, None) is None


def test_an_answer_that_nobody_wants_any_more_stops_the_decoding(chain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a file is decoded ahead: the thread is told to stop and ends, so the process ends too."""
    recognizer = ActionRecognizer.from_checkpoint(chain.bundle, device="cpu")
    first, ahead = sorted(chain.root.glob("*.avi"))[:2]
    begun, ended = threading.Event(), list[str]()

    def noted(file: Path, *given: Any, **settings: Any) -> Any:
        if file == ahead:
            begun.set()
            assert settings["stop"].wait(60)
        try:
            return decode_sampled(file, *given, **settings)
        except Stopped:
            ended.append(file.name)
            raise

    monkeypatch.setattr(recognizer_module, "decode_sampled", noted)
    before = set(threading.enumerate())
    results = recognizer.classify_each([first, ahead])
    next(results)
    assert begun.wait(60)
    results.close()
    assert set(threading.enumerate()) == before
    assert ended == [ahead.name]


def test_clips_that_wait_take_a_bounded_memory(chain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = ActionRecognizer.from_checkpoint(chain.bundle, device="cpu")
    assert recognizer.ahead == 1
    recognizer.device = torch.device("cuda")  # not used here
    monkeypatch.setattr(recognizer_module, "usable_cores", lambda: 64)
    assert recognizer.ahead == 64
    recognizer.sampling = FrameSampling(frames=512, size=1024)
    assert recognizer.ahead == 2


def test_skeletons_are_not_for_a_model_of_videos(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in one line before the language model is loaded, by a bundle of events and by one of a linear probe."""
    (tmp_path / "a.skeleton").write_text("1\n0\n")
    assert chain("probe", chain.root, "--features", chain.features, "--export", tmp_path / "b") == 0
    for model in (chain.bundle, tmp_path / "b"):
        capsys.readouterr()
        assert chain("classify", "--model", model, tmp_path / "a.skeleton") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "a.skeleton: this model reads videos; give the video, or name the bundle of a skeleton network" in line
    with pytest.raises(DataError, match="this model reads videos"):
        ActionRecognizer.from_checkpoint(tmp_path / "b", device="cpu").classify(tmp_path / "a.skeleton")
