"""Checkpoints are written whole or not at all, and the newest that can be read is found."""

import os
import pickle
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as shards
from pipeline import alone

from vtlvlm.errors import UsageError
from vtlvlm.stages.checkpoint_writing import CheckpointFiles, NotWrittenError, clear_leftovers
from vtlvlm.stages.checkpoints import continuation, harmless, named, to_continue, written

GOOD = {
    "pytorch-lightning_version": "2.6.0",
    "state_dict": {"a": torch.arange(3.0)},
    "loops": {},
    "callbacks": {},
    "lr_schedulers": [],
    "optimizer_states": [],
    "vtlvlm": {"stage": "reader", "settings": {"class_path": "Reader", "init_args": {}}, "provenance": {}},
}


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def save(path: Path, **more: object) -> Path:
    CheckpointFiles().save_checkpoint({**GOOD, **more}, path)
    return path


def aged(path: Path, age: float) -> Path:
    os.utime(path, (age, age))
    return path


def test_the_newest_that_can_be_read_is_gone_on_from(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    assert to_continue(tmp_path) is None
    for age, name in enumerate(("best.ckpt", "step=4.ckpt", "last.ckpt")):
        newest = aged(save(place / name), 1e9 + age)
        assert to_continue(tmp_path) == newest
    warned = aged(save(tmp_path / "hpc_ckpt_1.ckpt"), 2e9)  # which Lightning writes when Slurm is about to stop the job
    assert to_continue(tmp_path) == warned
    warned.write_bytes(warned.read_bytes()[:300])
    aged(warned, 2e9)
    weights = aged(save(place / "weights.ckpt"), 1.9e9)
    torch.save({name: value for name, value in GOOD.items() if name != "optimizer_states"}, weights)
    aged(weights, 1.9e9)
    found = continuation(tmp_path)
    assert found.checkpoint == place / "last.ckpt"
    assert [text.partition(":")[0] for text in found.unreadable] == [str(warned), str(weights)]
    assert "holds only weights" in found.unreadable[1]
    for path in written(tmp_path):
        path.write_bytes(b"")
    assert continuation(tmp_path).checkpoint is None
    assert len(continuation(tmp_path).unreadable) == 5


def test_of_two_of_one_age_the_end_of_an_epoch_comes_first(tmp_path: Path) -> None:
    for name in ("zzz", "last", "best"):
        aged(save(tmp_path / "checkpoints" / f"{name}.ckpt"), 1e9)
    assert to_continue(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_shards_that_were_not_written_to_the_end_are_left_alone(tmp_path: Path) -> None:
    last, best = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.mkdir(parents=True)
    assert to_continue(tmp_path) is None
    aged(save(best), 1e9)
    assert to_continue(tmp_path) == best
    torch.save(GOOD, last / "meta.pt")
    assert to_continue(tmp_path) == best
    assert "its shards cannot be read (.metadata" in continuation(tmp_path).unreadable[0]
    with warnings.catch_warnings(action="ignore"):
        shards.save({"state_dict.a": torch.arange(3.0)}, checkpoint_id=last, no_dist=True)
    aged(last / "meta.pt", 2e9)
    assert to_continue(tmp_path) == last
    (last / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "sprung")))
    assert to_continue(tmp_path) == best
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(UsageError, match="--ckpt_path hpc"):
        named("hpc", tmp_path)


def test_the_old_checkpoint_stays_where_the_disk_is_full(tmp_path: Path) -> None:
    path, before = save(tmp_path / "last.ckpt"), (tmp_path / "last.ckpt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(NotWrittenError, match=r"last\.ckpt: the checkpoint cannot be written \(File too large\)"):
            save(path, large=torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from vtlvlm.stages.checkpoint_writing import CheckpointFiles

class Kill:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointFiles().save_checkpoint({"a": torch.zeros(10), "b": Kill()}, Path(sys.argv[1]))
"""


def test_a_kill_while_it_is_written_leaves_the_old_one_wherever_tmpdir_is(tmp_path: Path) -> None:
    """Lightning writes to TMPDIR; where that is another disk, the file is then copied over the old one."""
    run = tmp_path / "run"
    path, before = save(run / "checkpoints" / "last.ckpt"), (run / "checkpoints" / "last.ckpt").read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=alone(TMPDIR="/dev/shm"), capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2
    (run / "notes.tmp").touch()
    clear_leftovers(run)
    assert sorted(p.name for p in run.rglob("*")) == ["checkpoints", "last.ckpt", "notes.tmp"]


def test_a_file_takes_the_place_of_shards(tmp_path: Path) -> None:
    (path := tmp_path / "last.ckpt").mkdir()
    (path / "meta.pt").touch()
    assert save(path).is_file()
    CheckpointFiles().remove_checkpoint(path)
    CheckpointFiles().remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def test_only_plain_names_are_left_to_be_deleted() -> None:
    state = {"best_model_path": "/run/../home", "kth_best_model_path": "s3://bucket/a", "last_model_path": "a.ckpt", "other": "../x"}
    kept = {"/run/a.ckpt": 1.0, "/run//b.ckpt": 2.0, "zip::/run/c": 3.0}
    checkpoint = {"callbacks": {"one": {**state, "best_k_models": kept}, "two": [1], "three": {"best_model_path": "/run/a.ckpt"}}}
    harmless(checkpoint)
    one = checkpoint["callbacks"]["one"]
    assert one == {**dict.fromkeys(state, ""), "other": "../x", "best_k_models": {"/run/a.ckpt": 1.0}}
    assert checkpoint["callbacks"]["three"] == {"best_model_path": "/run/a.ckpt"}
    harmless({"callbacks": 3})
