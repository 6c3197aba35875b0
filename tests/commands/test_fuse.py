"""``vtlvlm fuse``: two tiny tests fused by hand, refusals, and the report of the result."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vtlvlm.cli import main
from vtlvlm.report.predictions import write_predictions
from vtlvlm.report.runs import Run
from vtlvlm.system.files import write_json

CLASSES = ("drink", "=sit", "wave")
JOINT = [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]]
BONE = [[0.2, 0.5, 0.3], [0.45, 0.3, 0.25], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]]
TRUTH = [1, 1, 2, -1]


def write_stream(
    folder: Path,
    probs: list[list[float]],
    *,
    truth: list[int] = TRUTH,
    clips: tuple[str, ...] = ("a", "b", "c", "d"),
    classes: tuple[str, ...] = CLASSES,
    protocol: str = "xsub60",
    train_hash: str = "0123456789",
    seed: int = 1,
) -> Path:
    """A tested run in the files of a test."""
    table, labels = np.array(probs), np.array(truth)
    folder.mkdir()
    write_predictions(folder / "predictions_test.csv", clips, labels, table, classes)
    known = labels >= 0
    top1 = float((table.argmax(1) == labels)[known].mean()) if known.any() else None
    metrics = {"top1": top1, "top5": 1.0, "mean_class_accuracy": top1, "nll": 2.0, "nll_calibrated": 1.0, "ece": 0.2, "ece_calibrated": 0.1}
    split = {"protocol": protocol, "train_hash": train_hash}
    content = {"protocol": protocol, "split": "test", "num_clips": len(clips), "seed": seed, "metrics": metrics}
    write_json(folder / "metrics.json", {**content, "provenance": {"split": split, "checkpoint": f"{folder.name}.ckpt"}})
    return folder


@pytest.fixture
def streams(tmp_path: Path) -> list[str]:
    """Two streams; the rows of the second are in another order."""
    order = [2, 0, 3, 1]
    bone = {"truth": [TRUTH[i] for i in order], "clips": tuple("abcd"[i] for i in order)}
    write_stream(tmp_path / "joint", JOINT)
    write_stream(tmp_path / "bone", [BONE[i] for i in order], **bone)  # type: ignore[arg-type]
    return [str(tmp_path / "joint"), str(tmp_path / "bone")]


def test_two_streams_by_hand(streams: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "both"
    assert main(["fuse", *streams, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    with (output / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["clip", "truth", "recognised", "drink", "'=sit", "wave"]
    assert [row[:3] for row in rows[:3]] == [["a", "'=sit", "'=sit"], ["b", "'=sit", "'=sit"], ["c", "wave", "wave"]]
    # a: roots of 0.12, 0.15, 0.03; b: of 0.045, 0.24, 0.025; c: of 0.05, 0.03, 0.16; each divided by the sum of its roots
    roots = np.sqrt([[0.12, 0.15, 0.03], [0.045, 0.24, 0.025], [0.05, 0.03, 0.16]])
    expected = (roots / roots.sum(1, keepdims=True)).tolist()
    assert np.array([row[3:] for row in rows[:3]], dtype=float) == pytest.approx(np.array(expected), abs=1e-6)
    # d has no label. Zeros count as 5e-7, so the two sure classes are equal: each root of 5e-7, the third 5e-7 itself.
    assert rows[3][1] == ""
    assert [float(p) for p in rows[3][3:]] == pytest.approx([0.000353, 0.499823, 0.499823], abs=1e-6)
    found = Run(output).test
    assert found is not None
    assert (found.protocol, found.num_clips, found.seed) == ("xsub60", 4, 1)
    assert found.metrics["top1"] == 1
    assert found.metrics["nll"] == pytest.approx(-np.log([expected[0][1], expected[1][1], expected[2][2]]).mean(), abs=1e-5)
    assert found.metrics["brier"] == pytest.approx(
        np.mean([sum((p - (i == t)) ** 2 for i, p in enumerate(row)) for row, t in zip(expected, TRUTH, strict=False)]), abs=1e-5
    )
    confusion = Run(output).confusion()
    assert confusion is not None
    assert confusion.matrix.tolist() == [[0, 0, 0], [0, 2, 0], [0, 0, 1]]
    origin = found.provenance["fusion"]
    assert [(Path(s["folder"]).name, s["weight"], s["checkpoint"]) for s in origin["streams"]] == [
        ("joint", 1.0, "joint.ckpt"),
        ("bone", 1.0, "bone.ckpt"),
    ]
    assert [s["top1"] for s in origin["streams"]] == pytest.approx([1 / 3, 2 / 3])
    assert Path(origin["best_stream"]).name == "bone"
    assert origin["difference_to_best"]["mean"] == pytest.approx(1 / 3)
    assert f"fusion minus the best stream, {streams[1]}: +33.3 points [+0.0, +100.0]" in out
    joint, bone, both = out.splitlines()[4:7]
    assert joint.split() == [streams[0], "1", "33.3", "100.0", "33.3", "1.000", "0.100"]
    assert bone.split()[:3] == [streams[1], "1", "66.7"]
    assert both.split()[:3] == ["*", "fusion", "100.0"]


def test_weights_and_norms(streams: list[str], tmp_path: Path) -> None:
    def recognised(*options: str) -> list[str]:
        assert main(["fuse", *streams, "--output", str(tmp_path / "both"), *options]) == 0  # an earlier fusion is replaced
        with (tmp_path / "both" / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
            return [row[2] for row in csv.reader(file)][1:]

    assert recognised("--weights", "1", "0") == ["drink", "'=sit", "drink", "wave"]
    assert recognised("--weights", "0", "1") == ["'=sit", "drink", "wave", "'=sit"]
    assert recognised("--weights", "2", "1")[0] == "drink"  # 0.6² · 0.2 > 0.3² · 0.5
    assert recognised("--weights", "1", "1.1", "--normalise", "l2")[3] == "'=sit"
    assert json.loads((tmp_path / "both" / "metrics.json").read_text())["provenance"]["fusion"]["normalise"] == "l2"


def test_report_reads_it(streams: list[str], tmp_path: Path) -> None:
    assert main(["fuse", *streams, "--output", str(tmp_path / "both")]) == 0
    assert main(["report", streams[0], str(tmp_path / "both"), "--no-figures", "--output", str(tmp_path / "page")]) == 0
    (row,) = [row for row in (tmp_path / "page" / "tables" / "runs-1.csv").read_text().splitlines() if row.startswith("both,")]
    assert row.startswith("both,1,,100.0,100.0,100.0,0.701,")
    assert "+66.7" in row
    assert main(["fuse", streams[0], str(tmp_path / "both"), "--output", str(tmp_path / "more")]) == 0


def spoilt(text: str, other: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "predictions_test.csv"
        content = path.read_text()
        assert text in content
        path.write_text(content.replace(text, other))

    return change


@pytest.mark.parametrize(
    ("different", "change", "words"),
    [
        ({"protocol": "xview60"}, None, "protocol xview60 and xsub60"),
        ({"train_hash": "9876543210"}, None, "their clips outside the test side differ (hash 98765432 and 01234567)"),
        ({"classes": ("drink", "wave", "=sit")}, None, "class 2 is 'wave' and '=sit'"),
        ({"clips": ("a", "b", "x", "d")}, None, "1 test clips of"),
        ({"clips": ("a", "b", "x", "d")}, None, "c first"),
        ({"truth": [1, 0, 2, -1]}, None, "1 test clips have another true class, b first"),
        ({"truth": [-1] * 4}, None, "no clip has a label"),
        ({}, lambda folder: (folder / "predictions_test.csv").unlink(), "no such file; run `vtlvlm test`"),
        ({}, lambda folder: (folder / "metrics.json").unlink(), "no run folder: no metrics.json"),
        ({}, spoilt("0.600000", "1.600000"), "the numbers of a are no probabilities"),
        ({}, spoilt("0.600000", "nan"), "the numbers of a are no probabilities"),
        ({}, spoilt("0.600000", "much"), "a damaged table"),
        ({}, spoilt("a,", "b,"), "a clip stands there twice"),
        ({}, spoilt("a,'=sit,drink", "a,'=sit,'=sit"), "not of the test that wrote metrics.json"),
        ({}, spoilt("wave,drink", "wave,run"), "'run' is none of its classes"),
        ({}, spoilt("clip,truth", "clip,view,truth"), "not a table of predictions"),
    ],
)
def test_other_tests_are_refused(
    different: dict[str, object],
    change: Callable[[Path], None] | None,
    words: str,
    streams: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = write_stream(tmp_path / "other", JOINT, **different)  # type: ignore[arg-type]
    if change is not None:
        change(other)
    assert main(["fuse", streams[0], str(other), "--output", str(tmp_path / "both")]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("joint --output new", "one run is no fusion"),
        ("joint nothing --output new", "nothing: no such folder"),
        ("joint ./joint --output new", "named twice"),
        ("joint bone --weights 1 --output new", "1 weights for 2 runs"),
        ("joint bone --weights 1 -1 --output new", "--weights -1: give numbers from 0"),
        ("joint bone --weights nan 1 --output new", "--weights nan: give numbers from 0"),
        ("joint bone --weights 0 0 --output new", "all are 0"),
        ("joint bone --output bone", "would overwrite its source bone"),
        ("joint bone --output bone/new", "would lie inside its source"),
        ("joint bone --output .", "the source of the fusion"),
        ("joint bone --output other", "holds files that are no fusion"),
        ("joint bone --output file", "is a file"),
    ],
)
def test_wrong_use_is_refused(
    line: str, words: str, streams: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stream(tmp_path / "other", JOINT)
    (tmp_path / "file").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["fuse", *line.split()]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_interrupted_fusion_is_replaced(streams: list[str], tmp_path: Path) -> None:
    output = tmp_path / "both"
    assert main(["fuse", *streams, "--output", str(output)]) == 0
    (output / "metrics.json").unlink()
    assert main(["fuse", *streams, "--output", str(output)]) == 0
