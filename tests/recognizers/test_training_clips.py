"""What a bundle knows of its training clips, by another route; data of another training are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import Pipeline
from videos import encode, moving_block

from vtlvlm.data.of_run import data_of_run
from vtlvlm.data.video import Clip, decode_sampled
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.bundles import BUNDLE
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.recognizers.training_clips import note_training
from vtlvlm.segments.motion import rest_below


@pytest.fixture
def bundle(chain: Pipeline, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain.bundle, tmp_path / "bundle"))


def rewrite(bundle: Path, **entries: object) -> None:
    described = json.loads((bundle / BUNDLE).read_text())
    (bundle / BUNDLE).write_text(json.dumps({**described, **entries}))


def recognizer(bundle: Path) -> ActionRecognizer:
    found = ActionRecognizer.from_checkpoint(bundle, device="cpu")
    assert isinstance(found, ActionRecognizer)
    return found


def test_movement_is_that_of_the_training_clips(chain: Pipeline) -> None:
    """By hand from the backbone's features of each training file; a clip's motion is 1 where its change is the noted one."""
    model = recognizer(chain.bundle)
    data = data_of_run(chain.run2)
    data.prepare_data()
    data.setup("fit")
    rates = []
    for row in data.split.train.tolist():
        clip = decode_sampled(data.index.file(row), model.sampling)
        with torch.inference_mode():
            features = model.vtem.extractor(clip.frames[None])[0] / model.vtem.std
        change = ((features[1:] - features[:-1]) ** 2).mean(2).sqrt().max(1).values
        times = model.vtem.extractor.step_times(clip.times[None])[0]
        rates.append((change / (times[1:] - times[:-1]).clamp(min=1e-3)).double().numpy())
        found = model.recognise(clip).motion
        assert found is not None
        assert found[:, 1].numpy() == pytest.approx(rates[-1] / model.moving, rel=1e-4)
        assert found[:, 0].numpy() == pytest.approx(((times[1:] + times[:-1]) / 2).numpy())
    assert len(rates) <= 48
    wanted = rest_below(rates)
    assert wanted is not None
    assert model.moving == pytest.approx(wanted, rel=1e-3)


def test_a_bundle_without_videos_does_not_know_when_something_moves(chain: Pipeline, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(bundle, moving=None, clip_seconds=None)
    data = data_of_run(chain.run2)
    data.prepare_data()
    data.setup("fit")
    monkeypatch.setattr(type(data.source), "has_videos", property(lambda _: False))
    assert not note_training(bundle, data, "cpu")
    model = recognizer(bundle)
    assert model.moving is None
    assert model.clip_seconds is not None
    clip = decode_sampled(sorted(chain.root.glob("*.avi"))[0], model.sampling)
    assert model.recognise(clip).motion is None
    rewrite(bundle, origin={"reasoning": {"train_hash": "0"}})
    with pytest.raises(UsageError, match="other training clips than those of the model"):
        note_training(bundle, data, "cpu")


@pytest.mark.parametrize("moving", [0, -1.0, True, "1", 1e12, 1e-46, float("nan")])
def test_a_damaged_number_is_refused(bundle: Path, moving: object) -> None:
    rewrite(bundle, moving=moving)
    with pytest.raises(UsageError, match="incomplete description"):
        ActionRecognizer.from_checkpoint(bundle, device="cpu")


def test_the_clip_that_moves_is_found(chain: Pipeline, tmp_path: Path) -> None:
    """A still picture, then a moving block, then still again: the segment is the movement."""
    block = moving_block(30, falls=True, shade=40)
    film = encode(tmp_path / "film.mp4", np.concatenate([np.repeat(block[:1], 60, 0), block, np.repeat(block[-1:], 60, 0)]), rate=30)
    found = recognizer(chain.bundle).segments(film, clip=0.6, hop=0.15, least=0.05)
    assert found.motions
    (one,) = found.segments
    assert one.start == pytest.approx(2.0, abs=0.3)
    assert one.end == pytest.approx(3.0, abs=0.3)


def test_a_film_of_few_pictures_moves_too(chain: Pipeline, tmp_path: Path) -> None:
    """The same with every third picture: windows show a picture several times."""
    block = moving_block(30, falls=True, shade=40)
    whole = np.concatenate([np.repeat(block[:1], 60, 0), block, np.repeat(block[-1:], 60, 0)])
    model = recognizer(chain.bundle)
    for rate in (30, 10):
        film = encode(tmp_path / f"film{rate}.mp4", whole[:: 30 // rate], rate=rate)
        assert rate == 30 or model.sampling.frames > 7  # pictures of a window
        found = model.segments(film, clip=0.7, hop=0.175, least=0.05, shortest=0.0)
        assert len(found.segments) == 1, rate
        assert found.segments[0].start == pytest.approx(2.0, abs=0.5)
        assert found.segments[0].end == pytest.approx(3.0, abs=0.5)


def test_motion_needs_frames_that_span_the_clip(chain: Pipeline) -> None:
    model = recognizer(chain.bundle)
    clip = decode_sampled(sorted(chain.root.glob("*.avi"))[0], model.sampling)
    assert model.recognise(clip).motion is not None
    model.sampling = replace(model.sampling, mode="dense")
    assert model.recognise(clip).motion is None
    model.sampling = replace(model.sampling, mode="uniform")
    one = Clip(clip.frames[:1].expand_as(clip.frames), torch.zeros_like(clip.times))
    assert model.recognise(one).motion is None  # a single picture
