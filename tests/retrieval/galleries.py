"""Galleries of drawn sentences."""

import numpy as np

from vtlvlm.retrieval.gallery import Gallery


def gallery(
    people: int = 4, actions: int = 3, cameras: int = 2, codes: int = 24, seed: int = 0, windows: int = 6, cells: int = 4
) -> Gallery:
    """Each person performs each action once before some cameras. An action has eight codes of its own, all alike; a person prefers some."""
    rng = np.random.default_rng(seed)
    rows = [(person, action, camera) for person in range(people) for action in range(actions) for camera in range(cameras)]
    per = codes // actions
    taste = rng.dirichlet(np.full(per, 0.4), size=people)
    ids = np.stack([action * per + rng.choice(per, size=(windows, cells), p=taste[person]) for person, action, _ in rows])
    noisy = rng.random(ids.shape) < 0.2
    ids[noisy] = rng.integers(codes, size=noisy.sum())
    centres = rng.standard_normal((actions, 12))
    table = np.repeat(centres, per, axis=0) + 0.7 * rng.standard_normal((codes, 12))
    edges = np.linspace(0, 3, windows + 1)
    person, action, _ = np.array(rows).T
    return Gallery(
        names=np.array([f"P{p} A{a} C{c}" for p, a, c in rows], dtype=object),
        ids=ids.astype(np.uint16),
        spans=np.broadcast_to(np.stack([edges[:-1], edges[1:]], 1), (len(rows), windows, 2)).astype(np.float32),
        table=table.astype(np.float32),
        labels=action,
        classes=tuple(f"action {a}" for a in range(actions)),
        people=np.array([f"P{p}" for p in person], dtype=object),
        performances=np.array([f"{p}-{a}" for p, a, _ in rows], dtype=object),
        learning=np.flatnonzero(person < people // 2),
        testing=np.flatnonzero(person >= people // 2),
        identity=f"drawn {seed}",
        unlearned="",
    )
