"""Writes segments as files that other programs read: JSON, ActivityNet's JSON, CSV, WebVTT, SRT and ELAN."""

from __future__ import annotations

import csv
import io
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtlvlm.errors import DataError, UsageError
from vtlvlm.segments.timeline import Segment
from vtlvlm.system.files import write_text
from vtlvlm.system.text import cell, shown

Facts = Mapping[str, Any]
"""What is known of the video and the model; ``file`` is the video"""


def as_json(segments: Sequence[Segment], facts: Facts) -> str:
    """Segments as JSON, with what is known of the video and the model."""
    return json.dumps({**facts, "segments": [row_of(one) for one in segments]}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def row_of(segment: Segment) -> dict[str, Any]:
    """A segment in plain values; seconds."""
    start, end = round(segment.start, 3), round(segment.end, 3)
    return {"action": segment.label, "start": start, "end": end, "score": round(segment.score, 6)}


def as_activitynet(segments: Sequence[Segment], facts: Facts) -> str:
    """Segments as a submission to ActivityNet's detection task; the video goes by its file's name without its ending."""
    rows = [{"label": one.label, "score": round(one.score, 6), "segment": [round(one.start, 3), round(one.end, 3)]} for one in segments]
    results = {Path(str(facts.get("file", "video"))).stem: rows}
    return json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}}, ensure_ascii=False, indent=1) + "\n"


def as_csv(segments: Sequence[Segment], facts: Facts) -> str:
    """Segments as a table: start, end, action, score; seconds."""
    del facts
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("start", "end", "action", "score"))
    writer.writerows((f"{one.start:.3f}", f"{one.end:.3f}", cell(_line(one.label)), f"{one.score:.4f}") for one in segments)
    return text.getvalue()


def as_vtt(segments: Sequence[Segment], facts: Facts) -> str:
    """Segments as WebVTT subtitles, for the track of a web page."""
    del facts
    cues = [f"{clock(one.start, '.')} --> {clock(one.end, '.')}\n{_vtt(one.label)} {one.score:.0%}\n" for one in segments]
    return "WEBVTT\n\n" + "\n".join(cues)


def as_srt(segments: Sequence[Segment], facts: Facts) -> str:
    """Segments as SubRip subtitles, for video players."""
    del facts
    cues = (
        f"{number}\n{clock(one.start, ',')} --> {clock(one.end, ',')}\n{_line(one.label)} {one.score:.0%}\n"
        for number, one in enumerate(segments, 1)
    )
    return "\n".join(cues)


def as_elan(segments: Sequence[Segment], facts: Facts) -> str:
    """Segments as an ELAN document (EAF 3.0): one tier, times in whole milliseconds, the video beside the document."""
    name = Path(str(facts.get("file", "video"))).name
    root = ET.Element("ANNOTATION_DOCUMENT", {"AUTHOR": "vtlvlm", "DATE": "1970-01-01T00:00:00+00:00", "FORMAT": "3.0", "VERSION": "3.0"})
    header = ET.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    kind = "video/mp4" if name.lower().endswith(".mp4") else "video/*"
    ET.SubElement(header, "MEDIA_DESCRIPTOR", {"MEDIA_URL": "", "MIME_TYPE": kind, "RELATIVE_MEDIA_URL": f"./{_line(name)}"})
    order = ET.SubElement(root, "TIME_ORDER")
    tier = ET.SubElement(root, "TIER", {"LINGUISTIC_TYPE_REF": "action", "TIER_ID": "action"})
    for number, one in enumerate(segments, 1):
        first, last = f"ts{2 * number - 1}", f"ts{2 * number}"
        for slot, at in ((first, one.start), (last, one.end)):
            ET.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(round(1000 * at))})
        place = ET.SubElement(ET.SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", {"ANNOTATION_ID": f"a{number}"})
        place.attrib |= {"TIME_SLOT_REF1": first, "TIME_SLOT_REF2": last}
        ET.SubElement(place, "ANNOTATION_VALUE").text = _line(one.label)
    ET.SubElement(root, "LINGUISTIC_TYPE", {"LINGUISTIC_TYPE_ID": "action", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"})
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


FORMATS: dict[str, tuple[str, Callable[[Sequence[Segment], Facts], str]]] = {
    "json": (".segments.json", as_json),
    "activitynet": (".activitynet.json", as_activitynet),
    "csv": (".csv", as_csv),
    "vtt": (".vtt", as_vtt),
    "srt": (".srt", as_srt),
    "elan": (".eaf", as_elan),
}
"""Format -> ending of its files, and its writer"""


def write_segments(segments: Sequence[Segment], facts: Facts, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Write segments into a folder, one file for each format, whole or not at all.

    Args:
        segments: In the order of their starts.
        facts: Of the video and the model.
        folder: Exists.
        name: Of the files, without their endings.
        formats: Keys of ``FORMATS``.

    Raises:
        UsageError: A format is unknown.
    """
    if unknown := [one for one in formats if one not in FORMATS]:
        raise UsageError(f"format {shown(unknown[0], 40)!r}: choose from {', '.join(FORMATS)}")
    files = []
    for one in formats:
        ending, writer = FORMATS[one]
        files.append(folder / f"{name}{ending}")
        write_text(files[-1], writer(segments, facts))
    return files


def read_truth(path: Path) -> dict[str, list[Segment]]:
    """The true segments of videos: ActivityNet's annotations, or a file that :func:`as_json` wrote.

    Args:
        path: A JSON file. The videos go by their files' names without endings.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "database" in content:
            rows = {name: [(one["label"], *one["segment"]) for one in video["annotations"]] for name, video in content["database"].items()}
        else:
            rows = {Path(content["file"]).stem: [(one["action"], one["start"], one["end"]) for one in content["segments"]]}
        found = {name: [Segment(str(label), float(start), float(end)) for label, start, end in own] for name, own in rows.items()}
        if any(not 0 <= one.start < one.end < math.inf for own in found.values() for one in own):
            raise ValueError("a segment that ends before it starts")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: no true segments (ActivityNet's JSON with a database, or a .segments.json of this command)") from error
    return found


def clock(seconds: float, point: str) -> str:
    """Seconds as hours, minutes, seconds and milliseconds."""
    whole, milliseconds = divmod(round(1000 * max(0.0, seconds)), 1000)
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}{point}{milliseconds:03}"


def _line(text: str) -> str:
    """A name on one line: a line break would end a subtitle, and an arrow would be read as a time."""
    return " ".join(shown(text).split()).replace("-->", "->")


def _vtt(text: str) -> str:
    return _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
