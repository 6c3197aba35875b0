"""The automatic measures as tables, and as a JSON file that `vtlvlm study report` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtlvlm.errors import DataError
from vtlvlm.proxies.comparing import Comparison
from vtlvlm.ratings.significance import Interval
from vtlvlm.report.document import Document, Section
from vtlvlm.report.tables import Table

FORMAT = 1
LARGEST = 64 << 20
TITLES = {
    "erasure": "1. Deletion and insertion of steps",
    "code_class": "2. Code and action",
    "order": "3. Order of the windows",
    "coherence": "4. Coherence",
    "agreement": "5. Agreement across clips",
    "purity": "6. Purity of exemplars",
}
TEXTS = {
    "erasure": "Steps are the cards of the study. They are removed (or shown) in the order of their importance to the recognised action.",
    "code_class": "Whether a code says which action it is from.",
    "order": "The model reads the windows of test clips in another order. Where the own order does not help, it reads a bag of events.",
    "coherence": "Bigrams of training sentences predict the next code of a cell in test sentences.",
    "agreement": "Each test clip looks for its action among the training clips, which show other people.",
    "purity": "The odd one among four pictures of codes is looked for by features of another extractor.",
}


def measured(groups: dict[str, list[Comparison]], facts: dict[str, Any]) -> dict[str, Any]:
    """The content of the JSON file."""
    return {"format": FORMAT, "measures": {name: [row.plain() for row in rows] for name, rows in groups.items()}, "facts": facts}


def read_measured(path: Path) -> tuple[dict[str, list[Comparison]], dict[str, Any]]:
    """Measures and facts of a JSON file of ``vtlvlm study auto``.

    Raises:
        DataError: It is none, or damaged.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError("another version")
        groups = {name: [_comparison(row) for row in found["measures"][name]] for name in TITLES if name in found["measures"]}
        facts = dict(found["facts"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: no measures of `vtlvlm study auto`; run it again") from error
    return groups, facts


def _comparison(row: dict[str, Any]) -> Comparison:
    numbers = {name: float("nan") if row[name] is None else float(row[name]) for name in ("value", "control_value", "p")}
    interval = Interval(*(float("nan") if number is None else float(number) for number in row["difference"]))
    texts = {name: str(row[name]) for name in ("measure", "control", "better", "note")}
    one, other = map(str, row["what"])
    counts = {name: int(row[name]) for name in ("number", "groups")}
    return Comparison(difference=interval, beats=bool(row["beats"]), what=(one, other), **numbers, **texts, **counts)  # type: ignore[arg-type]


def sections(groups: dict[str, Sequence[Comparison]] | dict[str, list[Comparison]], facts: dict[str, Any]) -> list[Section]:
    """A section for each of the six measures."""
    found = []
    for name in TITLES:
        rows = groups.get(name, [])
        if not rows:
            continue
        notes = list(dict.fromkeys(row.note for row in rows if row.note))
        over = list(dict.fromkeys(f"{row.groups:,} {row.what[1]}" for row in rows if row.groups))
        text = TEXTS[name] + (f" Intervals: over {' or '.join(over)}." if over else "")
        text += "".join(f"\n\n{note[:1].upper()}{note[1:]}." for note in notes)
        tables = [table(rows, f"proxy_{name}")]
        if name == "order" and facts.get("order", {}).get("pairs"):
            tables.append(pairs_table(facts["order"]["pairs"]))
        found.append(Section(TITLES[name], text, tables=tables))
    return found


def table(rows: Sequence[Comparison], name: str) -> Table:
    """Measures beside their controls. Rows whose measure beats its control are emphasised."""
    header = ["measure", "value", "control", "its value", "better by", "95 %", "p", "beats it", "over"]
    cells = [
        [
            row.measure + (" (lower is better)" if row.better == "lower" else ""),
            number(row.value),
            row.control,
            number(row.control_value),
            number(row.difference.value, sign=True),
            f"{number(row.difference.low, sign=True)} to {number(row.difference.high, sign=True)}"
            if math.isfinite(row.difference.low)
            else "",
            p_text(row.p),
            "yes" if row.beats else "no",
            f"{row.number:,} {row.what[0]}",
        ]
        for row in rows
    ]
    return Table(header, cells, frozenset(place for place, row in enumerate(rows) if row.beats), name=name)


def pairs_table(pairs: dict[str, Any]) -> Table:
    """Accuracy on actions that are each other's reversal."""
    header = ["pair", "own order", "shuffled", "reversed", "reversed read as the reversal", "clips"]
    rows = [
        [
            name,
            *(number(one["accuracy"][key]) for key in ("own", "shuffled", "reversed")),
            number(one["read_as_the_reversal"]),
            str(one["clips"]),
        ]
        for name, one in sorted(pairs.items())
    ]
    return Table(header, rows, name="proxy_pairs", caption="Accuracy of pairs of actions that are each other's reversal in time.")


def number(value: float, sign: bool = False) -> str:
    """Three decimals; an empty text for nan."""
    return "" if not math.isfinite(value) else f"{value:+.3f}" if sign else f"{value:.3f}"


def p_text(p: float) -> str:
    """A p value; an empty text for nan."""
    return "" if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def document(groups: dict[str, list[Comparison]], facts: dict[str, Any]) -> Document:
    """The page of ``vtlvlm study auto``."""
    rows = [row for own in groups.values() for row in own]
    beaten = sum(row.beats for row in rows)
    summary = (
        "Automatic measures of event sentences, each beside the control that it must beat. They replace no rating: no person has judged "
        "anything here.\n\nA measure beats its control if the 95 % interval of the difference lies above zero. Intervals draw people, "
        "since clips of one person are alike; p is of the sign-flip test over people."
    )
    given = [
        (f"{beaten} of {len(rows)}", "controls are beaten"),
        (f"{facts['test_clips']:,}", f"test clips, {facts['test_people']} people"),
        (f"{facts['train_clips']:,}", f"training clips, {facts['train_people']} people"),
        (str(facts["seed"]), "seed"),
    ]
    return Document("Automatic measures of event sentences", summary, given, sections(groups, facts))
