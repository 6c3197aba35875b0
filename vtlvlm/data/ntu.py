"""NTU RGB+D's names, actions and evaluation protocols, as published.

Source: the class names, protocol ids and missing-skeleton lists of github.com/shahroudy/NTURGB-D. Files beside this module hold them:
``ntu_actions.txt`` (120 lines), ``ntu_protocols.json`` (the training ids), ``ntu_missing_skeletons.txt`` (535 names), ``ntu_people.json``
(the people recorded in each setup).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.tables import read_names, require_distinct, unusable
from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

EXAMPLE = "S001C001P001R001A001_rgb.avi"

_GRAMMAR = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})(?:_rgb)?(?:\.[\w.]+)?")
_NUMBERED = re.compile(r"A(\d{1,3})\s+(\S.*)")  # a line of a classes file
_LETTERS = np.frombuffer(b"SCPRA", dtype=np.uint8)


@dataclass(frozen=True, order=True)
class ClipName:
    """The numbers in an NTU file name ``SsssCcccPpppRrrrAaaa``: three digits each, from 1.

    Attributes:
        setup: Rig placement (height and distance of the cameras).
        camera: 1 looks from 0°, 2 and 3 from ±45°.
        subject: The performing person.
        replication: First or second take.
        action: Number of the action; ``ACTIONS[action - 1]`` in the official data.
    """

    setup: int
    camera: int
    subject: int
    replication: int
    action: int

    @classmethod
    def parse(cls, path: str | Path) -> ClipName:
        """Read the numbers from a file name, with or without ``_rgb``, folders and suffix.

        Raises:
            DataError: The name does not follow the grammar.
        """
        match = _GRAMMAR.fullmatch(Path(path).name)
        if match is None or "000" in match.groups():
            raise DataError(f"{path}: not an NTU clip name such as {EXAMPLE}")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"S{self.setup:03}C{self.camera:03}P{self.subject:03}R{self.replication:03}A{self.action:03}"


class NameColumns(NamedTuple):
    """Many clip names at once; every array is (n,). Numbers of invalid names are -1."""

    valid: NDArray[np.bool_]
    setup: NDArray[np.int16]
    camera: NDArray[np.int16]
    subject: NDArray[np.int16]
    replication: NDArray[np.int16]
    action: NDArray[np.int16]


def parse_names(names: Sequence[str]) -> NameColumns:
    """``ClipName.parse`` for a list of file names without folders: (n,) → columns of (n,), without a loop."""
    files = np.asarray(names if len(names) else [""], dtype=np.str_)  # numpy's string functions refuse empty arrays
    stems = np.char.partition(files, ".")[: len(names), 0]
    short = np.where(np.char.endswith(stems, "_rgb"), np.char.rpartition(stems, "_")[..., 0], stems) if len(names) else stems
    codes = np.ascontiguousarray(short.astype("U21")).view(np.uint32).reshape(-1, 21)  # a 21st letter shows that a name is too long
    letters, digits = codes[:, :20:4], codes[:, :20].reshape(-1, 5, 4)[:, :, 1:].astype(np.int64) - ord("0")
    numbers = digits @ np.array([100, 10, 1])
    valid = (letters == _LETTERS).all(1) & ((digits >= 0) & (digits <= 9)).all((1, 2)) & (codes[:, 20] == 0) & (numbers > 0).all(1)
    setup, camera, subject, replication, action = np.where(valid[:, None], numbers, -1).astype(np.int16).T
    return NameColumns(valid, setup, camera, subject, replication, action)


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


ACTIONS: tuple[str, ...] = tuple(_resource("ntu_actions.txt").splitlines())
"""The 120 official action names; the first 60 are NTU RGB+D 60."""


@cache
def missing_skeletons() -> frozenset[str]:
    """The 535 names whose skeleton is missing or incomplete (302 of them in NTU-60). Their RGB video exists."""
    return frozenset(_resource("ntu_missing_skeletons.txt").split())


@cache
def official_clips(num_actions: int) -> NDArray[np.int64]:
    """The clips of the whole data set, as ``clip_numbers``: 56,880 for 60 actions, 114,480 for 120.

    Every person in a setup did all its actions (1 to 60 in setups 1 to 17, 61 to 120 in setups 18 to 32) twice, before three cameras.
    """
    people = json.loads(_resource("ntu_people.json"))
    pairs = np.array([(int(setup), person) for setup, ids in people.items() for person in ids if num_actions > 60 or int(setup) <= 17])
    setup, camera, subject, replication, action = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(pairs)), [1, 2, 3], [0], [1, 2], np.arange(1, 61), indexing="ij")
    )
    setup, subject = pairs[setup, 0], pairs[setup, 1]
    return np.sort(clip_numbers(setup, camera, subject, replication, action + np.where(setup > 17, 60, 0)))


def clip_numbers(*columns: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number for each clip: setup, camera, subject, replication and action, three digits each. Numbers sort like names."""
    number = np.zeros(columns[0].shape, dtype=np.int64)
    for column in columns:
        number = number * 1000 + column
    return number


def clip_name(number: int) -> str:
    """The clip name of a number from ``clip_numbers``."""
    return str(ClipName(*(int(number) // 1000**place % 1000 for place in (4, 3, 2, 1, 0))))


def read_classes(path: str | Path) -> dict[int, str]:
    """Read a ``classes.txt`` of lines such as ``A008 sitting down``.

    Returns:
        Action number → name, in the order of the file. The position in that order is the label.

    Raises:
        DataError: A line has no action number, a number or name occurs twice, or the file is empty or missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such classes file; give a text file of lines such as 'A008 sitting down'")
    classes: dict[int, str] = {}
    for line in read_names(path):
        match = _NUMBERED.fullmatch(line)
        if match is None:
            raise DataError(f"{path}: cannot read the line {shown(line, 80)!r}; write lines such as 'A008 sitting down'")
        number, name = int(match[1]), match[2]
        if number in classes or name in classes.values():
            raise DataError(f"{path}: {shown(line, 80)!r} repeats a number or a name; list every class once")
        if reason := unusable(name):
            raise DataError(f"{path}: {shown(line, 80)!r}: {reason}")
        classes[number] = name
    if not classes:
        raise DataError(f"{path}: holds no classes; write lines such as 'A008 sitting down'")
    require_distinct({name: f"A{number:03}" for number, name in classes.items()}, path)
    return classes


def plain_names(path: Path) -> list[str]:
    """Read a ``classes.txt`` for class folders: one name per line. Drops numbers before the names, as in ``A008 sitting down``.

    Raises:
        DataError: A name occurs twice or is unusable, or the file has no names.
    """
    lines = read_names(path)
    numbered = [_NUMBERED.fullmatch(line) or re.fullmatch(r"(\d{1,5})[\s,:]+(\S.*)", line) for line in lines]
    names = [match[2] for match in numbered if match] if all(numbered) else lines
    if not names:
        raise DataError(f"{path}: holds no classes; write the name of a class folder on each line")
    counts = Counter(names)
    for name in names:
        if reason := unusable(name) or ("occurs twice" if counts[name] > 1 else ""):
            raise DataError(f"{path}: {shown(name, 80)!r}: {reason}")
    require_distinct({name: f"line {number}" for number, name in enumerate(names, 1)}, path)
    return names


@dataclass(frozen=True)
class Protocol:
    """One of the four official evaluation protocols. Clips train if one column has a training id, and test otherwise.

    Attributes:
        key: Name in the settings.
        title: Name in the literature.
        column: The column that decides the side.
        train_ids: Values of ``column`` on the training side.
        num_actions: Number of official actions in the protocol, 60 or 120.
        group: Column of the groups. Validation takes whole groups from the training side.
    """

    key: str
    title: str
    column: Literal["subject", "camera", "setup"]
    train_ids: frozenset[int]
    num_actions: int
    group: Literal["subject", "setup"]

    def is_train(self, name: ClipName) -> bool:
        """Whether one clip is on the training side."""
        return int(getattr(name, self.column)) in self.train_ids

    def train_mask(self, subjects: NDArray[np.integer], cameras: NDArray[np.integer], setups: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether each clip is on the training side: three columns (n,) → (n,)."""
        column = {"subject": subjects, "camera": cameras, "setup": setups}[self.column]
        return np.isin(column, np.fromiter(self.train_ids, dtype=np.int64))


def _protocols() -> dict[str, Protocol]:
    ids = {key: frozenset(values) for key, values in json.loads(_resource("ntu_protocols.json")).items()}
    return {
        "xsub60": Protocol("xsub60", "X-Sub (NTU RGB+D 60)", "subject", ids["xsub60"], 60, "subject"),
        "xview60": Protocol("xview60", "X-View (NTU RGB+D 60)", "camera", ids["xview60"], 60, "subject"),
        "xsub120": Protocol("xsub120", "X-Sub (NTU RGB+D 120)", "subject", ids["xsub120"], 120, "subject"),
        "xset120": Protocol("xset120", "X-Set (NTU RGB+D 120)", "setup", ids["xset120"], 120, "setup"),
    }


PROTOCOLS: dict[str, Protocol] = _protocols()
"""X-Sub and X-View of NTU RGB+D 60, X-Sub and X-Set of NTU RGB+D 120, by their key."""
