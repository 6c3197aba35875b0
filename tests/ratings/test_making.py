"""A study from a trained chain: its clips, its two descriptions, its pictures, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline import Pipeline

from vtlvlm.cli import main
from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.data.of_run import data_of_run
from vtlvlm.data.video import probe
from vtlvlm.ratings.making import choose_clips, confusions
from vtlvlm.ratings.pictures import LINE, outlined
from vtlvlm.ratings.sentences import baseline_sentences, event_sentences
from vtlvlm.ratings.study_folder import open_study
from vtlvlm.report.predictions import Predictions

TINY = ["--clips", 2, "--raters", 2, "--controls", 0, "--practice", 0, "--checks", 0, "--repeats", 0]


@pytest.fixture(scope="module")
def made(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "study"
    assert chain("study", "make", chain.run2, folder, *TINY, "--words") == 0
    return folder


def test_the_study_shows_test_clips_with_pictures_of_training_people(chain: Pipeline, made: Path) -> None:
    study = open_study(made)
    study.require_unchanged()
    assert {clip.name[8:12] for clip in study.clips} == {"P003"}
    assert {study.classes[clip.action] for clip in study.clips} == {"fall down", "slide right"}
    for clip in study.clips:
        info = probe(made / "media" / clip.video)
        assert info.frames == 15
        assert b"avc1" in (made / "media" / clip.video).read_bytes()  # H.264, which every browser plays
    shown = {(one["clip"], one["shown"]) for one in study.facts["descriptions"].values()}
    assert shown == {(clip, kind) for clip in (0, 1) for kind in ("events", "baseline")}
    assert study.facts["origin"]["codes"] == 8
    assert study.facts["origin"]["events"] == EventCache.open(chain.events).hash
    with Image.open(next((made / "media").glob("*.webp"))) as picture:
        assert picture.size == (292, 292)


def test_cards_tell_the_sentence(chain: Pipeline, made: Path) -> None:
    """Each card's code leads its windows in the cache, and its times are those of the windows."""
    study, cache = open_study(made), EventCache.open(chain.events)
    for one in study.facts["descriptions"].values():
        rows = cache.rows([study.clips[one["clip"]].name], 0)
        spans = cache.spans(rows)[0].numpy()
        cards = one["cards"]
        assert cards[0]["start"] == pytest.approx(spans[0, 0], abs=1e-3)
        assert cards[-1]["end"] == pytest.approx(spans[-1, 1], abs=1e-3)
        if one["shown"] == "events":
            codes = cache.ids(rows)[0].view(len(spans), -1).numpy()
            for card in cards:
                inside = (spans.mean(1) > card["start"]) & (spans.mean(1) < card["end"])
                assert all(card["code"] in window for window in codes[inside])
        assert [card["mark"] for card in cards] == [list(dict.fromkeys(c["code"] for c in cards)).index(card["code"]) for card in cards]


def test_pages_hold_no_code_and_no_name(made: Path) -> None:
    study = open_study(made)
    for order in study.orders:
        for step in order:
            assert all(set(card) == {"start", "end", "mark", "picture", "words"} for card in study.cards(step))


def test_the_baseline_is_uniform_windows_of_quantised_features(chain: Pipeline) -> None:
    """By another route: the mean features of equal windows, assigned to the nearest of the fitted centres."""
    data = data_of_run(chain.run2, None, None)
    data.prepare_data()
    data.setup("test")
    features = FeatureCache.open(chain.features)
    clips = np.concatenate([data.split.train, data.split.test])
    events = event_sentences(data, clips)
    found = baseline_sentences(data, features, clips, windows=4, cells=features.cells, num_codes=8, seed=0)
    assert found.codes.shape == events.codes.shape
    times = features.times(data.plain_rows(features)[clips]).double().numpy()  # 8 steps: two a window
    assert found.spans[:, 1:, 0] == pytest.approx((times[:, 1:7:2] + times[:, 2:8:2]) / 2)
    assert (found.spans[:, 1:, 0] == found.spans[:, :-1, 1]).all()
    steps = features.features(data.plain_rows(features)[clips]).float().numpy()  # (n, T', S, D)
    parts = np.stack([part.mean(1) for part in np.split(steps, 4, axis=1)], 1)
    own = parts[found.codes == found.codes[0, 0, 0]]
    centre = own.mean(0)
    others = parts[found.codes != found.codes[0, 0, 0]]
    assert np.linalg.norm(own - centre, axis=1).mean() < np.linalg.norm(others - centre, axis=1).mean()
    again = baseline_sentences(data, features, clips, windows=4, cells=features.cells, num_codes=8, seed=0)
    assert (again.codes == found.codes).all()
    torch.testing.assert_close(torch.from_numpy(found.codes), torch.from_numpy(again.codes))


def test_choices_are_the_models_confusions() -> None:
    probabilities = np.array([[0.6, 0.1, 0.3, 0.0], [0.5, 0.0, 0.4, 0.1], [0.2, 0.7, 0.0, 0.1]])
    found = Predictions(np.array(["a", "b", "c"]), np.array([0, 0, 1]), probabilities.argmax(1), probabilities, ("p", "q", "r", "s"))
    assert confusions(found)[:2].tolist() == [[0, 2, 1, 3], [1, 0, 3, 2]]
    assert confusions(found, 2)[0].tolist() == [0, 2]
    assert confusions(found)[2, 0] == 2  # an action without test clips


def test_clips_are_spread_over_actions() -> None:
    labels = np.repeat(np.arange(10), 6)
    right = np.ones(60, dtype=bool)
    right[[0, 1, 2, 6, 12]] = False
    found = choose_clips(labels, right, 20, 6, seed=0)
    assert len({*found.tolist()}) == 26
    rated = found[:20]
    assert (~right[rated]).sum() == 5  # a quarter, all that there are
    assert np.bincount(labels[rated[right[rated]]], minlength=10).max() <= 2
    assert set(labels[rated]) == set(range(10))
    assert right[found[20:]].all()
    assert (choose_clips(labels, right, 20, 6, seed=0) == found).all()
    assert (choose_clips(labels, right, 20, 6, seed=1) != found).any()


def test_the_outline_is_around_the_cell() -> None:
    frame = np.zeros((144, 144, 3), np.uint8)
    found = outlined(frame, cell=3, grid=2)
    assert (found[72, 72] == LINE).all()
    assert (found[143, 143] == LINE).all()
    assert not found[:72].any()
    assert not found[76:140, 76:140].any()
    assert not frame.any()
    assert not outlined(frame, 0, 1).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN1", "OUT"], "predictions_test.csv: no such file; run `vtlvlm test`"),
        (["RUN2", "MADE"], "exists already; name a new folder"),
        (["RUN2", "OUT", "--clips", "3"], "--clips 3: an even number"),
        (["RUN2", "OUT"], "20 rated clips and 6 for controls and practice, but the test has 2 clips"),
        (["RUN2", "OUT", *map(str, TINY), "--features", "EVENTS"], "events"),
    ],
)
def test_what_cannot_be_made(
    arguments: list[str], said: str, chain: Pipeline, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN1": chain.run1, "RUN2": chain.run2, "MADE": made, "OUT": tmp_path / "out", "EVENTS": chain.events}
    assert main(["study", "make", *(str(places.get(word, word)) for word in arguments)]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("vtlvlm")]) == 1
    assert not (tmp_path / "out").exists()


def test_a_changed_video_is_refused(tmp_path: Path) -> None:
    """The caches know the clips' content: a video that was replaced since the run cannot get into a study."""
    from videos import encode, moving_block

    run = Pipeline(tmp_path)
    run.run()
    encode(run.root / "S001C001P003R001A001_rgb.avi", moving_block(15, falls=False, shade=200))
    assert main(["study", "make", str(run.run2), str(tmp_path / "out"), *map(str, TINY)]) == 1
    assert not (tmp_path / "out").exists()


DAMAGES = {
    "no JSON": lambda text: text[:-20],
    "a picture that is none of its media": lambda text: text.replace('.webp"', '.webpx"', 1),
    "a path": lambda text: text.replace(json.loads(text)["clips"][0]["video"], "../../etc/passwd"),
    "a clip beyond the last": lambda text: text.replace('"clip": 1,', '"clip": 7,'),
    "a choice beyond the last": lambda text: text.replace('"choices": [', '"choices": [99,', 1),
    "no orders": lambda text: json.dumps({**json.loads(text), "orders": []}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_study_is_refused(damage: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (made / "study.json").read_text()
    (tmp_path / "study.json").write_text(DAMAGES[damage](text))
    assert main(["study", "export", str(tmp_path), str(tmp_path / "out.csv")]) == 1
    assert "study.json: damaged" in capsys.readouterr().err
    (tmp_path / "study.json").write_text(text.replace('"format": 1', '"format": 2'))
    assert main(["study", "export", str(tmp_path), str(tmp_path / "out.csv")]) == 2
    assert "a study of another version" in capsys.readouterr().err
    assert main(["study", "export", str(tmp_path / "none"), str(tmp_path / "out.csv")]) == 2
    assert "holds no study; make one with" in capsys.readouterr().err
