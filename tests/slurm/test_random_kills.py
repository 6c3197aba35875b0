"""Trainings on a real Slurm that are killed at random, again and again, end as those that were left alone.

On one and two processes they end so to the bit, on four up to rounding: DDP then adds the gradients in another order after a restart.

``VTLVLM_SLURM_MINUTES`` says how long (30 by default). A training that reaches its end is compared and begun anew.
"""

import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from chain import Clips, assert_same_test, assert_same_training, diary_of
from cluster import Cluster, wait
from diary import last_step, read

from vtlvlm.configs import config
from vtlvlm.report.runs import fit_finished
from vtlvlm.slurm.site import Site

MINUTES = float(os.environ.get("VTLVLM_SLURM_MINUTES", "30"))
PAUSE = 25.0
"""Seconds between two kills on average; a start takes about ten"""
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(int(60 * MINUTES) + 2400)]
NODES = {1: ["--nodes=1", "--ntasks-per-node=1"], 2: ["--nodes=2", "--ntasks-per-node=1"], 4: ["--nodes=2", "--ntasks-per-node=2"]}
"""Options of sbatch for so many processes"""


class Training:
    """Stage 2 on so many processes, as one job after the other."""

    def __init__(self, cluster: Cluster, clips: Clips, events: Path, ranks: int, name: str, seconds: float) -> None:
        self.cluster, self.ranks, self.run = cluster, ranks, clips.folder / f"{name}-{ranks}"
        configs = ["--config", clips.pipeline.stage2, "--config", clips.overlay(self.run, 2, seconds)]
        # a projector that starts as a probe on 18 clips has weights of 500,000, which make rounding visible
        configs += ["--model.init_args.reasoner.init_args.init_projector", "keep"]
        on = [*configs, "--data.source.root", clips.pipeline.root, "--data.events", events, "--trainer.default_root_dir", self.run]
        self.fit, self.test = ["fit", *on], ["test", *on, "--ckpt_path", self.run / "checkpoints" / "best.ckpt"]
        self.site = Site.read(clips.site)
        self.job = ""

    def start(self, step: str = "stage2") -> None:
        more = [f"--output={self.run}-{step}.out", *self.site.options, "--gpus-per-node=0", *NODES[self.ranks]]
        words = ["sbatch", "--parsable", *more, config(f"slurm/{step}.sbatch"), *(self.fit if step == "stage2" else self.test)]
        self.job = self.cluster(*words, **self.site.environment()).strip()

    @property
    def state(self) -> str:
        return self.cluster.job(self.job)["JobState"]

    def kill(self, draw: random.Random) -> str | None:
        """Do one of the things that happen to a running job; None where it does not run."""
        if self.state != "RUNNING":
            return None
        how = draw.choice(["KILL", "KILL", "TERM", "USR1", "requeue"])
        words = ["scontrol", "requeue", self.job] if how == "requeue" else ["scancel", f"--signal={how}", f"{self.job}.0"]
        try:
            self.cluster(*words)
        except subprocess.CalledProcessError:  # it has just ended, or its step has not begun
            return None
        return how

    def go_on(self) -> None:
        """A job that could not requeue itself has failed: requeue it, as an administrator would."""
        if self.state in ("FAILED", "CANCELLED", "NODE_FAIL"):
            self.cluster("scontrol", "requeue", self.job)

    def log(self) -> str:
        return "".join(path.read_text()[-3000:] for path in self.run.parent.glob(f"{self.run.name}-*.out"))

    def forget(self) -> None:
        """Remove all that the training has made."""
        shutil.rmtree(self.run)
        shutil.rmtree(diary_of(self.run, 2))


def completed(training: Training, seconds: float = 600) -> None:
    """Wait until a training's job has ended well."""

    def ended() -> bool:
        training.go_on()
        return training.state == "COMPLETED"

    try:
        wait(ended, seconds, "a job to end", every=1)
    except TimeoutError:
        pytest.fail(f"{training.cluster.job(training.job)}\n{training.log()}")


@pytest.fixture(scope="module")
def events(alone: Path) -> Path:
    return alone / "events"


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, clips: Clips, events: Path) -> dict[int, Training]:
    found = {}
    for ranks in NODES:
        one = Training(cluster, clips, events, ranks, "left", 0)
        for step in ("stage2", "test"):
            one.start(step)
            completed(one)
        found[ranks] = one
    return found


def test_random_kills(cluster: Cluster, clips: Clips, events: Path, undisturbed: dict[int, Training]) -> None:
    draw, counts, wholes = random.Random(0), Counter[str](), Counter[int]()
    order = list(NODES)
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end or set(wholes) != set(order):  # each number of processes to its end at least once
        ranks = order[wholes.total() % len(order)]
        one, left = Training(cluster, clips, events, ranks, "killed", 0.4), undisturbed[ranks]
        one.start()
        kills = 0
        while not fit_finished(one.run) and time.monotonic() < end + 600:
            pause = time.monotonic() + draw.expovariate(1 / PAUSE)
            while time.monotonic() < pause and not fit_finished(one.run):
                one.go_on()
                time.sleep(0.5)
            if time.monotonic() < end or not kills:
                how = one.kill(draw)
                counts[how or "not running"] += 1
                kills += how is not None
        completed(one)
        mine, theirs = read(diary_of(one.run, 2)), read(diary_of(left.run, 2))
        assert mine == theirs  # each step has read the same clips, whenever and however often it was made
        assert last_step(diary_of(one.run, 2)) == last_step(diary_of(left.run, 2))
        assert_same_training(left.run, one.run, exact=ranks <= 2)
        one.start("test")
        completed(one)
        assert_same_test(left.run, one.run, exact=ranks <= 2)
        one.forget()
        wholes[ranks] += 1
        print(f"{ranks} processes: killed {kills} times, as the one left alone", flush=True)
    print(f"{dict(counts)}; trainings by processes: {dict(wholes)}")
    assert counts["KILL"] + counts["TERM"] + counts["USR1"] + counts["requeue"] > 0


def test_any_number_of_processes_ends_with_the_same_numbers(undisturbed: dict[int, Training]) -> None:
    """The same clips for each step, and metrics that differ by rounding alone."""

    def steps(ranks: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for (_, step, _), lines in sorted(read(diary_of(undisturbed[ranks].run, 2)).items()):
            found.setdefault(step, []).extend(clip for line in lines for clip in json.loads(line)[0])
        return {step: sorted(clips) for step, clips in found.items()}

    assert steps(1) == steps(2) == steps(4)
    metrics = {ranks: json.loads((one.run / "metrics.json").read_text())["metrics"] for ranks, one in undisturbed.items()}
    for ranks in (2, 4):
        assert metrics[ranks]["nll"] == pytest.approx(metrics[1]["nll"], rel=1e-4)
        assert metrics[ranks]["top1"] == metrics[1]["top1"]
