"""Builds an event dictionary from the event cache and the training clips of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vtlvlm.data.cache import EventCache
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import VideoError, decode_sampled
from vtlvlm.dictionary.counting import count, neighbours
from vtlvlm.dictionary.crops import CELL_PIXELS, Place, select_crops
from vtlvlm.dictionary.entries import FORMAT, MOST_EXEMPLARS, PICTURES, EventDictionary, picture_file
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.files import replacing

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule

BATCH = 4096
"""Sentences that are counted at once"""
QUALITY = 82
"""Of the pictures, as WebP counts it"""
CLIPS = 512
"""Clips that are decoded for pictures, at most"""


def build(data: NTUDataModule) -> EventDictionary:
    """Count the plain views of the training clips.

    Args:
        data: Set up, with an event cache.

    Raises:
        UsageError: There is no event cache, or it holds continuous events.
    """
    cache = _cache(data)
    table = cache.table
    if table is None:
        raise UsageError(f"{cache.folder}: its events are continuous (IdentityQuantizer), and have no codes to list")
    rows, clips = _rows(data, cache)
    windows = int(cache.spans(rows[:1]).shape[1])
    counts = count(_sentences(data, cache, rows, clips), len(table), len(data.classes), windows)
    near, cosines = neighbours(table, counts.tally.counts > 0)
    tensors = {
        "tokens": counts.tally.counts,
        "clips": counts.clips,
        "runs": counts.runs,
        "seconds": counts.seconds,
        "pairs": counts.tally.pairs,
        "class_clips": counts.tally.clips,
        "neighbours": near,
        "cosines": cosines,
        "followers": counts.followers,
        "follower_shares": counts.follower_shares,
    }
    facts: dict[str, Any] = {
        "format": FORMAT,
        "codes": len(table),
        "classes": list(data.classes),
        "clips": len(clips),
        "tokens": counts.tally.tokens,
        "windows": windows,
        "cells": cache.num_tokens // windows,
        "protocol": data.source.protocol,
        "train_hash": data.train_hash,
        "events": cache.hash,
        "vtem": cache.provenance.get("vtem_hash"),
        "exemplars": {},
    }
    return EventDictionary(facts, {name: tensor.numpy() for name, tensor in tensors.items()})


def _cache(data: NTUDataModule) -> EventCache:
    if not isinstance(data.events_cache, EventCache):
        raise UsageError("a dictionary is made from an event cache: name one with --events")
    return data.events_cache


def _rows(data: NTUDataModule, cache: EventCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cache rows and index rows of the training clips."""
    clips = data.split.require("train")
    return cache.rows(data.clip_names(clips), 0), clips


def _sentences(
    data: NTUDataModule, cache: EventCache, rows: NDArray[np.int64], clips: NDArray[np.int64]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    import torch

    labels = torch.from_numpy(np.asarray(data.index.label)[clips].astype(np.int64))
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        yield cache.ids(part), cache.spans(part), labels[start : start + BATCH]


# -- pictures ----------------------------------------------------------------------------------------------------------------------


def add_exemplars(dictionary: EventDictionary, data: NTUDataModule, folder: Path, each: int, progress: Any = iter) -> str:
    """Write pictures of the codes into a folder, and note their clips. Each picture of a code comes from another training clip.

    Few clips are decoded: the next one is the one with the most codes that lack pictures.

    Args:
        dictionary: Of these clips; changed in place.
        data: As for :func:`build`, with its videos.
        folder: Gets `codes/K.webp`.
        each: Pictures of a code.
        progress: Wraps the rows that are decoded, for a bar.

    Returns:
        One line that says what is missing; "" if nothing is.

    Raises:
        UsageError: ``each`` is out of range, or the videos are not here.
    """
    if not 1 <= each <= MOST_EXEMPLARS:
        raise UsageError(f"--exemplars {each}: from 1 to {MOST_EXEMPLARS} pictures of a code")
    if not data.source.has_videos:
        raise UsageError("pictures need the videos: name their folder with --videos, or leave --exemplars out")
    cache = _cache(data)
    rows, clips = _rows(data, cache)
    cells = int(dictionary.facts["cells"])
    grid = round(cells**0.5)
    codes = np.flatnonzero(dictionary.numbers["tokens"]).tolist()
    ids = cache.ids(rows).unflatten(1, (-1, cells)).numpy()
    places = select_crops(ids, clips, codes, each, CLIPS)
    by_row: dict[int, list[Place]] = {}
    for found in places.values():
        for place in found:
            by_row.setdefault(place.row, []).append(place)
    pictures: dict[int, list[tuple[NDArray[np.uint8], str, float]]] = {}
    failures: list[str] = []
    for row in progress(sorted(by_row)):
        clip = int(clips[row])
        name, middles = data.clip_names([clip])[0], cache.spans(rows[row : row + 1])[0].mean(1).numpy()
        try:
            frames, times = _frames(data, clip, name, grid)
        except (VideoError, DataError) as error:
            failures.append(str(error))
            continue
        for place in by_row[row]:
            at = int(np.abs(times - middles[place.window]).argmin())
            top, left = (CELL_PIXELS * number for number in divmod(place.cell, grid))
            cell = frames[at, top : top + CELL_PIXELS, left : left + CELL_PIXELS]
            pictures.setdefault(place.code, []).append((cell, name, round(float(middles[place.window]), 3)))
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for code, found_ in sorted(pictures.items()):
        with replacing(picture_file(folder, code)) as temporary:
            Image.fromarray(np.concatenate([cell for cell, _, _ in found_], axis=1)).save(temporary, format="WEBP", quality=QUALITY)
        dictionary.facts["exemplars"][str(code)] = [[clip, at] for _, clip, at in found_]
    lacking = len(codes) - len(pictures)
    said = [f"{len(failures)} of {len(by_row)} videos cannot be decoded: {failures[0]}"] if failures else []
    said += [f"{lacking} of {len(codes)} codes have no picture"] if lacking else []
    return "; ".join(said)


def _frames(data: NTUDataModule, clip: int, name: str, grid: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The sampled frames (T, H, W, 3) of a clip's plain view, as large as the cells' pictures need, and their times (T,)."""
    sampling = replace(FrameSampling(**data.sampling_settings["init_args"]), size=grid * CELL_PIXELS)
    index = data.index
    found = decode_sampled(
        index.file(clip), sampling, name=name, seed=data.seed, num_frames=int(index.frames[clip]), rate=float(index.fps[clip])
    )
    frames: NDArray[np.uint8] = found.frames.permute(0, 2, 3, 1).numpy()
    return frames, found.times.double().numpy()
