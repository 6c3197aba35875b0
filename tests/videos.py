"""Small real video files, made on the spot."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def encode(path: Path, pictures: NDArray[np.uint8], *, codec: str = "libx264", rate: int = 25, rotation: int = 0) -> Path:
    """(T, H, W, 3) pictures as a video file, nearly lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "1", "bf": "0"} if codec == "libx264" else {"qscale": "1"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, rate)
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def moving_block(frames: int, size: int = 64, *, falls: bool, shade: int) -> NDArray[np.uint8]:
    """(T, size, size, 3): a white block that falls, or else goes right, over a ground of one shade."""
    pictures = np.full((frames, size, size, 3), shade, dtype=np.uint8)
    for i in range(frames):
        at = round((size - 16) * i / max(1, frames - 1))
        top, left = (at, size // 2 - 8) if falls else (size // 2 - 8, at)
        pictures[i, top : top + 16, left : left + 16] = 255
    return pictures


def block_clips(root: Path, people: tuple[int, ...] = (1, 2, 3)) -> Path:
    """A falling and a sliding block for each person, under NTU names, with classes.txt; X-Sub trains on 1, 2, 4, 5 and tests on 3, 6."""
    for person in people:
        for action in (1, 2):
            pictures = moving_block(12 + person, falls=action == 1, shade=min(255, 20 * person))
            encode(root / f"S001C001P{person:03}R001A{action:03}_rgb.avi", pictures)
    (root / "classes.txt").write_text("A001 fall down\nA002 slide right\n")
    return root


def damaged(path: Path) -> Path:
    """An MPEG-4 AVI with a hole in a packet, which shows when all frames are decoded and not before."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    data = bytearray(encode(path, noise, codec="mpeg4").read_bytes())
    movie, index = data.index(b"movi"), data.rindex(b"idx1")
    hole = movie + (index - movie) // 2
    data[hole : hole + 60] = bytes(60)
    path.write_bytes(data)
    return path
