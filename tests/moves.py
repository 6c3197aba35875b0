"""A small file of recordings in which each action is a movement of one joint, for the tests of skeleton networks."""

from pathlib import Path

import numpy as np

ACTIONS, PEOPLE, CAMERAS = (1, 2, 3), (1, 2, 3, 4), (1, 2, 3)


def write_moves(path: Path, frames: int = 8, repetitions: int = 2) -> Path:
    """Recordings of 20 joints, named as NW-UCLA's: the left hand, the right hand or the head goes up; no two are the same."""
    random, joints, columns = np.random.default_rng(0), [], []
    for action in ACTIONS:
        for person in PEOPLE:
            for camera in CAMERAS:
                for repetition in range(repetitions):
                    still = random.normal(size=(1, 20, 3)) * 0.05 + np.linspace(-1, 1, 20)[None, :, None]
                    clip = np.repeat(still, frames, 0) + random.normal(size=(frames, 20, 3)) * 0.01
                    clip[:, (7, 11, 3)[action - 1], 1] += 2 * np.linspace(-1, 1, frames)
                    joints.append(clip.astype(np.float32))
                    columns.append((action - 1, person, camera, repetition))
    label, subject, view, repetition = np.array(columns).T
    name = [f"a{a + 1:02}_s{s:02}_e{r:02}_v{v:02}" for a, s, v, r in columns]
    lengths = np.full(len(columns), frames)
    np.savez(path, joints=np.concatenate(joints), frames=lengths, name=name, label=label, subject=subject, view=view, repetition=repetition)
    return path
