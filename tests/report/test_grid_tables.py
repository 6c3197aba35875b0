"""Reports of work folders and runs: tables, reasons of what is left out, refusals, and that nothing is shown which no run produced."""

import csv
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from works import CLASSES, run_entry, write_fit, write_grid, write_run

from vtlvlm.cli import main
from vtlvlm.errors import DataError
from vtlvlm.report.comparison import class_changes, reliability
from vtlvlm.report.formats import as_csv, as_latex
from vtlvlm.report.grid_sections import direction, grid_section
from vtlvlm.report.grids import open_grids
from vtlvlm.report.paper_tables import table_four, table_one
from vtlvlm.report.quotes import on_ntu, quotes
from vtlvlm.report.run_sections import names_of
from vtlvlm.report.scores import Paired, collect, compare
from vtlvlm.report.study import runs_document, work_document
from vtlvlm.report.tables import NOT_RUN, Table
from vtlvlm.report.tested import FEATURE_PROBE, read_answers, read_confidence
from vtlvlm.system.files import write_json


def seeds(work: Path, name: str, accuracy: float, number: int = 3, **more: object) -> list[dict[str, object]]:
    """Runs of an arm, one for each seed."""
    found = []
    for seed in range(number):
        write_run(work / "stage2" / f"{name}{seed}", accuracy, seed=seed, **more)  # type: ignore[arg-type]
        found.append(run_entry(f"stage2/{name}{seed}", seed))
    return found


def rows(table: Table) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in table.rows}


def test_arms_beside_the_paper(tmp_path: Path) -> None:
    arms = [
        {"name": "full", "paper": 94.1, "runs": seeds(tmp_path, "full", 0.9)},
        {"name": "worse", "paper": 91.5, "runs": seeds(tmp_path, "worse", 0.5)},
        {"name": "missing", "paper": 68.2, "runs": [run_entry(None, seed, "not run") for seed in range(3)]},
    ]
    write_grid(tmp_path, "table2", arms)
    result = collect(open_grids(tmp_path)[0])
    found = rows(grid_section(result, pictures=False).tables[0])
    values = [json.loads((tmp_path / f"stage2/full{seed}/metrics.json").read_text())["metrics"]["top1"] for seed in range(3)]
    assert found["full"][:2] == [f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}", "3"]
    assert found["worse"][3:] == ["91.5", "−2.6", "as the paper, beyond chance"]
    assert re.fullmatch(r"−\d+\.\d \[−\d+\.\d, −\d+\.\d\]", found["worse"][2])
    assert found["missing"] == [NOT_RUN, "0", "", "68.2", "−25.9", ""]
    assert found["best linear probe on the same features"][:2] == ["70.0 ± 0.0", "3"]
    assert "compare directions, not values" in grid_section(result, pictures=False).text
    assert len(grid_section(result, pictures=False).tables) == 1  # nothing has failed
    assert {(out.arm, out.reason) for out in result.left_out} == {("missing", "not run")}


def test_folds_count_each_clip_once_and_an_incomplete_seed_is_left_out(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        for fold, start, clips, accuracy in (("leave_out:P001", 0, 60, 1.0), ("leave_out:P002", 60, 20, 0.0)):
            name = f"stage2/s{seed}-{fold[-1]}"
            if (seed, fold[-1]) != (1, "2"):
                write_run(tmp_path / name, accuracy, seed=seed, protocol=fold, start=start, clips=clips)
            runs.append(run_entry(name, seed, fold=fold))
    write_grid(tmp_path, "folds", [{"name": "full", "runs": runs}], protocol=None)
    result = collect(open_grids(tmp_path)[0])
    arm = result.arms[0]
    assert arm.seeds == {0: pytest.approx(60 / 80)}
    assert arm.clips == len(arm.answers[0].clips) == 80
    assert [(out.seed, out.fold) for out in result.left_out] == [(1, "leave_out:P002"), (1, None)]
    assert "no such run folder" in result.left_out[0].reason
    assert result.left_out[1].reason == "1 of 2 folds have no results (leave_out:P002)"
    assert rows(grid_section(result, pictures=False).tables[0])["full"][1] == "1 of 2"


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "good", 0.9, 1)
    half = tmp_path / "stage2" / "half"
    write_fit(half, finished=False, steps=20)
    trained = tmp_path / "stage2" / "trained"
    write_fit(trained)
    write_json(tmp_path / "stage2" / "old" / "metrics.json", {"accuracy": 0.9})
    write_run(tmp_path / "stage2" / "other", protocol="xset120")
    write_run(tmp_path / "stage2" / "fold", protocol="leave_out:P001")
    early = write_run(tmp_path / "stage2" / "early")
    write_fit(early, finished=False)
    torn = write_run(tmp_path / "stage2" / "torn")
    (torn / "predictions_test.csv").write_text("clip,truth\na,b\n")
    names = ("half", "trained", "old", "other", "early", "torn", "none")
    runs += [run_entry(f"stage2/{name}", seed) for seed, name in enumerate(names, 1)]
    runs.append(run_entry(None, 8, "failed", reason="exit code 1: out of memory"))
    runs.append(run_entry("stage2/fold", 9, fold="xsub60"))
    for run in runs:
        run["fold"] = "xsub60"  # as `vtlvlm ablate` names the only fold
    write_grid(tmp_path, "table2", [{"name": "full", "runs": runs}])
    result = collect(open_grids(tmp_path)[0])
    assert list(result.arms[0].seeds) == [0]
    said = [out.reason for out in result.left_out]
    expected = (
        "half-written, its training stopped at step 20",
        "trained, but not tested",
        "not the format of this version",
        "tested under xset120, and this table is of xsub60",
        "tested before the end of its training",
        "not a table of predictions of this version",
        "no such run folder",
        "failed: exit code 1: out of memory",
        "tested under leave_out:P001, and this table is of xsub60",
    )
    assert len(said) == len(expected)
    for words, reason in zip(expected, said, strict=True):
        assert words in reason


def test_a_learning_rate_is_chosen_on_validation_people(tmp_path: Path) -> None:
    runs = []
    for rate, top1, loss in ((1e-3, 0.5, 0.2), (1e-2, 0.9, 0.7)):
        folder = write_run(tmp_path / f"stage2/r{rate}", top1)
        content = json.loads((folder / "metrics.json").read_text())
        write_json(folder / "metrics_val.json", {**content, "split": "val", "metrics": {"nll_calibrated": loss}})
        runs.append(run_entry(f"stage2/r{rate}", learning_rate=rate))
    write_grid(tmp_path, "rates", [{"name": "full", "runs": runs}])
    result = collect(open_grids(tmp_path)[0])
    assert [run.plan.learning_rate for run in result.arms[0].tested] == [1e-3]  # the worse one on test clips
    assert not result.left_out
    (tmp_path / "stage2/r0.01/metrics_val.json").unlink()
    result = collect(open_grids(tmp_path)[0])
    assert not result.arms[0].seeds
    assert "2 learning rates were tested" in result.left_out[0].reason


def test_arms_on_other_clips_are_not_paired(tmp_path: Path) -> None:
    arms = [{"name": "a", "runs": seeds(tmp_path, "a", 0.9)}, {"name": "b", "runs": seeds(tmp_path, "b", 0.5, start=7)}]
    write_grid(tmp_path, "table2", arms)
    result = collect(open_grids(tmp_path)[0])
    assert compare(result.of("b"), result.of("a")).why_not == "tested on other clips"
    assert rows(grid_section(result, pictures=False).tables[0])["b"][2] == "tested on other clips"


def test_a_grid_that_ends_with_stage_1_reads_the_probes_on_its_events(tmp_path: Path) -> None:
    arms = []
    for name, wrong in (("full", 0), ("worse", 4)):
        probe = {"top1": (8 - wrong) / 8, "guesses": [number + (number < wrong) for number in range(8)]}
        probes = {"codes: attention": probe, FEATURE_PROBE: {"top1": 0.5, "guesses": [0] * 8}}
        content = {"protocol": "xsub60", "split": {"classes": 8}, "environment": {}, "probes": probes, "clips": [f"c{n}" for n in range(8)]}
        write_json(tmp_path / "stage1" / name / "probes.json", {**content, "truth": list(range(8))})
        arms.append({"name": name, "runs": [run_entry(None, stage1=f"stage1/{name}")]})
    arms.append({"name": "torn", "runs": [run_entry(None, stage1="stage1/torn")]})
    write_json(tmp_path / "stage1" / "torn" / "probes.json", {"probes": {}})
    write_grid(tmp_path, "events", arms, table="", metric="codes: attention", stages=1)
    result = collect(open_grids(tmp_path)[0])
    section = grid_section(result)
    found = rows(section.tables[0])
    assert found["full"][:2] == ["100.0", "1"]
    assert found["worse"][2].startswith("−50.0 [")
    assert found["linear probe on the mean feature"][0] == "50.0"
    assert found["torn"][0] == NOT_RUN
    assert "not this version's probes" in section.tables[1].rows[0][-1]
    assert [picture.name for picture in section.pictures] == ["events-classes"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ('{"version": 7}', "version 7, and this report reads version 1"),
        ('{"version": 1, "name": "x", "arms": [{"name": "a"}]}', "a damaged plan (KeyError"),
        ('{"version": 1, "name": "x", "arms": []}', "its arms are none"),
        ('{"version": 1, "name": "x", "arms": [{"name": "a", "runs": []}, {"name": "a", "runs": []}]}', "have equal names"),
    ],
)
def test_a_damaged_plan_is_one_line(content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "x.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_direction() -> None:
    from vtlvlm.metrics.paired import Difference

    down, unsure = Paired(Difference(-0.1, -0.2, -0.05)), Paired(Difference(0.01, -0.1, 0.1))
    assert direction(down, -2.6) == "as the paper, beyond chance"
    assert direction(down, 2.6) == "opposite, beyond chance"
    assert direction(unsure, -2.6) == "opposite, within chance"
    assert direction(Paired(None), -2.6) == direction(down, None) == ""


def test_only_a_whole_protocol_stands_in_table_one(tmp_path: Path) -> None:
    official = quotes().protocols["xsub60"].with_skeletons
    write_grid(tmp_path, "table1_small", [{"name": "full", "runs": seeds(tmp_path, "small", 0.9)}], table="I")
    small = table_one([collect(grid) for grid in open_grids(tmp_path)]).tables[0]
    ours = small.rows[-2]
    assert list(ours[2:]) == [NOT_RUN] * 4
    write_grid(tmp_path, "table1", [{"name": "full", "runs": seeds(tmp_path, "big", 0.9, 1, clips=official)}], table="I")
    whole = table_one([collect(grid) for grid in open_grids(tmp_path)]).tables[0].rows[-2]
    assert re.fullmatch(r"(89|90)\.\d", whole[2])
    assert list(whole[3:]) == [NOT_RUN] * 3
    assert on_ntu("xsub60", official)
    assert not on_ntu("xsub60", official // 2)
    assert not on_ntu("group", official)


def test_quotes_are_the_papers() -> None:
    named = {row.method: [row.accuracy[key] for key in quotes().protocols] for rows in quotes().table1.values() for row in rows}
    assert named["VT-LVLM-AR"] == [94.1, 96.8, 87.0, 88.5]
    assert named["PoseC3D"] == [93.7, 96.5, 85.9, 89.7]
    assert named["pi-ViT"] == [94.0, 97.9, 91.9, 92.9]
    assert [len(rows) for rows in quotes().table1.values()] == [9, 1, 3, 3]
    assert all(row.remark and row.source for rows in quotes().table1.values() for row in rows)
    assert {table: [top1 for _, top1 in part.rows] for table, part in quotes().ablations.items()} == {
        "II": [94.1, 91.5, 92.8, 93.3, 94.0, 68.2],
        "V": [94.1, 92.9, 93.5, 93.8],
        "VI": [94.1, 92.7, 93.6, 94.0],
    }
    assert [(row.parameters, row.seconds) for row in quotes().table4] == [
        ("1.2", "0.35"),
        ("7000+", "0.35"),
        ("10.5", "0.20"),
        ("15.8", "0.25"),
    ]
    text = table_one([])
    assert "state of the art" not in str(text).lower()


def test_without_a_bench_table_four_is_not_run(tmp_path: Path) -> None:
    assert list(table_four(None).tables[0].rows[-1][1:5]) == [NOT_RUN] * 4
    row = {"stage": "reason", "trainable_parameters": 1_200_000, "flops": None, "seconds": 0.5, "peak_bytes": 2**30, "note": ""}
    write_json(tmp_path / "e.json", {"bench": "efficiency", "tables": [{"title": "measured", "rows": [row]}]})
    assert list(table_four(tmp_path / "e.json").tables[0].rows[-1]) == ["reason", "1.20", "", "0.500", "1.00", ""]
    write_json(
        tmp_path / "e.json", {"bench": "efficiency", "tables": [{"title": "counted", "rows": [{**row, "flops": 2e9, "seconds": None}]}]}
    )
    assert list(table_four(tmp_path / "e.json").tables[0].rows[-1]) == ["reason", "1.20", "2.0", NOT_RUN, NOT_RUN, ""]
    for content in ({"bench": "lvlm"}, {"bench": "efficiency", "tables": [{"rows": [{}], "title": "x"}]}):
        write_json(tmp_path / "e.json", content)
        with pytest.raises(DataError, match="run `vtlvlm bench efficiency` again"):
            table_four(tmp_path / "e.json")


def test_a_work_folder_becomes_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [{"name": f"k{codes}", "paper": 94.0, "settings": {"codes": codes}} for codes in (2048, 512)]
    arms = [{**arm, "runs": seeds(tmp_path, arm["name"], accuracy)} for arm, accuracy in zip(settings, (0.9, 0.7), strict=True)]  # type: ignore[arg-type]
    write_grid(tmp_path, "table6", arms, table="VI")
    assert main(["report", str(tmp_path)]) == 0
    folder = tmp_path / "report"
    text, page = ((folder / f"report.{kind}").read_text() for kind in ("md", "html"))
    for heading in ("Table I:", "Table II:", "Table IV:", "Table V:", "Table VI:", "Provenance"):
        assert f"## {heading}" in text
        assert heading in page
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert pictures == {f"table6-{name}.png" for name in ("accuracy", "confusion", "calibration", "classes")}
    assert all(f"figures/{name}" in text for name in pictures)
    named = ("table1", "table1-quotes", "tableII-paper", "table4", "tableV-paper", "table6", "provenance")
    assert {path.name for path in (folder / "tables").iterdir()} == {f"{name}.{kind}" for name in named for kind in ("csv", "tex")}
    assert "a processor, 2 cores" in page
    assert "no accuracy of the paper is reproduced here" in page
    assert "report.md" in capsys.readouterr().out


def test_two_hundred_runs_are_quick(tmp_path: Path) -> None:
    for number in range(4):
        arms = [{"name": f"a{arm}", "runs": seeds(tmp_path, f"g{number}a{arm}-", 0.9 - arm / 50, 10)} for arm in range(5)]
        write_grid(tmp_path, f"grid{number}", arms, table="")
    start = time.process_time()
    work_document(tmp_path, figures=False)
    assert time.process_time() - start < 2.5  # about 0.5 on a laptop


def test_runs_of_different_protocols_have_tables_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_run(tmp_path / "a" / "run", 0.9), write_run(tmp_path / "b" / "run", 0.6)
    other = write_run(tmp_path / "c", 0.6, protocol="xview60")
    stage1 = write_run(tmp_path / "d", metrics={"reconstruction": 0.4})
    write_fit(tmp_path / "half", finished=False, steps=3)
    document = runs_document([one, two, other, stage1, tmp_path / "half"])
    titles = [section.title for section in document.sections]
    assert titles == [
        "Stage 2: xsub60, 60 test clips",
        "Stage 2: xview60, 60 test clips",
        "Stage 1: xsub60, 60 test clips",
        "Left out",
        "Provenance",
    ]
    first = rows(document.sections[0].tables[0])
    assert list(first) == ["a/run", "b/run"]
    assert first["b/run"][-1].startswith("−")
    assert {picture.name for picture in document.sections[0].pictures} == {"runs-1-1-calibration", "runs-1-2-calibration", "runs-1-classes"}
    assert list(document.sections[3].tables[0].rows[0]) == [str(tmp_path / "half"), "half-written, its training stopped at step 3"]
    assert main(["report", str(one), str(two), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tables" / "runs-1.tex").is_file()
    assert main(["report", str(tmp_path / "half")]) == 1
    assert "half-written" in capsys.readouterr().err
    assert main(["report", str(one), "--output", str(one / "inside")]) == 2


def test_names_of_runs_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    assert list(names_of(folders).values()) == ["a/run", "b/run", "c"]


def test_answers_of_strange_names(tmp_path: Path) -> None:
    classes = ["'=cmd", 'a"b,c', "clip"]
    write_run(tmp_path, 1.0, clips=6, classes=classes)
    found = read_answers(tmp_path / "predictions_test.csv")
    assert sorted(set(found.truth)) == ["=cmd", 'a"b,c', "clip"]
    assert found.right.all()
    confidence, right = read_confidence(tmp_path / "predictions_test.csv")
    assert right.all()
    with (tmp_path / "predictions_test.csv").open() as file:
        assert confidence.tolist() == [max(map(float, row[3:])) for row in list(csv.reader(file))[1:]]


def test_reliability_by_hand() -> None:
    bins, counts, mean, accuracy = reliability(np.array([0.5, 0.5, 0.95, 1.0]), np.array([True, False, True, True]))
    assert bins.tolist() == [7, 14]
    assert counts.tolist() == [2, 2]
    assert mean.tolist() == [0.5, pytest.approx(0.975)]
    assert accuracy.tolist() == [0.5, 1.0]


def test_changes_of_classes_by_hand() -> None:
    truth = np.array(["a", "a", "b", "b"])
    first, second = np.array([[True, True, False, False]]), np.array([[False, True, True, True]])
    found = class_changes(first, second, truth)
    assert [(change.name, change.clips, change.difference.mean) for change in found] == [("b", 2, 1.0), ("a", 2, -0.5)]


def test_latex_and_csv_of_hostile_text() -> None:
    table = Table(["a_b", "50 %"], [["x & y", "1.0 ± 0.2"], ["=cmd()", "−0.5"]], frozenset({0}), {1: "{group}"}, "t 1", r"\input{x}")
    text = as_latex(table)
    assert r"\caption{\textbackslash{}input\{x\}}" in text
    assert r"a\_b & 50 \% \\" in text
    assert r"\textbf{x \& y} & \textbf{1.0 $\pm$ 0.2} \\" in text
    assert r"\multicolumn{2}{l}{\emph{\{group\}}} \\" in text
    assert r"\label{tab:t-1}" in text
    assert r"\begin{tabular}{lr}" in text
    assert list(csv.reader(as_csv(table).splitlines())) == [
        ["group", "a_b", "50 %"],
        ["", "x & y", "1.0 ± 0.2"],
        ["{group}", "'=cmd()", "-0.5"],
    ]


def test_all_classes_are_in_the_confusion(tmp_path: Path) -> None:
    from vtlvlm.report.grid_sections import confusion_of

    write_grid(tmp_path, "g", [{"name": "full", "runs": seeds(tmp_path, "x", 0.5, 2)}])
    arm = collect(open_grids(tmp_path)[0]).arms[0]
    found = confusion_of(arm)
    assert found.classes == CLASSES
    assert found.matrix.sum() == 120
    assert found.matrix.trace() == sum(int(answers.right.sum()) for answers in arm.answers.values())
