"""Terminals and pipes as users have them: other encodings, readers that go away, full and closed outputs."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from pipeline import Pipeline, shell
from videos import block_clips

from vtlvlm.cli import COMMANDS, main
from vtlvlm.commands import classify
from vtlvlm.system.streams import UNREAD


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return block_clips(tmp_path_factory.mktemp("terminals") / "videos", people=(1, 3))


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_user_has_a_terminal_of_another_encoding(videos: Path, encoding: str) -> None:
    """https://github.com/tqdm/tqdm/issues/1339: a sign that the terminal lacks ends the program."""
    (videos / "classes.txt").write_text("A001 fall – dōwn\nA002 slide × right\n", encoding="utf-8")
    done = shell(f"vtlvlm prepare {videos} --output {videos}/../index.parquet", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "left out: none" in text
    assert "\\u014d" in text  # the ō of dōwn, which none of them has
    assert b"Traceback" not in done.stderr


def test_user_reads_the_help_of_every_command_on_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/rsalmei/alive-progress/issues/76"""
    for name in COMMANDS:
        if name in ("tokenize", "validate", "test", "predict"):  # slow, and made as extract's and fit's are
            continue
        page = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        monkeypatch.setattr(sys, "stdout", page)
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        page.flush()
        assert f"vtlvlm {name}".encode() in page.buffer.getvalue().replace(b"[options] ", b"")  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["--help", "prepare --help", "prepare VIDEOS --output VIDEOS/../index.parquet"])
def test_user_reads_the_first_line_only(videos: Path, what: str) -> None:
    """https://github.com/python/cpython/issues/90650, https://github.com/openvax/mhctools/issues/387: a traceback, now or at shutdown."""
    done = shell(f"vtlvlm {what.replace('VIDEOS', str(videos))} | (read line; exec 0<&-; echo $line)")
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    reader_gone = shell(f"(sleep 0.2; vtlvlm {what.replace('VIDEOS', str(videos))}) | true")
    assert reader_gone.stderr == b""
    assert reader_gone.returncode == 0  # the work was done all the same


@pytest.mark.slow
def test_user_reads_the_first_result_only(chain: Pipeline, videos: Path) -> None:
    """https://github.com/mkaz/termgraph/issues/114; what is left to classify then is left."""
    done = shell(f"vtlvlm classify --model {chain.bundle} --json {videos} {videos} {videos} | head -1")
    assert done.stderr == b""
    assert done.returncode in (0, UNREAD)
    assert "actions" in json.loads(done.stdout)


def test_a_probability_that_is_no_number_is_null_in_json_and_no_bar() -> None:
    """https://github.com/Illumina/Cyrius/issues/42: ``NaN`` is not JSON."""
    line = classify.json_line({"p": [float("nan"), 0.5, float("inf")], "file": os.fsdecode(b"caf\xe9")})
    assert json.loads(line, parse_constant=pytest.fail) == {"p": [None, 0.5, None], "file": os.fsdecode(b"caf\xe9")}
    assert line.isascii()
    assert classify.bar(float("nan")).strip() == ""
    assert classify.bar(0.5).strip() == "█" * 10
