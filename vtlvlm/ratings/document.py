"""Table III and what stands beside it: the page of `vtlvlm study report`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vtlvlm.ratings.analysis import Results, analyse, excluded
from vtlvlm.ratings.answers import Session
from vtlvlm.ratings.design import CONDITIONS
from vtlvlm.ratings.significance import ENOUGH_RATERS, Interval
from vtlvlm.ratings.study_folder import QUESTIONS, SCALE, Study
from vtlvlm.ratings.table import ratings_of
from vtlvlm.report.document import Document, Section
from vtlvlm.report.tables import NOT_RUN, Table

PAPER = {"coherence": (4.3, 2.8), "meaningfulness": (4.1, 2.5)}
"""Table III of the paper: mean scores of event sentences and of the baseline, ten annotators, number of clips not stated"""
LABELS = ("VTEM event sentences", "baseline descriptions")
MODEL = (
    "ordinal::clmm(score ~ kind + (kind | rater) + (1 | clip), data = transform(subset(read.csv('ratings.csv'), purpose == 'main' & "
    "question == '{}'), score = factor(score), kind = factor(kind), rater = factor(rater), clip = factor(clip)))"
)
NO_RATERS = "No raters yet: nobody has answered, so there are no scores. None are made up."


def document(study: Study, sessions: Sequence[Session], more: Sequence[Section] = ()) -> Document:
    """The report of a study.

    Args:
        study: The study.
        sessions: Its raters.
        more: Sections to add, such as the automatic measures.
    """
    ratings = ratings_of(study, sessions)
    begun = [session for session in sessions if session.answers]
    whole = [session for session in begun if session.next(study) is None]
    facts = [
        (f"{len(whole)} of {len(study.orders)}", "raters have finished"),
        (str(study.facts["design"]["clips"]), "rated clips"),
        (f"{sum(rating.purpose == 'main' and rating.question == QUESTIONS[0].name for rating in ratings):,}", "rated trials"),
    ]
    title = "Human study (Table III)"
    if not any(rating.purpose == "main" for rating in ratings):
        sections = [Section("Table III", NO_RATERS, tables=[table_three(None)]), setting(study), *more]
        return Document(title, NO_RATERS, facts, sections)
    left_out = excluded(ratings)
    kept = [rating for rating in ratings if rating.rater not in left_out]
    every, counted = analyse(study, ratings), analyse(study, kept) if left_out else None
    main = counted if counted is not None else every
    sections = [
        Section("Table III", _table_text(main), tables=[table_three(main)]),
        Section("Tests", _test_text(main), tables=[test_table(main, "study_tests")]),
    ]
    if counted is not None:
        why = "; ".join(f"{rater}: {reason}" for rater, reason in left_out.items())
        text = f"Rules that were written into the study before leave out {len(left_out)} of {every.raters} raters ({why}). With them:"
        sections.append(Section("With the raters who were left out", text, tables=[test_table(every, "study_tests_all")]))
    sections += [identification(main), controls(main), setting(study), *more]
    summary = (
        f"{main.raters} raters judged descriptions of {study.facts['design']['clips']} clips, blind to how they were made: event sentences "
        "or uniform windows of quantised raw features. Scores go from 1 (very poor) to 5 (excellent)."
    )
    return Document(title, summary, facts, sections)


def table_three(results: Results | None) -> Table:
    """Table III with the paper's figures; without raters its own cells say that they are not run."""
    header = ["representation", *(f"{question.name}, {who}" for question in QUESTIONS[:2] for who in ("ours", "paper"))]
    rows = []
    for place, label in enumerate(LABELS):
        cells = [label]
        for number, question in enumerate(QUESTIONS[:2]):
            cells += [
                NOT_RUN if results is None else mean_text(results.questions[number].means[place]),
                f"{PAPER[question.name][place]:.1f}",
            ]
        rows.append(cells)
    caption = "Mean scores from 1 to 5. The paper's are quoted: other raters, clips and models."
    return Table(header, rows, frozenset({0}), name="table3", caption=caption)


def _table_text(results: Results) -> str:
    few = ""
    if results.raters < ENOUGH_RATERS:
        few = f" With {results.raters} raters the smallest possible p is {2 / 2**results.raters:.3f}: {ENOUGH_RATERS} or more are needed."
    return f"{results.raters} raters.{few}"


def _test_text(results: Results) -> str:
    lines = [MODEL.format(question.name) for question in results.questions]
    return (
        "p is of the exact two-sided sign-flip test over raters' mean differences, then corrected for three questions (Holm). The interval "
        "of the difference draws raters and clips (crossed bootstrap, 95 %). Alpha is Krippendorff's ordinal agreement over all described "
        "clips; near 0 it can also mean that all descriptions deserve one score.\n\n"
        "An ordinal mixed model needs R with its package ordinal, and ratings.csv of `vtlvlm study export` (not run here):\n\n"
        + "\n\n".join(lines)
    )


def test_table(results: Results, name: str) -> Table:
    """The three questions with their tests."""
    header = ["question", "events", "baseline", "median", "difference", "95 %", "p", "p (Holm)", "alpha", "95 %", "raters", "scores"]
    rows = [
        [
            one.name,
            *(mean_text(value) for value in one.means),
            " / ".join(f"{value:g}" if math.isfinite(value) else "" for value in one.medians),
            mean_text(one.difference.value, sign=True),
            interval_text(one.difference, sign=True),
            p_text(one.p),
            p_text(one.p_holm),
            mean_text(one.alpha.value),
            interval_text(one.alpha),
            str(one.raters),
            str(one.scores),
        ]
        for one in results.questions
    ]
    return Table(header, rows, name=name)


def identification(results: Results) -> Section:
    """How often the action is named from the description alone."""
    found = results.identification
    if found is None:
        return Section("Which action is this?", "No rater has named an action yet.")
    rows = [
        [
            label,
            *(f"{100 * value:.0f} %" if math.isfinite(value) else "" for value in (accuracy.value, accuracy.low, accuracy.high, tell)),
            p_text(p),
        ]
        for label, accuracy, tell, p in zip(LABELS, found.accuracy, found.cannot_tell, found.p_chance, strict=True)
    ]
    text = (
        f"Raters name the action from the description alone, before they see the clip. A guess is right in {100 * found.chance:.0f} % of "
        f"the trials; “cannot tell” counts as wrong. Events against baseline: p = {p_text(found.p)}."
    )
    header = ["description", "right", "from", "to", "cannot tell", "p against a guess"]
    return Section("Which action is this?", text, tables=[Table(header, rows, name="study_identification")])


def controls(results: Results) -> Section:
    """Controls, repeats, and clips that the model gets wrong."""
    names = {
        "events": "events of the clip itself",
        "mismatched": "events of a clip of another action",
        "shuffled": "own events in another order",
    }
    rows = [[names[kind], mean_text(mean), str(number)] for kind, (mean, number) in results.controls.items()]
    equal, gap, number = results.repeated
    text = "Controls must score lower than the clip's own events. Otherwise raters judge how a description looks, and not what it says."
    if number:
        text += f" Of {number} scores that were asked twice, {100 * equal:.0f} % are equal; the mean distance is {gap:.2f}."
    split = [
        [f"the model {'recognises' if right else 'does not recognise'} the clip", *(mean_text(value) for value in means)]
        for right, means in results.recognised.items()
    ]
    return Section(
        "Controls and repeats",
        text,
        tables=[
            Table(["description", "mean score", "trials"], rows, name="study_controls"),
            Table(["rated clips", *CONDITIONS], split, name="study_recognised", caption="Mean score over the three questions."),
        ],
    )


def setting(study: Study) -> Section:
    """How the study was made."""
    design, origin, rules = study.facts["design"], study.facts["origin"], study.facts["rules"]
    described = [one for one in study.facts["descriptions"].values() if one["shown"] in CONDITIONS]
    cards = {kind: [len(one["cards"]) for one in described if one["shown"] == kind] for kind in CONDITIONS}
    means = " / ".join(f"{sum(number) / len(number):.1f}" if number else "" for number in cards.values())
    rows = [
        ("clips", f"{design['clips']} rated, {design['controls']} for controls, {design['practice']} for practice"),
        (
            "raters",
            f"{len(study.orders)} places, in pairs; each sees each clip {'in both conditions' if design['both'] else 'in one condition'}",
        ),
        ("checks, repeats", f"{design['checks']}, {design['repeats']}"),
        ("seed", str(design["seed"])),
        ("windows, cells, codes", f"{origin['windows']}, {origin['cells']}, {origin['codes']} (both conditions)"),
        ("cards, events / baseline", means),
        ("actions named on cards", "yes" if study.facts["words"] else "no"),
        ("protocol", str(origin["protocol"])),
        ("study", study.hash),
        ("scores", ", ".join(f"{place} {name}" for place, name in enumerate(SCALE, 1))),
        *((f"question: {question.name}", question.text) for question in QUESTIONS),
        *((f"left out: {name}", rules[name]) for name in ("checks", "fast", "equal")),
    ]
    return Section("Setting", tables=[Table(("", "value"), rows, name="study_setting")])


def mean_text(value: float, sign: bool = False) -> str:
    """Two decimals; an empty text for nan."""
    return "" if not math.isfinite(value) else f"{value:+.2f}" if sign else f"{value:.2f}"


def interval_text(interval: Interval, sign: bool = False) -> str:
    """The ends of an interval."""
    return f"{mean_text(interval.low, sign)} to {mean_text(interval.high, sign)}" if math.isfinite(interval.low) else ""


def p_text(p: float) -> str:
    """A p value; an empty text for nan."""
    return "" if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"
