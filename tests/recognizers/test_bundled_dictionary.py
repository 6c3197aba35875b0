"""A bundle carries the dictionary of its own stage 1, and no other one."""

import json
import shutil
from pathlib import Path

import pytest
from pipeline import Pipeline

from vtlvlm.dictionary import EventDictionary
from vtlvlm.dictionary.entries import FACTS
from vtlvlm.errors import DataError
from vtlvlm.recognizers.recognizer import ActionRecognizer


@pytest.fixture(scope="module")
def words(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "dictionary"
    assert chain("dictionary", chain.run2, folder, "--exemplars", 2) == 0
    return folder


def test_a_bundle_knows_its_codes(chain: Pipeline, words: Path, tmp_path: Path) -> None:
    assert chain("export", chain.run2, tmp_path / "bundle", "--dictionary", words) == 0
    moved = shutil.move(tmp_path / "bundle", tmp_path / "moved")
    shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
    model, made = ActionRecognizer.from_checkpoint(moved), EventDictionary.open(words)
    found = model.dictionary  # type: ignore[attr-defined]
    assert [entry.tokens for entry in found.values()] == [entry.tokens for entry in made.values()]
    code = next(code for code in made if made[code].exemplars)
    assert all((one.picture == other.picture).all() for one, other in zip(found[code].exemplars, made[code].exemplars, strict=True))
    assert (Path(moved) / "dictionary" / "index.html").is_file()
    events = model.classify(next(chain.root.glob("*.avi"))).events
    assert events is not None
    assert found[int(events.ids[0, 0])].tokens >= 0


def test_a_bundle_without_one_has_none(chain: Pipeline) -> None:
    assert ActionRecognizer.from_checkpoint(chain.bundle).dictionary is None  # type: ignore[attr-defined]


def test_the_dictionary_of_another_stage_1_is_refused(
    chain: Pipeline, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(words, other)
    facts = json.loads((other / FACTS).read_text())
    (other / FACTS).write_text(json.dumps({**facts, "vtem": "0" * 32}))
    assert chain("export", chain.run2, tmp_path / "bundle", "--dictionary", other) == 2
    assert "the dictionary of another stage 1" in capsys.readouterr().err
    assert chain("export", chain.run2, tmp_path / "peft", "--format", "peft", "--dictionary", words) == 2
    assert "goes into a bundle" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_lost_picture_is_named(words: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(words, other)
    next((other / "codes").iterdir()).unlink()
    with pytest.raises(DataError, match="missing or damaged picture"):
        EventDictionary.open(other).copy(tmp_path / "copy")


def test_segments_from_python(chain: Pipeline) -> None:
    model = ActionRecognizer.from_checkpoint(chain.bundle)
    found = model.segments(next(chain.root.glob("*.avi")), clip=0.4, least=0.05)  # type: ignore[attr-defined]
    assert found.step == pytest.approx(0.1)
    assert len(found.windows) >= 1
