"""Lightning's words and defaults for checkpoints mean one definite file of the run folder, or are refused."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from events import EventRun

from vtlvlm.report.runs import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    run = EventRun(tmp_path_factory.mktemp("words"))
    assert run("fit", "--trainer.logger", False) == 0
    return run


@pytest.fixture
def copy(trained: EventRun) -> Iterator[Path]:
    """A run folder to do something with; named ``copy`` beside ``run``."""
    folder = Path(shutil.copytree(trained.folder / "run", trained.folder / "copy"))
    yield folder
    shutil.rmtree(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtlvlm: ") or line.startswith("Traceback")]
    assert code == 2
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_ckpt_path_last_goes_on_in_a_folder_that_holds_a_run(trained: EventRun, copy: Path) -> None:
    """https://github.com/Lightning-AI/pytorch-lightning/issues/14466"""
    best = (copy / "checkpoints" / "best.ckpt").read_bytes()
    assert trained("fit", "--trainer.logger", False, "--ckpt_path", "last", "--trainer.max_epochs", 3, run="copy") == 0
    sessions = json.loads((copy / "fit.json").read_text())["sessions"]
    assert [session["first_step"] for session in sessions] == [0, 2]
    found = torch.load(copy / "checkpoints" / "best.ckpt", weights_only=True)
    before = torch.load(trained.folder / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    score = {
        name: next(float(s["best_model_score"]) for s in c["callbacks"].values() if s.get("monitor"))
        for name, c in (("now", found), ("before", before))
    }
    assert (copy / "checkpoints" / "best.ckpt").read_bytes() == best or score["now"] < score["before"]


@pytest.mark.parametrize(
    ("command", "word"),
    [
        *[(command, "last") for command in ("fit", "validate", "test", "predict")],
        *[("fit", word) for word in ("best", "hpc", "registry", "REGISTRY:name", "LAST", "s3://bucket/a.ckpt", "")],
        ("test", "best"),
    ],
)
def test_words_that_mean_nothing_here_start_nothing(trained: EventRun, capsys: pytest.CaptureFixture[str], command: str, word: str) -> None:
    """https://github.com/Lightning-AI/pytorch-lightning/issues/17606: a word whose file is missing began a training from nothing."""
    refused(capsys, trained(command, "--ckpt_path", word, run="nothing"), word)
    assert not (trained.folder / "nothing").exists()


@pytest.mark.parametrize("word", ["last", "best"])
def test_a_word_is_measured_as_the_file_it_means(trained: EventRun, copy: Path, word: str) -> None:
    """https://github.com/Lightning-AI/pytorch-lightning/issues/17606: ``test`` measured a model that nothing had been loaded into."""
    file = copy / "checkpoints" / f"{word}.ckpt"
    assert trained("test", "--trainer.logger", False, "--ckpt_path", word, run="copy") == 0
    by_word = json.loads((copy / "metrics.json").read_text())
    assert by_word["provenance"]["checkpoint"] == str(file)
    assert trained("test", "--trainer.logger", False, "--ckpt_path", file, run="copy") == 0
    by_file = Run.open(copy).test
    assert by_file is not None
    assert by_file.metrics == by_word["metrics"]
    for command in ("validate", "predict"):
        assert trained(command, "--trainer.logger", False, "--ckpt_path", word, run="copy") == 0


def test_a_word_in_the_configuration_is_the_same_word(trained: EventRun, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (overlay := trained.folder / "last.yaml").write_text("ckpt_path: last\n")
    assert trained("test", "--trainer.logger", False, "--config", overlay, run="copy") == 0
    assert json.loads((copy / "metrics.json").read_text())["provenance"]["checkpoint"] == str(copy / "checkpoints" / "last.ckpt")
    (copy / "checkpoints" / "last.ckpt").unlink()
    capsys.readouterr()
    refused(capsys, trained("test", "--config", overlay, run="copy"), "--ckpt_path last", "it holds", "best.ckpt")


def test_hpc_means_what_slurm_s_warning_left(trained: EventRun, copy: Path) -> None:
    warned = Path(shutil.copy(copy / "checkpoints" / "last.ckpt", copy / "hpc_ckpt_1.ckpt"))
    assert trained("test", "--trainer.logger", False, "--ckpt_path", "hpc", run="copy") == 0
    assert json.loads((copy / "metrics.json").read_text())["provenance"]["checkpoint"] == str(warned)


def test_what_slurm_s_warning_left_is_not_started_from_unasked(
    trained: EventRun, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within Slurm, Lightning takes ``hpc_ckpt_N.ckpt`` where no checkpoint is named."""
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "STEP_ID": "0", "NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    shutil.rmtree(copy / "checkpoints")
    (copy / "old_hpc_ckpt_7.ckpt").write_bytes(b"something")
    before = content(copy)
    refused(capsys, trained("fit", run="copy"), "old_hpc_ckpt_7.ckpt: name it with --ckpt_path")
    assert content(copy) == before


@pytest.mark.parametrize("word", ["LAST", "Best", "./last", "last/", " last"])
def test_a_word_spelt_otherwise_is_refused_with_the_word(
    trained: EventRun, copy: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    before = content(copy)
    for command in ("fit", "test"):
        code = trained(command, f"--ckpt_path={word}", run="copy")
        refused(capsys, code, "no such checkpoint", f"own checkpoint is {word.strip(' ./').lower()}")
    assert content(copy) == before


def test_a_folder_given_as_checkpoint_is_answered_with_a_file_that_exists(
    trained: EventRun, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ``RUN/checkpoints`` the advice was ``RUN/checkpoints/checkpoints/best.ckpt``."""
    for folder in (copy, copy / "checkpoints"):
        code = trained("test", "--ckpt_path", folder, run="copy")
        line = capsys.readouterr().err.splitlines()[-1]
        assert code == 2
        assert Path(line.rpartition("give a file such as ")[2]).is_file(), line


def test_home_is_expanded_in_a_checkpoint_as_in_a_folder(trained: EventRun, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves ``--ckpt_path=~/...`` alone."""
    monkeypatch.setenv("HOME", str(copy))
    assert trained("test", "--trainer.logger", False, "--ckpt_path=~/checkpoints/last.ckpt", run="copy") == 0
    assert json.loads((copy / "metrics.json").read_text())["provenance"]["checkpoint"] == str(copy / "checkpoints" / "last.ckpt")


def test_a_run_with_a_dollar_sign_in_its_name_is_one_folder(trained: EventRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's logger alone expands variables: its curves went to another folder than the run."""
    monkeypatch.setenv("ELSEWHERE", "other")
    assert trained("fit", "--trainer.max_steps", 1, run="$ELSEWHERE") == 0
    assert not (trained.folder / "other").exists()
    assert list((trained.folder / "$ELSEWHERE" / "tensorboard").glob("events.out*"))
    shutil.rmtree(trained.folder / "$ELSEWHERE")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_command_never_writes_into_another_run_s_folder(
    trained: EventRun, copy: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = content(copy)
    other = trained.folder / "run" / "checkpoints" / "last.ckpt"
    refused(capsys, trained(command, "--ckpt_path", other, run="copy"), str(copy), "another run", str(other), "--trainer.default_root_dir")
    untuned = ["--model.init_args.reasoner.init_args.adapter", "NoAdapter"] if command != "fit" else []
    refused(capsys, trained(command, *untuned, run="copy"), str(copy), "--trainer.default_root_dir")
    assert content(copy) == before


def test_a_refused_start_changes_nothing(trained: EventRun, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the guard's refusals nor those that come when the checkpoint is compared with the data."""
    before = content(copy)
    refused(capsys, trained("fit", run="copy"), "already holds a run")
    asked = ["--ckpt_path", "last", "--trainer.max_epochs", 3, "--trainer.logger", False]
    refused(capsys, trained("fit", *asked, "--model.init_args.reasoner.init_args.adapter.init_args.tokens", 3, run="copy"), "tokens")
    refused(capsys, trained("fit", *asked, "--data.source.validation", 0.1, "--data.seed", 5, run="copy"), "the checkpoint")
    refused(capsys, trained("fit", *asked, "--weights_only", "false", run="copy"), "--weights_only false")
    now = content(copy)
    now.pop(".lock-fit", None)
    before.pop(".lock-fit", None)
    assert now == before


def test_fast_dev_run_leaves_nothing_behind(trained: EventRun, copy: Path) -> None:
    """One batch is no result: ``test`` replaced the figures of the whole split by those of one clip."""
    before, fast = content(copy), ["--trainer.fast_dev_run", "true"]
    assert trained("test", "--ckpt_path", "last", *fast, run="copy") == 0
    assert content(copy) == before
    assert trained("fit", *fast, run="fast") == 0
    assert not (trained.folder / "fast").exists()


def test_training_without_checkpoints_is_refused_in_a_run_s_folder(
    trained: EventRun, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(copy)
    refused(capsys, trained("fit", "--trainer.enable_checkpointing", "false", run="copy"), "already holds a run")
    assert content(copy) == before


def test_a_moved_run_keeps_its_best_checkpoint(trained: EventRun, copy: Path) -> None:
    """In another folder Lightning forgets the best score, and the next validation replaced the best checkpoint."""
    moved = trained.folder / "moved"
    os.rename(copy, moved)  # noqa: PTH104
    kept = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)
    for state in kept["callbacks"].values():
        if state.get("monitor"):
            state["best_model_score"] = torch.tensor(-1.0)
            state["best_k_models"] = {path: torch.tensor(-1.0) for path in state["best_k_models"]}
            state["kth_value"] = torch.tensor(-1.0)
    torch.save(kept, moved / "checkpoints" / "last.ckpt")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    assert trained("fit", "--trainer.logger", False, "--ckpt_path", "last", "--trainer.max_epochs", 3, run="moved") == 0
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    moved.rename(copy)
