"""The command on a trained chain; its files say what the event cache holds, are read again, and are refused where they are damaged."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pipeline import Pipeline
from safetensors.numpy import load_file, save_file

from vtlvlm.cli import main
from vtlvlm.data.cache import EventCache
from vtlvlm.dictionary import EventDictionary
from vtlvlm.dictionary.crops import CELL_PIXELS
from vtlvlm.dictionary.entries import FACTS, NUMBERS, SUPPORT
from vtlvlm.dictionary.page import in_html
from vtlvlm.errors import DataError, UsageError


@pytest.fixture(scope="module")
def made(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of stage 2's training, with pictures."""
    folder = tmp_path_factory.mktemp("dictionary") / "out"
    assert chain("dictionary", chain.run2, folder, "--exemplars", 2) == 0
    return folder


def test_it_counts_the_training_clips_alone(chain: Pipeline, made: Path) -> None:
    found, cache = EventDictionary.open(made), EventCache.open(chain.events)
    record = json.loads((chain.run2 / "metrics.json").read_text())["provenance"]["split"]
    people = {f"P{person:03}" for person in record["groups"]["train"]}
    names = np.array([name for name in np.unique(cache.names) if name[8:12] in people])
    assert found.facts["clips"] == len(names) == record["clips"]["train"]
    ids = cache.ids(cache.rows(names, 0))
    assert found.numbers["tokens"].tolist() == np.bincount(ids.flatten(), minlength=8).tolist()
    assert [found[code].clips for code in found] == [int((ids == code).any(1).sum()) for code in range(8)]
    assert found.facts["events"] == cache.hash
    assert sum(entry.share for entry in found.values()) == pytest.approx(1)


def test_an_action_is_named_with_its_mutual_information(made: Path) -> None:
    """Six clips of two actions; the pmi of a code and an action is log P(c, a) / P(c) P(a) over tokens."""
    numbers = {name: array.copy() for name, array in load_file(made / NUMBERS).items()}
    classes = len(EventDictionary.open(made).classes)
    numbers["pairs"][:], numbers["class_clips"][:] = 0, 0
    numbers["pairs"][3, :2], numbers["pairs"][4, :2] = (6, 2), (2, 6)
    numbers["class_clips"][3, :2], numbers["class_clips"][4, :2] = (SUPPORT, 1), (2, SUPPORT)
    found = EventDictionary(EventDictionary.open(made).facts, numbers)
    ((action, pmi, tokens, clips),) = found[3].actions
    assert (action, tokens, clips) == (found.classes[0], 6, SUPPORT)
    assert pmi == pytest.approx(np.log((6 / 16) / ((8 / 16) * (8 / 16))))
    assert [one.action for one in found[4].actions] == [found.classes[1]]  # the other has too few clips
    assert found[0].actions == ()
    assert classes >= 2


def test_pictures_are_of_clips_that_hold_the_code(chain: Pipeline, made: Path) -> None:
    found, cache = EventDictionary.open(made), EventCache.open(chain.events)
    seen = 0
    for code in found:
        for picture, clip, seconds in found[code].exemplars:
            rows = cache.rows([clip], 0)
            assert picture.shape == (CELL_PIXELS, CELL_PIXELS, 3)
            middles = cache.spans(rows)[0].mean(1).numpy()
            windows = (cache.ids(rows)[0].view(len(middles), -1) == code).any(1).numpy()
            assert np.abs(middles[windows] - seconds).min() < 1e-3
            seen += 1
        assert len({one.clip for one in found[code].exemplars}) == len(found[code].exemplars)
    assert seen >= len([code for code in found if found[code].tokens])
    with pytest.raises(KeyError, match="code 8: the codes are 0 to 7"):
        found[8]


def test_the_page_holds_every_code_that_occurs(made: Path) -> None:
    page, found = (made / "index.html").read_text(), EventDictionary.open(made)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert [entry["code"] for entry in data["entries"]] == [code for code in found if found[code].tokens]
    assert len(data["colours"]) == len(found)
    assert "http" not in page.replace("http://www.w3.org", "")


def test_names_cannot_end_the_script() -> None:
    assert "<" not in in_html({"name": "</script><img src=x onerror=alert(1)>"})
    assert json.loads(in_html({"name": "</script>"})) == {"name": "</script>"}


def test_a_dictionary_without_pictures_shows_none(chain: Pipeline, tmp_path: Path) -> None:
    assert chain("dictionary", chain.run1, tmp_path / "out", "--events", chain.events) == 0  # a run of stage 1
    found = EventDictionary.open(tmp_path / "out")
    assert not (tmp_path / "out" / "codes").exists()
    assert all(entry.exemplars == () for entry in found.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "OUT"], "nowhere: no folder of a training"),
        (["RUN1", "OUT"], "names no event cache; add --events DIR"),
        (["RUN2", "OUT", "--exemplars", "0"], "--exemplars 0: from 1"),
        (["RUN2", "OUT", "--exemplars", "99"], "--exemplars 99: from 1 to 16"),
        (["RUN2", "MADE"], "exists already; name a new folder"),
    ],
)
def test_what_cannot_be_made(
    arguments: list[str], said: str, chain: Pipeline, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN1": chain.run1, "RUN2": chain.run2, "MADE": made, "OUT": tmp_path / "out"}
    assert main(["dictionary", *(str(places.get(word, word)) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("vtlvlm")]) == 1
    assert not (tmp_path / "out").exists()


DAMAGES = {
    "no number": lambda folder: (folder / FACTS).write_text((folder / FACTS).read_text().replace('"codes": 8', '"codes": "8"')),
    "more codes": lambda folder: (folder / FACTS).write_text((folder / FACTS).read_text().replace('"codes": 8', '"codes": 9')),
    "no number of clips": lambda folder: (folder / FACTS).write_text((folder / FACTS).read_text().replace('"clips"', '"clip"')),
    "no JSON": lambda folder: (folder / FACTS).write_text("{"),
    "cut": lambda folder: (folder / NUMBERS).write_bytes((folder / NUMBERS).read_bytes()[:200]),
    "code out of range": lambda folder: save_file(
        {name: np.full_like(a, 99) if name == "neighbours" else a for name, a in load_file(folder / NUMBERS).items()}, folder / NUMBERS
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dictionary_is_refused(damage: str, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    DAMAGES[damage](folder)
    with pytest.raises(DataError, match="damaged"):
        EventDictionary.open(folder)


def test_a_picture_of_another_size_is_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    code = next(iter(json.loads((folder / FACTS).read_text())["exemplars"]))
    (folder / "codes" / f"{code}.webp").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="missing or damaged picture"):
        _ = EventDictionary.open(folder)[int(code)].exemplars
    with pytest.raises(UsageError, match="holds no event dictionary"):
        EventDictionary.open(tmp_path)
    (folder / FACTS).write_text((folder / FACTS).read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UsageError, match="of another version"):
        EventDictionary.open(folder)
