"""Answers stay whole: torn lines, a full disk, two raters with one code, a study that has changed, withdrawal."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import alone
from studies import SMALL, answer, fill, small_study

from vtlvlm.errors import DataError, UsageError
from vtlvlm.ratings.answers import LETTERS, Answer, Answers, line, new_code, parse, require_code, steps_of
from vtlvlm.ratings.study_folder import Step, Study, open_study
from vtlvlm.ratings.table import ratings_of, write_ratings


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return small_study(tmp_path / "study")


def rule(step: Step, name: str) -> tuple[int, ...]:
    return (4, 3, 5) if name == "rate" else (0,)


def test_a_session_from_the_first_answer_to_the_last(study: Study) -> None:
    with Answers(study).writing() as answers:
        one, other = fill(study, answers, rule), fill(study, answers, rule)
    assert {one.slot, other.slot} == {0, 1}
    assert [session.code for session in Answers(study).sessions()] == sorted([one.code, other.code])
    assert one.next(study) is None
    assert [(a.trial, a.step) for a in one.answers] == steps_of(study.orders[0])
    lines = (study.answers / f"{one.code}.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"study": study.hash, "rater": one.code, "slot": 0}
    assert set().union(*(json.loads(text) for text in lines[1:])) == {"trial", "step", "choice", "scores", "ms"}  # nothing about the person
    assert (study.answers / f"{one.code}.jsonl").stat().st_mode & 0o777 == 0o600


def test_the_same_answer_again_changes_nothing(study: Study) -> None:
    with Answers(study).writing() as answers:
        session = answers.start()
        given = answer(study, session, rule)
        assert given is not None
        once = answers.add(session.code, given)
        assert answers.add(session.code, given) == once
        with pytest.raises(UsageError, match=r"trial 1 \(identify\) is not due: trial 1 \(rate\) comes next"):
            answers.add(session.code, given._replace(ms=1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Answer(0, "identify", 4, (), 10), "choice 4 is none of 4"),
        (Answer(0, "identify", -2, (), 10), "choice -2 is none of 4"),
        (Answer(0, "rate", 0, (0, 1, 2), 10), "3 scores from 1 to 5"),
        (Answer(0, "rate", 0, (1, 2), 10), "3 scores from 1 to 5"),
        (Answer(0, "identify", 0, (), -1), "a time of -1 ms cannot be"),
        (Answer(99, "rate", 0, (1, 1, 1), 10), r"trial 100 \(rate\): no such question"),
        (Answer(3, "identify", 0, (), 10), "is not due|no such question"),
    ],
)
def test_answers_that_no_page_gives(given: Answer, said: str, study: Study) -> None:
    with Answers(study).writing() as answers:
        session = answers.start()
        before = (study.answers / f"{session.code}.jsonl").read_bytes()
        with pytest.raises(UsageError, match=said):
            answers.add(session.code, given)
        assert (study.answers / f"{session.code}.jsonl").read_bytes() == before


def test_a_torn_last_line_is_dropped(study: Study) -> None:
    """At every byte of the last line: what was confirmed stays, and the session goes on."""
    with Answers(study).writing() as answers:
        session = fill(study, answers, rule)
        path = study.answers / f"{session.code}.jsonl"
        whole = path.read_bytes()
        last = whole[:-1].rfind(b"\n") + 1
        for cut in range(last, len(whole)):
            path.write_bytes(whole[:cut])
            assert len(Answers(study).sessions()[0].answers) == len(session.answers) - 1  # a reader does not repair
            assert path.read_bytes() == whole[:cut]
            resumed = answers.resume(session.code)
            assert path.read_bytes() == whole[:last]
            assert answers.add(session.code, session.answers[-1]).answers == session.answers
            assert resumed.next(study) == (session.answers[-1].trial, session.answers[-1].step)
            assert path.read_bytes() == whole
        path.write_bytes(whole[:20])  # torn in the first line: the rater never saw a code
        assert Answers(study).sessions() == []
        assert answers.start().slot == 0


def test_damage_elsewhere_is_found(study: Study) -> None:
    with Answers(study).writing() as answers:
        session = fill(study, answers, rule)
    path = study.answers / f"{session.code}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damages = [[lines[0], b"{}\n", *lines[2:]], [lines[0], *lines[2:]], [lines[0], lines[1], *lines[1:]], [b"x\n", *lines[1:]]]
    damages += [[lines[0], b"\xff\n", *lines[2:]], [lines[0].replace(b'"slot":0', b'"slot":9'), *lines[1:]]]
    for damaged in damages:
        path.write_bytes(b"".join(damaged))
        with pytest.raises(DataError, match="is damaged; take the file from a backup"):
            Answers(study).sessions()


def test_answers_of_another_study(study: Study, tmp_path: Path) -> None:
    with Answers(study).writing() as answers:
        session = answers.start()
    text = (study.folder / "study.json").read_text()
    (study.folder / "study.json").write_text(text.replace("xsub60", "xview60"))
    changed = open_study(study.folder)
    with pytest.raises(DataError, match=f"answers study {study.hash}, but this one is {changed.hash}: it has changed since"):
        Answers(changed).read(session.code)


def test_media_that_have_changed(study: Study) -> None:
    study.require_unchanged()
    clip = study.folder / "media" / study.clips[0].video
    clip.write_bytes(clip.read_bytes() + b"x")
    with pytest.raises(DataError, match="has changed since the study was made"):
        study.require_unchanged()
    clip.unlink()
    with pytest.raises(DataError, match="is missing"):
        study.require_unchanged()


def test_all_places_taken(study: Study) -> None:
    with Answers(study).writing() as answers:
        assert [answers.start().slot for _ in range(SMALL.raters)] == [0, 1, 2, 3]
        with pytest.raises(UsageError, match="all 4 places of the study are taken"):
            answers.start()
        code = answers.codes()[0]
        slot = answers.resume(code).slot
        answers.forget(code)
        assert code not in answers.codes()
        assert answers.start().slot == slot
        with pytest.raises(UsageError, match="no rater of this study has this code"):
            answers.forget(code)


def test_two_raters_with_one_code(study: Study, tmp_path: Path) -> None:
    """A saved file whose code or page is here already with other answers changes nothing."""
    elsewhere = small_study(tmp_path / "other")
    assert elsewhere.hash == study.hash
    with Answers(elsewhere).writing() as answers:
        session = fill(elsewhere, answers, rule)
    saved = (elsewhere.answers / f"{session.code}.jsonl").read_bytes()
    lines = saved.splitlines(keepends=True)
    with Answers(study).writing() as answers:
        assert answers.take(b"".join(lines[:4]), "a.jsonl").answers == session.answers[:3]
        assert answers.take(saved, "a.jsonl") == session  # the same rater, further on
        assert answers.take(saved, "a.jsonl") == session
        path = study.answers / f"{session.code}.jsonl"
        assert path.read_bytes() == saved
        other = b"".join([lines[0], line(session.answers[0]._replace(ms=1)), *lines[2:]])
        with pytest.raises(UsageError, match=f"rater {session.code} is here already with other answers"):
            answers.take(other, "b.jsonl")
        with pytest.raises(UsageError, match=f"page 1 was answered by {session.code} already"):
            answers.take(saved.replace(session.code.encode(), new_code().encode()), "c.jsonl")
        assert path.read_bytes() == saved
        assert answers.codes() == [session.code]
        with pytest.raises(DataError, match=r"e\.jsonl: holds no answers"):
            answers.take(b"", "e.jsonl")
    (study.answers / f"{(twin := new_code())}.jsonl").write_bytes(saved.replace(session.code.encode(), twin.encode()))
    with pytest.raises(DataError, match=r"has slot 1, as .* has; withdraw one of them"):
        Answers(study).sessions()


def test_one_writer_at_a_time(study: Study) -> None:
    with Answers(study).writing(), pytest.raises(UsageError, match="takes answers now; end it first"), Answers(study).writing():
        pass


@pytest.mark.parametrize("code", ["", "abc", "../../etc", "ABCDEFGH", "abcdefg\n", None, "a" * 9])
def test_codes_from_outside(code: object, study: Study) -> None:
    with pytest.raises(UsageError, match="no code of a rater"):
        require_code(code)
    assert set(new_code()) <= set(LETTERS)


FULL = """
import resource, signal, sys
from pathlib import Path
from vtlvlm.ratings.answers import Answer, Answers
from vtlvlm.ratings.study_folder import open_study
study = open_study(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Answers(study).writing() as answers:
    session = answers.start()
    path = study.answers / f"{session.code}.jsonl"
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, resource.RLIM_INFINITY))
    before = path.read_bytes()
    try:
        answers.add(session.code, Answer(0, "identify", 0, (), 10))
    except Exception as error:
        print(type(error).__name__, error)
    assert path.read_bytes() == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(len(answers.add(session.code, Answer(0, "identify", 0, (), 10)).answers))
"""


def test_a_full_disk_loses_nothing(study: Study) -> None:
    """A process that may not write more than ten bytes: the answer is refused, the file is as before, and takes the answer later."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", FULL, study.folder], env=alone(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said, number = done.stdout.splitlines()
    assert said.startswith("DataError")
    assert "cannot be stored (File too large); free space there, then answer again" in said
    assert number == "1"


def test_the_table_says_what_was_answered(study: Study, tmp_path: Path) -> None:
    with Answers(study).writing() as answers:
        session = fill(study, answers, lambda step, name: (1 + step.clip % 5, 2, 3) if name == "rate" else (-1 if step.clip else 0,))
    rows = ratings_of(study, [session])
    order = study.orders[0]
    assert len(rows) == sum(3 if step.purpose == "check" else 4 for step in order)
    for row in rows:
        step = order[row.trial - 1]
        assert (row.clip, row.kind, row.purpose) == (step.clip + 1, step.shown, step.purpose)
        if row.question == "coherence" and step.purpose != "check":
            assert row.score == 1 + step.clip % 5
        if row.question == "identification":
            assert (row.score, row.cannot_tell) == ((1, 0) if step.clip == 0 else (0, 1))  # choice 0 is the action itself
    assert [row.first_seen for row in rows if row.purpose == "repeat"] == [0] * 4
    write_ratings(tmp_path / "ratings.csv", rows)
    header = (tmp_path / "ratings.csv").read_text().splitlines()[0]
    assert header.startswith("rater,trial,clip,kind,purpose,question,score,")


def test_lines_are_read_as_they_were_written(study: Study) -> None:
    with Answers(study).writing() as answers:
        session = fill(study, answers, rule)
    content = (study.answers / f"{session.code}.jsonl").read_bytes()
    assert parse(study, content, "x", None) == session
    assert b"".join(map(line, session.answers)) == content.split(b"\n", 1)[1]
