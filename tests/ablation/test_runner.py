"""Commands in processes of their own: failures, several at once, interruptions."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtlvlm.ablation import runner
from vtlvlm.ablation.grid import read_grid
from vtlvlm.ablation.items import Item, missing
from vtlvlm.ablation.planned import Machine
from vtlvlm.ablation.runner import DIVERGED, execute, last_error, settle
from vtlvlm.ablation.study import Study, alone
from vtlvlm.cli import main
from vtlvlm.errors import DataError
from vtlvlm.system.files import write_json

Write = Callable[..., Path]


def write_record(folder: Path, **more: object) -> None:
    """``fit.json`` of a training with one session."""
    session = {"first_step": 0, "last_step": 1, "epochs": 1, "wall_seconds": 1.0, **more}
    costs = {"steps": 1, "wall_seconds": 1.0, "seconds_per_step": 1.0, "peak_rss_bytes": 1, "parameters": 1, "trainable_parameters": 1}
    write_json(folder / "fit.json", {**costs, "sessions": [session]})


def rendering(work: Path, name: str, *more: str, needs: tuple[str, ...] = ()) -> Item:
    """A light command: six clips of two people."""
    folder = work / name
    arguments = ("synth", str(folder), "--subjects", "2", "--actions", "8", *(more or ("--cameras", "1")))
    return Item(name, "synth", folder, arguments, needs, name)


def test_a_failure_stops_only_what_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = rendering(tmp_path, "bad", "--cameras", "9")
    items = [rendering(tmp_path, "a"), bad, rendering(tmp_path, "c", needs=("bad",)), rendering(tmp_path, "d", needs=("a",))]
    ended: list[tuple[str, bool]] = []
    failed = execute(items, 2, lambda item, error, seconds: ended.append((item.name, error is None)))
    assert failed.keys() == {"bad", "c"}
    assert failed["c"] == failed["bad"]
    assert "camera" in failed["bad"]
    assert "\n" not in failed["bad"]
    assert dict(ended) == {"a": True, "bad": False, "d": True}
    assert [name for name, _ in ended].index("a") < [name for name, _ in ended].index("d")
    assert {name for name in "acd" if (tmp_path / name).exists()} == {"a", "d"}
    assert [item.name for item in missing({item.name: item for item in items}, ["d", "c"])] == ["bad", "c"]
    told = capsys.readouterr().out
    assert "render videos: bad: failed after" in told
    assert (tmp_path / "a.log").read_text().startswith("$ vtlvlm synth ")


def test_the_processes_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs on N cores get N / 2 threads each; one job keeps what the user has set."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    item = rendering(tmp_path, "a")
    seen = []
    original = subprocess.Popen

    class Watched(original):  # type: ignore[type-arg, valid-type, misc]
        def __init__(self, *given: object, **options: object) -> None:
            seen.append(options["env"]["OMP_NUM_THREADS"])  # type: ignore[index]
            super().__init__(*given, **options)

    monkeypatch.setattr("vtlvlm.ablation.runner.subprocess.Popen", Watched)
    monkeypatch.setattr("vtlvlm.ablation.runner.usable_cores", lambda: 8)
    execute([item], 1, lambda *_: None)
    execute([rendering(tmp_path, "b")], 2, lambda *_: None)
    assert seen == ["7", "4"]


def test_the_last_line_says_why(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("$ vtlvlm a\nvtlvlm: an older error\n\n$ vtlvlm a\nnoise\nvtlvlm: no room\nmore noise\n")
    assert last_error(log, 1) == "no room"
    assert last_error(log, -9) == f"ended by SIGKILL; {log} has its output"
    log.write_text("$ vtlvlm a\nvtlvlm: an older error\n\n$ vtlvlm a\nnothing\n")
    assert last_error(log, 3) == f"ended with 3; {log} has its output"


@pytest.mark.parametrize(("error", "score"), [(f"loss is nan; train {DIVERGED}", {"nll": None}), ("no space left", None), (None, None)])
def test_a_trial_that_ended_in_a_job_of_slurm_is_scored_from_its_record(
    tmp_path: Path, error: str | None, score: dict[str, None] | None
) -> None:
    """Divergence is a score, the worst; any other end is none, and the trial goes on."""
    item = Item("trials/a", "trial", tmp_path / "a", ("fit",))
    settle(item)  # not begun
    write_record(item.folder, finished=False, **({} if error is None else {"error": error}))
    settle(item)
    path = item.folder / "score.json"
    assert (json.loads(path.read_text()) if path.exists() else None) == score


def test_a_finished_training_without_its_checkpoint_is_half_a_run(tmp_path: Path) -> None:
    first = Item("stage1/a", "fit1", tmp_path / "a", ("fit",))
    second = Item("events/b", "tokenize", tmp_path / "b", ("tokenize",), ("stage1/a",))
    write_record(tmp_path / "a", finished=True)
    items = {item.name: item for item in (first, second)}
    with pytest.raises(DataError, match=r"a: half a run: .* delete the folder to train again"):
        missing(items, ["events/b"])
    write_json(tmp_path / "b" / "meta.json", {"complete": True})
    assert missing(items, ["events/b"]) == []  # nobody needs the checkpoint any more
    (tmp_path / "b" / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta\.json: not a cache's description"):
        missing(items, ["events/b"])


def test_a_work_folder_in_use(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(tmp_path / "work"):
        assert main(["ablate", str(write()), "--work", str(tmp_path / "work")]) == 2
    told = capsys.readouterr().err
    assert "another `vtlvlm ablate` works there" in told
    assert told.count("\n") == 1
    assert main(["ablate", str(write()), "--work", str(tmp_path / "work"), "--dry-run"]) == 0


def test_a_dry_run_scores_no_trial_of_an_ablate_that_runs(write: Write, tmp_path: Path) -> None:
    """It would delete checkpoints that the other reads."""
    work = tmp_path / "work"
    grid = write(
        rates={"steps": 3, "choose": [{"setting": "model.init_args.optimizer.learning_rate", "values": [0.3, 0.4]}]}, validation=0.5
    )
    plan = Study([read_grid(grid)], Machine(work)).plans()["grid"]
    (first, *_) = plan.trials["full"]
    folder = plan.items[first].folder
    write_record(folder, finished=False, error=DIVERGED)
    with alone(work):
        assert main(["ablate", str(grid), "--work", str(work), "--dry-run"]) == 0
        assert not (folder / "score.json").exists()
    assert main(["ablate", str(grid), "--work", str(work), "--dry-run"]) == 0
    assert (folder / "score.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--arms", "none"], "--arms none: no such arm; there are full, identity"),
        (["--seeds", "4", "-1"], "--seeds -1: expected whole numbers from 0"),
        (["--folds", "xsub60", "xview60"], "--folds: xsub60 and xview60 in one table"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
        (["--stage1", "none.yaml"], "none.yaml: no such configuration"),
        (["--videos", "none"], "--videos none: no such folder"),
    ],
)
def test_options_that_cannot_be(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert main(["ablate", str(write()), "--work", str(tmp_path / "work"), *arguments]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interruption_ends_the_command_that_runs(write: Write, tmp_path: Path, number: int) -> None:
    """The work folder is free again, the state is whole, and the same command goes on."""
    work = tmp_path / "work"
    grid = write(videos={"subjects": 8, "seed": 0}, arms=[{"name": "full"}])
    words = [sys.executable, "-m", "vtlvlm", "ablate", str(grid), "--work", str(work)]
    ask = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores Ctrl-C
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ask)
    limit = time.monotonic() + 120
    while not list(work.rglob("*.avi")) and time.monotonic() < limit:
        time.sleep(0.2)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), err
    assert "the same command continues" in err
    assert "[1/6] render videos: 8 people, seed 0" in out
    state = json.loads((work / "grids" / "grid.json").read_text())
    assert state["arms"][0]["runs"][0]["status"] == "not run"
    assert not (next((work / "videos").iterdir()) / "synth.json").exists()
    before = len(list(work.rglob("*.avi")))
    time.sleep(1.5)
    assert len(list(work.rglob("*.avi"))) == before  # nobody renders any more
    with alone(work):
        pass


def test_asked_twice_to_end_it_leaves_no_command_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command, with a process of its own, that ends neither at SIGINT nor at SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    monkeypatch.setattr(runner, "PATIENCE", 20.0)
    deaf = "import signal, subprocess, sys, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; "
    child = f"{deaf} print('on', flush=True); time.sleep(60)"
    code = f"{deaf} p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True); p.stdout.readline(); "
    code += "print(p.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout is not None
        inner = int(process.stdout.readline())
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            runner._interrupt([runner.Running(SimpleNamespace(kind="fit2"), process)])  # type: ignore[arg-type]
        assert process.poll() == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while Path(f"/proc/{inner}").exists() and state_of(inner) != "Z" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{inner}").exists() or state_of(inner) == "Z"
    signal.signal(signal.SIGINT, before)


def state_of(pid: int) -> str:
    """Z for a process that has ended and waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
