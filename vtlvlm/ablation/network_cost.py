"""Counts what training a recognition network costs: its optimiser steps, and the operations of a clip, without computing it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vtlvlm.ablation.settings import Config, data_section
from vtlvlm.errors import DataError, UsageError
from vtlvlm.report.networks import VIDEO, described


class NetworkLoad(NamedTuple):
    """What the steps and the operations of a network's training depend on, as JSON, so that equal ones are counted once.

    Attributes:
        parts: ``network`` and ``head``.
        data: Settings of the data module.
        epochs: Of the training; None for a number of steps.
        skeletons: Whether the network reads recordings of skeletons. Others are not counted.
    """

    parts: str
    data: str
    epochs: int | None
    skeletons: bool

    @classmethod
    def of(cls, config: Config, root: str) -> NetworkLoad:
        """The load of a configuration that reads clips there."""
        model, data = config["model"]["init_args"], data_section(config)
        epochs = config["trainer"]["max_epochs"]
        text = json.dumps({**data, "source": {**data["source"], "root": root}}, sort_keys=True)
        parts = json.dumps({name: model.get(name) for name in ("network", "head")}, sort_keys=True)
        return cls(parts, text, epochs if isinstance(epochs, int) and epochs > 0 else None, described(config).reads != VIDEO)


@cache
def steps_of(load: NetworkLoad) -> int | None:
    """Optimiser steps of all epochs. An epoch holds whole batches only.

    Returns:
        None if the recordings are not here, or must be read from thousands of files first.
    """
    if load.epochs is None or not load.skeletons:
        return None
    data = json.loads(load.data)
    clips = _training_clips(json.dumps(data["source"], sort_keys=True), data["seed"])
    return None if clips is None else load.epochs * (clips * data["repeats"] // data["batch_size"])


@cache
def _training_clips(source: str, seed: int) -> int | None:
    from vtlvlm.skeleton.packed import open_recordings
    from vtlvlm.skeleton.source import SkeletonSource

    found = SkeletonSource(**json.loads(source))
    try:
        if not Path(found.packed).exists():
            return None
        return len(found.split(found.index(open_recordings(found.packed)), seed).train)
    except (DataError, UsageError, OSError):  # the training itself says why
        return None


@cache
def network_operations(load: NetworkLoad) -> int | None:
    """Operations of one clip in a training step: forward and backward through the network and its classifier.

    Losses that a head adds in training, the preparation and the optimiser are not counted.

    Returns:
        Floating-point operations; None for a network that reads videos, or if the recordings or a file of the head are not here.
    """
    if not load.skeletons:
        return None
    try:
        return _counted(json.loads(load.parts), json.loads(load.data))
    except (DataError, UsageError, OSError, RuntimeError, ValueError, TypeError):  # a part that needs values
        return None


def _counted(settings: dict[str, Any], data: dict[str, Any]) -> int | None:
    import torch
    from jsonargparse import ArgumentParser
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    import vtlvlm.stages.recognition  # noqa: F401 - so that the parts are found by their names
    from vtlvlm.skeleton.backbone import Network
    from vtlvlm.skeleton.heads import Head
    from vtlvlm.skeleton.packed import open_recordings
    from vtlvlm.skeleton.preparing import Preparation
    from vtlvlm.skeleton.source import SkeletonSource

    source = SkeletonSource(**data["source"])
    if not source.packed.exists():
        return None
    recordings = open_recordings(source.packed)
    classes = source.split(source.index(recordings), data["seed"]).classes
    parser = ArgumentParser(exit_on_error=False)
    for kind, name in ((Network, "network"), (Head, "head"), (Preparation, "preparation")):
        parser.add_subclass_arguments(kind, name)
    parts = parser.instantiate_classes(parser.parse_object({**settings, "preparation": data["preparation"]}))
    bodies = data["bodies"] or int(recordings.bodies.max())
    clips, window = 2, parts.preparation.window  # batch norms need two
    with FakeTensorMode():  # of the CPU: autocast knows no meta device
        parts.network.build(recordings.layout, bodies)
        parts.head.build(parts.network.shapes(window), classes, recordings.layout)
        joints = torch.empty(clips, 3, window, recordings.layout.num_joints, bodies)
        with FlopCounterMode(display=False) as counting:
            parts.head(parts.network(joints)).logits.sum().backward()
    return int(counting.get_total_flops()) // clips
