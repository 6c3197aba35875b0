"""The performers, who differ in build, speed, amplitude, handedness, clothes, hair and skin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtlvlm.synth.body import Body

Colour = tuple[int, int, int]

SKIN: tuple[Colour, ...] = ((238, 205, 180), (224, 184, 150), (205, 160, 122), (172, 124, 88), (132, 90, 62), (98, 66, 46))
HAIR: tuple[Colour, ...] = ((30, 26, 24), (62, 42, 28), (104, 70, 40), (160, 126, 72), (120, 118, 118))
SHIRTS: tuple[Colour, ...] = (
    (226, 224, 216),
    (236, 196, 80),
    (232, 128, 112),
    (142, 200, 226),
    (170, 212, 140),
    (214, 170, 214),
    (242, 168, 92),
)
TROUSERS: tuple[Colour, ...] = ((52, 66, 108), (78, 78, 84), (128, 108, 80), (44, 44, 50), (96, 112, 130), (104, 84, 110))
JACKETS: tuple[Colour, ...] = ((34, 40, 66), (40, 40, 44), (74, 46, 36), (36, 60, 46), (84, 30, 40))


@dataclass(frozen=True)
class Person:
    """One subject, determined by the seed and the subject's number."""

    number: int
    body: Body
    height: float
    """metres"""
    girth: float
    """thickness of limbs and trunk, around 1"""
    speed: float
    """around 1, divides the duration of every motion"""
    amplitude: float
    """around 1, scales the movements of the arms"""
    left_handed: bool
    long_hair: bool
    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    jacket: Colour
    shoes: Colour

    @classmethod
    def of(cls, seed: int, number: int) -> Person:
        """Subject ``number`` (from 1). Three in ten are left-handed (1, 4, 6, 11, 14, 16, ...), among training and test people of X-Sub."""
        rng = np.random.default_rng([seed, 1, number])
        # heights are spread evenly over each ten people, so that a small group also varies
        rank = np.random.default_rng([seed, 2, (number - 1) // 10]).permutation(10)[(number - 1) % 10]
        height = 1.56 + 0.032 * rank + rng.uniform(0.0, 0.03)

        def pick(colours: tuple[Colour, ...], spread: int = 8) -> Colour:
            red, green, blue = (
                int(c) for c in np.clip(np.array(colours[rng.integers(len(colours))]) + rng.integers(-spread, spread + 1, 3), 0, 255)
            )
            return red, green, blue

        return cls(
            number=number,
            body=Body.of(height, legs=rng.uniform(0.96, 1.04), arms=rng.uniform(0.95, 1.06), breadth=rng.uniform(0.92, 1.10)),
            height=round(float(height), 4),
            girth=round(float(rng.uniform(0.88, 1.22)), 4),
            speed=round(float(rng.uniform(0.88, 1.14)), 4),
            amplitude=round(float(rng.uniform(0.90, 1.06)), 4),
            left_handed=number % 10 in (1, 4, 6),
            long_hair=bool(rng.random() < 0.4),
            skin=pick(SKIN),
            hair=pick(HAIR),
            shirt=pick(SHIRTS),
            trousers=pick(TROUSERS),
            jacket=pick(JACKETS),
            shoes=pick(((50, 48, 50), (190, 186, 180), (92, 56, 40))),
        )
