"""Reads the files of a bundle: a description, and weights whose digests it holds. A bundle is untrusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.segments.windows import SHORTEST_CLIP
from vtlvlm.stages.compatibility import require_classes, require_numbers, require_tensors
from vtlvlm.system.text import shown

BUNDLE = "bundle.json"
FORMAT = 4
VTEM_FILE, ADAPTER_FILE = "vtem.safetensors", "adapter.safetensors"
DICTIONARY = "dictionary"
"""Folder of the event dictionary, if the bundle has one"""
REJECTION_FILE = "rejection.safetensors"
"""The rule of rejection, if the bundle has one"""
LONGEST_CLIP = 86_400
"""Seconds of a clip, at most"""
LARGEST_BUNDLE = 64 << 20
"""Bytes of a bundle's description, at most"""


def new_folder(path: str | Path) -> Path:
    """Refuse a folder that exists."""
    folder = Path(path)
    if folder.exists():
        raise UsageError(f"{folder} already exists: name a new folder")
    return folder


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """The content of a bundle's description.

    Raises:
        UsageError: The description is damaged, or of another format.
    """
    path = folder / BUNDLE
    try:
        if path.stat().st_size > LARGEST_BUNDLE:
            raise ValueError("larger than any description")
        described = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise TypeError("no table")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: not the description of a bundle; get the folder again, or export it again") from error
    if described.get("format") != FORMAT:
        found = shown(described.get("format"), 40)
        raise UsageError(f"{folder}: a bundle of format {found}, but this version reads format {FORMAT}; train and export again")
    return described


def require_described(described: dict[str, Any], files: Sequence[str], path: Path) -> list[str]:
    """Refuse an incomplete description of a bundle without a language model.

    Args:
        described: Of a bundle. Only its format has been checked.
        files: Names of the bundle's weights, whose digests it has to hold.
        path: The description, for the message.

    Returns:
        The category names.

    Raises:
        UsageError: It lacks a digest, or its origin, or has other categories than its origin.
    """
    digests, origin = described.get("sha256"), described.get("origin")
    if not isinstance(digests, dict) or not isinstance(origin, dict) or not all(isinstance(digests.get(name), str) for name in files):
        raise UsageError(f"{path}: an incomplete description of a bundle; get the folder again, or export it again")
    classes = require_classes(described.get("classes"), path)
    if classes != origin.get("classes"):
        raise UsageError(f"{path}: its categories are not those it was trained with; get the folder again, or export it again")
    return classes


def is_clip_length(seconds: Any) -> bool:
    """Whether a value from a description is a length of clips, or none."""
    return seconds is None or (
        isinstance(seconds, int | float) and not isinstance(seconds, bool) and SHORTEST_CLIP <= seconds < LONGEST_CLIP
    )


def read_weights(folder: Path, name: str, digests: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a file in a bundle. The file must have the digest of the description."""
    path = folder / name
    if not path.is_file():
        raise UsageError(f"{path}: is missing; get the folder again, or export it again")
    if digest(path) != digests[name]:
        raise UsageError(f"{path}: is not the file that the bundle was made with (SHA-256); get the folder again, or export it again")
    try:
        state: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors and torch raise many types
        raise UsageError(f"{path}: not a readable weights file; get the folder again, or export it again") from error
    require_tensors(state, path)
    return state


def load_into(part: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the tensors of a bundle's file into a part with weights.

    Raises:
        UsageError: The tensors are not finite, or do not fit the part's settings.
    """
    require_numbers(state, part.state_dict(), path)
    try:
        part.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"{path}: does not hold the weights of its settings; export it again") from error


def require_shapes(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors whose names or shapes differ from the wanted ones."""
    for name in sorted({*found, *wanted}):
        there, due = (tuple(side[name].shape) if name in side else "missing" for side in (found, wanted))
        if there != due:
            raise UsageError(
                f"{path}: its weights do not fit its settings ({shown(name, 80)} is {there}, expected {due}); "
                "get the file again, or make it again"
            )
