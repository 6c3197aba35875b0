"""Splits clips into training, validation and test: by an official protocol, cameras, a CSV's split, drawn groups, or one group left out."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.index import ClipIndex
from vtlvlm.data.ntu import PROTOCOLS, missing_skeletons
from vtlvlm.errors import DataError, UsageError

TEST_SHARE = 0.3
"""Fraction of the groups on the test side of the ``group`` protocol."""

DRAWS = 64
"""Seeded draws of groups; the most even one is used. Official protocols use the first draw."""

LEAVE_OUT = "leave_out:"
"""Prefix of the protocols that test on one group and train on all others."""

CAMERAS = "cameras:"
"""Prefix of the protocols that train on some cameras and test on all others."""

Side = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Split:
    """Rows of the index on each side.

    Attributes:
        train: Training clips.
        val: Validation clips, taken from the training side; empty for ``validation=0``.
        test: Test clips.
        classes: The classes of the protocol, in label order.
        train_hash: Hash of the names of all training and validation clips, readable or not. A model may have seen these clips.
        description: Protocol, counts, groups and hashes in plain values, for the metrics.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    classes: tuple[str, ...]
    train_hash: str
    description: dict[str, Any]

    def require(self, side: Side) -> NDArray[np.int64]:
        """The rows of one side.

        Raises:
            DataError: The side is empty.
        """
        rows: NDArray[np.int64] = getattr(self, side)
        if not len(rows):
            raise DataError(f"protocol {self.description['protocol']} leaves no clip for {side}: {self.description['present']}")
        return rows


def split(index: ClipIndex, protocol: str, *, validation: float = 0.0, seed: int = 0, exclude_missing_skeletons: bool = False) -> Split:
    """Split the usable clips of an index.

    Validation takes whole groups from the training side: people for X-Sub and X-View, setups for X-Set, the CSV's groups, else single
    clips. The seed chooses the groups. At least one group goes to validation, and at least one stays. Outside the official protocols, group
    sizes may differ widely. The function then makes several draws, and uses the one nearest to ``validation`` in the clips of each class.

    Args:
        index: The clips.
        protocol: ``xsub60``, ``xview60``, ``xsub120`` or ``xset120``. ``csv`` uses the split of a CSV or of folders such as ``train``.
            ``group`` draws whole groups by the seed, 30 % of them for testing. ``leave_out:P003`` tests on that group (with NTU names: that
            person) and trains on all others. ``cameras:1,2`` trains on these cameras of NTU names and tests on all others. ``all`` trains
            on every clip, for a feature cache that serves several protocols.
        validation: Fraction of the training groups, in [0, 1).
        seed: Seed of the choice of groups.
        exclude_missing_skeletons: Leave out the clips that skeleton methods have to leave out.

    Raises:
        UsageError: The protocol does not exist or does not fit the data, or ``validation`` is out of range.
        DataError: The training side has too few groups for validation.
    """
    if not 0 <= validation < 1:
        raise UsageError(f"validation={validation}: give a fraction of the training side in [0, 1)")
    known, column = _known(index, protocol), _group_column(index, protocol)
    if exclude_missing_skeletons:
        known &= ~np.isin(index.name.astype(str), list(missing_skeletons()))
    test = known & _test_mask(index, protocol, known, column, seed)
    train, val = known & ~test, np.zeros(len(index), dtype=np.bool_)
    if protocol == "csv" and (index.split[known] == "val").any():
        val = train & (index.split == "val")
    elif validation > 0 and train.any():
        labels = None if protocol in PROTOCOLS else index.label[train]
        val = train & np.isin(column, _draw(column[train], validation, seed, f"protocol {protocol}: validation={validation}", labels))
    train_hash, val_hash = (_hash([protocol, *np.sort(index.name[side].astype(str)).tolist()]) for side in (train, val))
    readable = index.problem == ""
    sides = {"train": train & ~val & readable, "val": val & readable, "test": test & readable}
    classes = index.classes[: PROTOCOLS[protocol].num_actions] if protocol in PROTOCOLS and index.official else index.classes
    description = {
        "protocol": protocol,
        "seed": seed,
        "validation": validation,
        "exclude_missing_skeletons": exclude_missing_skeletons,
        "classes": len(classes),
        "clips": {side: int(mask.sum()) for side, mask in sides.items()},
        "groups": {side: _distinct(column[mask]) for side, mask in sides.items()} if _grouped(index, protocol) else None,
        "excluded": int((~readable).sum()),
        "train_hash": train_hash,
        "val_hash": val_hash,
        "present": _present(index, protocol, readable),
    }
    train_rows, val_rows, test_rows = (np.flatnonzero(mask) for mask in sides.values())
    return Split(train_rows, val_rows, test_rows, classes, train_hash, description)


def _known(index: ClipIndex, protocol: str) -> NDArray[np.bool_]:
    """Rows that the protocol covers, readable or not."""
    known = np.asarray(index.misfit == "")
    if protocol in PROTOCOLS:
        if index.layout != "ntu":
            raise UsageError(f"protocol {protocol} needs NTU clip names; {index.root} has none: use the protocol csv or group")
        return known & (index.label < PROTOCOLS[protocol].num_actions) if index.official else known
    if protocol.startswith(LEAVE_OUT):
        groups = _distinct(index.group[known & (index.group != "")])
        if protocol.removeprefix(LEAVE_OUT) not in groups:
            raise UsageError(f"protocol {protocol}: no such group; the groups are {', '.join(groups) or 'none'}")
    elif protocol.startswith(CAMERAS):
        _require_cameras(index.camera[known], protocol)
    elif protocol not in ("csv", "group", "all"):
        raise UsageError(f"{protocol}: no such protocol; choose {', '.join(PROTOCOLS)}, csv, group, {LEAVE_OUT}GROUP, {CAMERAS}1,2 or all")
    if protocol == "csv" and not (index.split != "").any():
        raise UsageError(
            "protocol csv needs a CSV table with a split column (train, val, test), or folders of these names; use the protocol group"
        )
    return known & (index.split != "") if protocol == "csv" else known


def _train_cameras(protocol: str) -> list[int]:
    """The training cameras that a protocol names; [] unless they are numbers."""
    numbers = protocol.removeprefix(CAMERAS).split(",")
    return [int(number) for number in numbers] if all(number.isdecimal() and len(number) <= 3 for number in numbers) else []


def _require_cameras(cameras: NDArray[np.integer], protocol: str) -> None:
    """Refuse a protocol that names cameras which the clips lack, or all of them."""
    there, wanted = set(_distinct(cameras)) - {-1}, set(_train_cameras(protocol))
    if not there:
        raise UsageError(f"protocol {protocol} needs NTU clip names, which name cameras: use the protocol csv or group")
    if not wanted or not wanted < there:
        raise UsageError(f"protocol {protocol}: the clips have cameras {_ranges(sorted(there))}; name some of them for training, not all")


def _hash(lines: list[str]) -> str:
    return blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _grouped(index: ClipIndex, protocol: str) -> bool:
    return protocol in PROTOCOLS or bool((index.group != "").any())


def _group_column(index: ClipIndex, protocol: str) -> NDArray[Any]:
    if protocol in PROTOCOLS:
        return np.asarray(getattr(index, PROTOCOLS[protocol].group))
    return (index.group if _grouped(index, protocol) else index.name).astype(str)


def _test_mask(index: ClipIndex, protocol: str, known: NDArray[np.bool_], column: NDArray[Any], seed: int) -> NDArray[np.bool_]:
    if protocol in PROTOCOLS:
        return ~PROTOCOLS[protocol].train_mask(index.subject, index.camera, index.setup)
    if protocol == "csv":
        return np.asarray(index.split == "test")
    if protocol == "all":
        return np.zeros(len(index), dtype=np.bool_)
    if protocol.startswith(LEAVE_OUT):
        return np.asarray(index.group == protocol.removeprefix(LEAVE_OUT))
    if protocol.startswith(CAMERAS):
        return ~np.isin(index.camera, _train_cameras(protocol))
    return np.isin(column, _draw(column[known], TEST_SHARE, seed, "protocol group", index.label[known]))


def _draw(column: NDArray[Any], share: float, seed: int, what: str, labels: NDArray[Any] | None = None) -> NDArray[Any]:
    """Draw a seeded fraction of the distinct values: at least one, and never all.

    Given the ``labels`` of the rows, makes ``DRAWS`` draws and returns the one nearest to that fraction of each label's rows. A few small
    groups would otherwise leave next to nothing for validation.
    """
    groups, place = np.unique(column, return_inverse=True)
    if len(groups) < 2:
        raise DataError(f"{what} needs at least two groups, but only {groups[0]} exists; set validation to 0 or add data")
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    random = np.random.default_rng(seed)
    if labels is None:
        return groups[random.permutation(len(groups))[:count]]
    kinds, kind = np.unique(labels, return_inverse=True)
    rows = np.bincount(place * len(kinds) + kind, minlength=len(groups) * len(kinds)).reshape(len(groups), len(kinds))
    wanted = share * rows.sum(axis=0)
    draws = [random.permutation(len(groups))[:count] for _ in range(DRAWS)]
    return groups[min(draws, key=lambda drawn: float(((rows[drawn].sum(axis=0) - wanted) ** 2 / wanted).sum()))]


def _distinct(column: NDArray[Any]) -> list[Any]:
    return list(np.unique(column).tolist())


def _present(index: ClipIndex, protocol: str, readable: NDArray[np.bool_]) -> str:
    """The clips at hand, for the message about an empty side."""
    if protocol not in PROTOCOLS:
        return f"{int(readable.sum())} usable clips"
    rule = PROTOCOLS[protocol]
    parts = (f"{name}s {_ranges(_distinct(getattr(index, name)[readable]))}" for name in ("subject", "camera", "setup"))
    return f"it trains on {rule.column}s {_ranges(sorted(rule.train_ids))} and tests on the others; the clips have {', '.join(parts)}"


def _ranges(numbers: list[int]) -> str:
    """``[1, 2, 3, 5]`` → ``1-3, 5``."""
    if not numbers:
        return "none"
    values = np.asarray(numbers)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def group_numbers(index: ClipIndex, sides: Split) -> NDArray[np.int64]:
    """(n,) number of each clip's group. A clip without a group has its own number; so has every clip if the training side has only one
    group."""
    rows = np.arange(len(index.group))
    if len(np.unique(index.group[sides.train])) < 2:
        return rows
    return np.where(index.group == "", len(rows) + rows, np.unique(index.group, return_inverse=True)[1])
