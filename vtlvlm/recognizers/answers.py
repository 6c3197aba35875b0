"""Writes a recognition for other programs: as JSON, as a row of a table, and as subtitles."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from vtlvlm.errors import DataError
from vtlvlm.recognizers.recognizer import Recognition
from vtlvlm.segments.formats import as_srt
from vtlvlm.segments.timeline import Segment
from vtlvlm.system.text import cell

COLUMNS = ("file", "action", "probability", "unlike", "seconds", "error")
"""Columns of the table"""
UNLIKE = "unlike anything it was trained on"
"""Words for a rejected clip"""


def as_dict(result: Recognition) -> dict[str, Any]:
    """A recognition in plain values.

    Returns:
        ``file``; ``action`` and ``probability``, the most likely one; ``actions``, the most likely ones; ``sampled``, the frames that the
        model looked at: their numbers from 0, their times in seconds, the video's frames per second and its length; ``events``, the event
        sentence: start and end of each window in seconds, and the codes of each window, null without a codebook; ``familiarity``: whether
        the clip is rejected as unlike the training, the share of validation clips that are less familiar, and the signals of the rule;
        ``seconds`` of work. ``sampled`` is null for a recording of a body, ``events`` also for a linear probe, ``familiarity`` without a
        rule of rejection.
    """
    best, probability = result.actions[0]
    seen, events = result.sampled, result.events
    spans = None if events is None else events.spans[0].tolist()
    codes = None if events is None or bool((events.ids < 0).any()) else events.ids[0].unflatten(0, (len(events.spans[0]), -1)).tolist()
    return {
        "file": str(result.file),
        "action": best,
        "probability": round(probability, 6),
        "actions": [{"action": name, "probability": round(p, 6)} for name, p in result.actions],
        "sampled": None
        if seen is None
        else {
            "frames": seen.frames,
            "times": [round(at, 4) for at in seen.times],
            "rate": round(seen.rate, 4),
            "seconds": round(seen.seconds, 4),
        },
        "events": None if spans is None else {"spans": [[round(at, 4) for at in span] for span in spans], "codes": codes},
        "familiarity": None
        if (known := result.familiarity) is None
        else {
            "rejected": known.rejected,
            "share": round(known.share, 6),
            "signals": {name: round(value, 6) for name, value in known.signals.items()},
        },
        "seconds": round(result.seconds, 3),
    }


def as_row(result: Recognition | DataError, file: Path) -> tuple[str, ...]:
    """A row of ``COLUMNS``: exactly one action and its probability, or the error. ``unlike`` is yes or no, or empty without a rule of
    rejection.

    Args:
        result: Of the file.
        file: As it was given.
    """
    if isinstance(result, DataError):
        return cell(str(file)), "", "", "", "", cell(str(result))
    best, probability = result.actions[0]
    unlike = "" if result.familiarity is None else "yes" if result.familiarity.rejected else "no"
    return cell(str(file)), cell(best), f"{probability:.6f}", unlike, f"{result.seconds:.3f}", ""


def is_unlike(result: Recognition) -> bool:
    """Whether a clip was rejected as unlike anything in the training."""
    return result.familiarity is not None and result.familiarity.rejected


def csv_line(values: tuple[str, ...]) -> str:
    """A row as a line of CSV, without its end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def subtitles(result: Recognition) -> str:
    """The most likely action and its probability, or that there is none, as a subtitle (SubRip) on display for the whole video.

    Raises:
        DataError: The file is a recording of a body, and has no times.
    """
    if result.sampled is None:
        raise DataError(f"{result.file}: is no video; subtitles are for videos, so leave --srt out")
    best, probability = result.actions[0]
    text = f"{UNLIKE}; nearest: {best}" if is_unlike(result) else best
    return as_srt([Segment(text, 0.0, result.sampled.seconds, probability)], {})
