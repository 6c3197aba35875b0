"""Text of strangers, made harmless."""

import os

import pytest

from vtlvlm.system.text import cell, encodable, plain_cell, shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("walk", "walk"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\x9b31m", "\\x9b31m"),
        (os.fsdecode(b"caf\xe9.mp4"), "caf\\xe9.mp4"),
        ("Gehen – 走る", "Gehen – 走る"),
    ],
)
def test_harmful_characters_are_shown_as_escapes(text: str, line: str) -> None:
    assert shown(text) == line
    assert encodable(shown(text))


def test_long_text_loses_its_middle() -> None:
    assert shown("a" * 50 + "b" * 50, 23) == "a" * 10 + "..." + "b" * 10


@pytest.mark.parametrize("text", ["=HYPERLINK()", "+1", "-1", "@x", "walk", "'quoted'", "'=x", "''-1"])
def test_no_cell_is_a_formula_and_it_can_be_read_back(text: str) -> None:
    assert not cell(text).startswith(("=", "+", "-", "@"))
    assert plain_cell(cell(text)) == text
