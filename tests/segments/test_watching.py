"""The segments of a stream, from its server to the terminal."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from brightness import Brightness
from pipeline import Pipeline, alone
from streams import sends, server, transport_stream

from vtlvlm.data.streaming import LiveStream
from vtlvlm.data.video import Clip
from vtlvlm.recognizers.recognizer import Answer
from vtlvlm.segments.finding import Rule, find
from vtlvlm.segments.live import Began
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.watching import Interrupted, Watch
from vtlvlm.segments.windows import Grid


def test_a_stream_and_its_file_give_the_same_segments(tmp_path: Path) -> None:
    """1.6 seconds of day, of neither, and of night; the stream begins at a multiple of the hop after it was opened."""
    content = transport_stream([250] * 8 + [128] * 8 + [5] * 8, each=5)
    (tmp_path / "film.ts").write_bytes(content)
    model, grid, rule = Brightness(), Grid(0.5, 0.125), Rule(least=0.8, shortest=0.25, gap=0.25, decide="hysteresis")
    whole = find(model, tmp_path / "film.ts", grid, rule)
    assert [one.label for one in whole.segments] == ["day", "night"]
    with server(sends(content)) as address, LiveStream(address, model.sampling, give_up=1.0) as stream:
        told = list(Watch(model, stream, grid, rule))
    found = [one for one in told if isinstance(one, Segment)]
    assert [one.label for one in found] == ["day", "night"]
    for one, other in zip(found, whole.segments, strict=True):
        assert one.seconds == pytest.approx(other.seconds, abs=0.26)
        assert one.start - found[0].start == pytest.approx(other.start - whole.segments[0].start, abs=0.26)
    assert [one.label for one in told if isinstance(one, Began)] == ["day", "night"]
    assert isinstance(told[-1], Interrupted)


class Slow(Brightness):
    """Takes twelve hops for a window."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def recognise(self, clip: Clip) -> Answer:
        time.sleep(0.6)
        self.calls += 1
        return super().recognise(clip)


def test_a_model_that_is_slower_than_the_stream_skips_windows_and_stays_near_to_it() -> None:
    """Four seconds of day, of neither, and of night: 12 seconds, in which 240 windows begin and the model can read 20."""
    content = transport_stream([250] * 20 + [128] * 20 + [5] * 20, each=5)
    model, grid = Slow(), Grid(1.0, 0.05)
    began = time.monotonic()
    with server(sends(content)) as address, LiveStream(address, model.sampling, give_up=1.0) as stream:
        watching = Watch(model, stream, grid, Rule(least=0.8, shortest=0.25, gap=0.25))
        told, lags = [], []
        for one in watching:
            told.append(one)
            lags.append(stream.counts().lag)
    assert time.monotonic() - began < 12 + 5
    assert max(lags) < 2.5
    assert watching.windows - watching.skipped == model.calls
    assert watching.windows > 200
    assert 10 <= model.calls <= 24
    day, night = (one for one in told if isinstance(one, Segment))
    assert (day.label, night.label) == ("day", "night")
    assert (day.end - day.start, night.end - night.start) == pytest.approx((4, 4), abs=1.3)
    assert night.start - day.start == pytest.approx(8, abs=1.3)


def test_a_fast_model_reads_all_windows_of_a_stream_that_stalls() -> None:
    """Two seconds, a stall of 1.5 s, and two seconds that come at once."""
    content = transport_stream([250] * 20, each=5)
    half = len(content) // 188 // 2 * 188

    def stalls(connection: socket.socket) -> None:
        connection.sendall(content[:half])
        time.sleep(3.5)
        connection.sendall(content[half:])

    model, read = Brightness(), []
    with server(stalls) as address, LiveStream(address, model.sampling, give_up=1.0) as stream:
        watching = Watch(model, stream, Grid(0.5, 0.125), Rule(least=0.8), lambda: read.append(stream.counts().lag))
        assert any(isinstance(one, Segment) for one in watching)
    assert watching.windows > 20
    assert watching.skipped == 0
    assert len(read) == watching.windows


def test_an_action_does_not_go_on_over_a_gap() -> None:
    content = transport_stream([250] * 8, each=5)
    model = Brightness()
    with server(sends(content), sends(content)) as address, LiveStream(address, model.sampling, give_up=1.5) as stream:
        told = list(Watch(model, stream, Grid(0.5, 0.125), Rule(least=0.8, shortest=0.25)))
    assert [type(one).__name__ for one in told] == ["Began", "Segment", "Interrupted"] * 2
    first, second = (one for one in told if isinstance(one, Segment))
    assert second.start > first.end + 0.5


def test_the_command_prints_what_happens(chain: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    content = transport_stream(generator.integers(0, 255, 20).tolist(), each=5)
    words = ["--model", chain.bundle, "--device", "cpu", "--clip", 1, "--hop", 0.5, "--least", 0.05, "--give-up", 1, "--json"]
    capsys.readouterr()
    with server(sends(content)) as address:
        assert chain("segment", address.replace("//", "//me:secret@"), *words, "--output", tmp_path, "--formats", "json,vtt") == 1
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    assert [one["event"] for one in told][-1] == "gap"
    segments = [one for one in told if one["event"] == "segment"]
    assert segments
    assert all(one["action"] in ("fall down", "slide right") for one in segments)
    assert "no picture for 1 s" in said.err
    assert "secret" not in said.err + said.out + (tmp_path / "stream.segments.json").read_text()
    written = json.loads((tmp_path / "stream.segments.json").read_text())
    assert [one["action"] for one in written["segments"]] == [one["action"] for one in segments]
    assert (written["clip"], written["hop"], written["least"], written["decide"]) == (1.0, 0.5, 0.05, "hysteresis")


@pytest.mark.slow
def test_control_c_tells_the_last_segment_and_ends_well(chain: Pipeline) -> None:
    content = transport_stream([250] * 200, each=5)  # 40 seconds
    words = ["segment", "--model", chain.bundle, "--device", "cpu", "--clip", "1", "--hop", "0.5"]
    words += ["--least", "0.05", "--no-motion", "--json"]
    with server(sends(content, then=60.0)) as address:
        process = subprocess.Popen(
            [sys.executable, "-m", "vtlvlm", *map(str, words), address],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone(),
        )  # fmt: skip
        assert process.stdout is not None
        watchdog = threading.Timer(240, process.kill)
        watchdog.start()
        first = json.loads(process.stdout.readline())
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        watchdog.cancel()
    assert process.returncode == 0, err
    told = [first["event"], *(json.loads(line)["event"] for line in out.splitlines())]
    assert told[-1] == "gap"
    assert told.count("segment") >= 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rtsp://a/b", "rtsp://a/c"], "give one stream alone"),
        (["rtsp://a/b", "--decide", "path"], "decided by hysteresis"),
        (["rtsp://a/b", "--formats", "video"], "a stream is not kept"),
        (["rtsp://a/b", "--give-up", "0"], "above 0"),
        (["camera:98"], "no such camera"),
        (["film.mp4", "--seconds", "3"], "--seconds is for a camera"),
    ],
)
def test_what_is_refused(words: list[str], said: str, chain: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert chain("segment", *words, "--model", chain.bundle) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
