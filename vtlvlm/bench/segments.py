"""Measures `vtlvlm segment` on a long 1080p film: its time against decoding and the model's own time, and its memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import timm
import torch

from vtlvlm.bench.data import SECONDS, camera_clips, decode_only
from vtlvlm.bench.harness import Measurement
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip
from vtlvlm.recognizers.recognizer import Answer
from vtlvlm.segments.finding import find
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.windows import Grid

GRID = Grid(3.0, 0.75)
SAMPLING = FrameSampling(frames=32, size=128)


class TimedModel:
    """The demo's backbone, with random weights, on as many frames of a window as in the demo; notes its seconds."""

    def __init__(self) -> None:
        self.classes, self.sampling, self.seconds, self.windows = [str(i) for i in range(60)], SAMPLING, 0.0, 0
        self.backbone = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=len(self.classes)).eval()

    def recognise(self, clip: Clip) -> Answer:
        """Probabilities that mean nothing."""
        began = time.thread_time()
        found = Answer(self.backbone(clip.frames.float() / 255).mean(0).softmax(-1))
        self.seconds += time.thread_time() - began
        self.windows += 1
        return found


def measure(work: Path, videos: Path | None, minutes: int) -> tuple[list[Measurement], dict[str, Any]]:
    """Segment one film, on one thread. Seconds are those of the processor, so that other programs do not change them.

    Args:
        work: Folder to write into.
        videos: Camera videos to make the film from; None for rendered ones.
        minutes: Length of the film.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        film = _film(camera_clips(work, videos)["H.264"], work / "film.mp4", minutes)
        began = time.process_time()
        decode_only(film)
        decoding = time.process_time() - began
        model = TimedModel()
        with _resident() as seen:
            began = time.process_time()
            found = find(model, film, GRID, Rule())
            whole = time.process_time() - began
    finally:
        torch.set_num_threads(threads)
    tenth = len(seen) // 10
    growth = None if not tenth else sum(seen[-tenth:]) / sum(seen[tenth : 2 * tenth]) - 1
    parts = f"{decoding:.0f} to decode, {model.seconds:.0f} of the model"
    note = f"{found.seconds / 60:.1f} min of 1080p H.264: {whole:.0f} processor seconds; {parts}"
    peak = f"{max(seen) / 2**20:.0f} MiB at most" if seen else "only measured on Linux, and on films of minutes"
    return [
        Measurement("segment over decoding and the model's own time", whole / (decoding + model.seconds), "x", 1.3, "<=", note),
        Measurement("growth of memory from the film's second tenth to its last", growth, "", 0.05, "<=", peak),
        Measurement(
            "seconds of video in a processor second", found.seconds / whole, "", note=f"{model.windows} windows of {GRID.clip:g} s"
        ),
    ], {"minutes": minutes}


def _film(clip: Path, target: Path, minutes: int) -> Path:
    """A clip again and again, without encoding anew."""
    with av.open(str(target), "w") as out, av.open(str(clip)) as container:
        stream = container.streams.video[0]
        copied = out.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert stream.time_base is not None
        length = round(Fraction(SECONDS) / stream.time_base)
        for number in range(minutes * 60 // SECONDS):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.time_base, again.is_keyframe = stream.time_base, packet.is_keyframe
                again.pts, again.dts = (packet.pts or 0) + number * length, (packet.dts or 0) + number * length
                again.stream = copied
                out.mux(again)
    return target


@contextmanager
def _resident() -> Iterator[list[int]]:
    """Bytes that this process holds, without those of files and libraries, ten times a second; empty where the system does not say (other
    than Linux). What the system has moved to disk counts.
    """
    seen, stop, file = list[int](), threading.Event(), Path("/proc/self/status")

    def look() -> None:
        while file.exists() and not stop.wait(0.1):
            held = dict(line.split(":", 1) for line in file.read_text().splitlines())
            seen.append(sum(int(held[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap")))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
