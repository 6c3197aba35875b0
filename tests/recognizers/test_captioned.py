"""A stage 2 that learns captions: its training, its captions of videos and of cached sentences, and how they are measured."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pipeline import Pipeline

from vtlvlm.cli import main
from vtlvlm.data.cache import EventCache
from vtlvlm.lvlm.captions import Written, write_captions
from vtlvlm.metrics.captions import cider, words
from vtlvlm.recognizers.captions import FREQUENT, NAME, OURS, evaluate, nearest_action
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.report.predictions import read_predictions
from vtlvlm.retrieval.gallery import Gallery, gallery_of

SAID = {"A001": ("they drink, in the left", "somebody drinks a lot"), "A002": ("somebody eats a meal", "they eat, in the right")}


@pytest.fixture(scope="module")
def truth(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("truth") / "captions.csv"
    names = np.unique(EventCache.open(chain.events).names)
    rows = [f'{name},"{text}"' for name in names for text in SAID[name[-4:]]]
    file.write_text("\n".join(("clip,caption", *rows)) + "\n")
    return file


@pytest.fixture(scope="module")
def run(chain: Pipeline, truth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned") / "run"
    given = ["--data.source.captions", truth, "--model.init_args.objective", "generative", "--trainer.default_root_dir", folder]
    assert chain("fit", *chain.on_events, *given) == 0
    return folder


def test_a_training_remembers_its_captions(chain: Pipeline, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A test needs no captions; the bundle says that it learned some."""
    best = run / "checkpoints" / "best.ckpt"
    assert (
        chain("test", *chain.on_events, "--trainer.default_root_dir", run, "--ckpt_path", best, "--model.init_args.objective", "generative")
        == 0
    )
    made = json.loads((run / "metrics.json").read_text())["provenance"]
    assert len(made["captions"]) == 32
    assert json.loads((chain.run2 / "metrics.json").read_text())["provenance"]["captions"] is None


def test_videos_are_captioned_by_run_and_bundle_alike(
    chain: Pipeline, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted(chain.root.rglob("*.avi"))[:2]
    bundle = tmp_path / "bundle"
    assert chain("export", run, bundle) == 0
    capsys.readouterr()
    answers = []
    for model in (run, bundle):
        assert chain("caption", *videos, "--model", model, "--json") == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert answers[0] == answers[1]
    assert [Path(one["file"]) for one in answers[0]] == videos
    assert all(one["log_probability"] < 0 for one in answers[0])
    cache, model = EventCache.open(chain.events), ActionRecognizer.from_checkpoint(bundle, device="cpu")
    names = [video.name.removesuffix("_rgb.avi") for video in videos]
    expected = write_captions(model.reasoner, cache.table[cache.ids(cache.rows(names))])
    assert [one["caption"] for one in answers[0]] == [one.text for one in expected]


def test_the_test_clips_are_captioned_and_measured(
    chain: Pipeline, run: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    given = ["--in", chain.events, "--truth", truth, "--predictions", chain.run2 / "predictions_test.csv", "--output", output]
    assert chain("caption", "--model", run, *given) == 0
    assert "2 test clips of 1 people" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert [one["clip"] for one in found["captions"]] == gallery_of(chain.events).names[gallery_of(chain.events).testing].tolist()
    assert set(found["methods"]) == {OURS, FREQUENT, NAME}


def test_figures_by_hand(chain: Pipeline, truth: Path) -> None:
    """A writer that says the truth, and one that always says the same."""
    predictions = read_predictions(chain.run2 / "predictions_test.csv")
    texts = {name: SAID[name[-4:]] for name in gallery_of(chain.events).names}

    def true(gallery: Gallery, rows: np.ndarray) -> list[Written]:
        return [Written(texts[name][1], -1.0) for name in gallery.names[rows]]

    def same(gallery: Gallery, rows: np.ndarray) -> list[Written]:
        return [Written(SAID["A002"][0], -1.0) for _ in rows]

    found = evaluate(chain.events, truth, predictions, true).facts
    ours = found["methods"][OURS]
    assert (ours["BLEU-4"], ours["ROUGE-L"], ours["names the true action"]) == pytest.approx((1, 1, 1))
    wrong = np.mean(predictions.recognised != predictions.labels)
    assert ours["names another action than the classifier"] == pytest.approx(wrong)
    for name in (FREQUENT, NAME):
        assert found["methods"][name]["names another action than the classifier"] == 0
        assert found["methods"][name]["names the true action"] == pytest.approx(1 - wrong)
    tested = [one["clip"] for one in found["captions"]]
    assert ours["CIDEr"] == pytest.approx(np.mean(cider([texts[name][1] for name in tested], [list(texts[name]) for name in tested])))
    other = evaluate(chain.events, truth, predictions, same).facts["methods"][OURS]
    assert other["names the true action"] == 0.5
    assert other["CIDEr"] < ours["CIDEr"]


def test_the_nearest_caption_tells_the_action() -> None:
    known = [
        (words(text), action)
        for action, counts in (("wave", Counter(["a person waves"])), ("sit", Counter(["a person sits down"])))
        for text in counts
    ]
    assert nearest_action("Somebody sits!", known) == "sit"
    assert nearest_action("a person waves slowly", known) == "wave"
    assert nearest_action("", known) == "wave"  # nothing is near: the first


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["caption", "VIDEO", "--model", "RUN2"], 2, "learned no captions; train stage 2 with --data.source.captions"),
        (["caption", "VIDEO", "--model", "BUNDLE"], 2, "learned no captions"),
        (["caption", "VIDEO", "--model", "nowhere"], 2, "nowhere: no such model"),
        (["caption", "--model", "RUN"], 2, "nothing to caption"),
        (["caption", "VIDEO", "--model", "RUN", "--truth", "x.csv"], 2, "--truth goes with --in EVENTS"),
        (["caption", "VIDEO", "--model", "RUN", "--in", "EVENTS"], 2, "leave videos and --json out"),
        (["caption", "--model", "RUN", "--in", "EVENTS", "--truth", "TRUTH"], 2, "--in needs --predictions"),
        (
            ["caption", "--model", "RUN", "--in", "EVENTS", "--truth", "TRUTH", "--predictions", "TESTED", "--output", "META"],
            2,
            "would lie inside its source",
        ),
        (["caption", "nowhere.avi", "--model", "RUN"], 1, "nowhere.avi"),
        (["fit", "STAGE2", "--data.source.captions", "TRUTH"], 2, "objective listwise reads none"),
        (["fit", "STAGE2", "--data.source.captions", "nowhere.csv"], 1, "nowhere.csv: cannot be read"),
    ],
)
def test_refused(
    arguments: list[str], code: int, said: str, chain: Pipeline, run: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"VIDEO": [sorted(chain.root.rglob("*.avi"))[0]], "RUN2": [chain.run2], "BUNDLE": [chain.bundle], "RUN": [run]}
    places |= {"META": [chain.events / "meta.json"], "TESTED": [chain.run2 / "predictions_test.csv"]}
    places |= {"EVENTS": [chain.events], "TRUTH": [truth], "STAGE2": [*chain.on_events, "--trainer.default_root_dir", tmp_path / "new"]}
    assert main([str(part) for word in arguments for part in places.get(word, [word])]) == code
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("vtlvlm")]) <= 2  # a file, and the count of files
