"""Which clips train, validate and test: the official protocols, a CSV's own split, a seeded one by group, or all groups but one."""

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
"""Share of the groups that the ``group`` protocol puts on the test side."""

DRAWS = 64
"""Seeded draws of groups that are compared; the one that shares out the clips most evenly is taken. Official protocols take the first."""

LEAVE_OUT = "leave_out:"
"""Beginning of the protocols that test on one group and train on all others."""

Side = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Split:
    """Rows of the index on each side.

    Attributes:
        train: Clips to learn from.
        val: Clips to choose by, carved out of the training side; empty for ``validation=0``.
        test: Clips that are looked at once.
        classes: The categories in play, in label order.
        train_hash: Hash of the names of all training and validation clips, readable or not: what a model may have seen.
        description: The same for the metrics, in plain values.
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
            DataError: There are none.
        """
        rows: NDArray[np.int64] = getattr(self, side)
        if not len(rows):
            raise DataError(f"protocol {self.description['protocol']} leaves no clip for {side}: {self.description['present']}")
        return rows


def split(index: ClipIndex, protocol: str, *, validation: float = 0.0, seed: int = 0, exclude_missing_skeletons: bool = False) -> Split:
    """Divide the usable clips of an index.

    Validation is taken from the training side by whole groups: people for X-Sub and X-View, setups for X-Set, the CSV's groups, else
    single clips. The seed decides which; at least one group goes, and at least one stays. Outside the official protocols groups may be of
    very different size: of several draws the one is taken that comes nearest to the share of each class's clips.

    Args:
        index: The clips.
        protocol: ``xsub60``, ``xview60``, ``xsub120``, ``xset120``; ``csv`` for the CSV's split, or that of folders such as
            ``train``; ``group`` for a seeded split of
            whole groups, 30 % of them for testing; ``leave_out:P003`` to test on that group (NTU names: that person) and train on all
            others; ``all`` to train on every clip, which is what a feature cache for several protocols is made with.
        validation: Share of the training groups, in [0, 1).
        seed: Of the choice of groups.
        exclude_missing_skeletons: Leave out the clips that skeleton methods have to leave out.

    Raises:
        UsageError: No such protocol, or one that the data cannot follow, or ``validation`` out of range.
        DataError: Too few groups to carve validation from.
    """
    if not 0 <= validation < 1:
        raise UsageError(f"validation={validation}: give a share of the training side in [0, 1)")
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
    """Rows that the protocol speaks about, readable or not."""
    known = np.asarray(index.misfit == "")
    if protocol in PROTOCOLS:
        if index.layout != "ntu":
            raise UsageError(f"protocol {protocol} needs NTU clip names; {index.root} has none: use the protocol csv or group")
        return known & (index.label < PROTOCOLS[protocol].num_actions) if index.official else known
    if protocol.startswith(LEAVE_OUT):
        groups = _distinct(index.group[known & (index.group != "")])
        if protocol.removeprefix(LEAVE_OUT) not in groups:
            raise UsageError(f"protocol {protocol}: no such group; there are {', '.join(groups) or 'none'}")
    elif protocol not in ("csv", "group", "all"):
        raise UsageError(f"{protocol}: no such protocol; there are {', '.join(PROTOCOLS)}, csv, group, {LEAVE_OUT}GROUP and all")
    if protocol == "csv" and not (index.split != "").any():
        raise UsageError(
            "protocol csv needs a CSV table with a split column (train, val, test), or folders of these names; use the protocol group"
        )
    return known & (index.split != "") if protocol == "csv" else known


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
    return np.isin(column, _draw(column[known], TEST_SHARE, seed, "protocol group", index.label[known]))


def _draw(column: NDArray[Any], share: float, seed: int, what: str, labels: NDArray[Any] | None = None) -> NDArray[Any]:
    """A seeded share of the distinct values: at least one, and never all of them.

    With the ``labels`` of the rows it is, of ``DRAWS`` seeded draws, the one that comes nearest to that share of each label's rows: groups
    may be of very different size, and a few small ones would leave next to nothing to validate on.
    """
    groups, place = np.unique(column, return_inverse=True)
    if len(groups) < 2:
        raise DataError(f"{what} needs at least two groups to divide, there is only {groups[0]}; set validation to 0 or add data")
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
    """What there is, for the message about an empty side."""
    if protocol not in PROTOCOLS:
        return f"{int(readable.sum())} usable clips"
    rule = PROTOCOLS[protocol]
    parts = (f"{name}s {_ranges(_distinct(getattr(index, name)[readable]))}" for name in ("subject", "camera", "setup"))
    return f"it trains on {rule.column}s {_ranges(sorted(rule.train_ids))} and tests on the others; present are {', '.join(parts)}"


def _ranges(numbers: list[int]) -> str:
    """``[1, 2, 3, 5]`` → ``1-3, 5``."""
    if not numbers:
        return "none"
    values = np.asarray(numbers)
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def group_numbers(index: ClipIndex, sides: Split) -> NDArray[np.int64]:
    """(n,) a number for each clip's group. A clip without a group has its own number. Every clip has one where the training side is of one
    group."""
    rows = np.arange(len(index.group))
    if len(np.unique(index.group[sides.train])) < 2:
        return rows
    return np.where(index.group == "", len(rows) + rows, np.unique(index.group, return_inverse=True)[1])
