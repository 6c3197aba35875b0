"""The shipped configurations at a size for tests. Settings are found by their name alone, wherever in the configuration they stand."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml

from vtlvlm.cli import main

FOLDER = Path(__file__).parents[1] / "lightning_configs"


def resolved(*files: str | Path, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The whole configuration that ``fit`` would run with: shipped files (or overlays) one after the other, defaults filled in."""
    arguments = [part for file in files for part in ("--config", str(file if Path(file).is_absolute() else FOLDER / file))]
    with redirect_stdout(said := io.StringIO()), suppress(SystemExit):
        main(["fit", *arguments, *more, "--print_config"])
    found = yaml.safe_load(said.getvalue())
    assert isinstance(found, dict), f"{files}: no configuration"
    return found


def holders(config: Any, name: str) -> Iterator[dict[str, Any]]:
    """Every dictionary in a configuration, at any depth, that has a setting of this name."""
    if isinstance(config, dict):
        if name in config:
            yield config
        for value in config.values():
            yield from holders(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from holders(value, name)


def put(config: dict[str, Any], **settings: Any) -> None:
    """Give settings other values. Each has to stand in the configuration, so that a renamed one is noticed."""
    for name, value in settings.items():
        found = list(holders(config, name))
        assert found, f"no setting is called {name!r}"
        for holder in found:
            holder[name] = value
