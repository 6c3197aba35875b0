"""A bundle with a rule of rejection says so of clips that are unlike its training."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import Pipeline
from safetensors.torch import load_file, save_file

from vtlvlm.data.cache import EventCache
from vtlvlm.recognizers.bundles import BUNDLE, REJECTION_FILE, digest
from vtlvlm.recognizers.recognizer import ActionRecognizer


@pytest.fixture(scope="module")
def bundle(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rejecting") / "bundle"
    assert chain("export", chain.run2, folder, "--acceptance", 0.5, "--device", "cpu") == 0
    return folder


@pytest.fixture(scope="module")
def strict(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with a threshold that no clip reaches."""
    folder = tmp_path_factory.mktemp("rejecting") / "strict"
    shutil.copytree(bundle, folder)
    state = load_file(folder / REJECTION_FILE)
    rewrite(folder, {**state, "familiarities": torch.ones_like(state["familiarities"])})
    return folder


def rewrite(bundle: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, bundle / REJECTION_FILE)
    described = json.loads((bundle / BUNDLE).read_text())
    described["sha256"][REJECTION_FILE] = digest(bundle / REJECTION_FILE)
    (bundle / BUNDLE).write_text(json.dumps(described))


def recognizer(bundle: Path) -> ActionRecognizer:
    found = ActionRecognizer.from_checkpoint(bundle, device="cpu")
    assert isinstance(found, ActionRecognizer)
    return found


def test_the_rule_reads_validation_clips_as_classify_does(chain: Pipeline, bundle: Path) -> None:
    """The signals of the validation clips are those of their files; the training clips' means are those of the event cache."""
    model = recognizer(bundle)
    assert model.rejection is not None
    rule = model.rejection
    cache = EventCache.open(chain.events)
    assert cache.table is not None
    videos = {path.stem: path for path in sorted(chain.root.glob("*.avi"))}
    found = {name: model.classify(path).familiarity for name, path in videos.items()}
    rows = np.array([list(one.signals.values()) for one in found.values() if one is not None])
    validation = [
        row for row in rows if all((np.isclose(row, known, atol=1e-6)).any() for row, known in zip(row, rule.validation.T, strict=True))
    ]
    assert len(validation) >= len(rule.validation) == 2
    means = {name: cache.table[cache.ids(cache.rows([name]))].mean(1)[0] for name in videos}
    near = [any(torch.allclose(mean, row, atol=1e-6) for row in rule.training) for mean in means.values()]
    assert sum(near) >= len(rule.training) == 2  # one person trains, one validates, one tests: two clips each
    probabilities = dict(model.classify(next(iter(videos.values()))).actions)
    first = found[next(iter(videos))]
    assert first is not None
    assert np.exp(first.signals["probability"]) == pytest.approx(max(probabilities.values()), rel=1e-5)


def test_words_json_and_csv(chain: Pipeline, bundle: Path, strict: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sorted(chain.root.glob("*.avi"))[0]
    for model, rejected in ((bundle, False), (strict, True)):
        capsys.readouterr()
        assert chain("classify", "--model", model, "--json", file) == 0
        told = json.loads(capsys.readouterr().out)["familiarity"]
        known = recognizer(model).classify(file).familiarity
        assert known is not None
        assert told["rejected"] == known.rejected == rejected
        assert told["share"] == pytest.approx(known.share, abs=1e-5)
        assert told["signals"] == pytest.approx(known.signals, abs=1e-5)
        assert chain("classify", "--model", model, file) == 0
        assert ("unlike anything it was trained on; the nearest actions:" in capsys.readouterr().out) == rejected
        assert chain("classify", "--model", model, "--csv", "--srt", tmp_path / "texts", file) == 0
        assert [row["unlike"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["yes" if rejected else "no"]
        assert ("unlike anything it was trained on; nearest:" in (tmp_path / "texts" / f"{file.stem}.srt").read_text()) == rejected
    assert chain("classify", "--model", chain.bundle, "--json", file) == 0
    assert json.loads(capsys.readouterr().out)["familiarity"] is None


def test_a_long_video_has_no_actions_where_it_is_unlike_the_training(chain: Pipeline, strict: Path) -> None:
    model, file = recognizer(strict), sorted(chain.root.glob("*.avi"))[0]
    settings = {"clip": 0.5, "hop": 0.25, "least": 0.6, "shortest": 0.0, "motion": False}
    found = model.segments(file, **settings)
    assert found.rejected.all()
    assert found.segments == []
    model.rejection = None
    again = model.segments(file, **settings)
    assert not again.rejected.any()
    assert again.segments
    assert np.array_equal(again.windows, found.windows)


def test_the_length_of_the_training_clips_is_the_default_window(chain: Pipeline, bundle: Path) -> None:
    """Also in a bundle without a rule, as long as the event cache is there."""
    cache = EventCache.open(chain.events)
    longest = float(cache.spans(np.arange(len(cache)))[:, -1, 1].max())
    for folder in (bundle, chain.bundle):
        seconds = recognizer(folder).clip_seconds
        assert seconds is not None
        assert 0 < seconds <= longest
        assert recognizer(folder).grid().clip == seconds
        assert recognizer(folder).grid(clip=2.0).clip == 2.0


def test_refusals(chain: Pipeline, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "other"
    for acceptance, words in ((0.95, "at least 19"), (1.5, "a share between 0 and 1")):
        assert chain("export", chain.run2, out, "--acceptance", acceptance) == 2
        assert words in capsys.readouterr().err
    assert chain("export", chain.run2, out, "--acceptance", 0.5, "--videos", tmp_path / "gone") != 0
    assert "gone" in capsys.readouterr().err
    assert chain("export", chain.run2, out, "--format", "peft", "--acceptance", 0.5) == 2
    assert "--acceptance goes into a bundle" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("change", ["width", "nan", "acceptance", "missing", "empty", "huge", "scalar"])
def test_a_damaged_rule_is_refused(bundle: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str], chain: Pipeline) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    state = load_file(other / REJECTION_FILE)
    if change == "width":
        state["training"] = state["training"][:, :-1].contiguous()
    elif change == "nan":
        state["validation"][0, 0] = float("nan")
    elif change == "acceptance":
        state["acceptance"] = torch.tensor(2.0, dtype=torch.float64)
    elif change == "missing":
        del state["familiarities"]
    elif change == "scalar":
        state["training"] = state["training"][0, 0]
    elif change == "empty":
        state["training"] = state["training"][:0]
    else:
        state["training"] = state["training"].new_zeros(5000, state["training"].shape[1])
    rewrite(other, state)
    assert chain("classify", "--model", other, "--llava", chain.llava, sorted(chain.root.glob("*.avi"))[0]) == 2
    told = capsys.readouterr().err
    assert REJECTION_FILE in told
    assert len(told.strip().splitlines()) == 1
