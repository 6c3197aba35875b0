"""Renders long videos: one person carries out several actions one after the other, with idle time between them, and the true segments.

The person stays in one place. An action is cut to another in the person's rest, over a third of a second. What an action leaves behind goes
on: after "sit down" the next action is "stand up", a jacket that was put on is taken off next, and nothing follows a fall. Actions with a
second person or a prop, which would have to come from somewhere, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vtlvlm.data import ntu
from vtlvlm.errors import UsageError
from vtlvlm.synth.actions import ACTIONS
from vtlvlm.synth.body import Array
from vtlvlm.synth.dataset import CLASSES, MANIFEST, claim, each_made, require_known, require_settings, write
from vtlvlm.synth.people import Person
from vtlvlm.synth.performance import Performance, Stand, Timing, perform
from vtlvlm.synth.render import encode, frames
from vtlvlm.synth.scene import ANGLES, FPS, HEIGHT, WIDTH, Camera, Setup, setup_of
from vtlvlm.system.files import replacing

UNTRIMMED_VERSION = 2
"""Increased whenever the same settings give other videos."""
FILMS, TRUTH = "videos", "truth.json"
FOLLOWS = {8: 9, 14: 15}
"""Actions that leave the person in another state, and the action that must follow"""
LAST = 43
"""Nothing follows a fall."""
SUITABLE = tuple(number for number, action in ACTIONS.items() if action.people == 1 and not action.prop)
"""Actions of one person without a prop"""
IDLE = (8, 180)
"""Frames of idle time on each side of an action"""
STILL = 30
"""Seconds of a video without actions"""
BLEND = 10
"""Frames from the rest after an action to the rest before the next"""


Span = tuple[str, float, float]
"""A label, start and end in seconds"""


@dataclass(frozen=True)
class Part:
    """An action in a long video."""

    action: int
    start: float
    """seconds"""
    end: float


@dataclass(frozen=True, order=True)
class FilmSpec:
    """One long video to render. These values determine it completely."""

    seed: int
    subject: int
    camera: int
    number: int
    actions: tuple[int, ...]
    parts: int

    @property
    def name(self) -> str:
        """Such as P003C001N02."""
        return f"P{self.subject:03d}C{self.camera:03d}N{self.number:02d}"

    @property
    def setup(self) -> Setup:
        """The room, the same for all cameras."""
        coin = int(np.random.default_rng([self.seed, 7, self.subject, self.number]).integers(2))
        return Setup.of(self.seed, setup_of(self.subject, coin))

    def performance(self) -> tuple[Performance, list[Part]]:
        """The performance, the same for all cameras, and its actions in their order."""
        rng = np.random.default_rng([self.seed, 8, self.subject, self.number])
        person = Person.of(self.seed, self.subject)
        stand = Stand.draw(rng)
        played = []
        for action in programme(self.actions, self.parts, rng):
            before, after = (int(rng.integers(*IDLE)) for _ in range(2))
            motion = Timing.draw(rng, person.speed).duration
            played.append((action, perform(ACTIONS[action], person, person, rng, Timing(before + motion + after, before, motion), stand)))
        if not played:
            still = perform(ACTIONS[10], person, person, rng, Timing(STILL * FPS, STILL * FPS, 2), stand)
            return still, []
        whole, starts = joined([performance for _, performance in played])
        parts = []
        for (action, performance), start in zip(played, starts, strict=True):
            first = start + performance.timing.start
            parts.append(Part(action, first / FPS, (first + performance.timing.duration) / FPS))
        return whole, parts

    def make(self, root: Path) -> None:
        """Write the video, whole or not at all."""
        performance, setup = self.performance()[0], self.setup
        rng = np.random.default_rng([self.seed, 9, self.subject, self.camera, self.number])
        with replacing(self.path(root), follow=False, tidy=False) as part:
            encode(part, frames(performance, setup, Camera.of(setup, self.camera), rng), "mp4")

    def path(self, root: Path) -> Path:
        """Its file."""
        return root / FILMS / f"{self.name}.mp4"

    def made(self, root: Path) -> bool:
        """Whether it exists."""
        return self.path(root).is_file() and self.path(root).stat().st_size > 0


def programme(actions: Sequence[int], parts: int, rng: np.random.Generator) -> list[int]:
    """Draw the actions of a video, in their order: all of them once, in a random order, and again until there are enough. Every second
    video ends with a fall, if that is one of the actions.

    Args:
        actions: To draw from, with the followers of ``FOLLOWS``.
        parts: How many; one more if an action needs its follower.
        rng: Of the draw.
    """
    units = [(action, FOLLOWS[action]) if action in FOLLOWS else (action,) for action in actions if action not in (LAST, *FOLLOWS.values())]
    falls = LAST in actions and parts > 0 and (not units or rng.random() < 0.5)
    found: list[int] = []
    while units and len(found) < parts - falls:
        for place in rng.permutation(len(units)).tolist():
            if len(found) < parts - falls:
                found += units[place]
    return found + [LAST] * falls


def joined(performances: Sequence[Performance]) -> tuple[Performance, list[int]]:
    """Performances of one person in one place, one after the other, and the frame at which each begins."""
    first = performances[0]
    joints, jackets, starts, count = [first.joints], [first.jacket], [0], first.timing.frames
    for performance in performances[1:]:
        share = smooth_steps(BLEND)[None, :, None, None]
        before, after = joints[-1][:, -1:], performance.joints[:, :1]
        joints += [before + share * (after - before), performance.joints]
        last, next_ = jackets[-1][:, -1:], performance.jacket[:, :1]
        jackets += [last + share[..., 0] * (next_ - last), performance.jacket]
        starts.append(count + BLEND)
        count += BLEND + performance.timing.frames
    timing = Timing(count, 0, count)
    whole = replace(first, timing=timing, joints=np.concatenate(joints, axis=1), jacket=np.concatenate(jackets, axis=1))
    return whole, starts


def smooth_steps(count: int) -> Array:
    """(count,) between 0 and 1, both left out, with zero speed at both."""
    x = np.arange(1, count + 1) / (count + 1)
    return x * x * (3 - 2 * x)


def annotated(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Spans as ActivityNet writes them."""
    return [{"label": label, "segment": [round(start, 4), round(end, 4)]} for label, start, end in spans]


def truth_of(spans: Mapping[str, Sequence[Span]], seconds: Mapping[str, float]) -> str:
    """The true segments of films in ActivityNet's JSON.

    Args:
        spans: Of each film.
        seconds: Length of each film.
    """
    database = {
        name: {"subset": "testing", "duration": round(seconds[name], 4), "annotations": annotated(one)} for name, one in spans.items()
    }
    return json.dumps({"version": "VERSION 1.3", "database": database}, indent=1, ensure_ascii=False) + "\n"


def generate_untrimmed(
    output: Path,
    *,
    people: Sequence[int],
    seed: int = 0,
    films: int = 1,
    actions: Sequence[int] | None = None,
    unlisted: Sequence[int] = (),
    parts: int = 8,
    cameras: Sequence[int] = (1,),
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Render long videos, or their missing ones, with their true segments.

    Args:
        output: folder to write. It gets ``videos``, ``truth.json`` (ActivityNet's annotations), ``classes.txt`` with the listed actions
            and, last, ``synth.json``.
        people: numbers of the people, those of :func:`generate` with the same seed.
        seed: of everything random; at least 0.
        films: videos of each person and camera.
        actions: official numbers of the listed actions; None for all suitable ones.
        unlisted: numbers of actions that occur but are in no list: the truth calls them idle, and ``synth.json`` names them.
        parts: actions in a video; 0 for a person who stands idle for half a minute.
        cameras: of 1, 2 and 3, which film the same performances.
        workers: processes; None for one per usable core.
        progress: whether to show a progress bar.

    Returns:
        The manifest, as in ``synth.json``.

    Raises:
        UsageError: A setting is out of range, or the folder was made with other settings.
        DataError: The folder holds other files under the same names.
    """
    hidden = sorted(set(unlisted))
    listed = sorted(set(SUITABLE if actions is None else actions) - set(hidden))
    who, filmed = sorted(set(people)), sorted(set(cameras))
    if not who or who[0] < 1:
        raise UsageError("people: give at least one number, from 1")
    require_settings(seed, {"films": films, "subjects": max(who, default=0)}, filmed, workers)
    require_known("action", listed, SUITABLE)
    if hidden:
        require_known("unlisted action", hidden, SUITABLE)
    for one, other in FOLLOWS.items():
        if len({one, other} & {*listed, *hidden}) == 1:
            raise UsageError(f"actions {one} and {other} belong together: what one changes the other undoes; choose both, or none")
    if not 0 <= parts <= 200:
        raise UsageError(f"{parts} actions in a video: from 0, for an idle person, to 200")
    settings = {
        "untrimmed": UNTRIMMED_VERSION, "seed": seed, "people": who, "films": films, "actions": listed, "unlisted": hidden, "parts": parts,
        "cameras": filmed, "width": WIDTH, "height": HEIGHT, "fps": FPS,
    }  # fmt: skip
    both = tuple(sorted({*listed, *hidden}))
    specs = [FilmSpec(seed, one, camera, number, both, parts) for one in who for number in range(1, films + 1) for camera in filmed]
    root = Path(output)
    claim(root, settings, (FILMS,), (CLASSES, TRUTH))
    each_made(specs, root, workers, "synth", "video", progress)
    names = {number: ntu.ACTIONS[number - 1] for number in both}
    true: dict[str, list[Span]] = {}
    seconds: dict[str, float] = {}
    described = []
    for spec in specs:
        performance, found = spec.performance()
        true[spec.name] = [(names[one.action], one.start, one.end) for one in found if one.action in listed]
        others = [(names[one.action], one.start, one.end) for one in found if one.action in hidden]
        seconds[spec.name] = performance.timing.frames / FPS
        described.append({"name": spec.name, "frames": performance.timing.frames, "unlisted": annotated(others)})
    write(root / TRUTH, truth_of(true, seconds))
    write(root / CLASSES, "".join(f"A{number:03d} {names[number]}\n" for number in listed))
    manifest = {
        **settings,
        "camera_angles": {f"C{camera:03d}": ANGLES[camera] for camera in filmed},
        "performers": {f"P{one:03d}": asdict(Person.of(seed, one)) for one in who},
        "videos": described,
    }
    write(root / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest
