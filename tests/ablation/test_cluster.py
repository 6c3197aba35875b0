"""Grids as jobs of Slurm, as far as no Slurm is needed. `make test-slurm` runs a real one."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from vtlvlm.ablation.cluster import jobs
from vtlvlm.ablation.items import Item
from vtlvlm.cli import main
from vtlvlm.system.files import write_json

Write = Callable[..., Path]


def item(kind: str, key: str, work: Path, *needs: str) -> Item:
    return Item(f"{kind}/{key}", kind, work / kind / key, (kind, "a b", key), needs)  # type: ignore[arg-type]


def test_each_kind_of_work_is_an_array_after_what_it_needs(tmp_path: Path) -> None:
    work = tmp_path
    items = [item("synth", "v", work), item("extract", "f", work, "synth/v"), item("compose", "l", work)]
    items += [item("fit1", key, work, "extract/f") for key in "ab"]
    items += [item("tokenize", key, work, "extract/f", f"fit1/{key}") for key in "ab"]
    found = {job.name: job for job in jobs(items, work)}
    assert {name: (job.script, job.elements, job.after) for name, job in found.items()} == {
        "synth-v": ("prepare", 0, ()),
        "compose-l": ("prepare", 0, ()),
        "extract": ("ablation", 1, ("synth-v",)),
        "fit1": ("ablation", 2, ("extract",)),
        "tokenize": ("ablation", 2, ("extract", "fit1")),
    }
    other = {job.name: job for job in jobs(items[:-1], work)}  # the lines of a waiting array stay as they are
    assert other["tokenize"].words != found["tokenize"].words
    assert other["fit1"].words == found["fit1"].words
    assert found["synth-v"].words == ["synth", "a b", "v"]
    assert all(job.any_end for job in found.values())  # one failed element stops no other one
    assert not found["tokenize"].done()
    for key in "ab":
        write_json(work / "tokenize" / key / "meta.json", {"complete": True})
    assert found["tokenize"].done()


def test_what_is_done_is_no_job(tmp_path: Path) -> None:
    assert [job.after for job in jobs([item("fit1", "a", tmp_path, "extract/f")], tmp_path)] == [()]


def test_a_dry_run_shows_the_lines_for_slurm(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    assert main(["ablate", str(write()), "--work", str(work), "--slurm", "--dry-run"]) == 0
    lines = {line.split()[0]: shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == ["extract", "fit1", "tokenize", "fit2", "test"]
    assert "--array=0-1" in lines["fit2"]
    assert "--dependency=afterany:tokenize:fit2" in lines["test"]
    assert re.fullmatch(re.escape(str(work)) + r"/slurm-fit2-[0-9a-f]{8}\.txt", lines["fit2"][-1])
    assert not work.exists()


def test_no_slurm_on_this_machine(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    work = tmp_path / "work"
    assert main(["ablate", str(write()), "--work", str(work), "--slurm"]) == 2
    told = capsys.readouterr().err
    assert "no Slurm on this machine" in told
    assert told.count("\n") == 1
    assert not list(work.glob("slurm*"))
    for more, line in ((["--slurm", "--jobs", "2"], "--jobs: goes without --slurm"), (["--site", "s.yaml"], "--site: goes with --slurm")):
        assert main(["ablate", str(write()), "--work", str(work), *more]) == 2
        assert line in capsys.readouterr().err
