"""The motion programs: each rendered NTU action as poses over its phase u in [0, 1].

Every program is written for a right-handed performer who faces +z. ``rng`` draws the number of repetitions of a repeated motion.
An action holds phase 0 before its start and phase 1 after its end, so a program defines both states of rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from vtlvlm.synth.body import CHANNELS, Array, pose

TAU = 2 * np.pi


@dataclass(frozen=True)
class Motion:
    """The result of a program."""

    poses: Array
    """(F, POSE_SIZE)"""
    jacket: Array | None = None
    """(F, 3) in [0, 1]: how far the jacket hangs in the working hand, lies on the trunk, and covers the arms; None without a jacket"""
    contact: float | None = None
    """phase at which the working hand takes the box, or the working foot hits the ball"""
    times: int = 0
    """repetitions of the movement; 0 for one that is not repeated"""


Program = Callable[[Array, np.random.Generator], Motion]


@dataclass(frozen=True)
class Action:
    """One NTU action and its program."""

    number: int
    """official NTU number, 1 to 120"""
    program: Program = field(repr=False)
    backward: bool = False
    """whether the program is played backwards in time"""
    people: int = 1
    prop: str = ""
    """"box", "ball", or "" without a prop"""


def smooth(u: Array, start: float, end: float) -> Array:
    """Rises from 0 at ``start`` to 1 at ``end``, with zero speed at both."""
    x = np.clip((u - start) / (end - start), 0.0, 1.0)
    return x * x * (3 - 2 * x)


def bump(u: Array, rise: float = 0.2, fall: float = 0.8) -> Array:
    """0 at both ends of the phase, 1 between ``rise`` and ``fall``."""
    return smooth(u, 0.0, rise) * (1 - smooth(u, fall, 1.0))


def blend(u: Array, *keys: tuple[float, Array]) -> Array:
    """Poses (F, POSE_SIZE) through key poses (POSE_SIZE,) at given ascending phases."""
    poses = np.repeat(keys[0][1][None], len(u), axis=0)
    for (start, before), (end, after) in pairwise(keys):
        poses += smooth(u, start, end)[:, None] * (after - before)
    return poses


def shift(poses: Array, **offsets: tuple[Array | float, Array | float, Array | float]) -> Array:
    """Adds offsets over time to parts of the poses, in place."""
    for name, values in offsets.items():
        for axis, value in enumerate(values):
            poses[:, CHANNELS[name].start + axis] += value
    return poses


def sit_down(u: Array, rng: np.random.Generator) -> Motion:
    """Leans, lowers onto the chair behind, straightens, and stays seated."""
    knees = {"hand_left": (-0.05, -0.55, 0.62), "hand_right": (0.05, -0.55, 0.62)}
    lean = pose(pelvis=(0, -0.16, -0.16), spine=(0.65, 0, 0), head=(-0.2, 0, 0), hand_left=(0.05, -0.7, 0.5), hand_right=(-0.05, -0.7, 0.5))
    touch = pose(pelvis=(0, -0.47, -0.40), spine=(0.55, 0, 0), head=(-0.2, 0, 0), hand_left=(0.0, -0.6, 0.6), hand_right=(0.0, -0.6, 0.6))
    seated = pose(pelvis=(0, -0.50, -0.44), spine=(0.04, 0, 0), **knees)
    return Motion(blend(u, (0.0, pose()), (0.4, lean), (0.75, touch), (1.0, seated)))


def wear_jacket(u: Array, rng: np.random.Generator) -> Motion:
    """Starts with the jacket hanging in the hand, puts on one sleeve and then the other, and ends wearing it."""
    poses = blend(
        u,
        (0.0, pose(hand_right=(-0.42, -0.78, 0.30))),
        (0.20, pose(hand_right=(-0.30, 0.05, 0.80), hand_left=(0.30, 0.05, 0.75))),
        (0.40, pose(hand_right=(-0.50, 0.45, -0.15), hand_left=(0.75, -0.35, -0.40), spine=(0.05, -0.35, 0.10))),
        (0.58, pose(hand_right=(-0.75, -0.35, -0.40), hand_left=(0.85, 0.30, 0.30), spine=(0.05, 0.35, -0.10))),
        (0.75, pose(hand_right=(-0.85, 0.30, 0.30), hand_left=(0.25, -0.35, 0.55), spine=(0.0, 0.15, 0.0))),
        (0.88, pose(hand_right=(0.20, -0.30, 0.50), hand_left=(-0.20, -0.30, 0.50))),
        (1.0, pose()),
    )
    return Motion(poses, jacket=np.stack([1 - smooth(u, 0.30, 0.55), smooth(u, 0.35, 0.80), smooth(u, 0.42, 0.75)], axis=1))


def pick_up(u: Array, rng: np.random.Generator) -> Motion:
    """Bends down, takes the box from the floor, and rises with it."""
    down = pose(
        pelvis=(0, -0.30, -0.14), turn=(0.35, 0, 0), spine=(0.95, 0, 0.1), head=(-0.3, 0, 0),
        hand_right=(0.05, -0.97, 0.20), hand_left=(0.15, -0.75, 0.35),
    )  # fmt: skip
    up = pose(hand_right=(0.05, -0.45, 0.60))
    return Motion(blend(u, (0.0, pose()), (0.42, down), (0.58, down), (1.0, up)), contact=0.5)


def clap(u: Array, rng: np.random.Generator) -> Motion:
    """Claps in front of the chest three or four times."""
    ready = pose(hand_left=(-0.02, -0.15, 0.72), hand_right=(0.02, -0.15, 0.72))
    poses = blend(u, (0.0, pose()), (0.18, ready), (0.82, ready), (1.0, pose()))
    swings = int(rng.integers(4, 6))
    swing = bump(u) * np.cos(TAU * swings * (u - 0.18) / 0.64) * 0.40
    return Motion(shift(poses, hand_left=(swing, 0, 0), hand_right=(-swing, 0, 0)), times=swings - 1)


def cheer_up(u: Array, rng: np.random.Generator) -> Motion:
    """Raises both fists and pumps them."""
    high = pose(hand_left=(0.28, 0.75, 0.12), hand_right=(-0.28, 0.75, 0.12), head=(-0.2, 0, 0))
    poses = blend(u, (0.0, pose()), (0.18, high), (0.82, high), (1.0, pose()))
    pumps = int(rng.integers(2, 4))
    pump = bump(u, 0.25, 0.75) * np.sin(TAU * pumps * u)
    up, bob = 0.28 * pump, 0.05 * pump - 0.05 * bump(u)
    return Motion(shift(poses, hand_left=(0, up, 0), hand_right=(0, up, 0), pelvis=(0, bob, 0)), times=pumps)


def wave(u: Array, rng: np.random.Generator) -> Motion:
    """Moves one raised hand from side to side."""
    high = pose(hand_right=(-0.55, 0.72, 0.15), spine=(0, 0, -0.10))
    poses = blend(u, (0.0, pose()), (0.18, high), (0.82, high), (1.0, pose()))
    times = int(rng.integers(3, 5))
    return Motion(shift(poses, hand_right=(bump(u) * 0.42 * np.sin(TAU * times * u), 0, 0)), times=times)


def kick(u: Array, rng: np.random.Generator) -> Motion:
    """Swings a leg back and kicks the ball away."""
    back = pose(
        foot_right=(0, 0.22, -0.45),
        spine=(0.25, 0, 0),
        pelvis=(0.06, -0.03, 0.02),
        hand_left=(0.4, -0.6, 0.5),
        hand_right=(-0.4, -0.75, -0.4),
    )
    front = pose(
        foot_right=(0, 0.62, 0.80),
        spine=(-0.25, 0, 0),
        pelvis=(0.06, -0.03, -0.04),
        hand_left=(0.65, -0.5, -0.3),
        hand_right=(-0.6, -0.5, 0.4),
    )
    return Motion(blend(u, (0.0, pose()), (0.30, back), (0.50, front), (0.70, front), (1.0, pose())), contact=0.42)


def jump_up(u: Array, rng: np.random.Generator) -> Motion:
    """Crouches, leaps with swinging arms, and lands in a crouch, twice."""
    crouch = pose(pelvis=(0, -0.28, -0.10), spine=(0.6, 0, 0), hand_left=(0.2, -0.75, -0.5), hand_right=(-0.2, -0.75, -0.5))
    air = pose(
        pelvis=(0, 0.36, 0),
        foot_left=(0, 0.34, -0.04),
        foot_right=(0, 0.34, -0.04),
        hand_left=(0.55, 0.20, 0.45),
        hand_right=(-0.55, 0.20, 0.45),
    )
    land = pose(pelvis=(0, -0.25, -0.06), spine=(0.5, 0, 0), hand_left=(0.35, -0.5, 0.55), hand_right=(-0.35, -0.5, 0.55))
    leaps = 2 * u - (u > 0.5) * 1.0
    return Motion(blend(leaps, (0.0, pose()), (0.30, crouch), (0.52, air), (0.74, land), (1.0, pose())), times=2)


def fall(u: Array, rng: np.random.Generator) -> Motion:
    """Collapses to the side and stays on the floor."""
    sway = pose(
        pelvis=(-0.10, -0.12, 0), turn=(0.1, 0, 0.35), foot_left=(0.1, 0.05, 0), hand_left=(0.75, 0.1, 0.1), hand_right=(-0.8, -0.15, 0.1)
    )
    hit = pose(
        pelvis=(-0.30, -0.80, 0), turn=(0.1, 0, 1.15), foot_left=(0.35, 0.12, 0), foot_right=(0.35, 0.0, 0),
        hand_left=(0.1, -0.1, 0.8), hand_right=(-0.7, -0.4, 0.2),
    )  # fmt: skip
    lying = pose(
        pelvis=(-0.20, -0.955, 0), turn=(0.1, 0, 1.52), foot_left=(0.55, 0.06, 0.12), foot_right=(0.60, -0.02, 0),
        hand_left=(0.0, -0.25, 0.6), hand_right=(-0.75, -0.05, 0.4), head=(0, 0, 0.1),
    )  # fmt: skip
    return Motion(blend(u, (0.0, pose()), (0.40, sway), (0.75, hit), (1.0, lying)))


def shake_hands(u: Array, rng: np.random.Generator) -> Motion:
    """Makes a small step and shakes right hands. Both people play the same program, face to face."""
    meet = pose(
        pelvis=(0, -0.03, 0.14), foot_left=(0, 0, 0.05), foot_right=(0, 0, 0.32), spine=(0.12, -0.1, 0), hand_right=(0.32, -0.30, 0.80)
    )
    poses = blend(u, (0.0, pose()), (0.28, meet), (0.76, meet), (1.0, pose()))
    times = int(rng.integers(3, 5))
    return Motion(shift(poses, hand_right=(0, 0.20 * bump(u, 0.3, 0.7) * np.sin(TAU * times * u), 0)), times=times)


def arm_circles(u: Array, rng: np.random.Generator) -> Motion:
    """Draws big circles at the sides with both straight arms."""
    circles = int(rng.integers(2, 4))
    angle = TAU * circles * smooth(u, 0.0, 1.0)
    side, height = 0.95 * np.sin(np.abs(angle)) * bump(u, 0.1, 0.9), -0.95 * np.cos(angle)
    poses = blend(u, (0.0, pose()), (1.0, pose()))
    return Motion(shift(poses, hand_left=(side, height + 0.95, 0.10), hand_right=(-side, height + 0.95, 0.10)), times=circles)


def run_on_the_spot(u: Array, rng: np.random.Generator) -> Motion:
    """Lifts the knees in turn and pumps the bent arms."""
    ready = pose(hand_left=(0.12, -0.42, 0.40), hand_right=(-0.12, -0.42, 0.40), spine=(0.1, 0, 0))
    poses = blend(u, (0.0, pose()), (0.15, ready), (0.85, ready), (1.0, pose()))
    step = bump(u, 0.15, 0.85) * np.sin(TAU * rng.integers(3, 5) * u)
    left, right, bob = np.maximum(step, 0), np.maximum(-step, 0), 0.05 * np.abs(step)
    return Motion(
        shift(
            poses, pelvis=(0, bob, 0), foot_left=(0, 0.46 * left, 0.05 * left), foot_right=(0, 0.46 * right, 0.05 * right),
            hand_left=(0, 0.25 * right, 0.35 * (right - left)), hand_right=(0, 0.25 * left, 0.35 * (left - right)),
        )
    )  # fmt: skip


ACTIONS: dict[int, Action] = {
    action.number: action
    for action in (
        Action(6, pick_up, prop="box"),
        Action(8, sit_down),
        Action(9, sit_down, backward=True),
        Action(10, clap),
        Action(14, wear_jacket),
        Action(15, wear_jacket, backward=True),
        Action(22, cheer_up),
        Action(23, wave),
        Action(24, kick, prop="ball"),
        Action(27, jump_up),
        Action(43, fall),
        Action(58, shake_hands, people=2),
        Action(97, arm_circles),
        Action(99, run_on_the_spot),
    )
}
"""The rendered actions by official number, ascending. 8/9 and 14/15 are each one program, played forwards and backwards."""
