"""Segments of films of two actions, by a stand-in that reads the picture, by hand where that is possible; the command on a real bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from brightness import Brightness
from pipeline import Pipeline
from videos import damaged, encode, moving_block

from vtlvlm.cli import main
from vtlvlm.data.video import Clip
from vtlvlm.errors import DataError, UsageError
from vtlvlm.recognizers.recognizer import ActionRecognizer, Answer
from vtlvlm.segments.finding import Found, decided, find
from vtlvlm.segments.live import Reading
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.steps import of_steps
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.windows import Grid


def film(path: Path, shades: list[tuple[int, float]], rate: int = 10) -> Path:
    """Pictures of so many shades, each for some seconds."""
    return encode(path, np.concatenate([np.full((round(s * rate), 32, 32, 3), shade, np.uint8) for shade, s in shades]), rate=rate)


def of_rows(rows: np.ndarray, classes: list[str], grid: Grid, end: float, rule: Rule, rejected: np.ndarray | None = None) -> Found:
    """Decided without motion."""
    told = np.zeros(len(rows), dtype=bool) if rejected is None else rejected
    return decided([Reading(row, bool(one), None) for row, one in zip(rows, told, strict=True)], classes, grid, end, rule)


def test_two_actions_and_a_gap(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [(250, 4), (128, 4), (5, 4)])
    found = find(Brightness(), path, Grid(1.0, 0.25), Rule(least=0.8))
    assert [one.label for one in found.segments] == ["day", "night"]
    day, night = found.segments
    assert (day.start, night.end) == (0, 12)
    assert day.end == pytest.approx(4, abs=0.5)
    assert night.start == pytest.approx(8, abs=0.5)
    assert len(found.probabilities) == 48
    assert len(found.windows) == 45


def test_a_short_film_is_one_clip(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", [(250, 0.7)])
    found = find(Brightness(), path, Grid(3.0, 0.75), Rule(shortest=0))
    assert found.segments == [Segment("day", 0, pytest.approx(0.7), pytest.approx(250 / 255, abs=0.02))]
    assert find(Brightness(), path, Grid(3.0, 0.75), Rule(shortest=0, decide="hysteresis")).segments == found.segments


def test_steps_are_weighted_means_of_logarithms_by_loops() -> None:
    random = np.random.default_rng(0)
    grid, end = Grid(2.0, 0.5), 5.2
    rows = random.dirichlet(np.ones(3), 7)  # windows that begin at 0, 0.5, ... 3
    found = of_steps(rows, grid, end)
    assert found.shape == (11, 3)
    for step in range(11):
        middle = min((step + 0.5) * 0.5, 3 + 2 - 0.25)  # behind the last window: as its end
        total, weight = np.zeros(3), 0.0
        for number, row in enumerate(rows):
            own = max(0.0, 1 - abs(middle - (number * 0.5 + 1)) / 1)
            total, weight = total + own * np.log(row), weight + own
        mean = np.exp(total / weight)
        assert np.allclose(found[step], mean / mean.sum(), atol=1e-6)


def test_a_long_video_needs_memory_for_its_windows_alone() -> None:
    """Ten hours: 48,000 windows; a table of windows by steps would take 18 GB."""
    rows = np.full((47_997, 5), 0.2)
    found = of_rows(rows, list("abcde"), Grid(3.0, 0.75), 36_000, Rule(least=0.1))
    assert found.segments == [Segment("a", 0, 36_000, pytest.approx(0.2))]


def test_windows_alone_change_as_they_like() -> None:
    rows = np.array([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.9, 0.1], [0.9, 0.1]])
    grid, length = Grid(1.0, 1.0), 5
    alone = of_rows(rows, ["a", "b"], grid, length, Rule(decide="windows", shortest=0, gap=0))
    path = of_rows(rows, ["a", "b"], grid, length, Rule(shortest=0, gap=0))
    assert [one.label for one in alone.segments] == ["a", "b", "a"]
    assert [(one.label, one.start, one.end) for one in path.segments] == [("a", 0, 5)]


def test_a_model_without_probabilities_is_named(tmp_path: Path) -> None:
    class Broken(Brightness):
        def recognise(self, clip: Clip) -> Answer:
            return Answer(torch.tensor([float("nan"), 0.0]))

    with pytest.raises(DataError, match="gives no probabilities"):
        find(Broken(), film(tmp_path / "film.mp4", [(250, 2)]), Grid(1.0, 0.5), Rule())


@pytest.mark.parametrize(
    "settings", [{"least": 0.0}, {"least": 1.0}, {"switch": -1.0}, {"switch": float("nan")}, {"gap": -1.0}, {"decide": "x"}]
)
def test_rules_out_of_range(settings: dict) -> None:
    with pytest.raises(UsageError):
        Rule(**settings)


# -- the command -------------------------------------------------------------------------------------------------------------------


def test_the_command_on_a_folder(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    block = np.concatenate([moving_block(30, falls=True, shade=40), moving_block(30, falls=False, shade=90)])
    encode(videos / "one.mp4", block)
    damaged(videos / "two.avi")
    formats = "json,activitynet,csv,vtt,srt,elan"
    words = ["segment", videos, "--model", chain.bundle, "--clip", 0.8, "--output", out, "--formats", formats]
    assert chain(*words, "--least", 0.05, "--no-motion") == 1
    said = capsys.readouterr()
    assert "two.avi" in said.err
    assert "1 of 2 files could not be read" in said.err
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"one{ending}" for ending in (".png", ".segments.json", ".activitynet.json", ".csv", ".vtt", ".srt", ".eaf")
    )
    written = json.loads((out / "one.segments.json").read_text())
    model = ActionRecognizer.from_checkpoint(chain.bundle)
    found = find(model, videos / "one.mp4", Grid(0.8, 0.2), Rule(least=0.05, motion=False))  # type: ignore[arg-type]
    assert [row["action"] for row in written["segments"]] == [one.label for one in found.segments]
    assert found.segments
    assert (written["clip"], written["hop"], written["steps"]) == (0.8, 0.2, len(found.probabilities))
    assert f"({len(found.segments)} segments)" in said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--clip", "3", "--hop", "9"], "hop=9"),
        (["--formats", "pdf"], "--formats pdf: choose from json"),
        (["--least", "2"], "least=2.0"),
        (["--model", "nowhere"], "nowhere: no such model; `make demo` makes one"),
    ],
)
def test_what_is_refused_in_a_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = film(tmp_path / "film.mp4", [(250, 1)])
    assert main(["segment", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_rejected_windows_are_none_of_the_actions() -> None:
    """By hand: three windows of 2 seconds, one a second. The middle of step 1 is 0.5 from that of window 0 and of window 1: weights 1/2."""
    rows, grid = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), Grid(2.0, 1.0)
    found = of_steps(rows, grid, 4.0, np.array([False, True, False]))
    assert found[1] == pytest.approx(np.array([0.9, 0.1]) / 2)
    assert found[2] == pytest.approx(np.array([0.2, 0.8]) / 2)
    assert (of_steps(rows, grid, 4.0, np.ones(3, dtype=bool)) == 0).all()
    whole = of_rows(rows, ["a", "b"], grid, 4.0, Rule(least=0.5, shortest=0), np.ones(3, dtype=bool))
    assert whole.segments == []
    assert np.array_equal(whole.windows, rows)
    alone = of_rows(rows, ["a", "b"], grid, 4.0, Rule(least=0.5, shortest=0, decide="windows"), np.array([True, False, False]))
    assert [one.label for one in alone.segments] == ["a", "b"]
    assert alone.segments[0].start == 2.0  # of two windows as near, the earlier one


def test_two_videos_of_one_name_are_refused(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = film(tmp_path / "a" / "film.mp4", [(250, 1)]), film(tmp_path / "b" / "film.mp4", [(250, 1)])
    assert chain("segment", one, two, "--model", chain.bundle, "--output", tmp_path / "out") == 2
    assert "would have one name" in capsys.readouterr().err


def test_a_film_in_which_nothing_moves_says_what_to_try(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = film(tmp_path / "still.mp4", [(100, 3)])
    words = ["segment", path, "--model", chain.bundle, "--clip", 0.8, "--least", 0.05]
    assert chain(*words) == 0
    assert "(0 segments)\n  nothing moves as it does in the training" in capsys.readouterr().out
    assert chain(*words, "--no-motion") == 0
    assert "nothing moves" not in capsys.readouterr().out


def test_hysteresis_needs_two_steps_and_no_later_one() -> None:
    rows = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.2, 0.8], [0.2, 0.8]])
    rule = Rule(decide="hysteresis", least=0.55, shortest=0, gap=0)
    whole = of_rows(rows, ["a", "b"], Grid(1.0, 1.0), 7, rule)
    assert [(one.label, one.start, one.end) for one in whole.segments] == [("a", 1, 4), ("b", 4, 7)]
    part = of_rows(rows[:5], ["a", "b"], Grid(1.0, 1.0), 5, rule)
    assert [(one.label, one.start, one.end) for one in part.segments] == [("a", 1, 4), ("b", 4, 5)]


def test_scores_against_the_truth(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was found, taken for the truth, scores 1; a truth elsewhere is refused."""
    video, out = tmp_path / "film.mp4", tmp_path / "out"
    encode(video, np.concatenate([moving_block(30, falls=True, shade=40), moving_block(30, falls=False, shade=90)]))
    words = ["segment", video, "--model", chain.bundle, "--clip", 0.8, "--least", 0.05, "--no-motion"]
    assert chain(*words, "--output", out) == 0
    capsys.readouterr()
    assert chain(*words, "--truth", out / "film.segments.json") == 0
    said = capsys.readouterr().out
    assert "mAP    @0.3 1.000  @0.5 1.000  @0.7 1.000" in said
    assert "edit 1.000" in said
    database = {"database": {"film": {"annotations": [{"label": "dance", "segment": [0, 1]}]}}}
    (tmp_path / "truth.json").write_text(json.dumps(database))
    assert chain(*words, "--truth", tmp_path / "truth.json") == 0
    assert "mAP    @0.3 0.000" in capsys.readouterr().out
    for content, line in (
        ("{}", "no true segments"),
        ('{"database": {"other": {"annotations": []}}}', "has none of the videos; it has other"),
    ):
        (tmp_path / "truth.json").write_text(content)
        assert chain(*words, "--truth", tmp_path / "truth.json") != 0
        assert line in capsys.readouterr().err
