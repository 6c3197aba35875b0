"""Published figures that the tables set beside ours: ``quotes.yaml`` in this folder, with sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

NW_UCLA = "cameras:1,2"
"""Protocol of Northwestern-UCLA: its third camera tests"""
NW_UCLA_CLIPS = 464
ENOUGH = 0.99
"""Share of a protocol's test clips that a run must have tested to stand in a column of NTU RGB+D"""


@dataclass(frozen=True)
class ProtocolQuote:
    """An official protocol of NTU RGB+D.

    Attributes:
        title: Heading of its column.
        clips: Test clips.
        with_skeletons: Test clips whose skeleton is not missing.
    """

    title: str
    clips: int
    with_skeletons: int


@dataclass(frozen=True)
class MethodQuote:
    """A published method. ``accuracy`` has top-1 in percent for each protocol; None if none was found."""

    method: str
    modality: str
    accuracy: Mapping[str, float | None]
    remark: str
    source: str


@dataclass(frozen=True)
class StreamsQuote:
    """A published method on Northwestern-UCLA: top-1 in percent of joints alone (None if it is not known), and of fused streams."""

    method: str
    joint: float | None
    fused: float
    source: str


@dataclass(frozen=True)
class EfficiencyQuote:
    """A row of the paper's Table IV, as printed: millions of trained parameters, seconds a video."""

    method: str
    parameters: str
    seconds: str
    remark: str


@dataclass(frozen=True)
class AblationQuote:
    """One of the paper's ablations.

    Attributes:
        title: Subject.
        rows: Variant and top-1 in percent; the full model comes first.
    """

    title: str
    rows: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class CurveQuote:
    """The paper's accuracy over one setting: label of the setting, and (value, top-1 in percent)."""

    label: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Quotes:
    """All published figures.

    Attributes:
        protocols: The four protocols of NTU RGB+D.
        table1: Methods of Table I under their headings.
        ablations: Tables II, V and VI.
        curves: Accuracy over M (V) and K (VI).
        table4: Efficiency.
        nw_ucla: Methods on Northwestern-UCLA.
    """

    protocols: Mapping[str, ProtocolQuote]
    table1: Mapping[str, Sequence[MethodQuote]]
    ablations: Mapping[str, AblationQuote]
    curves: Mapping[str, CurveQuote]
    table4: Sequence[EfficiencyQuote]
    nw_ucla: Sequence[StreamsQuote]


@cache
def quotes() -> Quotes:
    """The figures of ``quotes.yaml``."""
    found: dict[str, Any] = yaml.safe_load(files("vtlvlm.report").joinpath("quotes.yaml").read_text(encoding="utf-8"))
    return Quotes(
        {key: ProtocolQuote(**facts) for key, facts in found["protocols"].items()},
        {part["group"]: [MethodQuote(**row) for row in part["rows"]] for part in found["table1"]},
        {key: AblationQuote(part["title"], [(name, top1) for name, top1 in part["rows"]]) for key, part in found["ablations"].items()},
        {key: CurveQuote(part["label"], [(x, y) for x, y in part["points"]]) for key, part in found["curves"].items()},
        [EfficiencyQuote(**row) for row in found["table4"]],
        [StreamsQuote(**row) for row in found["nw_ucla"]],
    )


def on_ntu(protocol: str | None, num_clips: int) -> bool:
    """Whether a test covered an official protocol of NTU RGB+D: at least 99 % of its clips that have a skeleton.

    Args:
        protocol: Key of the protocol, such as ``xsub60``.
        num_clips: Tested clips.
    """
    official = quotes().protocols.get(protocol or "")
    return official is not None and ENOUGH * official.with_skeletons <= num_clips <= official.clips


def on_nw_ucla(protocol: str | None, num_clips: int, classes: object) -> bool:
    """Whether a test covered the third camera of Northwestern-UCLA.

    Args:
        protocol: Key of the protocol.
        num_clips: Tested clips.
        classes: Number of actions, as the split tells it.
    """
    return protocol == NW_UCLA and classes == 10 and ENOUGH * NW_UCLA_CLIPS <= num_clips <= NW_UCLA_CLIPS
