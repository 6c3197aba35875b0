"""Opens the data of a run again, from the configuration in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.errors import UsageError


def data_of_run(run: Path, events: Path | None = None, videos: Path | None = None) -> NTUDataModule:
    """The data module of a run, with an event cache. It is not set up yet.

    Args:
        run: Folder of a training, or one of its checkpoints.
        events: The event cache, if the run names none, or if it has moved.
        videos: The folder of the videos, if it has moved.

    Raises:
        UsageError: There is no configuration, or it has no data of stage 1 or 2 or no event cache.
    """
    data = _data(run, videos, {"events": str(events), "features": None} if events else {})
    if data.events is None:
        raise UsageError(f"{run}: its configuration names no event cache; add --events DIR")
    return data


def clips_of_run(run: Path, videos: Path | None = None) -> NTUDataModule:
    """The data module of a run on videos or features. It is not set up yet.

    Args:
        run: Folder of a training, or one of its checkpoints.
        videos: The folder of the videos, if it has moved.

    Raises:
        UsageError: There is no configuration, or it has no data of videos.
    """
    data = _data(run, videos, {})
    if data.features is not None and not Path(data.features).is_dir():
        data.features = None  # the videos tell as much of the clips
    return data


def _data(run: Path, videos: Path | None, changes: dict[str, Any]) -> NTUDataModule:
    folder = next((place for place in (run, *run.parents[:2]) if (place / "config.yaml").is_file()), run)
    file = folder / "config.yaml"
    try:
        section = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
        if not isinstance(section, dict) or "source" not in section:
            raise ValueError("no data section of videos and events")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(NTUDataModule, "data")
        section["source"] = _with_root(section["source"], videos)
        data: NTUDataModule = parser.instantiate_classes(parser.parse_object({"data": {**section, **changes}})).data
    except FileNotFoundError as error:
        raise UsageError(f"{run}: no folder of a training: it has no config.yaml") from error
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: has no data section of a training on videos; name the folder of one") from error
    return data


def _with_root(source: dict[str, Any], root: Path | None) -> dict[str, Any]:
    """The settings of a source, with another root if one is given."""
    if root is None:
        return source
    if "init_args" in source:
        return {**source, "init_args": {**source["init_args"], "root": str(root)}}
    return {**source, "root": str(root)}
