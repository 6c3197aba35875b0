"""Joins clips of real people into long videos, with the true segments.

A film shows one person in one place: clips with NTU names are joined if person, setup and camera are the same. Between two clips the last
picture of the one and then the first picture of the next stand still. Nothing moves there, not even the camera's noise: such rests are
easier to tell from movement than people who stand idle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.container import opened
from vtlvlm.data.forms import found
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.playing import timed
from vtlvlm.data.video import linked, pixel_aspect, probe, scaling, turns
from vtlvlm.errors import DataError, UsageError
from vtlvlm.synth.dataset import CLASSES, MANIFEST, claim, each_made, require_settings, write
from vtlvlm.synth.render import encode
from vtlvlm.synth.untrimmed import FILMS, TRUTH, Span, annotated, truth_of
from vtlvlm.system.files import replacing

JOINED_VERSION = 1
"""Increased whenever the same settings give other videos."""
HOLD = (0.5, 2.5)
"""Seconds of a held picture on each side of a clip"""
LONGER_SIDE = 1280
"""Pixels of a film's longer side, at most"""
FASTEST = 60
"""Pictures of a film in a second, at most"""
Picture = NDArray[np.uint8]


@dataclass(frozen=True, order=True)
class Piece:
    """A clip in a film."""

    file: Path
    label: str
    frames: int
    """of the film, without the held ones; likewise the next two"""
    before: int
    after: int


@dataclass(frozen=True, order=True)
class JoinedFilm:
    """One long video to join."""

    name: str
    pieces: tuple[Piece, ...]
    rate: Fraction
    width: int
    height: int

    @property
    def frames(self) -> int:
        """Frames of the film."""
        return sum(one.before + one.frames + one.after for one in self.pieces)

    def spans(self) -> list[Span]:
        """The clips' labels, and their starts and ends in seconds."""
        told, at = [], 0
        for one in self.pieces:
            start = at + one.before
            told.append((one.label, float(start / self.rate), float((start + one.frames) / self.rate)))
            at = start + one.frames + one.after
        return told

    def make(self, root: Path) -> None:
        """Write the video, whole or not at all."""
        with replacing(self.path(root), follow=False, tidy=False) as part:
            encode(part, self._pictures(), "mp4", self.rate)

    def path(self, root: Path) -> Path:
        """Its file."""
        return root / FILMS / f"{self.name}.mp4"

    def made(self, root: Path) -> bool:
        """Whether it exists."""
        return self.path(root).is_file() and self.path(root).stat().st_size > 0

    def _pictures(self) -> Iterator[Picture]:
        for one in self.pieces:
            shown = self._shown(one)
            picture = next(shown)
            yield from [picture] * (one.before + 1)
            for picture in shown:  # the last one is held
                yield picture
            yield from [picture] * one.after

    def _shown(self, piece: Piece) -> Iterator[Picture]:
        """What a clip shows at the middle of each of the film's frames."""
        graph, kind, held, number = None, None, None, 0
        with opened(piece.file) as (container, stream):
            for time, frame in timed(piece.file, container, stream):
                while held is not None and number < piece.frames and (number + 0.5) / self.rate < time:
                    yield held
                    number += 1
                if number == piece.frames:
                    return
                if graph is None or kind != (frame.width, frame.height, frame.format.name):
                    kind = (frame.width, frame.height, frame.format.name)
                    graph = self._graph(frame, stream)
                graph.push(frame)
                held = graph.pull().to_ndarray()
        assert held is not None  # a clip without a frame is an error
        for _ in range(number, piece.frames):
            yield held

    def _graph(self, frame: av.VideoFrame, stream: av.VideoStream) -> av.filter.Graph:
        """Scales frames like this one into the film's, with black bars where the shapes differ."""
        width, height = frame.width * pixel_aspect(stream), float(frame.height)
        lying = frame.rotation % 180 != 0
        share = min(self.width / (height if lying else width), self.height / (width if lying else height))
        into = (
            max(1, min(round(width * share), self.height if lying else self.width)),
            max(1, min(round(height * share), self.width if lying else self.height)),
        )
        steps = (("scale", f"{into[0]}:{into[1]}:{scaling(frame)}"), ("format", "rgb24"), *turns(frame))
        return linked(frame, stream, *steps, ("pad", f"{self.width}:{self.height}:-1:-1"))


def join(
    output: Path,
    clips: Path,
    *,
    people: Sequence[int] | None = None,
    seed: int = 0,
    films: int = 1,
    actions: Sequence[int] | None = None,
    unlisted: Sequence[int] = (),
    parts: int = 8,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Join clips into long videos, or the missing ones, with their true segments.

    Args:
        output: folder to write. It gets ``videos``, ``truth.json`` (ActivityNet's annotations), ``classes.txt`` with the listed actions
            and, last, ``synth.json``.
        clips: folder of clips, with NTU names or a folder for each class.
        people: numbers of the people, from the NTU names; None for all.
        seed: of everything random; at least 0.
        films: videos of each person, setup and camera; of all clips, if their names do not say who is in them.
        actions: numbers of the listed actions, from the NTU names; None for all.
        unlisted: numbers of actions that occur but are in no list: the truth calls them idle, and ``synth.json`` names them.
        parts: clips in a video, at most; none comes twice in one.
        workers: processes; None for one per usable core.
        progress: whether to show a progress bar.

    Returns:
        The manifest, as in ``synth.json``.

    Raises:
        UsageError: A setting is out of range or does not fit the clips, or the folder was made with other settings.
        DataError: The clips cannot be read, or the folder holds other files under the same names.
    """
    require_settings(seed, {"films": films, "parts": parts}, (1,), workers)
    index = found(clips, None)
    rows, numbered = _rows(index, people, actions, unlisted), index.layout == "ntu"
    hidden = {index.classes[index.label[row]] for row in rows if _action(index, row) in set(unlisted)} if numbered else set()
    chosen = [str(index.path[row]) for row in rows]
    digest = blake2b("".join(f"{path} {index.size[row]}\n" for path, row in zip(chosen, rows, strict=True)).encode(), digest_size=8)
    settings = {
        "joined": JOINED_VERSION, "seed": seed, "clips": digest.hexdigest(), "films": films, "unlisted": sorted(hidden), "parts": parts,
    }  # fmt: skip
    root = Path(output)
    claim(root, settings, (FILMS,), (CLASSES, TRUTH))
    made = list(_films(index, rows, seed, films, parts))
    each_made(made, root, workers, "join", "video", progress)
    rows_of = {one.name: [span for span in one.spans() if span[0] not in hidden] for one in made}
    write(root / TRUTH, truth_of(rows_of, {one.name: float(one.frames / one.rate) for one in made}))
    prefixes = {index.classes[index.label[row]]: f"A{_action(index, row):03d} " if numbered else "" for row in rows}
    write(root / CLASSES, "".join(sorted(f"{prefix}{name}\n" for name, prefix in prefixes.items() if name not in hidden)))
    described = [
        {
            "name": one.name,
            "frames": one.frames,
            "fps": float(one.rate),
            "clips": [piece.file.name for piece in one.pieces],
            "unlisted": annotated([span for span in one.spans() if span[0] in hidden]),
        }
        for one in made
    ]
    manifest = {**settings, "videos": described}
    write(root / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _action(index: ClipIndex, row: int) -> int:
    """The action's number in an NTU name."""
    return int(str(index.name[row]).rpartition("A")[2])


def _rows(index: ClipIndex, people: Sequence[int] | None, actions: Sequence[int] | None, unlisted: Sequence[int]) -> list[int]:
    """The clips to join, by their paths."""
    rows = [row for row in range(len(index)) if index.label[row] >= 0 and not index.problem[row]]
    given = {"people": people, "actions": actions, "unlisted": unlisted}
    if index.layout == "ntu":
        person, action = {row: int(index.subject[row]) for row in rows}, {row: _action(index, row) for row in rows}
        for name, values in given.items():
            known = set((person if name == "people" else action).values())
            if strange := sorted({*(values or ())} - known):
                raise UsageError(f"--{name} {strange[0]}: not in {index.root}, which has {', '.join(map(str, sorted(known)))}")
        who = None if people is None else set(people)
        what = None if actions is None else {*actions, *unlisted}
        rows = [row for row in rows if (who is None or person[row] in who) and (what is None or action[row] in what)]
    elif wrong := next((name for name, values in given.items() if values), None):
        raise UsageError(f"--{wrong}: the clips in {index.root} have no NTU names, which say who does what; leave it out")
    if not rows:
        raise DataError(index.excluded() or f"{index.root}: holds no clip of these people and actions; choose others")
    return sorted(rows, key=lambda row: str(index.path[row]))


def _films(index: ClipIndex, rows: Sequence[int], seed: int, films: int, parts: int) -> Iterator[JoinedFilm]:
    """The films, drawn from the clips of each person, setup and camera."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        ntu = index.layout == "ntu"
        place = f"S{index.setup[row]:03d}C{index.camera[row]:03d}P{index.subject[row]:03d}" if ntu else "clips"
        groups.setdefault(place, []).append(row)
    for place, members in groups.items():
        for number in range(1, films + 1):
            rng = np.random.default_rng([seed, 10, number, *place.encode()])
            order = rng.permutation(len(members))[:parts].tolist()
            infos = [probe(index.file(members[one])) for one in order]
            first = infos[0]
            rate = Fraction(min(first.fps, FASTEST)).limit_denominator(1001)
            held = rng.uniform(*HOLD, (len(order), 2))
            pieces = tuple(
                Piece(
                    index.file(members[one]),
                    index.classes[index.label[members[one]]],
                    max(1, round(info.duration * rate)),
                    *(round(float(seconds) * rate) for seconds in hold),
                )
                for one, info, hold in zip(order, infos, held, strict=True)
            )
            width, height = (first.height, first.width) if first.rotation % 180 else (first.width, first.height)
            share = min(1.0, LONGER_SIDE / max(width, height))
            yield JoinedFilm(f"{place}N{number:02d}", pieces, rate, *(max(2, round(side * share / 2) * 2) for side in (width, height)))
