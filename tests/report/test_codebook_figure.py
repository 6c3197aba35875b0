"""The codebook panel, from made-up facts."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from vtlvlm.report.codebook import CodebookFacts, CodePictures, Pair, SalientClip, codebook_figure
from vtlvlm.report.runs import Curve

EMPTY = CodebookFacts("A codebook", np.zeros(8, np.int64), (math.nan, math.nan), np.zeros(4, np.int64), [("tokens", "0")])


def full() -> CodebookFacts:
    times = np.linspace(0, 3, 12)
    picture = np.random.default_rng(0).integers(255, size=(8, 8, 3), dtype=np.uint8)
    return replace(
        EMPTY,
        counts=np.array([40, 20, 13, 10, 0, 0, 0, 1]),
        zipf=(-1.25, -0.7),
        runs=np.array([30, 12, 4, 1]),
        errors=[Curve("train", np.arange(1, 31), np.linspace(1, 0.4, 30)), Curve("val", np.array([15, 30]), np.array([0.8, 0.6]))],
        pairs=[Pair(7, "take off a very long and heavy winter jacket", 2.25, 1, 3), Pair(2, "jump", 1.5, 9, 4)],
        clips=[SalientClip(f"clip {number}", times, 1 + 0.5 * np.sin(times), np.linspace(0, 3, 5)) for number in range(3)],
        codes=[CodePictures(code, 0.4 / (code + 1), [picture] * (code % 4), ["jump"] * (code % 4)) for code in range(8)],
        note="1 of 9 videos cannot be decoded",
        alarm="CODEBOOK COLLAPSE: something",
    )


def words(figure: Figure) -> str:
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return "\n".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


def test_everything_is_named() -> None:
    text = words(codebook_figure(full()))
    for word in (
        "A codebook",
        "CODEBOOK COLLAPSE",
        "slope −1.25",
        "64%",  # 30 of 47 runs last one window
        "1 token in 3 clips",
        "9 tokens in 4 clips",
        "take off a very long and heavy…",
        "clip 2",
        " 7 ",
        "5.0%",  # of code 7
        "cannot be decoded",
    ):
        assert word in text, word


@pytest.mark.parametrize("facts", [EMPTY, replace(EMPTY, note="no video is left")])
def test_nothing_yet_is_said(facts: CodebookFacts) -> None:
    text = words(codebook_figure(facts))
    assert "no tokens yet" in text
    assert (facts.note or "no pictures") in text
    assert "slope" not in text


def test_a_single_error_is_a_number() -> None:
    text = words(codebook_figure(replace(EMPTY, errors=[Curve("test", np.array([0]), np.array([0.4321]))])))
    assert "0.432" in text
    assert "test, 1 = predicting the mean" in text
