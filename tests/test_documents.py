"""Commands of the documents exist with all their options, as the parser that would run them reads them; make's targets exist."""

import importlib
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, Line, blocks, mentioned, typed
from pipeline import Pipeline

from vtlvlm.cli import COMMANDS, TRAINER_COMMANDS, Parser, main

CONFIGURED = (*TRAINER_COMMANDS, "fetch", "extract", "tokenize", "extract-hidden")
COMMAND_LINES = [line for line in typed() if line.words[0] == "vtlvlm" and "(the" not in line.words]
OTHERS = [line for line in typed() if line.words[0] in ("make", "pip")]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_are_commands() -> None:
    assert {line.words[1] for line in COMMAND_LINES} >= {"extract", "fit", "tokenize", "test", "export", "classify", "probe", "prepare"}
    assert {line.document for line in COMMAND_LINES} >= {"README.md", "data/README.md", "lightning_configs/README.md"}


@pytest.mark.parametrize("line", COMMAND_LINES, ids=lambda line: f"{line.document}: {line.words[1]}")
def test_a_command_is_understood(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its configurations are found, and classes and settings exist."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("seed_everything: 1\n")  # the reader's own
    _, command, *rest = line.words
    if command in CONFIGURED:
        with pytest.raises(SystemExit) as end:
            main([command, *rest, "--print_config"])
        assert end.value.code == 0
        assert "class_path" in capsys.readouterr().out
    else:
        module = importlib.import_module(f"vtlvlm.commands.{command}")
        monkeypatch.setattr(module, "run", lambda arguments: 0)
        assert main([command, *rest]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", OTHERS, ids=lambda line: f"{line.document}: {line.words[1]}")
def test_what_is_made_and_installed_exists(line: Line) -> None:
    program, *words = line.words
    if program == "make":
        assert words[0] in targets()
        return
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
        assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if "--constraint" in words:
        assert (ROOT / words[words.index("--constraint") + 1]).is_file()


@pytest.mark.parametrize("line", mentioned(), ids=lambda line: f"{line.document}: {line.words[1]}")
def test_a_command_in_the_text_exists(line: Line) -> None:
    program, name, *words = line.words
    if program == "make":
        assert name in targets()
    elif name != "COMMAND":
        assert name in COMMANDS
        if name not in CONFIGURED:
            parser = Parser()
            importlib.import_module(f"vtlvlm.commands.{name}").add_arguments(parser)
            asked = [word for word in words if word.startswith("--")]
            assert [option for option in asked if f"{option} " not in f"{parser.format_help()} ".replace(",", " ").replace("]", " ")] == []


def test_python_of_the_documents_runs(
    chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block by itself, where the bundle and the clip that it names lie."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "bundle").symlink_to(chain.bundle)
    shutil.copy(chain.root / "S001C001P003R001A001_rgb.avi", tmp_path / "clip.mp4")
    programs = [text for path in DOCUMENTS for language, text in blocks(path) if language == "python" and "urlopen(" not in text]
    assert programs  # tests/app runs the one that asks a server
    for program in programs:
        exec(compile(program, "document", "exec"), {"__name__": "document"})
    assert "fall down" in capsys.readouterr().out
