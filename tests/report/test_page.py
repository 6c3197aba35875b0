"""The report's three forms, from small made-up results."""

import io
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from vtlvlm.errors import UsageError
from vtlvlm.report.figures import Panel, accuracy_bars, confusion_figure, learning_curves, most_confused, running_mean, wilson_interval
from vtlvlm.report.page import Conditions, Picture, Report, Section, print_table, write_html, write_markdown
from vtlvlm.report.runs import Confusion, Curve
from vtlvlm.report.sentence import Sentence, sentence_figure
from vtlvlm.report.style import code_colour
from vtlvlm.report.tables import ResultRow, Table, as_markdown, as_text, duration_text, quantity, summary_table

ROWS = (
    ResultRow("trained <model>", 0.9, 1.0, 0.88, 20, "M = 32", ours=True),
    ResultRow("probe | mean feature", 0.85, 0.95, 0.84, 20),
    ResultRow("chance", 0.25),
)
MATRIX = Confusion(np.array([[5, 0, 1], [2, 3, 0], [0, 0, 4]]), ("bow", "jump", "wave"))


def sentence() -> Sentence:
    frames = np.random.default_rng(0).integers(255, size=(6, 24, 32, 3), dtype=np.uint8)
    times, edges = np.linspace(0.2, 2.2, 6), np.array([0.0, 0.9, 1.2, 1.5, 2.4])
    spans, salience = np.stack([edges[:-1], edges[1:]], 1), np.stack([times, times**2], 1)
    return Sentence("a clip", frames, times, spans, np.array([[1, 2047], [1, 7], [-1, 30], [4, 5]]), salience)


def report(name: str = "confusion") -> Report:
    curve = Curve("train/loss", np.arange(100), np.linspace(2, 0, 100))
    return Report(
        title="A & B",
        summary="First.\n\nSecond <p>.",
        conditions=Conditions("xsub60", {"train": 30, "val": 4, "test": 20}, 3, 7, 92_160, 134_600_000, 1.84, "a laptop", 861.0),
        rows=ROWS,
        difficulty=Table(("probe", "top-1", "limit", "holds"), [("middle frame", "0.61", "≤ 0.70", "yes")]),
        sections=[
            Section("Accuracy", "Text.", [Picture("accuracy", "Bars.", accuracy_bars(ROWS, 0.25))]),
            Section("Sentences", pictures=[Picture("sentence", "One clip.", sentence_figure(sentence()))]),
            Section("Learning", pictures=[Picture("curves", "Loss.", learning_curves([Panel("Loss", [curve], ["training"], "nats")]))]),
            Section("Confusion", pictures=[Picture(name, "Counts.", confusion_figure(MATRIX))], tables=[Table(("a", "b"), [("x", "1")])]),
        ],
        versions={"torch": "2.14.1"},
        commands=["make demo"],
    )


@pytest.fixture(scope="module")
def made() -> Report:
    return report()


def test_markdown_with_all_its_figures(made: Report, tmp_path: Path) -> None:
    text = write_markdown(made, tmp_path).read_text(encoding="utf-8")
    files = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert files == ["figures/accuracy.png", "figures/sentence.png", "figures/curves.png", "figures/confusion.png"]
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in files)
    assert "| **trained &lt;model&gt;** | **0.900** | **1.000** | **0.880** | **20** | **M = 32** |" in text
    for word in (
        "xsub60",
        "30 train, 4 val, 20 test",
        "92,160 of 134,600,000",
        "| seconds per clip | 1.840 |",
        "set before training",
        "2.14.1",
    ):
        assert word in text, word
    assert "| seed | 7 |" in text


def test_html_needs_nothing_else(made: Report, tmp_path: Path) -> None:
    text = write_html(made, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert text.count('src="data:image/png;base64,') == 4
    assert "trained &lt;model&gt;" in text
    assert "<p>Second &lt;p&gt;.</p>" in text
    assert "prefers-color-scheme: dark" in text
    for word in ("xsub60", "1.84 s", "92,160", "Set before training", "2.14.1", "make demo"):
        assert word in text, word


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    for write, target in ((write_markdown, tmp_path), (write_html, tmp_path / "x.html")):
        with pytest.raises(UsageError, match="'accuracy'"):
            write(report("accuracy"), target)


def test_terminal_table_is_aligned(made: Report) -> None:
    out = io.StringIO()
    print_table(made, out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "A & B"
    assert lines[2:7] == [
        "                        top-1  top-5  mean class  clips  note",
        "  ────────────────────  ─────  ─────  ──────────  ─────  ──────",
        "* trained <model>       0.900  1.000       0.880     20  M = 32",
        "  probe | mean feature  0.850  0.950       0.840     20",
        "  chance                0.250",
    ]
    assert "seed 7" in lines[-2]


def test_tables() -> None:
    table = summary_table(ROWS)
    assert table.numeric == (False, True, True, True, True, False)
    assert "probe \\| mean feature" in as_markdown(table)
    assert as_text(Table(("a", "動"), [("x", "1"), ("動作", "22")])).splitlines() == ["a     動", "────  ──", "x      1", "動作  22"]
    grouped = Table(("a", "b"), [("x", "1"), ("y", "2")], headings={1: "a group"})
    assert as_text(grouped).splitlines() == ["a  b", "─  ─", "x  1", "a group", "y  2"]
    assert [duration_text(s) for s in (0.0042, 0.25, 1.84, 59.4, 861, 11_100)] == [
        "4.2 ms",
        "250 ms",
        "1.84 s",
        "59 s",
        "14 min 21 s",
        "3 h 05 min",
    ]
    assert [quantity(n) for n in (1_179_648, 134_515_008)] == ["1,179,648", "134.5\N{NO-BREAK SPACE}M"]


def test_most_confused_pairs() -> None:
    assert most_confused(MATRIX, 5) == [(1, 0, 2), (0, 2, 1)]


def test_figures_leave_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    import matplotlib.pyplot as plt

    figure = confusion_figure(Confusion(np.diag(np.arange(60)) + 1, tuple(f"action {i}" for i in range(60))))
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    assert figure.get_figwidth() > 10  # grows with the classes
    assert len(figure.axes[0].patches) == 8  # only the most confused pairs are marked


def test_codes_have_stable_and_distinct_colours() -> None:
    assert code_colour(77) == code_colour(77)
    colours = np.array([code_colour(code) for code in range(16)])
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 9 * np.eye(16)
    assert apart.min() > 0.1


def test_running_mean_and_interval() -> None:
    assert running_mean(np.array([0.0, 3.0, 6.0, 9.0]), window=3).tolist() == [1.5, 3.0, 6.0, 7.5]
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(1.0, 20)[1] == 1.0
