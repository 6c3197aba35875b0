import json
from pathlib import Path

import pytest
import torch

from vtlvlm.bench.harness import Measurement, alternate, finish, peak_bytes, ratio


def test_rounds_alternate_and_the_first_is_not_counted() -> None:
    order: list[str] = []
    now = iter(range(1000))
    jobs = {"a": lambda: order.append("a"), "b": lambda: [order.append("b"), next(now), next(now)]}
    seconds = alternate(jobs, repeats=3, clock=lambda: next(now))
    assert order == ["a", "b"] * 4
    assert seconds == {"a": [1, 1, 1], "b": [3, 3, 3]}


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert ratio({"a": [2, 10, 30], "b": [1, 10, 10]}, "a", "b") == 2  # not 10 / 10, the ratio of the medians


def test_peak_is_what_a_job_holds_at_once() -> None:
    """Two of three blocks live side by side, beside an operation's own scratch; what was there before does not count, freed or not."""
    before = [torch.ones(2**22)]

    def job() -> None:
        first = torch.empty(2**20)
        second = torch.empty(2**20)
        del first, second
        before.clear()
        torch.empty(2**20)

    assert peak_bytes(job) == 2 * 4 * 2**20


@pytest.mark.parametrize(
    ("value", "target", "sense", "holds"),
    [
        (1, 1, "<=", True),
        (1.1, 1, "<=", False),
        (9, 8, ">=", True),
        (None, 8, ">=", False),
        (1, None, "<=", None),
        (3, 3, "==", True),
        (2, 3, "==", False),
    ],
)
def test_holds(value: float | None, target: float | None, sense: str, holds: bool | None) -> None:
    assert Measurement("work", value, target=target, sense=sense).holds is holds  # type: ignore[arg-type]


def test_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [Measurement("fast", 1.0, target=2), Measurement("slow", 3.0, target=2), Measurement("seen", None, note="no such library")]
    assert finish("data", figures, tmp_path / "deep" / "b.json", {"clips": 1}) == 1
    content = json.loads((tmp_path / "deep" / "b.json").read_text())
    assert [row["holds"] for row in content["rows"]] == [True, False, None]
    assert {"machine", "versions", "clips"} <= content.keys()
    text = capsys.readouterr().out
    assert "1 of 2 targets missed" in text
    assert "<= 2" in text
