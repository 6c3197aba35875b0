"""Describes recognition networks from their configurations: the method, what it reads at test, and whether it is our reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STAGE = "Recognition"
"""Class of the stage that trains a network"""
RECONSTRUCTION = "our reconstruction"
"""Stands beside every name of a network whose method published no code"""
RECONSTRUCTED = ("CurveTemporal", "DilatedGraph")
"""Parts that are our reading of a method without published code (STC-Net)"""
METHODS = {
    "PoseC3D": "PoseC3D",
    "CurveTemporal": "STC-Net",
    "DilatedGraph": "STC-Net",
    "KoopmanHead": "Koopman",
    "RefiningHead": "FR-Head",
    "TextPartsHead": "GAP",
    "HierarchicalGraph": "HD-GCN",
    "AttentionTopology": "InfoGCN",
    "ShiftGraph": "Shift-GCN",
    "FixedGraph": "ST-GCN",
    "RefinedTopology": "CTR-GCN",
}
"""Part → the method that it is known for. The first one that a network has names it: CTR-GCN's unit is in several"""
VIDEO = "RGB video"


@dataclass(frozen=True)
class Described:
    """What a table says of a model.

    Attributes:
        method: Its name in the literature, or the names of its classes.
        reads: What it reads at test: ``RGB video``, ``3D skeleton`` or ``2D skeleton``.
        stream: Of a skeleton: joint, bone and so on; empty for videos.
        reconstruction: Whether it is our reading of a method that published no code.
    """

    method: str
    reads: str = VIDEO
    stream: str = ""
    reconstruction: bool = False

    @property
    def title(self) -> str:
        """The method, marked if it is our reading."""
        return marked(self.method, self.reconstruction)


def marked(label: str, reconstruction: bool) -> str:
    """A name with the mark of a reconstruction, once."""
    return f"{label} ({RECONSTRUCTION})" if reconstruction and "reconstruction" not in label else label


def input_text(reads: str, stream: str) -> str:
    """What a model reads, in a cell."""
    return f"{reads}, {stream}" if stream else reads


def bare(value: Any) -> str:
    """The name of a class, of a part that is its name or settings with ``class_path``."""
    named = value.get("class_path") if isinstance(value, Mapping) else value
    return str(named or "").rpartition(".")[2]


def is_network(config: Mapping[str, Any]) -> bool:
    """Whether a resolved configuration trains a recognition network."""
    return bare(config.get("model")) == STAGE


def described(config: Mapping[str, Any]) -> Described:
    """Describe a network.

    Args:
        config: Its resolved configuration, with ``model`` and ``data``.
    """
    settings = _mapping(_mapping(config.get("model")).get("init_args"))
    network, head = settings.get("network"), settings.get("head")
    inner = _mapping(_mapping(network).get("init_args"))
    parts = {bare(part) for part in (network, head, *inner.values()) if isinstance(part, Mapping | str)}
    method = next((name for part, name in METHODS.items() if part in parts), "")
    method = method or _of_videos(network) or STAGE
    data = _mapping(config.get("data"))
    if "Skeleton" not in bare(data):
        return Described(method, VIDEO, "", not parts.isdisjoint(RECONSTRUCTED))
    given = _mapping(data.get("init_args"))
    reads = "2D skeleton" if given.get("coordinates") == "pixels" else "3D skeleton"
    return Described(method, reads, str(given.get("stream") or "joint"), not parts.isdisjoint(RECONSTRUCTED))


def _of_videos(network: Any) -> str:
    """The name of a video network: its model, and whether it is frozen; else its class."""
    inner = _mapping(_mapping(network).get("init_args"))
    extractor = inner.get("extractor")
    name = _mapping(_mapping(extractor).get("init_args") if extractor is not None else inner).get("model")
    return f"{name}{', frozen' if extractor is not None else ''}" if isinstance(name, str) else bare(network)


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, ten times as fast, where yaml was built with it


def of_run(folder: Path) -> Described | None:
    """The network of a run folder, from its ``config.yaml``; None if the folder has none, or if it is of another stage."""
    try:
        found = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return described(found) if isinstance(found, Mapping) and is_network(found) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
