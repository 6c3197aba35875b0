"""Texts about actions and body parts for GAP, and their embeddings as a file, which `vtlvlm texts` makes.

``action_parts.tsv`` beside this module describes what head, arms, hips and legs do in the actions of NTU RGB+D and Northwestern-UCLA. The
sentences were written for this project, from the actions' names alone; they are not those that the paper's authors got from GPT-3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtlvlm.data.shards import open_tensor, save_tensors
from vtlvlm.data.tables import read_text
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.text import shown

PARTS = ("head", "arms", "hips", "legs")
"""GAP's body parts. The whole body comes before them in every table"""
_TENSOR = "texts"


class Texts(NamedTuple):
    """What a text encoder reads."""

    lines: list[list[str]]
    """(A, 5): the whole body, then the parts"""
    undescribed: list[str]
    """Actions without a description of their own; their parts have the template's text"""


def texts_of(classes: Sequence[str], descriptions: Path | None = None) -> Texts:
    """The five texts of each action.

    The first one is the name. The others are the name and what the part does. An action that is described nowhere gets
    "NAME; movement of the PART", which says no more than the name.

    Args:
        classes: The A names.
        descriptions: A table as :func:`read_descriptions` reads it, which goes before the project's own.

    Raises:
        DataError: The table cannot be read.
    """
    with as_file(files(__package__).joinpath("action_parts.tsv")) as own:
        known = read_descriptions(own)
    if descriptions is not None:
        known |= read_descriptions(descriptions)
    lines, undescribed = [], []
    for name in classes:
        described = known.get(_key(name))
        if described is None:
            undescribed.append(name)
            lines.append([name, *(f"{name}; movement of the {part}" for part in PARTS)])
        else:
            lines.append([name, *(f"{name}; {part}: {text}" for part, text in zip(PARTS, described, strict=True))])
    return Texts(lines, undescribed)


def read_descriptions(file: Path) -> dict[str, list[str]]:
    """Read a table of descriptions: cells separated by tabs, the first line ``action head arms hips legs``.

    Returns:
        Action's name, in small letters → its texts in the order of :data:`PARTS`.

    Raises:
        DataError: The file is not such a table.
    """
    header, *rows = [line.split("\t") for line in read_text(file).splitlines() if line.strip()] or [[]]
    if header != ["action", *PARTS]:
        raise DataError(f"{file}: its first line must be action, {', '.join(PARTS)}, separated by tabs")
    found: dict[str, list[str]] = {}
    for cells in rows:
        if len(cells) != len(header) or not all(map(str.strip, cells)):
            raise DataError(f"{file}: {shown(cells[0], 80)!r} has not five texts separated by tabs; describe every part of the body")
        if _key(cells[0]) in found:
            raise DataError(f"{file}: {shown(cells[0], 80)!r} occurs twice; keep one")
        found[_key(cells[0])] = [cell.strip() for cell in cells[1:]]
    return found


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def write_table(file: Path, classes: Sequence[str], embeddings: Tensor, encoder: str) -> None:
    """Write embeddings (A, 5, E) of the actions' texts, whole or not at all.

    Args:
        file: The safetensors file.
        classes: The A names.
        embeddings: Finite numbers.
        encoder: What made them, for people.

    Raises:
        DataError: The file cannot be written.
    """
    metadata = {"classes": json.dumps(list(classes)), "encoder": encoder}
    save_tensors(file, {_TENSOR: embeddings.float().numpy()}, metadata)


def read_table(file: Path, classes: Sequence[str]) -> Tensor:
    """The embeddings (A, 5, E) float32 of some actions' texts.

    Args:
        file: Made by :func:`write_table`, perhaps for more actions and in another order.
        classes: The A names.

    Raises:
        UsageError: There is no such file, or it lacks an action.
        DataError: The file is damaged.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such table of texts; make it with `vtlvlm texts {file}`")
    opened = open_tensor(file, _TENSOR)
    try:
        known = json.loads(opened.metadata["classes"])
        if not isinstance(known, list) or opened.shape[:2] != (len(known), 1 + len(PARTS)) or len(opened.shape) != 3:
            raise ValueError("another table")
        rows = {_key(name): row for row, name in enumerate(known)}
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{file}: not a table of texts; make it again with `vtlvlm texts`") from error
    missing = [name for name in classes if _key(name) not in rows]
    if missing:
        raise UsageError(
            f"{file}: has no texts of {shown(missing[0], 80)!r} and {len(missing) - 1} other actions; make it with `vtlvlm texts --classes`"
        )
    found = np.array(opened.map()[[rows[_key(name)] for name in classes]], dtype=np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{file}: holds numbers that are not finite; make it again with `vtlvlm texts`")
    return torch.from_numpy(found)
