"""Figures of names and numbers as users have them."""

import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from pipeline import Pipeline

from vtlvlm.report.figures import LABELLED_CLASSES, Panel, accuracy_bars, confusion_figure, learning_curves, most_confused, shares
from vtlvlm.report.runs import Confusion, Curve
from vtlvlm.report.style import label, png
from vtlvlm.report.tables import ResultRow

NAMES = ("$^$", "cost $5 and $6", "_hidden", "\\frac{", "%d {} {0}", "two\nlines", "動作 👍", "x" * 300, "", "#&~^", "a\x1b[31mb", "\ud83d")


def texts(figure: mpl.figure.Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


@pytest.mark.parametrize("copies", [1, 4])
def test_user_names_a_category_with_dollars(copies: int) -> None:
    """https://github.com/matplotlib/matplotlib/issues/4938, https://github.com/matplotlib/matplotlib/issues/20266: drawn as it stands."""
    names = NAMES * copies
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = confusion_figure(Confusion(np.eye(len(names), dtype=np.int64)[::-1] * 3, names), title="$^$")
        assert png(figure, dpi=40).startswith(b"\x89PNG")
        figure.canvas.draw()
    drawn = texts(figure)
    for name in ("$^$", "cost $5 and $6", "\\frac{", "%d {} {0}", "two\\nlines", "(blank)", "a\\x1b[31mb", "\\ud83d"):
        assert name in drawn, name
    assert not any(text.get_parse_math() for text in figure.findobj(mpl.text.Text) if text.get_text())
    assert max(map(len, "\n".join(drawn).split("\n"))) < 70


def test_user_names_an_arm_with_an_underscore_first() -> None:
    """https://github.com/matplotlib/matplotlib/issues/4938: a legend leaves out what begins with an underscore."""
    curve = Curve("_x", np.arange(3), np.arange(3.0))
    figure = learning_curves([Panel("$^$ \\alpha", [curve, curve], ["_x", "$y$"], "%")])
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_x", "$y$"]
    assert png(figure, dpi=40)
    assert png(accuracy_bars([ResultRow("$^$ {", 0.5, 0.7, 0.5, 20), ResultRow("_chance", 0.1)], 0.1), dpi=40)


def test_names_are_cut_between_words_and_wide_characters_count_twice() -> None:
    assert label("take off a very long and heavy coat", 30) == "take off a very long and…"
    assert label("x" * 300, 10) == "xxxxxxxxx…"
    assert label("走" * 20, 10) == "走走走走…"
    assert label("  a   b ") == "  a   b "


def test_user_has_a_thousand_categories() -> None:
    """https://github.com/rasbt/mlxtend/issues/152: 15 GB and a segmentation fault. The picture is as large as that of 120."""
    counts = np.diag(np.full(1000, 9))
    counts[17, 801] = 4
    figure = confusion_figure(Confusion(counts, tuple(f"action {number}" for number in range(1000))))
    limit = confusion_figure(Confusion(np.eye(LABELLED_CLASSES, dtype=np.int64), tuple(f"action {n}" for n in range(LABELLED_CLASSES))))
    assert figure.get_size_inches() == pytest.approx(limit.get_size_inches(), rel=0.03)
    assert len(figure.axes[0].get_xticklabels()) <= LABELLED_CLASSES
    assert "action 17\n       as action 801" in "\n".join(texts(figure))
    image = figure.axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (500, 500)
    assert image[8, 400] == pytest.approx(4 / 13)  # a single confusion is still seen


def test_shares_of_blocks_and_the_most_confused() -> None:
    counts = np.array([[2, 0, 2], [0, 0, 0], [1, 0, 3]])
    assert shares(counts).tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0], [0.25, 0.0, 0.75]]
    assert shares(counts, 2).tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert most_confused(Confusion(counts, ("a", "b", "c")), 5) == [(0, 2, 2), (2, 0, 1)]


def test_figures_that_cannot_be_made_stand_in_no_ones_way(
    chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/matplotlib/matplotlib/issues/4938: the measures are worth more than their picture."""

    def short(*_: object, **__: object) -> None:
        raise MemoryError("no room for 20,000 pixels")

    monkeypatch.setattr(mpl.figure.Figure, "subplots", short)
    monkeypatch.setattr(mpl.figure.Figure, "add_gridspec", short)
    for config, best, left in (
        (chain.on_events, chain.best2, ("metrics.json", "predictions_test.csv", "confusion_test.json")),
        (chain.on_features, chain.best1, ("metrics.json", "codebook_test.json")),
    ):
        capsys.readouterr()
        assert chain("test", *config, "--trainer.default_root_dir", tmp_path / best.parent.parent.name, "--ckpt_path", best) == 0
        assert {path.name for path in (tmp_path / best.parent.parent.name).iterdir()} >= set(left)
        told = [line for line in capsys.readouterr().err.splitlines() if "picture" in line]
        assert len(told) == 1
        assert told[0].startswith("vtlvlm: warning: the picture of the co")
        assert "no room for 20,000 pixels" in told[0]


def test_curves_that_cannot_be_written_stand_in_no_ones_way(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """https://github.com/victorchall/EveryDream2trainer/issues/100: a curve that cannot be written ends the training."""
    (tmp_path / "tensorboard").write_text("in the way")
    here = ["--trainer.default_root_dir", tmp_path]
    assert chain("fit", *chain.on_events, *here, "--trainer.max_epochs", 1) == 0
    assert chain("test", *chain.on_events, *here, "--ckpt_path", tmp_path / "checkpoints" / "best.ckpt") == 0
    for name in ("metrics.json", "fit.json", "predictions_test.csv", "confusion_test.json"):
        assert (tmp_path / name).is_file()
    told = [line for line in capsys.readouterr().err.splitlines() if "TensorBoard" in line]
    assert len(told) == 2  # once by each command
    assert all(line.startswith("vtlvlm: warning: TensorBoard's curves") for line in told)
    assert (tmp_path / "tensorboard").read_text() == "in the way"
