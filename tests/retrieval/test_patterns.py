"""Patterns against brute force over all choices of windows and cells, and what is none."""

from itertools import pairwise, product

import numpy as np
import pytest

from vtlvlm.errors import UsageError
from vtlvlm.retrieval import patterns
from vtlvlm.retrieval.patterns import Pattern, Step, match, read_pattern


def test_the_form() -> None:
    assert read_pattern("17", 20) == Pattern((Step((17,), np.inf),), False)
    asked = read_pattern(" 17 OR 18 then 4 within 2.5 seconds then 4 within 1s in one cell ", 20)
    assert asked == Pattern((Step((17, 18), np.inf), Step((4,), 2.5), Step((4,), 1.0)), True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a code is missing at the end"),
        ("17 then", "a code is missing at the end"),
        ("then 17", "a code is missing where `then` stands"),
        ("17 or then 4", "a code is missing where `then` stands"),
        ("17 20", "`20` is unexpected"),
        ("17 within 2 s", "`within` is unexpected: `within` needs a `then` before it"),
        ("17 then 4 within two s", "needs a number of seconds where `two` stands"),
        ("17 then 4 within", "needs a number of seconds at the end"),
        ("17 then 4 within 2", "`within 2` needs the unit s at the end"),
        ("17 then 4 within 2 minutes", "needs the unit s where `minutes` stands"),
        ("17 then -4", "a code is missing where `-` stands"),
        ("17 then 4.5", "a code is missing where `4.5` stands"),
        ("17 in cell", "`in` can only begin `in one cell`"),
        ("17 then 99", "there is no code 99; the codes are 0 to 19"),
        ("17 then ²", "a code is missing where `²` stands"),
        ("wave", "a code is missing where `wave` stands"),
        ("1" + " then 1" * 16, "more than 16 steps"),
        ("9" * 2000, "at most 1,000 are read"),
        ("9" * 900, "there is no code"),
        ("\x1b[2J", "a code is missing where `\\x1b` stands"),
    ],
)
def test_what_is_no_pattern(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_pattern(text, 20)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def by_force(pattern: Pattern, ids: np.ndarray, spans: np.ndarray) -> list[tuple[int, float, float]]:
    """For each window that ends a match, the one that begins last, over all choices of windows and cells."""
    found = []
    for clip, sentence in enumerate(ids):
        windows, cells = sentence.shape
        best: dict[int, float] = {}
        for places in product(range(windows), repeat=len(pattern.steps)):
            gaps = [spans[clip, b, 0] - spans[clip, a, 1] for a, b in pairwise(places)]
            if list(places) != sorted(set(places)) or any(g > s.within for g, s in zip(gaps, pattern.steps[1:], strict=True)):
                continue
            where = [{c for c in range(cells) if sentence[w, c] in s.codes} for w, s in zip(places, pattern.steps, strict=True)]
            if all(where) and (not pattern.one_cell or set.intersection(*where)):
                best[places[-1]] = max(best.get(places[-1], -np.inf), float(spans[clip, places[0], 0]))
        found += [(clip, begin, float(spans[clip, window, 1])) for window, begin in sorted(best.items())]
    return found


@pytest.mark.parametrize(
    "text",
    ["3", "1 or 2", "1 then 2", "1 then 2 within 0.3 s", "1 then 1 within 0 s", "1 then 2 within 0.5 s then 3 within 0.5 s",
     "1 then 2 in one cell", "0 or 1 then 2 or 3 within 0.4 s then 0 in one cell", "1 in one cell"],
)  # fmt: skip
def test_matches_are_those_of_brute_force(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "BLOCK", 7)
    rng = np.random.default_rng(3)
    ids = rng.integers(5, size=(30, 6, 2)).astype(np.uint16)
    edges = np.cumsum(rng.random((30, 7)) * 0.4, axis=1).astype(np.float32)
    spans = np.stack([edges[:, :-1], edges[:, 1:]], axis=2)
    found = match(asked := read_pattern(text, 5), ids, spans)
    expected = by_force(asked, ids, spans)
    assert len(expected) > 3
    assert found.clips.tolist() == [clip for clip, _, _ in expected]
    np.testing.assert_allclose(found.spans, [[begin, end] for _, begin, end in expected])


def test_no_clip_has_it() -> None:
    spans = np.zeros((2, 3, 2), np.float32)
    assert not len(match(read_pattern("4 then 4", 5), np.zeros((2, 3, 1), np.uint16), spans).clips)
