"""The search from Python and as a command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from events import EventRun
from galleries import gallery
from pipeline import Pipeline
from safetensors.numpy import load_file, save_file

from vtlvlm.data.cache import EventCache
from vtlvlm.errors import DataError, UsageError
from vtlvlm.lvlm.sentences import SentenceScorer
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.retrieval import EventSearch, search
from vtlvlm.retrieval.actions import ActionReader
from vtlvlm.retrieval.alignment import align, directions
from vtlvlm.retrieval.search import EVENTS_WEIGHT
from vtlvlm.retrieval.stored import FILE, load_index, make_index, save_index


@pytest.fixture(scope="module")
def found() -> EventSearch:
    known = gallery()
    return EventSearch(known, make_index(known))


@pytest.fixture
def events(chain: Pipeline, tmp_path: Path) -> Path:
    """A copy of the chain's event cache: a search writes into it."""
    return Path(shutil.copytree(chain.events, tmp_path / "events"))


def test_a_clip_finds_its_action_by_other_people(found: EventSearch) -> None:
    for name in found.gallery.names:
        hits = found.like(name, top=4, other_people=True)
        assert sum(hit.action == f"action {name[4]}" for hit in hits) >= 3
        assert all(hit.person != name[:2] for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_scores_join_action_and_alignment(found: EventSearch) -> None:
    """With as few clips, all are aligned; the score is the weighted mean of both cosines."""
    known, row = found.gallery, 5
    probabilities = found.index.probabilities.astype(float)
    units = probabilities / np.linalg.norm(probabilities, axis=1, keepdims=True)
    aligned = align(known.ids[row], known.ids, directions(known.table))
    expected = (units @ units[row] + EVENTS_WEIGHT * aligned) / (1 + EVENTS_WEIGHT)
    order = found.order(known.ids[row], np.arange(len(found)) == row)
    assert row not in order.rows
    np.testing.assert_allclose(order.scores, expected[order.rows], atol=1e-5)
    assert (np.diff(order.scores) <= 0).all()
    assert found.like_sentence(known.ids[row], top=1)[0].clip == known.names[row]
    assert found.like_sentence(known.ids[row], top=1)[0].score == pytest.approx(1, abs=1e-5)


def test_without_known_actions_the_best_by_words_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ALIGNED", 6)
    known = gallery()._replace(learning=np.zeros(0, np.int64), unlearned="nobody said so")
    alone = EventSearch(known, make_index(known))
    words = alone.index.words.scores(known.ids[0], len(known.table))
    order = alone.order(known.ids[0], np.zeros(len(alone), np.bool_), top=3)
    best = np.argsort(-words, kind="stable")
    assert set(order.rows[:6].tolist()) == set(best[:6].tolist())
    assert order.rows[6:].tolist() == best[6:].tolist()
    np.testing.assert_allclose(order.scores[:6], align(known.ids[0], known.ids[order.rows[:6]], directions(known.table)), atol=1e-6)
    with pytest.raises(DataError, match="actions cannot be told from the codes: nobody said so"):
        alone.action("action 0")


def test_actions_and_patterns(found: EventSearch) -> None:
    hits = found.action(" Action  1", top=8)
    assert [hit.action for hit in hits] == ["action 1"] * 8
    assert all(0 <= hit.score <= 1 for hit in hits)
    some = found.pattern("3 or 4", top=50)
    counts = [int(np.isin(found.gallery.ids[found.gallery.names == hit.clip], (3, 4)).any(axis=2).sum()) for hit in some]
    assert counts == [hit.score for hit in some] == sorted(counts, reverse=True)
    assert all(len(hit.times) == min(3, count) for hit, count in zip(some, counts, strict=True))
    with pytest.raises(UsageError, match="'jumping': no action of the cache, which has action 0, action 1, action 2"):
        found.action("jumping")
    with pytest.raises(DataError, match=r"nothing: no clip of the cache, which has P0 A0 C0"):
        found.like("nothing")
    with pytest.raises(UsageError, match="the clip has 6 windows of 3 codes, the cache's have 6 windows of 4"):
        found.like_sentence(found.gallery.ids[0, :, :3])


def test_a_sentence_is_scored_against_its_mean_over_all_clips(found: EventSearch) -> None:
    likelihoods = np.log(np.linspace(0.01, 0.3, len(found)))
    hits = found.sentence(lambda ids: likelihoods[: len(ids)], top=2)
    assert hits[0].clip == found.gallery.names[-1]
    assert hits[0].score == pytest.approx(np.log(0.3 / np.exp(likelihoods).mean()))


# -- the stored index ------------------------------------------------------------------------------------------------------------------


def test_an_index_is_made_once(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = EventSearch.open(events)
    assert first.index.reader is not None

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(search, "make_index", refuse)
    again = EventSearch.open(events)
    for one, two in zip((*first.index.words, *first.index.reader), (*again.index.words, *again.index.reader), strict=True):
        np.testing.assert_array_equal(one, two)
    clip = str(first.gallery.names[0])
    assert first.like(clip) == again.like(clip)


CHANGES = {
    "a word twice": lambda t: t["words"].__setitem__(1, t["words"][0]),
    "a clip too many": lambda t: t["clips"].__setitem__(0, 99),
    "a clip below": lambda t: t["clips"].__setitem__(0, -1),
    "no number": lambda t: t["weights"].__setitem__(0, np.nan),
    "starts that fall": lambda t: t["starts"].__setitem__(1, 10**6),
    "a neighbour too many": lambda t: t["near"].__setitem__((0, 0), 24),
    "one tensor less": lambda t: t.pop("bias"),
    "another shape": lambda t: t.update(probabilities=t["probabilities"][:, :1].copy()),
    "another type": lambda t: t.update(weights=t["weights"].astype(np.float64)),
    "weights of other codes": lambda t: t.update(weight=t["weight"][:, :-1].copy()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_index_is_not_used(change: str, tmp_path: Path) -> None:
    known = gallery()
    path = tmp_path / FILE
    save_index(make_index(known), known.identity, path)
    assert load_index(known, path) is not None
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    CHANGES[change](tensors)
    save_file(tensors, path, metadata={"format": "1", "identity": known.identity})
    assert load_index(known, path) is None


def test_an_index_of_other_clips_or_none_is_not_used(tmp_path: Path) -> None:
    known, path = gallery(), tmp_path / FILE
    assert load_index(known, path) is None
    path.write_bytes(b"no index at all")
    assert load_index(known, path) is None
    save_index(make_index(known), "of others", path)
    assert load_index(known, path) is None


def test_a_folder_that_cannot_be_written_is_searched(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(search, "save_index", full)
    assert len(EventSearch.open(events)) == 6
    assert not (events / FILE).exists()


# -- the command -----------------------------------------------------------------------------------------------------------------------


def test_the_command_finds_clips_actions_and_patterns(chain: Pipeline, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = EventCache.open(events)
    name = str(np.unique(cache.names)[0])
    assert chain("search", name, "--in", events, "--json", "--other-people") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["query"], found["kind"], found["clips"]) == (name, "clip", 6)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4]
    assert name[8:12] not in {hit["person"] for hit in found["hits"]}
    action = EventSearch.open(events).gallery.classes[0]
    assert chain("search", action.upper(), "--in", events, "--top", 2) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"2 of 6 clips with the highest probability of {action.upper()}")
    code = int(cache.ids(cache.rows([name]))[0, 0])
    assert chain("search", code, "--in", events) == 0
    assert name in capsys.readouterr().out
    absent = "0 then 1 then 2 then 3 then 4 then 5 then 6 then 7"  # more steps than there are windows
    assert chain("search", absent, "--in", events, "--json") == 0
    assert json.loads(capsys.readouterr().out)["hits"] == []


def test_a_video_is_found_as_itself(chain: Pipeline, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = sorted(chain.root.rglob("*.avi"))[0]
    assert chain("search", video, "--in", events, "--model", chain.bundle, "--json") == 0
    best = json.loads(capsys.readouterr().out)["hits"][0]
    assert best["clip"] == video.name.removesuffix("_rgb.avi")
    assert best["score"] == pytest.approx(1, abs=1e-4)


def test_a_sentence_is_what_the_language_model_says_of_it(chain: Pipeline, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chain("search", "they sit and eat", "--in", events, "--model", chain.bundle, "--json", "--top", 6) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "sentence"
    cache, model = EventCache.open(events), ActionRecognizer.from_checkpoint(chain.bundle, device="cpu")
    names = [hit["clip"] for hit in found["hits"]]
    scores = SentenceScorer(model.reasoner, ["they sit and eat"])(cache.table[cache.ids(cache.rows(names))])[:, 0]
    expected = scores - scores.logsumexp(0) + np.log(6)
    np.testing.assert_allclose([hit["score"] for hit in found["hits"]], expected, atol=1e-4)
    assert torch.equal(scores, scores.sort(descending=True).values)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["1 then", "--in", "EVENTS"], 2, "pattern '1 then': a code is missing at the end"),
        (["1 then 8", "--in", "EVENTS"], 2, "there is no code 8; the codes are 0 to 7"),
        (["somebody waves", "--in", "EVENTS"], 2, "another sentence needs --model"),
        (["nobody", "--as", "clip", "--in", "EVENTS"], 1, "nobody: no clip of the cache"),
        (["VIDEO", "--in", "EVENTS"], 2, "a video needs --model"),
        (["VIDEO", "--in", "EVENTS", "--model", "nowhere"], 2, "nowhere: no such model"),
        (["3", "--in", "EVENTS", "--other-people"], 2, "--other-people goes with a clip of the cache"),
        (["3", "--in", "EVENTS", "EVENTS"], 2, "--in names 2 caches; a search reads one"),
        (["3", "--in", "nowhere"], 1, "nowhere: holds no cache of events"),
        (["3", "--in", "EMPTY"], 1, "is an empty cache"),
        (["3", "--in", "EVENTS", "--top", "0"], 2, "--top 0: at least 1"),
        ([" ", "--in", "EVENTS"], 2, "nothing to search for"),
        (["3", "--in", "EVENTS", "--output", "x.json"], 2, "--output goes with --evaluate"),
        (["3", "--in", "EVENTS", "--evaluate", "x.csv"], 2, "leave QUERY out"),
        (["--in", "EVENTS", "--evaluate", "x.csv", "y.csv"], 2, "--in names 1 caches and --evaluate 2 tables"),
        (["--in", "EVENTS", "--evaluate", "TESTED", "--output", "META"], 2, "would lie inside its source"),
        (["--in", "EVENTS", "--evaluate", "TESTED"], 1, "no test clip shows an action that another test person shows too"),
    ],
)
def test_what_cannot_be_searched(
    arguments: list[str], code: int, said: str, chain: Pipeline, events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = Path(shutil.copytree(events, tmp_path / "empty"))
    for file in [*empty.glob("ids-*"), *empty.glob("rows-*")]:
        file.unlink()
    places = {
        "META": events / "meta.json",
        "EVENTS": events,
        "EMPTY": empty,
        "VIDEO": sorted(chain.root.rglob("*.avi"))[0],
        "TESTED": chain.run2 / "predictions_test.csv",
    }
    assert chain("search", *(places.get(word, word) for word in arguments)) == code
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("vtlvlm")]) == 1


def test_continuous_events_have_no_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = EventRun(tmp_path, people=(1, 2, 3))
    assert run.command("search", "3", "--in", run.events) == 1
    assert "its events are continuous (IdentityQuantizer), and have no codes to search" in capsys.readouterr().err


def test_a_clip_of_another_models_codes_is_refused(chain: Pipeline, events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = events / "table.safetensors"
    tensors = {name: array.copy() for name, array in load_file(table).items()}
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, table)
    video = sorted(chain.root.rglob("*.avi"))[0]
    assert chain("search", video, "--in", events, "--model", chain.bundle) == 2
    assert f"{chain.bundle}: its codes are not those of {events}" in capsys.readouterr().err


def test_fields_of_the_reader_are_what_is_stored() -> None:
    assert ActionReader._fields == ("near", "shares", "weight", "bias")
