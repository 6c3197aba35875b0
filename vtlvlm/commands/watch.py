"""The live half of ``vtlvlm segment``: prints what happens in a stream while it runs."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from vtlvlm import __version__
from vtlvlm.commands.classify import json_line, require_model
from vtlvlm.commands.segment import VIDEO, model_of
from vtlvlm.data.streaming import LiveStream, require_camera, without_password
from vtlvlm.errors import DataError, UsageError
from vtlvlm.segments.formats import clock, row_of, write_segments
from vtlvlm.segments.live import Began
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.watching import Interrupted, Watch
from vtlvlm.system.text import shown

STATUS = 30.0
"""Seconds between two lines on stderr that say how far behind the stream is"""


def watch_stream(args: argparse.Namespace, source: str, rule: Rule, formats: list[str]) -> int:
    """Print the actions of a stream until it ends, ``--seconds`` are over, or Ctrl-C.

    Raises:
        UsageError: An option is for files.
        DataError: The camera is not there.
    """
    named = without_password(source)
    if len(args.files) > 1:
        raise UsageError(f"{shown(named)}: give one stream alone")
    if args.truth is not None:
        raise UsageError("--truth is for files; leave it out")
    if args.decide not in (None, "hysteresis"):
        raise UsageError(f"--decide {args.decide}: a stream is decided by hysteresis; leave it out")
    if VIDEO in formats:
        raise UsageError("--formats video: a stream is not kept; leave video out")
    if not args.give_up > 0 or (args.seconds is not None and not args.seconds > 0):
        raise UsageError("--give-up, --seconds: above 0")
    require_camera(source)
    require_model(args.model)
    model = model_of(args)
    grid = model.grid(args.clip, args.hop)

    def note(line: str) -> None:
        print(f"vtlvlm: {shown(line)}", file=sys.stderr, flush=True)

    found: list[Segment] = []
    note(
        f"{named}: each step of {grid.hop:g} s is decided {grid.clip:g} s after its start, a segment as long after its end; Ctrl-C ends it"
    )
    said = time.monotonic()

    def status() -> None:
        nonlocal said
        if time.monotonic() - said > STATUS:
            said, counts = time.monotonic(), stream.counts()
            note(
                f"{counts.lag:.1f} s behind, {counts.dropped:,} of {counts.frames:,} frames dropped, {watching.skipped:,} of "
                f"{watching.windows:,} windows skipped"
            )

    with LiveStream(source, model.sampling, give_up=args.give_up, seconds=args.seconds, say=note) as stream, _stopped_by_hand(stream):
        watching = Watch(model, stream, grid, rule, status)
        for one in watching:
            if isinstance(one, Segment):
                found.append(one)
            _say(one, args.json)
    counts = stream.counts()
    if not counts.frames:
        raise DataError(f"{named}: {stream.over or 'ended before its first picture'}")
    note(
        f"{counts.frames:,} frames, {counts.dropped:,} dropped; {watching.windows:,} windows, {watching.skipped:,} skipped; "
        f"{len(found)} segments"
    )
    if args.output is not None:
        facts = {"file": named, "model": str(args.model), "vtlvlm": __version__, **asdict(grid), **asdict(rule), "decide": "hysteresis"}
        args.output.mkdir(parents=True, exist_ok=True)
        for file in write_segments(found, facts, args.output, "stream", formats):
            note(f"{file} written")
    if stream.over:
        note(f"{named}: {stream.over}")
    return 1 if stream.over else 0


@contextmanager
def _stopped_by_hand(stream: LiveStream) -> Iterator[None]:
    """Let the first Ctrl-C end the stream, so that its last segment is told; the second one ends the process."""
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        del number, frame
        stream.stop()
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _say(one: Began | Segment | Interrupted, as_json: bool) -> None:
    """Print what happened on one line."""
    if isinstance(one, Segment):
        told: dict[str, Any] = {"event": "segment", **row_of(one)}
        words = f"{clock(one.start, '.')} – {clock(one.end, '.')}  {one.score:6.1%}  {shown(one.label)}"
    elif isinstance(one, Began):
        told = {"event": "began", "action": one.label, "start": round(one.start, 3)}
        words = f"{clock(one.start, '.')}   began                {shown(one.label)}"
    else:
        told = {"event": "gap", "at": round(one.at, 3)}
        words = f"{clock(one.at, '.')}   the stream is away"
    print(json_line(told) if as_json else words, flush=True)
