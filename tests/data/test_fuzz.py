"""The decoder against thousands of damaged files: it refuses in one line or decodes, and never hangs, dies or leaks another error."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from test_transcode import pictures
from videos import encode

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import VideoError, decode_sampled, probe, verify

MUTATIONS = ("flip", "cut", "zero", "repeat", "drop", "header", "noise")


def mutate(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """One way of damaging a file."""
    data = np.frombuffer(content, dtype=np.uint8).copy()
    size = len(data)
    at, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 4)))
    if kind == "flip":
        places = rng.integers(size, size=int(rng.integers(1, 40)))
        data[places] ^= rng.integers(1, 256, size=len(places), dtype=np.uint8)
    elif kind == "cut":
        data = data[:at]
    elif kind == "zero":
        data[at : at + length] = 0
    elif kind == "repeat":
        data = np.concatenate([data[: at + length], data[at:]])
    elif kind == "drop":
        data = np.concatenate([data[:at], data[at + length :]])
    elif kind == "header":
        places = rng.integers(min(size, 400), size=int(rng.integers(1, 12)))
        data[places] = rng.integers(256, size=len(places), dtype=np.uint8)
    else:
        data[at : at + length] = rng.integers(256, size=len(data[at : at + length]), dtype=np.uint8)
    return data.tobytes()


def seeds(folder: Path) -> list[Path]:
    """Small sound files in several containers and codecs."""
    files = [encode(folder / f"a.{suffix}", pictures(16, 48, 64), codec=codec) for suffix, codec in (("mp4", "libx264"), ("avi", "mpeg4"))]
    files += [encode(folder / f"b.{suffix}", pictures(16, 48, 64), codec=codec) for suffix, codec in (("mkv", "libx264"), ("mov", "mpeg4"))]
    files.append(encode(folder / "c.webm", pictures(16, 48, 64), codec="libvpx"))
    return [*files, encode(folder / "d.ts", pictures(16, 48, 64), codec="mpeg2video")]


def outcomes(folder: Path, count: int) -> Counter[str]:
    """Damage ``count`` files one after the other and put each through all three doors; printed before each, for the one that hangs."""
    found: Counter[str] = Counter()
    refusals: list[str] = []
    rng = np.random.default_rng(0)
    sources = seeds(folder)
    for number in range(count):
        source, kind = sources[number % len(sources)], MUTATIONS[number // len(sources) % len(MUTATIONS)]
        file = folder / f"fuzzed{source.suffix}"
        file.write_bytes(mutate(source.read_bytes(), kind, rng))
        print(f"{number} {source.suffix} {kind}", flush=True)
        for name, door in (("probe", probe), ("verify", verify), ("decode", lambda f: decode_sampled(f, FrameSampling(frames=8, size=32)))):
            try:
                result = door(file)
                if name == "decode":
                    assert result.frames.shape == (8, 3, 32, 32)
                    assert (result.times[1:] >= result.times[:-1]).all()
            except VideoError as error:
                refusals.append(str(error))
                found[f"{name} refused"] += 1
            else:
                found[f"{name} decoded"] += 1
    assert all("\n" not in text and text.startswith(str(folder)) for text in refusals)
    return found


def run(folder: Path, count: int) -> Counter[str]:
    """``outcomes`` in a process of its own, so that a crash or a hang has a name."""
    folder.mkdir(parents=True)
    code = f"import sys, json; sys.path[:0] = {sys.path!r}; import test_fuzz, pathlib; " + (
        f"print(json.dumps(test_fuzz.outcomes(pathlib.Path({str(folder)!r}), {count})))"
    )
    place = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    try:
        done = subprocess.run([sys.executable, "-c", code], timeout=60 + count * 0.5, **place)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"hangs at {(error.stdout or b'').decode().splitlines()[-1]}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"dies with {done.returncode} at {lines[-1] if lines else 'the start'}: {done.stderr[-2000:]}"
    return Counter(json.loads(lines[-1]))


def check(found: Counter[str], count: int) -> None:
    assert found["probe refused"] + found["probe decoded"] == count
    assert found["decode refused"] + found["decode decoded"] == count
    assert found["verify decoded"] > count // 20  # mutations that do no harm
    assert found["verify refused"] > count // 4


def test_damaged_files(tmp_path: Path) -> None:
    check(run(tmp_path / "fuzz", 210), 210)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_thousands_of_damaged_files(tmp_path: Path) -> None:
    found = run(tmp_path / "fuzz", 2520)
    print(dict(sorted(found.items())), f"av {av.__version__}")
    check(found, 2520)
