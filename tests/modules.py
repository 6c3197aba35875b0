"""Data modules for tests: the settings of the clips' source and those of the module in one call."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.source import ClipSource


def data_of(root: str | Path, protocol: str = "xsub60", **settings: Any) -> NTUDataModule:
    """A data module that is not set up yet; each setting goes to the part that has it."""
    own = {name: settings.pop(name) for name in {field.name for field in fields(ClipSource)} & settings.keys()}
    return NTUDataModule(ClipSource(str(root), protocol, **own), **settings)
