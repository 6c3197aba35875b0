"""Reads and writes an event dictionary: `dictionary.json`, `dictionary.safetensors`, and pictures in `codes/`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vtlvlm.dictionary.counting import QUANTILES, SHOWN
from vtlvlm.dictionary.crops import CELL_PIXELS
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.files import replacing, write_json

FORMAT = 1
FACTS, NUMBERS, PICTURES = "dictionary.json", "dictionary.safetensors", "codes"
SUPPORT = 3
"""Clips of an action in which a code must occur, so that the action is named"""
TELLING = 5
"""Actions named for a code, at most"""
LARGEST_FACTS = 64 << 20
"""Bytes of `dictionary.json`, at most"""
MOST_EXEMPLARS = 16
"""Pictures of a code, at most"""


class TellingAction(NamedTuple):
    """An action that a code points to."""

    action: str
    pmi: float
    """nats above 0: log P(code, action) / P(code) P(action) over the training tokens (Church and Hanks 1990)"""
    tokens: int
    clips: int
    """clips of the action in which the code occurs, at least three"""


class Exemplar(NamedTuple):
    """A picture of a code: its cell, in the middle of its window."""

    picture: NDArray[np.uint8]
    """(96, 96, 3) RGB"""
    clip: str
    seconds: float
    """from the start of the clip"""


@dataclass(frozen=True)
class Entry:
    """What the training clips say about one code.

    Attributes:
        code: Its number.
        tokens: Times it occurs.
        share: Of all tokens, in [0, 1].
        clips: Clips in which it occurs.
        seconds: The 10 %, 50 % and 90 % quantiles of the time that it stays in its cell; None for a code that never occurs.
        actions: The actions that it points to, most telling first.
        neighbours: Codes with the nearest vectors, and the cosine between both.
        followers: Codes that come next in its cell, and their share of all that come next.
    """

    code: int
    tokens: int
    share: float
    clips: int
    seconds: tuple[float, float, float] | None
    actions: tuple[TellingAction, ...]
    neighbours: tuple[tuple[int, float], ...]
    followers: tuple[tuple[int, float], ...]
    folder: Path | None = None
    shown: tuple[tuple[str, float], ...] = ()
    """clip and seconds of each picture"""

    @cached_property
    def exemplars(self) -> tuple[Exemplar, ...]:
        """Its pictures, read when they are asked for; none if the dictionary was made without.

        Raises:
            DataError: The picture file is missing or damaged.
        """
        if self.folder is None or not self.shown:
            return ()
        cells = read_montage(picture_file(self.folder, self.code), len(self.shown))
        return tuple(Exemplar(cell, clip, seconds) for cell, (clip, seconds) in zip(cells, self.shown, strict=True))


def picture_file(folder: Path, code: int) -> Path:
    """The file with the pictures of a code, side by side."""
    return folder / PICTURES / f"{code}.webp"


def read_montage(path: Path, number: int) -> list[NDArray[np.uint8]]:
    """The pictures (96, 96, 3) of a file with so many side by side.

    Raises:
        DataError: The file is missing, damaged, or of another size.
    """
    try:
        with Image.open(path, formats=["WEBP"]) as picture:
            if picture.size != (number * CELL_PIXELS, CELL_PIXELS):
                raise DataError(f"{path}: has another size than the dictionary says; make the dictionary again")
            cells = np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise DataError(f"{path}: missing or damaged picture; make the dictionary again") from error
    return [np.array(cells[:, place : place + CELL_PIXELS]) for place in range(0, number * CELL_PIXELS, CELL_PIXELS)]


class EventDictionary(Mapping[int, Entry]):
    """The codes of a codebook, by their numbers.

    >>> dictionary = EventDictionary.open("runs/mine/dictionary")  # doctest: +SKIP
    >>> dictionary[17].actions[0].action, dictionary[17].exemplars  # doctest: +SKIP

    Args:
        facts: What `dictionary.json` holds.
        numbers: The arrays of `dictionary.safetensors`.
        folder: Of the pictures; None for none.
    """

    def __init__(self, facts: dict[str, Any], numbers: dict[str, NDArray[Any]], folder: Path | None = None) -> None:
        self.facts, self.numbers, self.folder = facts, numbers, folder
        self.classes: tuple[str, ...] = tuple(facts["classes"])

    def __len__(self) -> int:
        return len(self.numbers["tokens"])

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, code: int) -> Entry:
        if not 0 <= code < len(self):
            raise KeyError(f"code {code}: the codes are 0 to {len(self) - 1}")
        numbers = self.numbers
        seconds = tuple(map(float, numbers["seconds"][code]))
        return Entry(
            code=code,
            tokens=int(numbers["tokens"][code]),
            share=float(numbers["tokens"][code] / max(1, numbers["tokens"].sum())),
            clips=int(numbers["clips"][code]),
            seconds=seconds if all(map(math.isfinite, seconds)) else None,  # type: ignore[arg-type]
            actions=self._telling(code),
            neighbours=_pairs(numbers["neighbours"][code], numbers["cosines"][code]),
            followers=_pairs(numbers["followers"][code], numbers["follower_shares"][code]),
            folder=self.folder,
            shown=tuple((str(clip), float(at)) for clip, at in self.facts["exemplars"].get(str(code), ())),
        )

    def _telling(self, code: int) -> tuple[TellingAction, ...]:
        pairs, clips = self.numbers["pairs"], self.numbers["class_clips"][code]
        own = pairs[code].astype(np.float64)
        total, of_action = own.sum(), self._of_action
        with np.errstate(divide="ignore", invalid="ignore"):
            pmi = np.log(own / total / (of_action / of_action.sum()))
        telling = [label for label in np.argsort(-pmi, kind="stable") if clips[label] >= SUPPORT and pmi[label] > 0][:TELLING]
        return tuple(TellingAction(self.classes[a], float(pmi[a]), int(own[a]), int(clips[a])) for a in telling)

    @cached_property
    def _of_action(self) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.numbers["pairs"].sum(0).astype(np.float64)
        return found

    # -- files -------------------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path) -> EventDictionary:
        """Read a dictionary that `vtlvlm dictionary` wrote. Pictures are read when they are asked for.

        Raises:
            UsageError: The folder is no dictionary, or of another version.
            DataError: A file is damaged.
        """
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise UsageError(f"{folder}: holds no event dictionary; make one with: vtlvlm dictionary RUN {folder}")
        facts = _read_facts(folder / FACTS)
        numbers = _read_numbers(folder / NUMBERS, facts)
        return cls(facts, numbers, folder)

    def save(self, folder: Path) -> None:
        """Write both files into a folder that exists. Pictures are written apart."""
        write_json(folder / FACTS, self.facts)
        with replacing(folder / NUMBERS) as temporary:
            temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in self.numbers.items()}))

    def copy(self, folder: Path) -> None:
        """Write the dictionary with its pictures and its page into a new folder.

        Raises:
            DataError: A picture is missing or damaged.
        """
        from vtlvlm.dictionary.page import write_page  # imported here, since it imports this module

        (folder / PICTURES).mkdir(parents=True)
        for entry in self.values():
            if entry.exemplars and self.folder is not None:  # read, so that a damaged one is found here
                shutil.copyfile(picture_file(self.folder, entry.code), picture_file(folder, entry.code))
        self.save(folder)
        write_page(self, folder)


def _pairs(codes: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    return tuple((int(code), float(value)) for code, value in zip(codes, values, strict=True) if code >= 0)


def shapes(codes: int, classes: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and type of each array of `dictionary.safetensors`, for K codes and A actions."""
    return {
        "tokens": ((codes,), "int64"),
        "clips": ((codes,), "int64"),
        "runs": ((codes,), "int64"),
        "seconds": ((codes, len(QUANTILES)), "float32"),
        "pairs": ((codes, classes), "int64"),
        "class_clips": ((codes, classes), "int64"),
        "neighbours": ((codes, SHOWN), "int64"),
        "cosines": ((codes, SHOWN), "float32"),
        "followers": ((codes, SHOWN), "int64"),
        "follower_shares": ((codes, SHOWN), "float32"),
    }


def _read_facts(path: Path) -> dict[str, Any]:
    again = "make the dictionary again"
    try:
        if path.stat().st_size > LARGEST_FACTS:
            raise ValueError("too large")
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
        if version == FORMAT:
            codes, classes, exemplars = facts["codes"], facts["classes"], facts["exemplars"]
            good = isinstance(codes, int) and 0 < codes <= 1 << 16 and isinstance(classes, list) and 0 < len(classes) <= 1 << 14
            good = good and all(isinstance(name, str) for name in classes) and isinstance(exemplars, dict)
            good = good and all(isinstance(facts[name], int) and facts[name] >= 0 for name in ("clips", "tokens", "windows", "cells"))
            good = good and isinstance(facts["protocol"], str)
            for code, shown in exemplars.items() if good else ():
                good = good and code == str(int(code)) and 0 <= int(code) < codes and 0 < len(shown) <= MOST_EXEMPLARS
                good = good and all(isinstance(clip, str) and math.isfinite(at) for clip, at in shown)
            if not good:
                raise ValueError("other values")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged; {again}") from error
    if version != FORMAT:
        raise UsageError(f"{path}: a dictionary of another version; {again}")
    found: dict[str, Any] = facts
    return found


def _read_numbers(path: Path, facts: dict[str, Any]) -> dict[str, NDArray[Any]]:
    wanted = shapes(facts["codes"], len(facts["classes"]))
    try:
        with safe_open(path, framework="numpy") as file:
            if set(file.keys()) != set(wanted):
                raise ValueError("other arrays")
            if any(tuple(file.get_slice(name).get_shape()) != shape for name, (shape, _) in wanted.items()):
                raise ValueError("other shapes")
            numbers = {name: file.get_tensor(name) for name in wanted}
        if any(numbers[name].dtype != kind for name, (_, kind) in wanted.items()):
            raise ValueError("other types")
        for name in ("tokens", "clips", "runs", "pairs", "class_clips"):
            if (numbers[name] < 0).any():
                raise ValueError("negative counts")
        for name in ("neighbours", "followers"):
            if (numbers[name] < -1).any() or (numbers[name] >= facts["codes"]).any():
                raise ValueError("codes out of range")
        for name in ("cosines", "follower_shares"):
            if not np.isfinite(numbers[name]).all():
                raise ValueError("numbers that are not finite")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DataError(f"{path}: missing or damaged; make the dictionary again") from error
    return numbers
