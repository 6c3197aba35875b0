"""Speed of decoding, small copies, feature caches, event caches, and ``.skeleton`` files.

The unit of decoding time: PyAV decodes every frame of the same file on one thread and drops it. Times are processor times of
this process. Ratios are medians over rounds in which every job runs once. Other libraries (decord, OpenCV, torchcodec) are measured if
installed: ``pip install 'vtlvlm[bench]'``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vtlvlm.bench.harness import Measurement, alternate, ratio
from vtlvlm.bench.skeleton_reading import skeletons
from vtlvlm.data import cuda_video
from vtlvlm.data.cache import EventCache, EventCacheWriter, FeatureCache, FeatureCacheWriter
from vtlvlm.data.cuda_video import require_gpu_decoding
from vtlvlm.data.datasets import EventDataset
from vtlvlm.data.listing import VIDEO_ENDINGS
from vtlvlm.data.ntu import clip_name, official_clips
from vtlvlm.data.sampling import FrameSampling, segment_centres
from vtlvlm.data.transcode import copy
from vtlvlm.data.video import decode, decode_sampled, probe
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.cpu import usable_cores

WIDTH, HEIGHT, RATE, SECONDS = 1920, 1080, 30, 4
FRAMES, SIZE = 32, 224
CODECS = {"MPEG-4": ("mpeg4", "avi", {"b": "4000000"}), "H.264": ("libx264", "mp4", {"crf": "23", "preset": "medium"})}
LIMITS = {"MPEG-4": 1.25, "H.264": 1.10}
CLIPS, CODES, WINDOWS = 114_480, 2048, 256
GROWTH_OPENS = 2000
LANGUAGE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
"""SmolLM2-135M"""


def measure(work: Path, *, videos: Path | None, repeats: int) -> tuple[list[Measurement], dict[str, Any]]:
    """All measurements of this bench, and facts about their clips."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(work, videos, repeats)
    finally:
        torch.set_num_threads(threads)


def _measure(work: Path, videos: Path | None, repeats: int) -> tuple[list[Measurement], dict[str, Any]]:
    clips = camera_clips(work / "clips", videos)
    figures: list[Measurement] = []
    costs: dict[str, float] = {}
    for name, file in clips.items():
        found, costs[name] = decoding(name, file, repeats)
        figures += [*found, on_gpu(name, file, repeats)]
    figures += [small_copy(name, file, work / f"copy-{file.stem}-{file.suffix[1:]}.mp4", repeats) for name, file in clips.items()]
    figures.append(feature_cache(work / "features", costs["MPEG-4"], repeats))
    figures += event_cache(work, repeats)
    figures += skeletons(work, repeats)
    figures.append(memory_growth(clips["H.264"], work / "growth.mp4"))
    figures.append(waiting(work / "events"))
    facts = {"clips": {name: {"bytes": file.stat().st_size, **probe(file)._asdict()} for name, file in clips.items()}}
    return figures, facts | {"source": str(videos or "rendered"), "frames": FRAMES, "size": SIZE, "repeats": repeats}


# -- clips ---------------------------------------------------------------------------------------------------------------------------


def camera_clips(folder: Path, videos: Path | None) -> dict[str, Path]:
    """A 4 s clip of 1080p in each codec, from upscaled camera videos (or rendered ones)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: folder / f"camera.{suffix}" for name, (_, suffix, _) in CODECS.items()}
    source = pictures(videos) if videos is not None else rendered()
    if not all(file.is_file() for file in made.values()):
        every = list(tqdm(islice(source, RATE * SECONDS), total=RATE * SECONDS, desc="making clips", unit="frame"))
        for name, (codec, _, options) in CODECS.items():
            encode(made[name], every, codec, options)
    return made


def pictures(videos: Path) -> Iterator[av.VideoFrame]:
    """Frames of all videos in the folder that can be decoded, file by file, each scaled to 1080p. Starts again after the last file."""
    files = sorted(file for file in videos.rglob("*") if file.suffix.lower() in VIDEO_ENDINGS)
    found = 0
    while True:
        before = found
        for file in files:
            try:
                with av.open(str(file), metadata_errors="ignore") as container:
                    for frame in islice(container.decode(video=0), RATE):
                        yield frame.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="BICUBIC")
                        found += 1
            except (av.FFmpegError, IndexError):
                continue
        if found == before:
            raise DataError(f"{videos}: no video in it can be decoded; name a folder of camera videos with --videos")


def rendered() -> Iterator[av.VideoFrame]:
    """Frames of the project's renderer, upscaled and with a camera's noise."""
    from vtlvlm.synth.dataset import ClipSpec
    from vtlvlm.synth.render import frames
    from vtlvlm.synth.scene import Camera, Setup

    rng = np.random.default_rng(0)
    for action in (8, 23, 24, 26, 43):
        spec = ClipSpec(0, 1, 1, 1, 1, action)
        setup = Setup.of(0, 1)
        for picture in frames(spec.performance(), setup, Camera.of(setup, 1), rng):
            small = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            large = small.reformat(WIDTH, HEIGHT, "rgb24", interpolation="BICUBIC").to_ndarray()
            noise = rng.integers(-6, 7, large.shape[:2], dtype=np.int16)[..., None]
            yield av.VideoFrame.from_ndarray((large + noise).clip(0, 255).astype(np.uint8), format="rgb24").reformat(format="yuv420p")


def encode(file: Path, frames: list[av.VideoFrame], codec: str, options: dict[str, str]) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, RATE), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# -- decoding ------------------------------------------------------------------------------------------------------------------------


def decode_only(file: Path) -> int:
    """Decode every frame on one thread and drop it: the unit of decoding time."""
    with av.open(str(file)) as container:
        container.streams.video[0].thread_type = "NONE"
        return sum(1 for _ in container.decode(video=0))


def peers() -> dict[str, Callable[[Path, NDArray[np.int64]], object]]:
    """Other libraries, each used as its documentation shows: given frames of the centre square at 224 pixels."""
    found: dict[str, Callable[[Path, NDArray[np.int64]], object]] = {"PyAV, reformat": _pyav}
    for title, function in (("decord", _decord), ("OpenCV", _opencv), ("torchcodec", _torchcodec)):
        try:
            __import__({"OpenCV": "cv2"}.get(title, title))
        except (ImportError, OSError, RuntimeError):
            continue
        found[title] = function
    return found


def _pyav(file: Path, indices: NDArray[np.int64]) -> object:
    from torchvision.transforms.v2 import functional as transforms

    wanted = set(indices.tolist())
    with av.open(str(file)) as container:
        container.streams.video[0].thread_type = "NONE"
        frames = [f.to_ndarray(format="rgb24") for number, f in enumerate(container.decode(video=0)) if number in wanted]
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return transforms.resize(transforms.center_crop(video, [HEIGHT, HEIGHT]), [SIZE, SIZE])


def _decord(file: Path, indices: NDArray[np.int64]) -> object:
    import decord

    width = round(WIDTH * SIZE / HEIGHT)
    reader = decord.VideoReader(str(file), width=width, height=SIZE, num_threads=1)
    left = (width - SIZE) // 2
    return reader.get_batch(indices.tolist()).asnumpy()[:, :, left : left + SIZE]


def _opencv(file: Path, indices: NDArray[np.int64]) -> object:
    import cv2

    cv2.setNumThreads(1)
    reader = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted, left, frames = set(indices.tolist()), (WIDTH - HEIGHT) // 2, []
    for number in range(int(indices[-1]) + 1):
        reader.grab()
        if number in wanted:
            _, picture = reader.retrieve()
            square = cv2.resize(picture[:, left : left + HEIGHT], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            frames.append(cv2.cvtColor(square, cv2.COLOR_BGR2RGB))
    reader.release()
    return np.stack(frames)


def _torchcodec(file: Path, indices: NDArray[np.int64]) -> object:
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2 import functional as transforms

    frames = VideoDecoder(str(file), num_ffmpeg_threads=1).get_frames_at(indices.tolist()).data
    return transforms.resize(transforms.center_crop(frames, [HEIGHT, HEIGHT]), [SIZE, SIZE])


def decoding(name: str, file: Path, repeats: int) -> tuple[list[Measurement], float]:
    """The time of 32 frames at 224 pixels over decode-only, beside the other libraries; and our seconds."""
    indices = segment_centres(num_frames=RATE * SECONDS, num_segments=FRAMES)
    jobs: dict[str, Callable[[], object]] = {
        "unit": lambda: decode_only(file),
        "vtlvlm": lambda: decode(file, indices, size=SIZE),
    }
    failed: dict[str, str] = {}
    for title, function in peers().items():
        try:
            function(file, indices)
        except Exception as error:  # a library may raise anything; the table then names it without a value
            failed[title] = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        else:
            jobs[title] = lambda function=function: function(file, indices)  # type: ignore[misc]
    with tqdm(total=len(jobs) * (repeats + 1), desc=f"decoding {name}", unit="clip") as bar:
        seconds = alternate(jobs, repeats=repeats, tick=bar.update)
    ours = ratio(seconds, "vtlvlm", "unit")
    work = f"{FRAMES} frames at {SIZE} of 4 s of 1080p {name}, over decode-only"
    figures = [Measurement(work, ours, target=LIMITS[name], note=f"unit {statistics.median(seconds['unit']):.2f} s")]
    for title in jobs:
        if title not in ("unit", "vtlvlm"):
            theirs = ratio(seconds, title, "unit")
            figures.append(Measurement(f"... {title}", theirs, target=ours, sense=">=", note="the target is our own ratio"))
    figures += [Measurement(f"... {title}", None, note=reason) for title, reason in failed.items()]
    return figures, statistics.median(seconds["vtlvlm"])


def on_gpu(name: str, file: Path, repeats: int) -> Measurement:
    """Wall time of decoding on the CPU over that on the GPU, of the same frames."""
    indices = segment_centres(num_frames=RATE * SECONDS, num_segments=FRAMES)
    work = f"... {name} decoded on the GPU, clips per second over vtlvlm's on one core"
    try:
        require_gpu_decoding(file)
    except (UsageError, DataError) as error:
        return Measurement(work, None, "x", note=str(error)[:80])

    def decoded() -> None:
        cuda_video.decode(file, indices, size=SIZE)
        torch.cuda.synchronize()

    jobs: dict[str, Callable[[], object]] = {"cpu": lambda: decode(file, indices, size=SIZE), "gpu": decoded}
    return Measurement(work, ratio(alternate(jobs, repeats=repeats, clock=time.perf_counter), "cpu", "gpu"), "x", note="wall time")


def small_copy(name: str, source: Path, target: Path, repeats: int) -> Measurement:
    """The 256-pixel copy against its source, read as in training, with the number of frames from the index."""
    if not target.is_file():
        copy(source, target)
    sampling = FrameSampling(frames=FRAMES, size=SIZE)
    jobs = {
        title: (lambda file=file: decode_sampled(file, sampling, num_frames=RATE * SECONDS))
        for title, file in (("source", source), ("copy", target))
    }
    seconds = alternate(jobs, repeats=repeats)
    note = f"{target.stat().st_size / 1e6:.2f} MB"
    work = f"the 256-pixel copy of {name}, clips per second and core over the source's"
    return Measurement(work, ratio(seconds, "source", "copy"), "x", 8, ">=", note)


# -- caches --------------------------------------------------------------------------------------------------------------------------


def feature_cache(folder: Path, decode_seconds: float, repeats: int) -> Measurement:
    """The speed of random batches of features over that of decoding the source."""
    count, shape = 1024, (FRAMES, 4, 1280)
    if not (folder / "meta.json").is_file():
        with FeatureCacheWriter(folder, {"bench": "data"}) as writer:
            block = torch.randn(64, *shape)
            for start in range(0, count, 64):
                writer.add([(f"clip{start + i}", 0) for i in range(64)], block, torch.zeros(64, FRAMES))
            writer.flush()
            writer.finish(writer.done())
    cache, rng = FeatureCache.open(folder), np.random.default_rng(0)
    rows = iter([rng.integers(count, size=64) for _ in range(20 * (repeats + 1))])
    seconds = alternate({"batches": lambda: [cache.features(next(rows)) for _ in range(20)]}, repeats=repeats)
    each = statistics.median(seconds["batches"]) / (20 * 64)
    note = f"{1 / each:,.0f} clips/s of {np.prod(shape) * 2 / 1e6:.2f} MB; in the page cache"
    return Measurement("feature cache, clips per second over decoding MPEG-4", decode_seconds / each, "x", 300, ">=", note)


def event_cache(work: Path, repeats: int) -> list[Measurement]:
    """Size and speed of all of NTU-120 as event sentences of 256 codes."""
    folder = work / "events"
    names = ntu_names()
    if not (folder / "meta.json").is_file():
        rng = np.random.default_rng(0)
        with EventCacheWriter(folder, {"bench": "data"}, torch.randn(CODES, 1024)) as writer:
            for start in tqdm(range(0, CLIPS, 4096), desc="writing events", unit="shard"):
                keys = [(name, 0) for name in names[start : start + 4096]]
                ids = torch.from_numpy(rng.integers(CODES, size=(len(keys), WINDOWS)))
                writer.add(keys, ids, None, torch.zeros(len(keys), WINDOWS, 2))
            writer.flush()
            writer.finish(writer.done())
    size = sum(file.stat().st_size for file in folder.glob("ids-*"))
    opening = alternate(
        {"open": lambda: EventCache.open(folder).ids(np.zeros(1, dtype=np.int64))}, repeats=repeats, clock=time.perf_counter
    )
    dataset, rng = events(folder, names), np.random.default_rng(0)
    batches = [[(clip, 0) for clip in rng.integers(CLIPS, size=128).tolist()] for _ in range(100)]
    reading = alternate({"read": lambda: [dataset.__getitems__(batch) for batch in batches]}, repeats=repeats)
    speed = len(batches) * 128 / statistics.median(reading["read"])
    return [
        Measurement(f"event cache of {CLIPS:,} clips x {WINDOWS} ids: the ids", size / 1e6, "MB", 60),
        Measurement("... opening it", statistics.median(opening["open"]), "s", 1),
        Measurement("... random batches of 128 with labels and spans", speed, "clips/s", 100_000, ">="),
    ]


def ntu_names() -> list[str]:
    return [clip_name(number) for number in official_clips(120)[:CLIPS]]


def events(folder: Path, names: list[str]) -> EventDataset:
    """The data set of an event cache, without videos."""
    cache = EventCache.open(folder)
    return EventDataset(np.zeros(len(names), dtype=np.int64), cache, np.array([0]), cache.rows(names)[None])


# -- workers and steps ---------------------------------------------------------------------------------------------------------------

_GROWTH = """
import resource, sys
from vtlvlm.data.video import decode
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
for number in range(int(sys.argv[2]) + 100):
    if number == 100:
        before = resident()
    decode(sys.argv[1], [0, 8], size=224)
print((resident() - before) / 2**20)
"""


def memory_growth(source: Path, target: Path) -> Measurement:
    """Growth of resident memory after thousands of opened files in one process."""
    work = f"memory growth over {GROWTH_OPENS:,} opens in one worker"
    if not Path("/proc/self/statm").is_file():
        return Measurement(work, None, "MiB", 20, note="only measured on Linux")
    if not target.is_file():
        copy(source, target)
    done = subprocess.run([sys.executable, "-c", _GROWTH, str(target), str(GROWTH_OPENS)], capture_output=True, text=True, check=True)
    return Measurement(work, float(done.stdout), "MiB", 20)


def waiting(folder: Path) -> Measurement:
    """Share of a stage-2 step that waits for the event cache, at SmolLM2's size with 8 clips and 32 events."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from vtlvlm.data.datasets import ClipLoader, passed_on

    torch.set_num_threads(usable_cores())
    dataset, rng = events(folder, ntu_names()), np.random.default_rng(0)
    order = [(clip, 0) for clip in rng.permutation(CLIPS).tolist()]
    loader = iter(ClipLoader(dataset, batch_size=8, sampler=order, collate_fn=passed_on, num_workers=0))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=49152, **LANGUAGE)).requires_grad_(False)
    words = torch.randn(8, 95, LANGUAGE["hidden_size"], requires_grad=True)
    wait = step = 0.0
    for number in range(4):
        start = time.perf_counter()
        next(loader)
        middle = time.perf_counter()
        model(inputs_embeds=words, logits_to_keep=40).logits.square().mean().backward()
        if number:
            wait, step = wait + middle - start, step + time.perf_counter() - middle
    share = 100 * wait / (wait + step)
    return Measurement(
        "share of a stage-2 step that waits for its events", share, "%", 2, note=f"8 clips, SmolLM2's size, {step / 3:.1f} s per step"
    )
