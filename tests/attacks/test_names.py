"""Names of clips, categories and files made to be more than text, wherever they are shown."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from matplotlib.figure import Figure

from vtlvlm.callbacks.predictions import PredictionTable
from vtlvlm.cli import main
from vtlvlm.report.codebook import CodebookFacts, CodePictures, Pair, SalientClip, codebook_figure
from vtlvlm.report.page import Conditions, Picture, Report, Section, print_table, write_html, write_markdown
from vtlvlm.report.style import new_figure, png
from vtlvlm.report.tables import ResultRow, Table
from vtlvlm.system.text import plain_cell

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
MARKS = "<script>alert(1)</script>[x](javascript:alert(1)) ![y](//evil/z.png) `a` | *b* {{7*7}} $^$"
EVIL = f"{MARKS}{ESCAPES}\nvtlvlm: all is well"


def picture(name: str) -> Picture:
    figure: Figure = new_figure(1.0, 1.0)
    return Picture(name, EVIL, figure)


@pytest.fixture
def report() -> Report:
    return Report(
        title=EVIL,
        summary=f"{EVIL}\n\n{EVIL}",
        conditions=Conditions(EVIL, {"train": 1, "val": 0, "test": 2}, 3, 7, 1, 2, 0.1, EVIL),
        rows=[ResultRow(EVIL, 0.5, 0.6, 0.7, 2, EVIL, ours=True)],
        difficulty=Table((EVIL, "b"), [(EVIL, "1")]),
        sections=[
            Section(EVIL, EVIL, [picture("../../../outside"), picture("..\\..\\outside"), picture("a/b")], [Table((EVIL,), [(EVIL,)])])
        ],
        versions={EVIL: EVIL},
        commands=[f"vtlvlm demo '{EVIL}' ``` ~~~"],
    )


def test_report_pages_show_text_and_stay_in_their_folder(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "report"
    text = write_markdown(report, folder).read_text(encoding="utf-8")
    page = write_html(report, folder / "report.html").read_text(encoding="utf-8")
    terminal = io.StringIO()
    print_table(report, terminal)
    for shown in (text, page, terminal.getvalue()):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
        assert "\nvtlvlm: all is well" not in shown
    outside = re.sub("````sh.*?````", "", text, flags=re.DOTALL)
    assert outside != text
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\((?!figures/[\w.-]+\))", outside)  # no link and no picture but ours
    assert "<script" not in page
    assert "{{7*7}}" in page  # text of a template is no template
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "run/report/figures/a-b.png",
        "run/report/figures/outside-2.png",
        "run/report/figures/outside.png",
        "run/report/report.html",
        "run/report/report.md",
    ]


def test_codebook_panel_draws_them_as_text() -> None:
    blank = np.zeros((4, 4, 3), dtype=np.uint8)
    clip = SalientClip(EVIL, np.arange(3.0), np.ones(3), np.array([0.0, 1.0, 2.0]))
    facts = CodebookFacts(
        EVIL[:40], np.array([5, 3, 1, 0]), (-1.0, -1.0), np.array([3, 1]), [(EVIL[:20], "1")], pairs=[Pair(1, EVIL, 1.0, 3, 2)],
        clips=[clip], codes=[CodePictures(0, 0.5, [blank], [EVIL])], note=EVIL, alarm="alarm",
    )  # fmt: skip
    assert png(codebook_figure(facts), dpi=40).startswith(b"\x89PNG")


class Data:
    """What the table asks a data module."""

    classes = ("=HYPERLINK(1)", "+1", "-1", "@x", "'plain", 'a"b,c', f"w{ESCAPES}", "walk")

    def keys(self, clips: np.ndarray, views: np.ndarray) -> list[tuple[str, int]]:
        return [(f"=cmd|' /C calc'!A{clip}", view) for clip, view in zip(clips.tolist(), views.tolist(), strict=True)]


def test_predictions_are_no_formulas(tmp_path: Path) -> None:
    """As OWASP advises against CSV injection; what was changed can be undone."""
    trainer = Trainer(default_root_dir=tmp_path, logger=False, barebones=False, enable_checkpointing=False, accelerator="cpu")
    trainer.datamodule = Data()  # type: ignore[attr-defined]
    table = PredictionTable()
    size = len(Data.classes)
    table._add(torch.arange(size), torch.zeros(size), torch.arange(size), torch.eye(size))
    table.on_test_end(trainer, None)  # type: ignore[arg-type]
    with (tmp_path / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert not any("\x1b" in cell for row in rows for cell in row)
    assert [plain_cell(name) for name in rows[0][3:]][:6] == list(Data.classes[:6])
    assert [(row[1], row[2]) for row in rows[1:]] == [(name, name) for name in rows[0][3:]]
    assert plain_cell(rows[3][0]) == "=cmd|' /C calc'!A2"


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", EVIL],
        ["classify", "--model", EVIL, "a.mp4"],
        ["report", EVIL],
        ["bench", EVIL],
        ["probe", EVIL, "--features", EVIL],
        ["export", EVIL, EVIL],
        ["consolidate", EVIL, EVIL],
        ["fit", "--config", EVIL],
        ["fit", "--data.source.root", EVIL, "--model", EVIL],
        [EVIL],
    ],
)
def test_arguments_are_shown_harmlessly(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    out, err = capsys.readouterr()
    assert err.startswith("vtlvlm: ")
    assert err.count("\n") == 1, err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err)
