"""The page of an event dictionary: `index.html`, to leaf through and to search, without network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from vtlvlm.dictionary.entries import EventDictionary
from vtlvlm.report.document import template
from vtlvlm.report.style import code_colour, text_on
from vtlvlm.system.files import write_text
from vtlvlm.system.text import shown

PAGE = "index.html"


class Heading(NamedTuple):
    """What the page's head shows."""

    title: str
    summary: str


def write_page(dictionary: EventDictionary, folder: Path) -> Path:
    """Write the page beside the dictionary's pictures. It loads nothing else.

    Args:
        dictionary: Its codes that occur are shown.
        folder: Of the dictionary.
    """
    entries = [_plain(dictionary, code) for code in dictionary if dictionary.numbers["tokens"][code]]
    data = {"entries": entries, "colours": [_colours(code) for code in range(len(dictionary))]}
    facts = dictionary.facts
    summary = (
        f"What each code of the codebook is, counted on {facts['clips']:,} training clips ({facts['protocol']}). An action stands beside a "
        "code that occurs in three or more of its clips, more often than chance; nats are pointwise mutual information.\n\n"
        "“near” are the codes with the most similar vectors; “then” are those that most often come next in the same cell of the picture."
    )
    figures = [
        (f"{len(entries):,} of {len(dictionary):,}", "codes occur"),
        (f"{facts['tokens']:,}", "tokens counted"),
        (f"{sum(bool(entry['actions']) for entry in entries):,}", "codes point to an action"),
        (f"{len(facts['exemplars']):,}", "codes have pictures"),
    ]
    text = template("dictionary.html.j2").render(report=Heading("Event dictionary", summary), facts=figures, data=Markup(in_html(data)))
    write_text(folder / PAGE, text)
    return folder / PAGE


def in_html(value: Any) -> str:
    """JSON that can stand in a script element: it ends neither the element nor the page."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def _plain(dictionary: EventDictionary, code: int) -> dict[str, Any]:
    entry = dictionary[code]
    return {
        "code": code,
        "tokens": entry.tokens,
        "share": entry.share,
        "clips": entry.clips,
        "seconds": entry.seconds,
        "actions": [(shown(one.action), one.pmi, one.clips) for one in entry.actions],
        "neighbours": entry.neighbours,
        "followers": entry.followers,
        "pictures": len(entry.shown),
    }


def _colours(code: int) -> tuple[str, str]:
    """Ground and ink of a code's chip, for CSS."""
    colour = code_colour(code)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour), text_on(colour)
