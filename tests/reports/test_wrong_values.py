"""Wrong values for the trainer's commands: one line that names the culprit, before anything is trained or written."""

from pathlib import Path

import pytest
from events import EventRun

from vtlvlm.cli import main
from vtlvlm.commands.guard import outside_slurm
from vtlvlm.errors import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    return EventRun(tmp_path_factory.mktemp("wrong"))


def said(capsys: pytest.CaptureFixture[str], code: int) -> str:
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("vtlvlm: ")]
    assert "Traceback" not in err
    assert len(lines) == 1, err
    assert code in (1, 2), lines[0]
    assert "defect" not in lines[0]
    return lines[0]


CALLBACK = "--trainer.callbacks+"
WRONG = [
    (["--trainer.devices", 0], "devices"),
    (["--trainer.accelerator", "gpux"], "gpux"),
    (["--trainer.precision", "17"], "trainer.precision"),
    (["--trainer.strategy", "nope"], "nope"),
    (["--trainer.max_epochs", -5], "max_epochs"),
    (["--trainer.limit_train_batches", 1.5], "limit_train_batches"),
    (["--trainer.val_check_interval", 100], "val_check_interval"),
    (["--trainer.gradient_clip_val", 1, "--trainer.gradient_clip_algorithm", "nope"], "gradient_clip_algorithm"),
    (["--trainer.profiler", "nope"], "profiler"),
    (["--trainer.logger", "NoLogger"], "NoLogger"),
    (["--trainer.overfit_batches", 1], "--trainer.limit_train_batches"),
    (["--trainer.use_distributed_sampler", "true"], "leave it out"),
    (["--trainer.accumulate_grad_batches", 3], "trainer.accumulate_grad_batches=3, but data.batch_size=4 makes it 2"),
    (["--trainer.enable_checkpointing", "false", CALLBACK, "ModelCheckpoint"], "enable_checkpointing"),
    ([CALLBACK, "NoCallback"], "NoCallback"),
    (["--model", "NoModule"], "NoModule"),
    (["--model.init_args.reasoner.init_args.label_score", "nope"], "label_score"),
    (["--model.init_args.reasoner.init_args.tokenz", 3], "tokenz"),
    (["--data.source.root", "/nowhere"], "/nowhere"),
    (["--data.batch_size", "many"], "data.batch_size"),
    (["--data.fooo", 3], "--data.fooo"),
    (["--config", "none.yaml"], "none.yaml"),
    (["--seed_everything", -1], "--seed_everything -1"),
    (["--seed_everything", 2**32], f"--seed_everything {2**32}"),
    (["--data.seed", -1], "data.seed -1"),
    (["--data.seed", 2**32], f"data.seed {2**32}"),
    (["--trainer.default_root_dir", __file__], "a file, not a run folder"),
    (["--trainer.default_root_dir", "s3://bucket/run"], "s3://bucket/run"),
    (["--ckpt_path", Path(__file__).parent], "folder"),
]


QUICK = (
    "devices",
    "precision",
    "strategy",
    "val_check",
    "accumulate",
    "overfit",
    "NoCallback",
    "tokenz",
    "nowhere",
    "everything -1",
    "data.seed 4",
)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        pytest.param(*wrong, id=text, marks=[] if any(part in text for part in QUICK) else pytest.mark.slow)
        for wrong in WRONG
        for text in [" ".join(map(str, wrong[0]))[:70]]
    ],
)
def test_a_wrong_value_is_one_line(run: EventRun, capsys: pytest.CaptureFixture[str], arguments: list[object], word: str) -> None:
    line = said(capsys, run("fit", "--trainer.logger", False, *arguments))
    assert word in line
    assert len(line) < 900
    assert not (run.folder / "run" / "checkpoints").exists()


def test_a_figure_that_nobody_logs_is_one_line(run: EventRun, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = [CALLBACK, "EarlyStopping", "--trainer.callbacks.monitor", "nothing"]
    assert "nothing" in said(capsys, run("fit", "--trainer.logger", False, *stopping, run="stopping"))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a: [1\nb: {", "in line 2, column 2"),
        (b"\x80\x81\x00binary", "not UTF-8"),
        (b"[" * 10_000, "not a configuration"),
        (b"- 1\n", "no settings"),
        (b"", "no settings"),
    ],
    ids=["brackets", "binary", "deep", "list", "empty"],
)
def test_a_broken_configuration_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, word: str) -> None:
    """One of several files is broken; the line says which."""
    (path := tmp_path / "broken.yaml").write_bytes(content)
    line = said(capsys, main(["fit", "--config", "stage1_small.yaml", "--config", str(path)]))
    assert str(path) in line
    assert word in line


def test_a_configuration_with_a_wrong_section_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (path := tmp_path / "wrong.yaml").write_bytes(b"trainer: 3\n")
    line = said(capsys, main(["fit", "--config", "stage1_small.yaml", "--config", str(path)]))
    assert f"{path}: `trainer: 3`: expected settings" in line


@pytest.mark.parametrize("command", ["prepare", "probe", "compose", "demo", "synth"])
def test_seeds_of_other_commands(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--features", "x"] if command == "probe" else []
    for seed in (-1, 2**32):
        assert f"--seed {seed}: a seed is a whole number from 0 to" in said(
            capsys, main([command, str(tmp_path), *more, "--seed", str(seed)])
        )
    assert not list(tmp_path.iterdir())


# -- Slurm -----------------------------------------------------------------------------------------------------------------------------

TASK = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_ID": "0"}
FOUR = {**TASK, "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"SLURM_NTASKS": "4"}, "srun"),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, "unset SLURM_NTASKS"),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
            "would wait for the other tasks",
        ),  # a batch script
        (FOUR, "--ntasks-per-node"),
        ({**FOUR, "SLURM_NTASKS_PER_NODE": "4"}, "--trainer.devices 1, but Slurm was given --ntasks-per-node=4"),
        ({**FOUR, "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "4"}, "--trainer.num_nodes 1, but Slurm was given --nodes=4"),
        ({"SLURM_NTASKS": "\x1b[31m"}, "is not a number"),
        ({**FOUR, "SLURM_PROCID": "first"}, "SLURM_PROCID"),
    ],
)
def test_slurm_variables_that_do_not_go_together(environment: dict[str, str], word: str) -> None:
    with pytest.raises(UsageError) as found:
        outside_slurm(environment, 1, 1)
    assert word in str(found.value)
    assert str(found.value).isprintable()


def test_slurm_variables_that_do() -> None:
    assert not outside_slurm({}, 4, 1)
    assert not outside_slurm({**FOUR, "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}, 2, 2)
    assert not outside_slurm({**FOUR, "SLURM_NTASKS_PER_NODE": "4"}, "auto", 1)
    assert not outside_slurm({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, 1, 1)
    assert not outside_slurm({"SLURM_NTASKS": "4", "TORCHELASTIC_RUN_ID": "x"}, 4, 1)
    assert outside_slurm({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}, 1, 1)


def test_fit_in_the_shell_of_an_allocation(
    run: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four tasks: refused. Of one: trained, though Slurm has not numbered it."""
    there = ["--trainer.logger", False, "--trainer.default_root_dir", tmp_path / "run"]
    monkeypatch.setenv("SLURM_NTASKS", "4")
    for command in ("fit", "test"):
        assert "srun" in said(capsys, run(command, *there))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert run("fit", *there, "--trainer.max_epochs", 1) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
