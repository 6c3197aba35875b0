"""Each file is read again by another reader than ours; names from strangers break none of them."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import av
import pytest

from vtlvlm.errors import UsageError
from vtlvlm.segments.formats import FORMATS, clock, write_segments
from vtlvlm.segments.timeline import Segment

SEGMENTS = [Segment("sit down", 0.5, 2.25, 0.9), Segment("=1+1 <b>--> x\n\nWEBVTT & y", 3725.5, 3727.0, 0.25)]
FACTS = {"file": "/videos/a & b.mp4", "model": "bundle"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return dict(zip(FORMATS, write_segments(SEGMENTS, FACTS, tmp_path, "clip", list(FORMATS)), strict=True))


def test_json_and_activitynet(files: dict[str, Path]) -> None:
    plain = json.loads(files["json"].read_text())
    assert plain["segments"][0] == {"action": "sit down", "start": 0.5, "end": 2.25, "score": 0.9}
    assert plain["model"] == "bundle"
    task = json.loads(files["activitynet"].read_text())["results"]
    assert task["a & b"][0] == {"label": "sit down", "score": 0.9, "segment": [0.5, 2.25]}


def test_csv(files: dict[str, Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert rows[0] == {"start": "0.500", "end": "2.250", "action": "sit down", "score": "0.9000"}
    assert rows[1]["action"].startswith("'=1+1")  # no formula
    assert len(rows) == 2


def test_subtitles_are_read_by_ffmpeg(files: dict[str, Path]) -> None:
    for kind in ("vtt", "srt"):
        with av.open(str(files[kind])) as container:
            (stream,) = container.streams.subtitles
            packets = [packet for packet in container.demux(stream) if packet.size]
            times = [float(packet.pts * packet.time_base) for packet in packets]
            lengths = [float(packet.duration * packet.time_base) for packet in packets]
        assert times == pytest.approx([0.5, 3725.5], abs=1e-3)
        assert lengths == pytest.approx([1.75, 1.5], abs=1e-3)
    assert "01:02:05,500 --> 01:02:07,000" in files["srt"].read_text()
    assert len(re.findall("-->", files["vtt"].read_text())) == 2
    assert "&lt;b&gt;" in files["vtt"].read_text()


def test_elan(files: dict[str, Path]) -> None:
    root = ET.parse(files["elan"]).getroot()
    slots = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE") or -1) for slot in root.iter("TIME_SLOT")}
    found = [
        (slots[one.get("TIME_SLOT_REF1")], slots[one.get("TIME_SLOT_REF2")], one.findtext("ANNOTATION_VALUE"))
        for one in root.iter("ALIGNABLE_ANNOTATION")
    ]
    assert found[0] == (500, 2250, "sit down")
    assert found[1][:2] == (3725500, 3727000)
    assert next(root.iter("MEDIA_DESCRIPTOR")).get("RELATIVE_MEDIA_URL") == "./a & b.mp4"


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format 'pdf': choose from json, activitynet"):
        write_segments(SEGMENTS, FACTS, tmp_path, "clip", ["json", "pdf"])
    assert not list(tmp_path.iterdir())


def test_times_carry_over() -> None:
    assert clock(59.9996, ".") == "00:01:00.000"
    assert clock(-1, ",") == "00:00:00,000"
    assert clock(10 * 3600 + 61.25, ",") == "10:01:01,250"
