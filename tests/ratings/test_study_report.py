"""Table III from simulated raters whose scores are known, exclusions, and the report without raters. No simulated score leaves the test."""

from pathlib import Path

import numpy as np
import pytest
from studies import answer, fill, small_study

from vtlvlm.cli import main
from vtlvlm.proxies.beside_ratings import correlations, values_of
from vtlvlm.ratings.analysis import analyse, excluded, score_grid
from vtlvlm.ratings.answers import Answers, Session
from vtlvlm.ratings.design import Design
from vtlvlm.ratings.document import document
from vtlvlm.ratings.significance import sign_flip
from vtlvlm.ratings.study_folder import Step, Study
from vtlvlm.ratings.table import ratings_of
from vtlvlm.report.document import write_document

krippendorff = pytest.importorskip("krippendorff")
DESIGN = Design(clips=8, raters=8, controls=2, practice=1, checks=1, repeats=1, seed=3)
SCORES = {"events": (5, 4, 4), "baseline": (2, 2, 3), "mismatched": (1, 1, 1), "shuffled": (3, 3, 2)}


def rule(step: Step, name: str) -> tuple[int, ...]:
    """Events high, baseline low; the action is named by events, and else one cannot tell."""
    return SCORES[step.shown] if name == "rate" else (0 if step.shown == "events" else -1,)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return small_study(tmp_path / "study", DESIGN)


@pytest.fixture
def sessions(study: Study) -> list[Session]:
    with Answers(study).writing() as answers:
        return [fill(study, answers, rule) for _ in range(8)]


def test_scores_come_back_as_they_were_given(study: Study, sessions: list[Session]) -> None:
    ratings = ratings_of(study, sessions)
    found = analyse(study, ratings)
    for number, one in enumerate(found.questions):
        high, low = SCORES["events"][number], SCORES["baseline"][number]
        assert one.means == one.medians == (high, low)
        assert tuple(one.difference) == (high - low,) * 3
        assert (one.raters, one.scores) == (8, 64)
        assert one.p == 2 / 2**8
        assert one.p_holm == pytest.approx(3 * 2 / 2**8)
    assert found.identification is not None
    assert [interval.value for interval in found.identification.accuracy] == [1, 0]
    assert found.identification.cannot_tell == (0, 1)
    assert found.identification.chance == 0.25
    assert found.identification.p == 2 / 2**8
    assert {kind: mean for kind, (mean, _) in found.controls.items()} == pytest.approx(
        {"events": 13 / 3, "mismatched": 1, "shuffled": 8 / 3}
    )
    assert found.repeated == (1, 0, 24)
    assert found.recognised[True] == pytest.approx((13 / 3, 7 / 3))


def test_the_grid_holds_the_latin_square(study: Study, sessions: list[Session]) -> None:
    grid = score_grid(ratings_of(study, sessions), "coherence", 8)
    assert grid.shape == (2, 8, 8)
    seen = ~np.isnan(grid)
    assert (seen.sum(0) == 1).all()
    assert (seen.sum(1) == 4).all()
    differences = np.nanmean(grid[0], 1) - np.nanmean(grid[1], 1)
    assert sign_flip(differences) == 2 / 2**8


def careless(study: Study, kind: str) -> Session:
    """A rater whom one of the rules leaves out."""
    with Answers(study).writing() as answers:
        session = answers.start()
        while (given := answer(study, session, rule, 1000 if kind == "fast" else 4000)) is not None:
            step = study.orders[session.slot][given.trial]
            if kind == "check" and step.purpose == "check":
                given = given._replace(scores=(step.target, step.target, 1 + step.target % 5))
            if kind == "equal" and given.step == "rate" and step.purpose != "check":
                given = given._replace(scores=(4, 4, 4))
            session = answers.add(session.code, given)
    return session


@pytest.mark.parametrize(("kind", "reason"), [("fast", "median time 1.0 s"), ("check", "failed a check"), ("equal", "all scores equal")])
def test_rules_leave_a_rater_out(kind: str, reason: str, study: Study) -> None:
    with Answers(study).writing() as answers:
        good = [fill(study, answers, rule) for _ in range(6)]
    bad = careless(study, kind)
    ratings = ratings_of(study, [*good, bad])
    assert excluded(ratings) == {bad.code: reason}
    found = document(study, [*good, bad])
    titles = [section.title for section in found.sections]
    assert titles[:3] == ["Table III", "Tests", "With the raters who were left out"]
    assert found.sections[1].tables[0].rows[0][-2] == "6"
    assert found.sections[2].tables[0].rows[0][-2] == "7"
    assert reason in found.sections[2].text


def test_a_rater_who_has_only_begun_counts_as_far_as_he_came(study: Study) -> None:
    with Answers(study).writing() as answers:
        fill(study, answers, rule)
        session = answers.start()
        for _ in range(9):
            given = answer(study, session, rule)
            assert given is not None
            session = answers.add(session.code, given)
    found = document(study, Answers(study).sessions())
    assert found.facts[0] == ("1 of 8", "raters have finished")
    assert "6 or more are needed" in found.sections[0].text


def test_without_raters_nothing_is_made_up(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(study.folder), str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    assert "No raters yet" in said
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("not run") >= 4
    assert "| **VTEM event sentences** | **not run** | **4.3** | **not run** | **4.1** |" in text
    assert "| baseline descriptions | not run | 2.8 | not run | 2.5 |" in text
    assert "0 of 8" in text
    for name in ("alpha", "p (Holm)"):
        assert name not in text
    begun = small_study(tmp_path / "begun", DESIGN)
    with Answers(begun).writing() as answers:
        answers.start()  # a code alone is no answer
    assert main(["study", "report", str(begun.folder), str(tmp_path / "again")]) == 0
    assert "No raters yet" in capsys.readouterr().out


def test_the_report_of_a_study(study: Study, sessions: list[Session], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(study.folder), str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| **VTEM event sentences** | **5.00** | **4.3** | **4.00** | **4.1** |" in text
    assert "ordinal::clmm(score \\~ kind + (kind \\| rater) + (1 \\| clip)" in text
    assert "1 very poor" in text
    assert (tmp_path / "report" / "tables" / "table3.csv").is_file()
    assert "VTEM event sentences" in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    assert not any(session.code in page for session in sessions)
    assert main(["study", "export", str(study.folder), str(tmp_path / "ratings.csv")]) == 0
    assert len((tmp_path / "ratings.csv").read_text().splitlines()) == 1 + len(ratings_of(study, sessions))
    assert main(["study", "forget", str(study.folder), sessions[0].code]) == 0
    assert main(["study", "forget", str(study.folder), sessions[0].code]) == 2
    assert len(Answers(study).codes()) == 7


def test_saved_answers_are_imported(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = small_study(tmp_path / "elsewhere", DESIGN)
    with Answers(elsewhere).writing() as answers:
        session = fill(elsewhere, answers, rule)
    saved = elsewhere.answers / f"{session.code}.jsonl"
    (tmp_path / "junk").write_text("junk\n")
    assert main(["study", "import", str(study.folder), str(tmp_path / "junk"), str(saved), str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert "line 1 is damaged" in captured.out  # what can be imported is
    assert "none: no such file" in captured.err
    assert Answers(study).sessions() == [session]


def test_ratings_are_set_beside_automatic_measures(study: Study) -> None:
    """Scores that rise with a measure have rho 1; without ratings, or with few clips, there is no table."""
    with Answers(study).writing() as answers:
        found = [fill(study, answers, lambda step, name: (min(5, 1 + step.clip // 2), 3, 5) if name == "rate" else (0,)) for _ in range(2)]
    ratings = ratings_of(study, found)
    facts = {"agreement": {"average_precision": {clip.name: 0.1 * (number // 2) for number, clip in enumerate(study.clips[:8])}}}
    section = correlations(study, ratings, facts)
    assert section is not None
    assert section.tables[0].rows == [["average precision of the action", "coherence", "+1.000", "<0.001", "8"]]  # others never differ
    assert correlations(study, [], facts) is None
    one, other = study.clips[:2]
    few = {"erasure": {"areas": {one.name: {"the mean event": [0.5] * 4}, other.name: {"the mean event": [None] * 4}}}}
    assert values_of(few) == {"deletion, the mean event": {one.name: 0.5}}
    assert correlations(study, ratings, few) is None


def test_a_document_is_written(study: Study, sessions: list[Session], tmp_path: Path) -> None:
    assert all(path.exists() for path in write_document(document(study, sessions), tmp_path / "out"))
