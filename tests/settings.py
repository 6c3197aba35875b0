"""Every setting of the project and its default: ``.venv/bin/python tests/settings.py > tests/settings.txt``.

Settings are those of the modules, the data module and the parts that a configuration names, and the options of the commands.
"""

import importlib
import importlib.util
import inspect
from argparse import SUPPRESS, Action, ArgumentParser, _SubParsersAction
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vtlvlm.cli import COMMANDS
from vtlvlm.stages.parts import PARTS

RECORDED = Path(__file__).with_suffix(".txt")
REGENERATE = ".venv/bin/python tests/settings.py > tests/settings.txt"
PREPARATIONS = ("CropAndResize", "UniformFrames", "WholeClips", "BoxedFrames")
FIRST = {
    *PARTS,
    "vtlvlm.data.datamodule.NTUDataModule",
    "vtlvlm.skeleton.datamodule.SkeletonDataModule",
    *(f"vtlvlm.skeleton.preparing.{name}" for name in PREPARATIONS),
}
"""Classes that a configuration or a checkpoint names; those that their settings are of follow from them"""


def classes() -> dict[str, type]:
    """All classes with settings, by name; of two with the same name, by module and name."""
    found: set[type] = set()
    open_ = [getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in FIRST]
    while open_:
        kind = open_.pop()
        found.add(kind)
        hints = get_type_hints(kind.__init__).values()
        inner = {
            part for hint in hints for part in (hint, *get_args(hint)) if isinstance(part, type) and part.__module__.startswith("vtlvlm.")
        }
        open_ += [part for part in inner if not inspect.isabstract(part) and part not in found]
    often = Counter(kind.__name__ for kind in found)
    module = {kind: f" ({kind.__module__.rpartition('.')[2]})" if often[kind.__name__] > 1 else "" for kind in found}
    return dict(sorted((f"{kind.__name__}{module[kind]}", kind) for kind in found))


def of_class(name: str, kind: type) -> Iterator[str]:
    """The settings of a class, which are its constructor's."""
    for setting in list(inspect.signature(kind.__init__).parameters.values())[1:]:
        if setting.kind not in (setting.VAR_POSITIONAL, setting.VAR_KEYWORD):
            yield f"{name}.{setting.name}" + ("" if setting.default is setting.empty else f" = {shown(setting.default)}")


def of_command(name: str) -> Iterator[str]:
    """The options of a command that has a parser of its own; the others take a configuration."""
    module = importlib.import_module(f"vtlvlm.commands.{name}")
    if hasattr(module, "add_arguments"):
        parser = ArgumentParser()
        module.add_arguments(parser)
        yield from _options(f"vtlvlm {name}", parser)


def _options(command: str, parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for name, inner in action.choices.items():
                yield from _options(f"{command} {name}", inner)
        elif action.dest != "help":
            yield f"{command} {_spelt(action)}"


def _spelt(action: Action) -> str:
    if not action.option_strings:
        return action.dest.upper()
    return action.option_strings[-1] + (f" = {shown(action.default)}" if action.default not in (None, SUPPRESS) else "")


def shown(value: Any) -> str:
    """A default on one line; a part by its class."""
    plain = value is None or isinstance(value, bool | int | float | str | list | tuple | Path)
    return repr(str(value) if isinstance(value, Path) else value) if plain else f"{type(value).__name__}()"


def listed() -> list[str]:
    """One line for each setting."""
    commands = [name for name in COMMANDS if importlib.util.find_spec(f"vtlvlm.commands.{name}")]
    return [
        *(line for name, kind in classes().items() for line in of_class(name, kind)),
        *(line for name in commands for line in of_command(name)),
    ]


if __name__ == "__main__":
    print("\n".join(listed()))
