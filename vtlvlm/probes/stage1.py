"""Probes on every step of stage 1, to show where the action is lost."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.probes.attention import attention_probe
from vtlvlm.probes.linear import ProbeResult, linear_probe
from vtlvlm.stages.vtem import VTEMModule

VIEWED_CLIPS = 512
"""With fewer training clips, the probes of stage 1's steps also train on further views, up to this many rows"""


def step_probes(data: NTUDataModule, checkpoint: Path, seed: int, wanted: Collection[str] | None = None) -> dict[str, ProbeResult]:
    """Linear and attention probes on every step of stage 1, named like ``features: linear, mean`` or ``codes: attention``.

    All of them train on the same clips and training views, up to ``VIEWED_CLIPS`` rows (the language model trains on these views, too).
    They are tested on the plain view.

    Args:
        data: set up, with a feature cache.
        checkpoint: of stage 1.
        seed: of the folds.
        wanted: names of the probes to make; None for all.
    """
    train, test = data.split.require("train"), data.split.require("test")
    views = min(data.num_views, max(1, VIEWED_CLIPS // len(train)))
    rows = np.concatenate([np.tile(train, views), test])
    steps = step_tokens(data, checkpoint, rows, np.concatenate([np.repeat(np.arange(views), len(train)), np.zeros_like(test)]))
    labels, learning = data.index.label[rows], len(train) * views
    found: dict[str, ProbeResult] = {}
    for name, (tokens, windows) in steps.items():
        linear, attention = f"{name}: linear, mean", f"{name}: attention"
        common: dict[str, Any] = {"train_groups": data.index.group[rows[:learning]], "num_classes": data.num_classes, "seed": seed}
        sides = labels[:learning], labels[learning:]
        if wanted is None or linear in wanted:
            mean = tokens.unflatten(1, (windows, -1)).float().mean(dim=1).flatten(1).numpy()
            found[linear] = linear_probe(mean[:learning], sides[0], mean[learning:], sides[1], **common)
        if wanted is None or attention in wanted:
            found[attention] = attention_probe(tokens[:learning], sides[0], tokens[learning:], sides[1], windows=windows, **common)
    return found


def step_tokens(data: NTUDataModule, checkpoint: Path, clips: NDArray[np.int64], views: NDArray[np.int64]) -> dict[str, tuple[Tensor, int]]:
    """The tokens of clips at every step of stage 1.

    Args:
        data: set up, with a feature cache.
        checkpoint: of stage 1.
        clips: (n,) rows of the index.
        views: (n,) the view of each clip.

    Returns:
        Name -> tokens (n, M, width), window by window, and their number of windows.
    """
    module = VTEMModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    module.require_same_data(data)
    cache = data.features_cache
    assert cache is not None
    parts: dict[str, list[Tensor]] = {"features": [], "windows": [], "continuous events": [], "codes": []}
    held = np.stack([cache.rows(data.index.name[clips], view) for view in range(int(views.max()) + 1)])[views, np.arange(len(clips))]
    with torch.no_grad():
        for start in range(0, len(held), 64):
            chosen = held[start : start + 64]
            features = cache.features(chosen)
            events = module.vtem.events(features, cache.times(chosen))
            found = (features.flatten(1, 2), events.pooled.segments.flatten(1, 2), events.continuous, events.tokens.vectors)
            for name, part in zip(parts, found, strict=True):
                parts[name].append(part)
    windows = module.pooler.windows
    return {name: (torch.cat(part), cache.steps if name == "features" else windows) for name, part in parts.items()}
