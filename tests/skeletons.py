"""Makes ``.skeleton`` files with known numbers."""

import numpy as np

REAL_IDS = ("72057594037944738", "72057594037944734")
"""Ids of a real file. As 64-bit floats they are one number."""


def moving_body(random: np.random.Generator, frames: int, stir: float = 0.05, wide: bool = False) -> np.ndarray:
    """(frames, 25, 3) metres: an upright body, or one that is wider than high, whose joints stir."""
    size = [1.6, 0.4, 0.2] if wide else [0.4, 1.6, 0.2]
    rest = (random.random((25, 3)) - 0.5) * size
    rest[0], rest[1] = np.multiply(size, -0.5), np.multiply(size, 0.5)
    return np.round(rest + [0.0, 0.0, 3.0] + stir * random.normal(size=(frames, 1, 3)), 4)


def body_lines(name: str, joints: np.ndarray) -> list[str]:
    """The lines of one body: joints (25, 3). The other columns follow from the joints' numbers."""
    rows = [
        f"{x:.7g} {y:.7g} {z:.7g} 250.5 200.25 {960 + number} {540 - number} 0 0 0 0 {number % 3}"
        for number, (x, y, z) in enumerate(joints.tolist())
    ]
    return [f"{name} 0 1 1 1 1 0 0.01 -0.25 2", str(len(joints)), *rows]


def skeleton_file(frames: list[list[tuple[str, np.ndarray]]]) -> str:
    """The text of a file: for each frame, the ids and the joints (25, 3) of its bodies."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for name, joints in bodies:
            lines += body_lines(name, joints)
    return "\n".join(lines) + "\n"


def of_bodies(bodies: dict[str, tuple[int, np.ndarray]], frames: int) -> str:
    """The text of a file whose bodies have an id, a first frame, and joints (own frames, 25, 3)."""
    return skeleton_file(
        [
            [(name, joints[frame - start]) for name, (start, joints) in bodies.items() if start <= frame < start + len(joints)]
            for frame in range(frames)
        ]
    )
