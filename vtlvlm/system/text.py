"""Makes text from outside (names of files and classes, messages from files) safe to show."""

from __future__ import annotations

import os
import re
import sys

# Control characters, line and paragraph separators, marks that change the direction of writing, halves of surrogate pairs.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
BYTES = (0xDC80, 0xDCFF)
"""Range of characters that Python uses for the bytes of a file name that is not UTF-8"""


def shown(text: object, most: int | None = None) -> str:
    """Text as one line that is safe in a terminal, a log or a page. It cannot move the cursor, change colours or change the direction of
    writing: harmful characters become escapes such as ``\\x1b``.

    Args:
        text: Any object; its ``str`` is shown.
        most: Maximum number of characters; the middle of longer text becomes ``...``.
    """
    line = _HARMFUL.sub(lambda found: _escape(ord(found.group())), str(text))
    if most is not None and len(line) > most:
        half = max(1, (most - 3) // 2)
        line = f"{line[:half]}...{line[-half:]}"
    return line


def shown_lines(text: str) -> str:
    """Text of several lines for a terminal: as :func:`shown`, but keeps line ends and tabs."""
    return _HARMFUL.sub(lambda found: found.group() if found.group() in "\t\n\r" else _escape(ord(found.group())), text)


def plain(text: str, encoding: str | None) -> str:
    """Text in the characters of an encoding: ``#`` for ``█``, ``-`` for ``–``, escapes such as ``\\xe9`` for others."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_LIKENESS).encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")
    return text


_LIKENESS = str.maketrans(
    {
        "█": "#", "×": "x", "–": "-", "—": "-", "─": "-", "−": "-", "·": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "±": "+-",
        "α": "alpha", "β": "beta", "²": "^2", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " ",
    }
)  # fmt: skip


def _escape(code: int) -> str:
    if BYTES[0] <= code <= BYTES[1]:
        return f"\\x{code - 0xDC00:02x}"
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def not_text(name: str) -> str:
    """Why a file name is no text, and the remedy: the name is not UTF-8, or the locale does not read UTF-8."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        try:
            os.fsencode(name).decode()
        except UnicodeDecodeError:
            return "its name is not UTF-8; rename it"
        return f"its name cannot be read in this locale ({encoding}); set PYTHONUTF8=1"
    return "its name is not UTF-8; rename it"


def encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text. It cannot encode some file names."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cell(text: object) -> str:
    """Text for a CSV file that a spreadsheet may open. Puts an apostrophe before text that looks like a formula (OWASP), even if
    apostrophes already precede it."""
    plain = shown(text)
    return f"'{plain}" if plain.lstrip("'").startswith(_FORMULA) else plain


def plain_cell(text: str) -> str:
    """The inverse of :func:`cell` for text without harmful characters."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text
