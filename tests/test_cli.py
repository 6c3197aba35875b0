"""The command table: help, exit codes, and that light commands stay light."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vtlvlm.cli import COMMANDS, main
from vtlvlm.errors import UsageError


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", ["demo", "synth", "prepare", "compose", "probe", "classify", "export", "consolidate", "fuse", "report"])
def test_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"vtlvlm {name}" in capsys.readouterr().out


def test_help_of_a_light_command_does_not_import_torch() -> None:
    code = (
        "import sys; from vtlvlm.cli import main\n"
        "try: main(['classify', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_errors_are_one_line_and_debug_shows_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["classify", "--model", str(tmp_path / "nothing"), "a.mp4"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="nothing"):
        main([*arguments, "--debug"])


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    arguments = ["synth", str(tmp_path / "file" / "videos"), "--subjects", "1", "--actions", "8"]
    assert main(arguments) == 1
    assert "file/videos/nturgb+d_rgb: Not a directory; name another folder" in capsys.readouterr().err
    with pytest.raises(NotADirectoryError):
        main([*arguments, "--debug"])


def test_a_full_gpu_without_a_batch_to_lower(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A training's is in test_kills.py."""

    def full(arguments: list[str]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("vtlvlm.cli.run", full)
    assert main(["classify"]) == 1
    assert capsys.readouterr().err == "vtlvlm: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyError("a\x1b[2J key"), 70, "this is a defect: KeyError: 'a\\x1b[2J key'; run again with --debug and report it"),
        (MemoryError(), 1, "out of memory; close other programs"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "Cannot allocate memory; close other programs"),
        (OSError(errno.EMFILE, "Too many open files", "a.mp4"), 1, "a.mp4: Too many open files; raise the limit with `ulimit -n 65536`"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a\nb"), 1, "a\\nb: No such file or directory"),
        (UsageError("first\nsecond \x1b[31m"), 2, "first\\nsecond \\x1b[31m"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 1, "fewer workers (--data.num_workers)"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), 1, "fewer workers (--data.num_workers)"),
        (RuntimeError("DataLoader timed out after 1800 seconds"), 1, "a loading process hangs"),
        (RuntimeError("received 0 items of ancdata"), 1, "too many open files; raise the limit"),
        (RuntimeError("[../gloo] Connection closed by peer [127.0.0.1]:1"), 1, "another process of this run has ended"),
        (
            RuntimeError("Caught X.\nTraceback (most recent call last):\n  File\nValueError: why"),
            70,
            "RuntimeError: ValueError: why;",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_is_one_line(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("vtlvlm.cli.run", fail)
    assert main(["fit"]) == code
    said = capsys.readouterr().err
    assert said.startswith("vtlvlm: ")
    assert line in said
    assert said.count("\n") == 1
    assert "\x1b" not in said
    with pytest.raises(type(error)):
        main(["fit", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify"], "classify: the following arguments are required: FILE; `vtlvlm classify --help` lists"),
        (["bench", "x\x1b[1m"], "invalid choice: 'x\\x1b[1m'"),
        (["fit", "--config", "nothing.yaml"], "nothing.yaml"),
        (["fit", "--nothing", "1"], "unrecognized arguments: --nothing 1"),
        (["extract", "--data.source.root", "a", "--data.batch_size", "x"], '"data.batch_size": expected int. Got value: x'),
        (["fit"], "the following arguments are required: fit.model"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_videos_for_a_bench_that_needs_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "lvlm", "--videos", "somewhere"]) == 2
    assert "--videos: bench lvlm takes --repeats, --work and --output" in capsys.readouterr().err


def test_a_report_of_what_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "nothing: no such folder" in capsys.readouterr().err
    for run in ("stage1", "stage2", "untuned"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.json").write_text('{"protocol": "x", "split": "test", "num_clips": 1, "seed": 1, "metrics": {}}')
        numbers = ("steps", "wall_seconds", "seconds_per_step", "peak_rss_bytes", "parameters", "trainable_parameters")
        (tmp_path / run / "fit.json").write_text(json.dumps(dict.fromkeys(numbers, 1)))
    for content in ("[", "{}", "[1]"):
        (tmp_path / "probes.json").write_text(content)
        assert main(["report", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert "its files are damaged or of another version" in said
        assert said.count("\n") == 1


def test_empty_folder_is_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    assert main(["classify", str(tmp_path / "videos")]) == 1
    assert "no video files" in capsys.readouterr().err


def test_an_interruption_outside_a_training(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a command that is not Lightning's, here while it looks through a folder."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vtlvlm.data.index.ClipIndex.scan", stopped)
    assert main(["prepare", "."]) == 130
    assert capsys.readouterr().err == "vtlvlm: interrupted; the same command continues\n"
