"""The kind of data module that a configuration asks for. One without a ``class_path`` in its data section asks for videos and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vtlvlm.data.clip_module import ClipDataModule
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.errors import UsageError


def data_module(arguments: Sequence[str]) -> dict[str, Any]:
    """LightningCLI's arguments for the data module of a command line.

    A data section with a ``class_path``, such as SkeletonDataModule, has its settings in ``init_args``; others keep theirs at the top.

    Args:
        arguments: The command line: ``--config FILE`` and settings, with paths that :func:`vtlvlm.configs.resolved` has found.
    """
    if not any(map(_names_a_class, _sections(arguments))):
        return {"datamodule_class": NTUDataModule}
    import vtlvlm.skeleton.datamodule
    import vtlvlm.stages.recognition  # noqa: F401 - so that configurations find both and their parts by their names

    return {"datamodule_class": ClipDataModule, "subclass_mode_data": True}


def require_plain(command: str, arguments: Sequence[str]) -> None:
    """Refuse a command line whose data section names a class, where a command reads videos, features or events alone.

    Args:
        command: Its name, for the message.
        arguments: As of :func:`data_module`.

    Raises:
        UsageError: The data section names a class.
    """
    if any(map(_names_a_class, _sections(arguments))):
        raise UsageError(
            f"{command} takes configurations of stage 1 or 2; one whose data has a class_path, such as a skeleton network's, goes with "
            "fit, validate, test and predict"
        )


def _sections(arguments: Sequence[str]) -> Iterator[Any]:
    """The data sections of a command line: settings, or the name of a class."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in pairwise(words):
        if option in ("--config", "-c"):
            place = Path(value)
            found = _read(place)
            section = found.get("data") if isinstance(found, dict) else None
            yield _read(place.parent / section) if isinstance(section, str) else section
        elif option == "--data":
            yield _read(Path(value)) if value.lower().endswith((".yaml", ".yml")) else _parsed(value)
        elif option == "--data.class_path":
            yield value


def _read(path: Path) -> Any:
    """What a YAML file holds; None if it cannot be read, which the parser says."""
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _parsed(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _names_a_class(section: Any) -> bool:
    return isinstance(section, str) or (isinstance(section, dict) and "class_path" in section)
