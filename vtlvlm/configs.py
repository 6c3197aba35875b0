"""Finds the shipped configurations by name, from any folder. They lie beside the package in a checkout, and inside it when installed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vtlvlm.errors import UsageError
from vtlvlm.system.text import shown

FOLDER = "lightning_configs"
OPTIONS = ("--config", "-c", "--model", "--data", "--trainer")
"""Options that take the path of a configuration"""
SECTIONS = ("model", "data", "trainer")


def shipped() -> Path:
    """The folder of the shipped configurations.

    Raises:
        UsageError: The installation has none.
    """
    package = Path(__file__).parent
    for folder in (package / FOLDER, package.parent / FOLDER):
        if folder.is_dir():
            return folder
    raise UsageError(f"{package}: installed without its {FOLDER}; install it again")


def config(name: str) -> str:
    """Path of a shipped configuration.

    Args:
        name: relative to ``lightning_configs``, such as ``stage1_small.yaml``.

    Raises:
        UsageError: No configuration has that name.
    """
    path = shipped() / name
    if path.is_file():
        return str(path)
    raise UsageError(f"{name}: no such configuration; `vtlvlm configs` lists the shipped ones")


def resolved(arguments: Sequence[str]) -> list[str]:
    """Replace the names of shipped configurations in a command line by their paths.

    An existing path stays as it is. Any other path names a shipped configuration; ``lightning_configs/`` before the name is optional.

    Raises:
        UsageError: A configuration does not exist, or cannot be read.
    """
    found, option = [], ""
    for word in arguments:
        name, joined, value = word.partition("=")
        if option:
            found.append(_place(option, word))
            option = ""
        elif joined and name in OPTIONS:
            found.append(f"{name}={_place(name, value)}")
        else:
            found.append(word)
            option = word if word in OPTIONS else ""
    return found


def _settings(path: Path, name: str) -> dict[str, Any]:
    """The settings in a file. A file without settings is refused here, because the parser's message would not name the file."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"{name}: not a configuration: it is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or type(error).__name__
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise UsageError(f"{name}: not a configuration: {shown(problem)}{where}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name}: not a configuration: it holds no settings such as `trainer:`")
    return found


def _place(option: str, value: str) -> str:
    """The path of the configuration that an option's value names. Other text is returned unchanged."""
    named = value.lower().endswith((".yaml", ".yml"))
    if not value or re.search(r"[\n{}]|: ", value) or not (named or option in ("--config", "-c")):
        return value  # text of a configuration, or the name of a class
    path = Path(value)
    if not path.exists():
        inner = re.sub(rf"^(\./)*({FOLDER}/)?", "", value)
        if path.is_absolute() or ".." in path.parts or not (shipped() / inner).is_file():
            raise UsageError(f"{value}: no such configuration; `vtlvlm configs` lists the shipped ones")
        path = shipped() / inner
    if path.is_dir():
        raise UsageError(f"{value}: a folder; name a configuration in it")
    if path.is_file():
        found = _settings(path, value)
        for section in SECTIONS if option in ("--config", "-c") else ():
            if not isinstance(found.get(section), dict | str | None):
                raise UsageError(f"{value}: `{section}: {shown(found[section], 40)}`: expected settings, or the path of a file with them")
    return value if path == Path(value) else str(path)


def headings() -> Iterator[tuple[str, str]]:
    """Name and first comment line of each shipped configuration. Configurations of whole stages come first."""
    folder = shipped()
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.relative_to(folder).parts), path)):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        yield path.relative_to(folder).as_posix(), first.removeprefix("#").strip() if first.startswith("#") else ""
