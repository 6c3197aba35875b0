"""Pages without a server: one self-contained HTML file for each slot. A page sends nothing; its rater saves a file, which is imported."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from vtlvlm.dictionary.page import in_html
from vtlvlm.ratings.answers import LETTERS
from vtlvlm.ratings.study_folder import Study
from vtlvlm.ratings.views import FILES, KINDS, PAGE, about, all_views
from vtlvlm.system.files import appearing


def write_pages(study: Study, folder: Path) -> list[Path]:
    """Write ``page-01.html`` and so on into a new folder."""
    width = max(2, len(str(len(study.orders))))
    names = [f"page-{slot + 1:0{width}}.html" for slot in range(len(study.orders))]
    with appearing(folder) as temporary:
        for slot, name in enumerate(names):
            (temporary / name).write_text(page(study, slot), encoding="utf-8")
    return [folder / name for name in names]


def page(study: Study, slot: int) -> str:
    """One page with all that its slot shows. Its policy allows the page's own script and style, and no connection."""
    text, script, style = ((PAGE / name).read_text(encoding="utf-8") for name in FILES)
    steps = all_views(study, slot)
    used = {card["picture"] for step in steps for card in step.get("cards", ()) if card["picture"]}
    used |= {step["video"] for step in steps if "video" in step}
    data = {
        "study": study.hash,
        "slot": slot,
        "letters": LETTERS,
        "about": about(study),
        "trials": len(study.orders[slot]),
        "steps": steps,
        "media": {name: _uri(study.media(name)) for name in sorted(used)},
    }
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; media-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    text = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">')
    text = text.replace('<link rel="stylesheet" href="study.css">', f"<style>{style}</style>")
    inside = f'<script type="application/json" id="data">{in_html(data)}</script>\n<script>{script}</script>'
    return text.replace('<script src="study.js"></script>', inside)


def _uri(path: Path) -> str:
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
