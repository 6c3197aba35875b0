"""What bundles of skeleton and video networks share: network and head in one file of weights, checked before memory is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vtlvlm import __version__
from vtlvlm.errors import UsageError
from vtlvlm.metrics.actions import mean_over_views
from vtlvlm.recognizers.bundles import BUNDLE, FORMAT, digest, load_into, new_folder, read_weights, require_described, require_shapes
from vtlvlm.skeleton.backbone import ClipNetwork
from vtlvlm.skeleton.heads import Head, TapShape
from vtlvlm.skeleton.layouts import Layout
from vtlvlm.stages.compatibility import require_numbers
from vtlvlm.stages.parts import build_from, settings_of
from vtlvlm.stages.recognition import Recognition
from vtlvlm.system.files import appearing, write_json
from vtlvlm.system.places import require_apart
from vtlvlm.system.saving import saving
from vtlvlm.system.text import shown

NETWORK_FILE = "network.safetensors"


class Trained(NamedTuple):
    """A trained network that recognises actions."""

    network: Any
    """A ``ClipNetwork``, with its weights"""
    head: Head
    temperature: float
    """Divides the logits"""
    classes: list[str]
    """Category names, in label order"""

    @classmethod
    def of(cls, stage: Recognition) -> Trained:
        """The network of a stage that was loaded from its checkpoint."""
        return cls(stage.network, stage.head, float(stage.temperature), list(stage.classes))


class Plan(NamedTuple):
    """How the networks of one kind are made."""

    make: Callable[[Any], Sequence[TapShape]]
    """Makes the architecture of a network, whose settings it has, and returns the shapes of its features"""
    require: Callable[[Any, Head], None]
    """Refuses a network or head that a single clip would take too much memory for, or that do not go together. They need no memory"""
    layout: Layout | None = None
    """The joints that the networks read; None for videos"""


def export_network(folder: Path, checkpoint: Path, stage: Recognition, described: dict[str, Any]) -> Path:
    """Bundle a network for ``classify``: ``bundle.json``, ``network.safetensors``.

    Weights that only training needs are left out, and so are the names of files that only training reads.

    Args:
        folder: To create; it appears whole or not at all.
        checkpoint: Of the network.
        stage: Loaded from the checkpoint. It cannot train afterwards.
        described: The kind, and the network's input.

    Raises:
        UsageError: The folder exists.
    """
    new_folder(folder)
    origin = stage.provenance()
    stage.head.drop_training_parts()
    require_apart(folder, [checkpoint], "the bundle")
    content: dict[str, Any] = {"format": FORMAT, "version": __version__, "classes": list(stage.classes), **described}
    content |= {"network": settings_of(stage.network), "head": settings_of(stage.head), "origin": origin}
    weights = {"temperature": stage.temperature, **_weights(stage.network, stage.head)}
    with saving(folder), appearing(folder) as partial:
        save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, partial / NETWORK_FILE)
        content["sha256"] = {NETWORK_FILE: digest(partial / NETWORK_FILE)}
        write_json(partial / BUNDLE, content)
    return folder


def read_network(folder: Path, described: dict[str, Any], base: type[ClipNetwork], plan: Plan) -> Trained:
    """The network of a bundle.

    Args:
        folder: The bundle.
        described: Its description. Only its format has been checked.
        base: The network's base class.
        plan: How networks of this kind are made.

    Raises:
        UsageError: The bundle is damaged or incomplete.
    """
    path, file = folder / BUNDLE, folder / NETWORK_FILE
    classes = require_described(described, [NETWORK_FILE], path)
    network: Any = build_from(described.get("network"), base, folder)
    head = build_from(described.get("head"), Head, folder)  # type: ignore[type-abstract]
    for part in (network, head):
        for name in part.files:  # only a new training opens them
            setattr(part, name, None)
    state = read_weights(folder, NETWORK_FILE, described["sha256"])
    sketch = copy.deepcopy(network)
    try:
        with torch.device("meta"):  # takes no memory before all shapes are checked, nor for what only training needs
            head.build(plan.make(sketch), classes, plan.layout)
    except UsageError:
        raise
    except Exception as error:  # settings that no training would begin with
        raise UsageError(f"{path}: no network can be made with its settings; get the folder again, or export it again") from error
    head.drop_training_parts()
    wanted = {"temperature": torch.empty((), device="meta"), **_weights(sketch, head)}
    require_shapes(state, wanted, file)
    require_numbers(state, wanted, file)
    plan.require(sketch, head)
    plan.make(network)
    load_into(network, {name.removeprefix("network."): one for name, one in state.items() if name.startswith("network.")}, file)
    held = {name.removeprefix("head."): one.to(wanted[name].dtype) for name, one in state.items() if name.startswith("head.")}
    head.load_state_dict(held, assign=True)
    return Trained(network, head, float(state["temperature"]), classes)


def _weights(network: nn.Module, head: Head) -> dict[str, Tensor]:
    parts = (("network", network), ("head", head))
    return {f"{name}.{key}": tensor for name, part in parts for key, tensor in part.state_dict().items()}


def mean_probabilities(log_probs: Sequence[Tensor], temperature: float) -> Tensor:
    """Log-probabilities (1, A) of each view of a clip -> (A,) calibrated probabilities of their mean, on the CPU, as in a test."""
    rows = torch.cat(list(log_probs))
    mean, _ = mean_over_views(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device))
    return (mean[0] / temperature).softmax(-1).cpu()


@contextmanager
def own_settings() -> Iterator[None]:
    """Turns the errors of a network that cannot compute into one of its settings.

    Raises:
        UsageError: No training would get through with these settings.
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0], 100)
        raise UsageError(f"the network cannot compute with its settings ({reason}); get the model again, or train it anew") from error
