"""One performance: a person carries out an action at some time in a clip. All cameras film the same performance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vtlvlm.synth.actions import Action
from vtlvlm.synth.body import CHANNELS, POSE_SIZE, Array, J, mirror
from vtlvlm.synth.people import Person

DURATION = (46, 63)
"""Frames of the motion, before division by the subject's speed. They are drawn uniformly for every action."""
REST = (4, 41)
"""Frames of rest before the motion, and (drawn separately) after it."""
FACING_TURN = 0.15
"""Radians to either side of the rig's middle."""
STANDING_SPREAD = 0.06
"""Metres to either side of the rig's middle."""
PAIR_DISTANCE = 1.16
"""Metres between two people at rest."""


@dataclass(frozen=True)
class Timing:
    """The time of the motion: frames of the clip, first frame and number of frames of the motion."""

    frames: int
    start: int
    duration: int

    @classmethod
    def draw(cls, rng: np.random.Generator, speed: float) -> Timing:
        """Draw a timing. It is symmetric in time and independent of the action."""
        before, duration, after = (int(rng.integers(*bounds)) for bounds in (REST, DURATION, REST))
        duration = round(duration / speed)
        return cls(before + duration + after, before, duration)

    @property
    def phase(self) -> Array:
        """(frames,) in [0, 1]."""
        return np.clip((np.arange(self.frames) - self.start) / (self.duration - 1), 0.0, 1.0)


class Stand(NamedTuple):
    """Where a person stands, and which way they face."""

    turn: float
    """radians, 0 faces the middle camera"""
    place: Array
    """(3,) metres, on the floor"""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stand:
        """Near the rig's middle, facing it."""
        turn = rng.uniform(-FACING_TURN, FACING_TURN)
        return cls(turn, np.array([rng.uniform(-STANDING_SPREAD, STANDING_SPREAD), 0.0, rng.uniform(-STANDING_SPREAD, STANDING_SPREAD)]))


@dataclass(frozen=True)
class Performance:
    """Everything that moves in the room, frame by frame, in world coordinates (metres)."""

    timing: Timing
    people: tuple[Person, ...]
    joints: Array
    """(people, F, 25, 3)"""
    jacket: Array
    """(people, F, 3) in [0, 1]: in the working hand, on the trunk, on the arms"""
    working: tuple[str, ...]
    """the working hand of each person, "left" or "right" """
    box: Array | None
    """(F, 3) centre"""
    ball: Array | None
    """(F, 3) centre"""
    chair: tuple[float, float, float, float] | None
    """x, z, yaw (radians) and height of the seat; None for a room without a chair"""
    times: int = 0
    """repetitions of the action's movement; 0 for one that is not repeated"""

    def backward(self) -> Performance:
        """The same performance with time running backwards."""
        timing = Timing(self.timing.frames, self.timing.frames - self.timing.start - self.timing.duration, self.timing.duration)
        box, ball = (None if track is None else track[::-1] for track in (self.box, self.ball))
        return Performance(timing, self.people, self.joints[:, ::-1], self.jacket[:, ::-1], self.working, box, ball, self.chair, self.times)


def perform(
    action: Action, person: Person, extra: Person, rng: np.random.Generator, timing: Timing | None = None, stand: Stand | None = None
) -> Performance:
    """Play an action's program once.

    Args:
        action: the action.
        person: the subject.
        extra: the second person of an action for two. It is no subject, so no test subject appears in training.
        rng: draws timing, place, sway and repetitions. With equal generators, the two actions of a reversed pair give performances that
            are exact reversals of each other.
        timing: when it happens; drawn if None. An action that is played backwards has the times from its end.
        stand: where; drawn if None.
    """
    timing = timing or Timing.draw(rng, person.speed)
    motion = action.program(timing.phase, rng)
    people = (person, extra)[: action.people]
    working = "left" if person.left_handed else "right"
    turn, place = stand or Stand.draw(rng)
    # two people face each other, across the middle camera's line of sight
    turns = [turn] if action.people == 1 else [turn + np.pi / 2, turn - np.pi / 2]
    offset = PAIR_DISTANCE / 2 if action.people == 2 else 0.0
    joints = []
    for who, heading in zip(people, turns, strict=True):
        poses = amplify(motion.poses, who.amplitude) + sway(timing.frames, rng)
        local = who.body.joints(mirror(poses) if person.left_handed else poses)
        joints.append(to_world(local, heading, place - offset * forward(heading)))
    worn = np.zeros((timing.frames, 3)) if motion.jacket is None else motion.jacket
    jacket = np.stack([worn] * len(people))
    seat = place - 0.46 * person.body.leg * forward(turn)
    height = person.body.pelvis_height - 0.50 * person.body.leg - 0.11
    box = ball = None
    first = timing.start + round((motion.contact or 0.0) * (timing.duration - 1))
    if action.prop == "box":
        box = carried(joints[0][:, J[f"hand_tip_{working}"]], first, 0.09)
    elif action.prop == "ball":
        ball = rolling(joints[0][:, J[f"foot_{working}"]], first, heading=turn + rng.uniform(-0.6, 0.6), radius=0.12)
    performance = Performance(
        timing,
        people,
        np.stack(joints),
        jacket,
        (working,) * len(people),
        box,
        ball,
        (seat[0], seat[2], turn, height),
        motion.times,
    )
    return performance.backward() if action.backward else performance


def amplify(poses: Array, amplitude: float) -> Array:
    """Scale the movements of the arms, relative to the first frame."""
    out = poses.copy()
    for name in ("hand_left", "hand_right"):
        part = poses[:, CHANNELS[name]]
        out[:, CHANNELS[name]] = part[:1] + amplitude * (part - part[:1])
    return out


def sway(frames: int, rng: np.random.Generator) -> Array:
    """The small slow movements of a living person, (frames, POSE_SIZE)."""
    size = np.zeros(POSE_SIZE)
    for name, values in {
        "pelvis": (0.012, 0.0, 0.010), "turn": (0.0, 0.03, 0.0), "spine": (0.03, 0.03, 0.02), "head": (0.10, 0.25, 0.03),
        "hand_left": (0.02, 0.01, 0.04), "hand_right": (0.02, 0.01, 0.04),
    }.items():  # fmt: skip
        size[CHANNELS[name]] = values
    seconds = np.arange(frames)[:, None, None] / 30.0
    rates, phases = rng.uniform(0.15, 0.6, (2, POSE_SIZE)), rng.uniform(0, 2 * np.pi, (2, POSE_SIZE))
    return size * np.sin(2 * np.pi * rates * seconds + phases).mean(axis=1)


def forward(heading: float) -> Array:
    """Unit vector (3,) on the floor."""
    return np.array([np.sin(heading), 0.0, np.cos(heading)])


def to_world(points: Array, heading: float, place: Array) -> Array:
    """Points (..., 3) of a person at the origin who faces +z, turned to ``heading`` and moved to ``place``."""
    side = np.array([np.cos(heading), 0.0, -np.sin(heading)])
    return points @ np.stack([side, [0.0, 1.0, 0.0], forward(heading)]) + place


def carried(hand: Array, first: int, height: float) -> Array:
    """Positions (F, 3) of an object: on the floor below the hand until frame ``first``, then in the hand."""
    below = hand[first, 1] - height
    track = hand - [0.0, below, 0.0]
    track[:first] = track[first]
    return track


def rolling(foot: Array, first: int, heading: float, radius: float) -> Array:
    """Positions (F, 3) of a ball in front of the foot that rolls away at frame ``first``, with 3.6 m/s and slowing."""
    rest = np.array([foot[first, 0], radius, foot[first, 2]]) + 0.5 * radius * forward(heading)
    seconds = np.clip(np.arange(len(foot)) - first, 0, None)[:, None] / 30.0
    return rest + forward(heading) * 3.6 * (1 - np.exp(-0.8 * seconds)) / 0.8
