"""Whole grids on a tiny pipeline, as a user runs them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from moves import write_moves

from vtlvlm.ablation.runner import DIVERGED
from vtlvlm.cli import main
from vtlvlm.report.runs import Run
from vtlvlm.system.files import write_json

Write = Callable[..., Path]


def changed(work: Path) -> dict[str, int]:
    """When each result and log below a work folder was written."""
    kept = [path for path in work.rglob("*") if path.is_file() and path.parent not in (work, work / "grids")]
    return {str(path): path.stat().st_mtime_ns for path in kept}


def test_a_grid_of_stage_1_runs_once(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three commands; a grid of both stages is a longer test."""
    work = tmp_path / "work"
    grid = write("events", stage2=None, validation=0, arms=[{"name": "full"}])
    assert main(["ablate", str(grid), "--work", str(work)]) == 0
    said = capsys.readouterr().out
    assert "[1/3] videos to features: full" in said
    (run,) = json.loads((work / "grids" / "events.json").read_text())["arms"][0]["runs"]
    assert run["status"] == "done"
    probes = json.loads((work / run["stage1"] / "probes.json").read_text())["probes"]
    row = next(line for line in said.splitlines() if line.startswith("* full"))
    assert f" {100 * probes['codes: attention']['top1']:.1f} " in row
    before = changed(work)
    assert main(["ablate", str(grid), "--work", str(work)]) == 0
    assert changed(work) == before
    assert "[1/" not in (again := capsys.readouterr().out)
    assert again.strip() == said[said.index("\nTiny") :].strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_grid_runs_once(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    grid = write(arms=[{"name": "full", "paper": 94.1}, {"name": "zero_shot", "label": "untuned", "stage2": "untuned.yaml"}])
    assert main(["ablate", str(grid), "--work", str(work)]) == 0
    said = capsys.readouterr().out
    assert "[1/6] videos to features: full" in said
    state = json.loads((work / "grids" / "grid.json").read_text())
    runs = {arm["name"]: arm["runs"] for arm in state["arms"]}
    assert [run["status"] for found in runs.values() for run in found] == ["done", "done"]
    assert runs["full"][0]["stage1"] == runs["zero_shot"][0]["stage1"]  # one stage 1 for both
    assert state["arms"][0]["settings"] == {"windows": 4, "tokens": 16, "codes": 8}
    assert state["protocol"] == "xsub60"
    tests = {name: json.loads((work / found[0]["stage2"] / "metrics.json").read_text()) for name, found in runs.items()}
    for name, label in (("full", "* full"), ("zero_shot", "  untuned")):
        row = next(line for line in said.splitlines() if line.startswith(label))
        assert f" {100 * tests[name]['metrics']['top1']:.1f} " in row
        assert ("94.1" in row) == (name == "full")
    probe = next(line for line in said.splitlines() if "linear probe" in line)
    assert f" {100 * tests['full']['probe']['top1']:.1f} " in probe
    before = changed(work)
    assert main(["ablate", str(grid), "--work", str(work)]) == 0
    assert changed(work) == before
    assert "[1/" not in (again := capsys.readouterr().out)
    assert again.strip() == said[said.index("\nTiny") :].strip()
    other = write("other", arms=[{"name": "same"}])
    assert main(["ablate", str(other), "--work", str(work), "--dry-run"]) == 0
    assert "nothing to run" in capsys.readouterr().out  # the runs of another grid
    os.truncate(work / runs["full"][0]["stage2"] / "metrics.json", 20)
    assert main(["ablate", str(grid), "--work", str(work)]) == 1
    assert "metrics.json: not JSON" in capsys.readouterr().err


TRIED = {"steps": 3, "choose": [{"setting": "model.init_args.optimizer.learning_rate", "values": [1.0e-3, 1.0e37]}]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rate_that_diverges_is_not_chosen_and_a_failed_arm_stops_no_other(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The codebook of the second arm is too large for the clips, which shows when its training starts."""
    work, large = tmp_path / "work", tmp_path / "large.yaml"
    large.write_text("model: {init_args: {quantizer: {init_args: {codes: 60000}}}}")
    grid = write(arms=[{"name": "full"}, {"name": "large", "stage1": "large.yaml"}], rates=TRIED)
    assert main(["ablate", str(grid), "--work", str(work), "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    scores = [json.loads(path.read_text())["nll"] for path in (work / "trials").glob("*/score.json")]
    assert sorted(scores, key=lambda score: score is None)[1:] == [None]
    assert not list((work / "trials").rglob("*.ckpt"))
    errors = [str(Run(path.parent).fit.sessions[-1].get("error")) for path in (work / "trials").glob("*/fit.json")]  # type: ignore[union-attr]
    assert sorted(DIVERGED in error for error in errors) == [False, True]  # which also a job of Slurm would have left
    full, other = json.loads((work / "grids" / "grid.json").read_text())["arms"]
    assert (full["runs"][0]["status"], full["runs"][0]["learning_rate"]) == ("done", 1e-3)
    assert "learning_rate: 0.001" in (work / full["runs"][0]["stage2"] / "config.yaml").read_text()
    assert other["runs"][0]["status"] == "failed"
    (line,) = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: train stage 1: large, xsub60, seed 0: ")
    assert "codes" in line
    assert other["runs"][0]["reason"] in line
    assert "not run" in next(line for line in said.splitlines() if line.startswith("  large"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stage_1_alone_is_read_by_a_probe_on_each_person(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    grid = write("events", stage2=None, validation=0, arms=[{"name": "full"}])
    assert main(["ablate", str(grid), "--work", str(work), "--folds", "each person"]) == 0
    said = capsys.readouterr().out
    state = json.loads((work / "grids" / "events-each_person.json").read_text())
    runs = state["arms"][0]["runs"]
    assert [run["fold"] for run in runs] == ["leave_out:P001", "leave_out:P002", "leave_out:P003"]
    assert (state["stages"], state["metric"], state["protocol"]) == (1, "codes: attention", "leave_out")
    probes = [json.loads((work / run["stage1"] / "probes.json").read_text()) for run in runs]
    assert [{name[8:12] for name in found["clips"]} for found in probes] == [{"P001"}, {"P002"}, {"P003"}]  # each clip is tested once
    right = [g == t for found in probes for g, t in zip(found["probes"]["codes: attention"]["guesses"], found["truth"], strict=True)]
    row = next(line for line in said.splitlines() if line.startswith("* full"))
    assert row.split()[2:4] == [f"{100 * sum(right) / 6:.1f}", "1"]
    raw = sum(found["probes"]["features: linear, mean"]["top1"] for found in probes) / 3
    probe = next(line for line in said.splitlines() if "linear probe on the mean feature" in line)
    assert f" {100 * raw:.1f} " in probe


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_grid_of_networks_runs_once_and_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two skeleton networks on small recordings, of which the test camera has 24."""
    file, tiny = write_moves(tmp_path / "moves.npz"), tmp_path / "tiny.yaml"
    network = "network: {init_args: {widths: [16, 16], strides: [1, 2]}}"
    steps = "max_epochs: 2, log_every_n_steps: 1"
    data = "data: {init_args: {repeats: 1, preparation: {class_path: BoxedFrames, init_args: {window: 8}}}}"
    tiny.write_text(f"model: {{init_args: {{{network}, optimizer: {{milestones: [], warmup_epochs: 0}}}}}}\n{data}\ntrainer: {{{steps}}}\n")
    arms = [
        {"name": name, "label": label, "recognition": [f"baselines/{name}_small.yaml", "tiny.yaml"], "paper": paper}
        for name, label, paper in (("ctr_gcn", "CTR-GCN", None), ("stc_net", "STC-Net", 91.0))
    ]
    grid, work = tmp_path / "networks.yaml", tmp_path / "work"
    grid.write_text(yaml.safe_dump({"title": "Tiny", "table": "I", "validation": 0.25, "arms": arms}))
    command = ["ablate", str(grid), "--work", str(work), "--recordings", str(file)]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("train a network "))
    assert row.split()[3:6] == ["2", "8", "128"]  # 36 clips of three people, two whole batches an epoch
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "[1/4] train a network: ctr_gcn, cameras:1,2, seed 0" in said
    state = json.loads((work / "grids" / "networks.json").read_text())
    places = {arm["name"]: work / arm["runs"][0]["recognition"] for arm in state["arms"]}
    assert [arm["runs"][0]["status"] for arm in state["arms"]] == ["done", "done"]
    tests = {name: json.loads((place / "metrics.json").read_text()) for name, place in places.items()}
    assert {(found["protocol"], found["num_clips"]) for found in tests.values()} == {("cameras:1,2", 24)}
    for name, label in (("ctr_gcn", "* CTR-GCN"), ("stc_net", "  STC-Net (our reconstruction)")):
        row = next(line for line in said.splitlines() if line.startswith(label))
        assert f" {100 * tests[name]['metrics']['top1']:.1f} " in row
        assert "3D skeleton, joint" in row
    assert Run(places["ctr_gcn"]).fit.steps == 4  # type: ignore[union-attr]
    before = changed(work)
    assert main(command) == 0
    assert changed(work) == before
    assert main([*command, "--dry-run"]) == 0
    assert "nothing to run" in capsys.readouterr().out
    assert main(["report", str(work)]) == 0
    text = (work / "report" / "report.md").read_text()
    assert "| STC-Net (our reconstruction) | 3D skeleton, joint |" in text
    assert "24 test clips of 10 actions, protocol cameras:1,2" in text
    (places["stc_net"] / "metrics.json").unlink()  # as after a training that was stopped
    fit = json.loads((places["stc_net"] / "fit.json").read_text())
    fit["sessions"][-1]["finished"] = False
    write_json(places["stc_net"] / "fit.json", fit)
    assert main(command) == 0
    assert "[2/2] test: stc_net" in capsys.readouterr().out
    said = places["stc_net"].with_suffix(".log").read_text()
    assert f"--ckpt_path {places['stc_net'] / 'checkpoints'}" in said.rpartition("$ vtlvlm ")[2]
