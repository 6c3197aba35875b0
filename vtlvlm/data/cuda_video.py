"""Decodes chosen frames on a GPU: NVDEC through torchcodec. Not run on a GPU yet.

The frames have the numbers, times and cuts of :mod:`vtlvlm.data.video`. Their pixels differ slightly, because the GPU converts colours and
averages areas in another way; feature caches record the decoder. A file is refused if torchcodec would decode it on the CPU, if its
pictures must be turned upright, or if torchcodec counts other frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.container import VideoError, opened, packets_of
from vtlvlm.data.timestamps import Shown, frame_times
from vtlvlm.data.video import Clip, Crop, Cut, pixel_aspect
from vtlvlm.errors import UsageError

SETTING = "data.source.decoder"
LINES = 720
"""From this height on, untagged video has the colours of BT.709, as in ``vtlvlm.data.video``; torchcodec takes BT.601 for all of it"""
AT_ONCE = 16
"""Whole pictures of a clip in GPU memory at once; 100 MB at 1080p"""


def require_gpu_decoding(video: Path | None = None) -> None:
    """Refuse decoding on a GPU if this machine cannot do it.

    Args:
        video: One of the videos, to try; None tries none.

    Raises:
        UsageError: torchcodec is missing or does not start, or PyTorch finds no GPU.
        VideoError: The GPU cannot decode the video.
    """
    try:
        import torchcodec.decoders  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{SETTING}=cuda: needs torchcodec: pip install 'vtlvlm[gpu-decode]', or use cpu") from error
    except (OSError, RuntimeError) as error:  # it finds no FFmpeg
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{SETTING}=cuda: torchcodec does not start ({reason[:200]}): install FFmpeg's libraries, or use cpu") from error
    if not torch.cuda.is_available():
        raise UsageError(f"{SETTING}=cuda: PyTorch finds no GPU here: use cpu")
    if video is not None:
        reader(video, "cuda")


def decode(
    path: str | Path,
    indices: Sequence[int] | NDArray[np.integer],
    *,
    size: int,
    crop: Crop = "center",
    flip: bool = False,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    device: str | torch.device = "cuda",
) -> Clip:
    """Decode chosen frames on a GPU. As :func:`vtlvlm.data.video.decode`; the frames stay on the device, the times are on the CPU.

    Args:
        path: A video file.
        indices: (T,) frame numbers in display order; any order, repeats allowed.
        size: Output side in pixels.
        crop: ``center`` or ``pad``.
        flip: Mirror left and right.
        zoom: Side of the cut relative to the largest possible one, in (0, 1].
        shift: Position of the cut, each in [-1, 1].
        device: The GPU.

    Raises:
        VideoError: The file is damaged, or only the CPU can decode it as the index counts it.
    """
    with opened(path) as (container, stream):
        found = Shown(stream)
        for _ in found.noted(packets_of(path, container, stream)):  # headers only
            continue
        if found.stamps is None:
            raise VideoError(f"{path}: only decoding counts its frames; use {SETTING} cpu")
        times, aspect = frame_times(found.stamps, stream), pixel_aspect(stream)
    numbers = np.asarray(indices, dtype=np.int64)
    unique, inverse = np.unique(numbers, return_inverse=True)
    if unique[-1] >= len(times):
        raise VideoError(f"{path}: ends after {len(times)} frames, before frame {unique[-1]}; the file is truncated or its length is wrong")
    try:
        source = reader(path, device, len(times))
        cut = Cut.of(source.metadata.width, source.metadata.height, aspect, size=size, crop=crop, zoom=zoom, shift=shift)
        tagged = source.metadata.color_space not in (None, "unknown", "unspecified")
        turn = None if tagged or source.metadata.height < LINES else _between_matrices().to(numbered(device))
        parts = np.split(unique, range(AT_ONCE, len(unique), AT_ONCE))
        pictures = torch.cat([fitted(source.get_frames_at(part.tolist()).data, cut, size, flip, turn) for part in parts])
    except torch.cuda.OutOfMemoryError:
        raise  # the file is not to blame
    except RuntimeError as error:  # torchcodec raises it for damaged files
        raise VideoError(f"{path}: damaged: the GPU cannot decode it ({str(error).splitlines()[0][:200]})") from error
    return Clip(pictures[torch.from_numpy(inverse).to(pictures.device)], torch.from_numpy(times[numbers].astype(np.float32)))


def reader(path: str | Path, device: str | torch.device, frames: int | None = None) -> Any:
    """torchcodec's decoder of a file. It counts the frames, and must come to ``frames`` if that is known.

    Raises:
        VideoError: It would decode on the CPU, turn the pictures, or count other frames.
    """
    from torchcodec.decoders import VideoDecoder

    try:
        source = VideoDecoder(str(path), device=str(numbered(device)), seek_mode="exact")
    except (RuntimeError, ValueError) as error:  # torchcodec raises these for damaged files
        raise VideoError(f"{path}: cannot be read for the GPU ({str(error).splitlines()[0][:200]}); use {SETTING} cpu") from error
    if source.cpu_fallback:
        raise VideoError(f"{path}: the GPU has no decoder for {source.metadata.codec}; use {SETTING} cpu")
    if source.metadata.rotation:
        raise VideoError(f"{path}: its pictures must be turned upright, which the GPU does not do; use {SETTING} cpu")
    if frames is not None and len(source) != frames:
        raise VideoError(f"{path}: has {frames} frames, but {len(source)} on the GPU; use {SETTING} cpu")
    return source


def numbered(device: str | torch.device) -> torch.device:
    """The device; a GPU without a number is the current one. Some versions of torchcodec take GPU 0 instead."""
    found = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if found.type == "cuda" and found.index is None else found


def fitted(pictures: Tensor, cut: Cut, size: int, flip: bool, colours: Tensor | None = None) -> Tensor:
    """Cut, scale, mirror and pad pictures, on any device.

    Args:
        pictures: (n, 3, H, W) uint8.
        cut: The rectangle and its new size.
        size: Output side in pixels; black bars fill what the cut leaves.
        flip: Mirror left and right.
        colours: (3, 3) RGB to RGB; None keeps the colours.

    Returns:
        (n, 3, size, size) uint8.
    """
    whole = pictures[:, :, cut.top : cut.top + cut.cut_height, cut.left : cut.left + cut.cut_width].float()
    if cut.width <= cut.cut_width and cut.height <= cut.cut_height:
        rows, columns = (_areas(*sides).to(whole) for sides in ((cut.cut_height, cut.height), (cut.cut_width, cut.width)))
        small = rows @ whole @ columns.T
    else:
        small = F.interpolate(whole, (cut.height, cut.width), mode="bilinear")
    if colours is not None:
        small = torch.einsum("oc,nchw->nohw", colours, small)
    small = small.round_().clamp_(0, 255).to(torch.uint8)
    small = small.flip(3) if flip else small
    left, top = (size - cut.width) // 2, (size - cut.height) // 2
    return F.pad(small, (left, size - cut.width - left, top, size - cut.height - top))


def _areas(source: int, target: int) -> Tensor:
    """(target, source) float32: the share of each stored line in each line of a smaller picture."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    lines = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], lines + 1) - torch.maximum(edges[:-1, None], lines)
    return (overlap.clamp(min=0) * target / source).float()


def _between_matrices() -> Tensor:
    """(3, 3) RGB that was converted by BT.601 -> RGB converted by BT.709, float32."""

    def to_luma_and_chroma(red: float, blue: float) -> Tensor:
        luma = torch.tensor([red, 1 - red - blue, blue])
        chroma = [(torch.eye(3)[channel] - luma) / (2 * (1 - weight)) for channel, weight in ((2, blue), (0, red))]
        return torch.stack([luma, *chroma])

    return torch.linalg.inv(to_luma_and_chroma(0.2126, 0.0722)) @ to_luma_and_chroma(0.299, 0.114)
