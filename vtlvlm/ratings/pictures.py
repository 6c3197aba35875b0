"""Pictures of codes for raters: frames of training clips of other people, in which the code's cell is outlined."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import VideoError, decode_sampled
from vtlvlm.dictionary.crops import Place, select_crops
from vtlvlm.errors import DataError
from vtlvlm.ratings.design import Condition
from vtlvlm.ratings.sentences import Sentences

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule

SIDE = 144
"""Pixels of a frame's side in a montage of two by two"""
EACH = 4
"""Frames of a montage, at most"""
GAP = 4
CLIPS = 512
"""Training clips that are decoded for one codebook, at most"""
LINE, GROUND = (255, 196, 0), (127, 127, 127)


def places_of(sentences: Sentences, clips: NDArray[np.int64], codes: Iterable[int]) -> dict[int, list[Place]]:
    """Where codes occur in training clips: up to four places each, in different clips.

    Args:
        sentences: (n, W, S) of training clips.
        clips: (n,) their rows of the index.
        codes: Those to find.
    """
    wanted = sorted({*codes})
    return select_crops(sentences.codes, clips, wanted, EACH, CLIPS) if wanted else {}


def frames_of(
    data: NTUDataModule,
    clips: NDArray[np.int64],
    wanted: Mapping[Condition, tuple[Sentences, dict[int, list[Place]]]],
    progress: Any = iter,
) -> tuple[dict[Condition, dict[int, list[NDArray[np.uint8]]]], list[str]]:
    """The frames of places in several codebooks; each clip is decoded once.

    Args:
        data: Set up, with its videos.
        clips: (n,) rows of the index, as for :func:`places_of`.
        wanted: Name of a codebook -> its sentences of the clips, and places in them.
        progress: Wraps the clips that are decoded, for a bar.

    Returns:
        Codebook -> code -> frames (144, 144, 3) with the cell outlined; and a line for each clip that cannot be decoded.
    """
    by_row: dict[int, list[tuple[Condition, Place]]] = {}
    for name, (_, places) in wanted.items():
        for place in (one for found in places.values() for one in found):
            by_row.setdefault(place.row, []).append((name, place))
    found: dict[Condition, dict[int, list[NDArray[np.uint8]]]] = {name: {} for name in wanted}
    failures = []
    sampling = replace(FrameSampling(**data.sampling_settings["init_args"]), size=SIDE)
    for row in progress(sorted(by_row)):
        index, clip = data.index, int(clips[row])
        known: dict[str, Any] = {"num_frames": int(index.frames[clip]), "rate": float(index.fps[clip])}
        try:
            seen = decode_sampled(index.file(clip), sampling, name=str(index.name[clip]), seed=data.seed, **known)
        except (VideoError, DataError) as error:
            failures.append(str(error))
            continue
        frames, times = seen.frames.permute(0, 2, 3, 1).numpy(), seen.times.double().numpy()
        for name, place in by_row[row]:
            sentences = wanted[name][0]
            at = int(np.abs(times - sentences.spans[row, place.window].mean()).argmin())
            found[name].setdefault(place.code, []).append(outlined(frames[at], place.cell, round(sentences.codes.shape[2] ** 0.5)))
    return found, failures


def outlined(frame: NDArray[np.uint8], cell: int, grid: int) -> NDArray[np.uint8]:
    """A frame (H, H, 3) with the border of one of its g x g cells drawn; as it is for g = 1."""
    frame = frame.copy()
    if grid > 1:
        side, (row, column) = frame.shape[0] // grid, divmod(cell, grid)
        top, left = row * side, column * side
        for inset in range(3):
            a, b, c, d = top + inset, top + side - 1 - inset, left + inset, left + side - 1 - inset
            frame[a, c : d + 1] = frame[b, c : d + 1] = frame[a : b + 1, c] = frame[a : b + 1, d] = LINE
    return frame


def montage(frames: list[NDArray[np.uint8]]) -> bytes:
    """Up to four frames (144, 144, 3), two by two, as WebP; grey where there are fewer."""
    whole = np.full((2 * SIDE + GAP, 2 * SIDE + GAP, 3), GROUND, dtype=np.uint8)
    for number, frame in enumerate(frames[:EACH]):
        top, left = ((SIDE + GAP) * place for place in divmod(number, 2))
        whole[top : top + SIDE, left : left + SIDE] = frame
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, format="WEBP", quality=80)
    return buffer.getvalue()
