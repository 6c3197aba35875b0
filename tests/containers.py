"""Real files of every codec and container that PyAV writes, and what users do to files: cut, join, trim, put another stream in front."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "yuv420p", {"g": "12"}),
    "h264_open": ("libx264", "yuv420p", {"x264-params": "keyint=12:open-gop=1:bframes=3:b-adapt=0:scenecut=0"}),
    "h264_interlaced": ("libx264", "yuv420p", {"x264-params": "keyint=12:interlaced=1"}),
    "hevc": ("libx265", "yuv420p", {"x265-params": "keyint=12:log-level=none"}),
    "hevc_closed": ("libx265", "yuv420p", {"x265-params": "keyint=12:open-gop=0:log-level=none"}),
    "vp8": ("libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k", "g": "24"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k", "g": "24"}),
    "av1": ("libsvtav1", "yuv420p", {"preset": "12", "g": "12"}),
    "mpeg4": ("mpeg4", "yuv420p", {"bf": "2", "g": "12"}),
    "mpeg4_plain": ("mpeg4", "yuv420p", {}),
    "mpeg2": ("mpeg2video", "yuv420p", {"bf": "2", "g": "12"}),
    "mpeg1": ("mpeg1video", "yuv420p", {"bf": "2"}),
    "mjpeg": ("mjpeg", "yuvj420p", {}),
    "ffv1": ("ffv1", "yuv420p", {}),
    "huffyuv": ("huffyuv", "yuv422p", {}),
    "prores": ("prores_ks", "yuv422p10le", {}),
    "h263": ("h263", "yuv420p", {}),
    "flv1": ("flv", "yuv420p", {}),
    "wmv2": ("wmv2", "yuv420p", {}),
    "msmpeg4": ("msmpeg4", "yuv420p", {}),
    "gif": ("gif", "rgb8", {}),
    "cinepak": ("cinepak", "rgb24", {}),
    "png": ("png", "rgb24", {}),
    "svq1": ("svq1", "yuv410p", {}),
    "utvideo": ("utvideo", "yuv420p", {}),
}
"""Name → encoder, pixel format, options: with B-frames, hidden frames and short groups where the codec has them."""
SUFFIXES = (
    *("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "flv", "3gp", "nut", "asf", "ogv", "mxf", "h264", "hevc", "m4v", "ivf", "gif"),
    *("obu", "mjpeg", "vob", "m2ts"),
)
JOINABLE = ("ts", "mpg", "h264", "hevc", "m4v", "vob", "m2ts", "obu", "mjpeg")
"""Files that are joined by writing one behind the other"""
_GROUND = np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8)


def encode(
    path: Path,
    codec: str,
    *,
    frames: int = 40,
    rate: Fraction = Fraction(25),
    variable: bool = False,
    size: tuple[int, int] = (96, 64),
) -> Path:
    """A ground that moves; with ``variable``, every fifth frame comes late."""
    encoder, pixels, options = CODECS[codec]
    width, height = (128, 96) if codec == "h263" else size  # one of the few sizes it has
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for number in range(frames):
            top, left = number % 60, 2 * number % 70
            picture = np.ascontiguousarray(_GROUND[top : top + height, left : left + width])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if variable:
                frame.pts, frame.time_base = 2 * number + (number % 5 == 0), 1 / (2 * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def copied(source: Path, target: Path, *, start: int = 0, stop: int | None = None, back: int = 0, times: int = 1, **options: str) -> Path:
    """The packets ``start`` to ``stop`` of a file without encoding them anew, ``back`` frames earlier, several times over."""
    with av.open(str(target), "w", options=options) as output:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                last = offset
                for number, packet in enumerate(list(container.demux(video))):
                    if not packet.size or number < start or (stop is not None and number >= stop):
                        continue
                    if packet.pts is not None and packet.dts is not None and packet.time_base is not None:
                        frame = round(1 / (25 * packet.time_base))
                        packet.pts += offset - back * frame
                        packet.dts += offset - back * frame
                        last = max(last, packet.pts + 2 * frame)
                    packet.stream = stream
                    output.mux(packet)
                offset = last
    return target


def with_hidden_frames(source: Path, target: Path, every: int = 10) -> Path:
    """A VP8 file with a hidden copy before every tenth frame, in a packet of its own, as encoders write their alternate references."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if not packet.size:
                continue
            if number % every == every - 1:
                data = bytes(packet)
                hidden = av.Packet(bytes([data[0] & ~16]) + data[1:])
                hidden.pts, hidden.dts, hidden.time_base, hidden.stream = packet.pts, packet.dts, packet.time_base, stream
                output.mux(hidden)
            packet.stream = stream
            output.mux(packet)
    return target


def with_stream_before(source: Path, before: Path, target: Path, default: int = 1) -> Path:
    """One file of two video streams: that of ``before`` and then that of ``source``; ``default`` is flagged, or none where it is -1."""
    with av.open(str(target), "w") as output:
        held: list[av.Packet] = []
        for number, file in enumerate((before, source)):
            with av.open(str(file)) as container:
                stream = output.add_stream_from_template(container.streams.video[0])
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        held.append(packet)
        for packet in sorted(held, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            output.mux(packet)
    return target


def variants(folder: Path, codec: str, suffix: str) -> Iterator[Path]:
    """All that can be made of a codec in a container; what FFmpeg cannot write is left out."""
    plain = folder / f"{codec}.{suffix}"
    made = {
        plain: lambda path: encode(path, codec),
        folder / f"{codec}_cut5.{suffix}": lambda path: copied(plain, path, start=5),
        folder / f"{codec}_cut15.{suffix}": lambda path: copied(plain, path, start=15),
        folder / f"{codec}_end.{suffix}": lambda path: copied(plain, path, stop=21),
        folder / f"{codec}_twice.{suffix}": lambda path: copied(plain, path, times=2),
        folder / f"{codec}_ntsc.{suffix}": lambda path: encode(path, codec, rate=Fraction(30000, 1001)),
        folder / f"{codec}_slow.{suffix}": lambda path: encode(path, codec, rate=Fraction(15, 2)),
        folder / f"{codec}_variable.{suffix}": lambda path: encode(path, codec, variable=True),
    }
    if suffix in JOINABLE:
        made[folder / f"{codec}_joined.{suffix}"] = lambda path: path.write_bytes(plain.read_bytes() * 2)
    if suffix in ("mp4", "mov", "3gp"):
        made[folder / f"{codec}_edit3.{suffix}"] = lambda path: copied(plain, path, back=3, avoid_negative_ts="disabled")
        made[folder / f"{codec}_edit14.{suffix}"] = lambda path: copied(plain, path, back=14, avoid_negative_ts="disabled")
        made[folder / f"{codec}_fragments.{suffix}"] = lambda path: copied(plain, path, movflags="frag_keyframe+empty_moov")
    for path, make in made.items():
        try:
            make(path)
        except (av.FFmpegError, ValueError, IndexError):
            path.unlink(missing_ok=True)
        if path == plain and not path.is_file():
            return
        if path.is_file() and path.stat().st_size:
            yield path
