"""The whole chain on a real Slurm of two nodes, disturbed in every way: it goes on by itself, and ends with the same numbers."""

import json
import re
from pathlib import Path

import pytest
from chain import EPOCH, Clips, assert_same_features, assert_same_test, assert_same_training, diary_of, log, numbers_of, until_done
from cluster import Cluster, wait
from diary import entries, last_step, read

from vtlvlm.cli import main

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]
STEPS = ["prepare", "extract", "stage1", "tokenize", "stage2", "test"]


def submit(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """The job number and what is said of each step."""
    assert main(words) == 0, capsys.readouterr().err
    rows = [re.fullmatch(r"(\w+) +(\d*) +(.+)", line) for line in capsys.readouterr().out.splitlines() if line]
    return {row[1]: (row[2], row[3]) for row in rows if row}


def test_a_disturbed_chain_ends_as_one_that_was_left_alone(
    cluster: Cluster, clips: Clips, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = clips.folder / "disturbed"
    words = clips.submit_words(run, 0.5)
    one, two = (diary_of(run, stage) for stage in (1, 2))
    said = submit(words, capsys)
    assert {name: text for name, (_, text) in said.items()} == {name: "done" if name == "prepare" else "submitted" for name in STEPS}
    jobs = numbers_of(run)

    def restarts(step: str) -> int:
        return int(cluster.job(jobs[step])["Restarts"])

    wait(lambda: len(entries(one, "predict")) >= 6, 120, "extract to be in its midst")
    cluster("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    wait(lambda: restarts("extract") == 1, 60, "extract to be requeued")
    cluster("scontrol", "update", "NodeName=n2", "State=RESUME")

    wait(lambda: last_step(one) >= EPOCH + 1, 300, "stage 1 to be within its second epoch")
    again = submit(words, capsys)  # starts nothing twice
    assert {name: number for name, (number, _) in again.items() if number} == {name: jobs[name] for name in STEPS[2:]}
    assert [text for name, (_, text) in again.items() if name in ("prepare", "extract")] == ["done", "done"]
    assert numbers_of(run) == jobs
    cluster("scancel", "--signal=USR1", jobs["stage1"])
    wait(lambda: restarts("stage1") == 1, 60, "stage 1 to be requeued")

    wait(lambda: last_step(two) >= EPOCH + 1, 300, "stage 2 to be within its second epoch")
    cluster("scancel", "--signal=KILL", f"{jobs['stage2']}.0")  # without .0, Slurm cancels the job
    wait(lambda: restarts("stage2") == 1, 60, "stage 2 to be requeued")

    until_done(cluster, run, jobs)
    assert "stopped by SIGUSR1 after step" in log(run, "stage1")
    assert_same_features(alone / "features", run / "features")
    for stage in (1, 2):
        mine, left = read(diary_of(run, stage)), read(diary_of(alone, stage))
        assert mine == left, stage
        assert_same_training(alone / f"stage{stage}", run / f"stage{stage}")
    assert_same_test(alone / "stage2", run / "stage2")
    starts = {
        stage: [s["first_step"] for s in json.loads((run / stage / "fit.json").read_text())["sessions"]] for stage in ("stage1", "stage2")
    }
    assert len(starts["stage1"]) == len(starts["stage2"]) == 2
    assert starts["stage1"][1] > EPOCH  # from the step of the warning, not from the end of an epoch
    assert starts["stage2"][1] == EPOCH  # the last checkpoint before the kill
    assert {text for _, text in submit(words, capsys).values()} == {"done"}


def test_a_queue_that_refuses(cluster: Cluster, clips: Clips, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line, and nothing is recorded; the next call goes on."""
    run = clips.folder / "refused"
    words = clips.submit_words(run, 0)
    site = tmp_path / "site.yaml"
    site.write_text(clips.site.read_text() + "partition: none_such\n")
    assert main([*words[:-1], str(site)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vtlvlm: sbatch: error: invalid partition specified: none_such")
    assert err.count("\n") == 1
    assert not (run / "slurm.json").exists()


def test_after_a_failure_the_rest_is_cancelled_and_submitted_again(
    cluster: Cluster, clips: Clips, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = clips.folder / "failing"
    words = clips.submit_words(run, 0)
    broken = Path(words[words.index("--stage1") + 2])
    whole = broken.read_text()
    broken.write_text(whole.replace("batch_size: 4", "batch_size: 3"))  # not a multiple of two processes
    submit(words, capsys)
    first = numbers_of(run)
    wait(lambda: not cluster("squeue", "--noheader").strip(), 120, "all jobs to end")
    broken.write_text(whole)
    again = submit(words, capsys)
    assert again["extract"][1] == "done"
    assert "ended: FAILED" in again["stage1"][1]
    assert "ended: CANCELLED" in again["test"][1]
    second = numbers_of(run)
    assert [name for name in first if second[name] == first[name]] == ["extract"]
    until_done(cluster, run, second)
    assert_same_test(alone / "stage2", run / "stage2")
