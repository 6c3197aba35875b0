"""Studies, saved answers and measures from strangers: changed at random places, they are read or refused, and open no other file."""

import json
import random
from pathlib import Path

import pytest
from studies import answer, fill, small_study

from vtlvlm.errors import DataError, UsageError
from vtlvlm.proxies.document import read_measured
from vtlvlm.ratings.answers import Answers, Session, line, parse
from vtlvlm.ratings.study_folder import Study, open_study
from vtlvlm.ratings.table import ratings_of
from vtlvlm.ratings.views import all_views

NOISE = [
    b"",
    b"0",
    b"-1",
    b"1e999",
    b'"',
    b"{",
    b"]",
    b"null",
    b"\xff\xfe",
    b"99999999999999999999",
    b"../../etc/passwd",
    b"NaN",
    b"[" * 2000,
]


def changed(content: bytes, rng: random.Random) -> bytes:
    """A few places overwritten, cut out or filled."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(found))
        found[at : at + rng.randint(0, 12)] = rng.choice(NOISE)
    return bytes(found)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("strange") / "study")


def test_changed_studies(study: Study, tmp_path: Path) -> None:
    """Whatever is still read can be shown in full, without a file outside the study's media."""
    content, rng = (study.folder / "study.json").read_bytes(), random.Random(0)
    (tmp_path / "media").symlink_to(study.folder / "media")
    read = 0
    for _ in range(400):
        (tmp_path / "study.json").write_bytes(changed(content, rng))
        try:
            found = open_study(tmp_path)
            found.require_unchanged()
        except (DataError, UsageError):
            continue
        read += 1
        for slot in range(len(found.orders)):
            for view in all_views(found, slot):
                names = [card["picture"] for card in view.get("cards", []) if card["picture"]]
                names += [view["video"]] if "video" in view else []
                assert all(found.media(name).parent == found.folder / "media" for name in names)
    assert 0 < read < 400


HOSTILE = {
    "a very deep list": lambda facts: "[" * 100_000,
    "no object": lambda facts: "[]",
    "a path among the media": lambda facts: json.dumps({**facts, "media": {**facts["media"], "../../../etc/passwd": "0" * 64}}),
    "a clip that is no text": lambda facts: json.dumps({**facts, "clips": [{**facts["clips"][0], "name": 7}]}),
    "a time that is no number": lambda facts: json.dumps(facts).replace('"start": 0.0', '"start": NaN', 1),
    "an endless study": lambda facts: json.dumps({**facts, "orders": facts["orders"] * 200}),
    "a check without a score": lambda facts: json.dumps(facts).replace('"purpose": "practice"', '"purpose": "check"', 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_studies(name: str, study: Study, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(HOSTILE[name](json.loads((study.folder / "study.json").read_text())))
    with pytest.raises(DataError, match="damaged"):
        open_study(tmp_path)


def test_changed_answers(study: Study) -> None:
    """Read lines are answers of this study, in order; everything else is refused."""
    with Answers(study).writing() as answers:
        session = fill(study, answers, lambda step, name: (1, 2, 3) if name == "rate" else (0,))
        content, rng, read = (study.answers / f"{session.code}.jsonl").read_bytes(), random.Random(1), 0
        answers.forget(session.code)
    for _ in range(2000):
        try:
            found = parse(study, changed(content, rng), "saved.jsonl", None)
        except (DataError, UsageError):
            continue
        read += 1
        if found is not None:
            assert all(1 <= row.score <= 5 or row.question == "identification" for row in ratings_of(study, [found]))
            steps = [(one.trial, one.step) for one in found.answers]
            assert steps == sorted(set(steps), key=steps.index)
    assert read < 1000
    with pytest.raises(DataError, match="larger than a rater's answers"):
        parse(study, content + b" " * (1 << 20), "saved.jsonl", None)


def test_answers_that_go_on_for_ever(study: Study) -> None:
    """More lines than questions."""
    session = Session("abcdefgh", 0, ())
    lines = []
    while (given := answer(study, session, lambda step, name: (1, 2, 3) if name == "rate" else (0,))) is not None:
        lines.append(line(given))
        session = Session(session.code, 0, (*session.answers, given))
    head = json.dumps({"study": study.hash, "rater": session.code, "slot": 0}).encode() + b"\n"
    assert parse(study, head + b"".join(lines), "saved.jsonl", None) is not None
    with pytest.raises(DataError, match="is damaged"):
        parse(study, head + b"".join(lines) + lines[-1], "saved.jsonl", None)


def test_changed_measures(tmp_path: Path) -> None:
    row = {
        "measure": "m",
        "control": "c",
        "value": 1.0,
        "control_value": 0.5,
        "difference": [0.5, 0.1, 0.9],
        "p": 0.03,
        "number": 9,
        "groups": 6,
    }
    row |= {"beats": True, "better": "higher", "note": "", "what": ["clips", "people"]}
    content = json.dumps({"format": 1, "measures": {"order": [row]}, "facts": {"seed": 0}}).encode()
    rng, read = random.Random(2), 0
    for _ in range(500):
        (tmp_path / "auto.json").write_bytes(changed(content, rng))
        try:
            groups, _ = read_measured(tmp_path / "auto.json")
        except DataError:
            continue
        read += 1
        assert all(isinstance(one.measure, str) for rows in groups.values() for one in rows)
    assert 0 < read < 500
