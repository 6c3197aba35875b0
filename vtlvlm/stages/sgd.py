"""SGD, the optimiser of the skeleton networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vtlvlm.errors import UsageError
from vtlvlm.stages.optimizers import Optimizer, warmed_cosine


@dataclass
class Decay:
    """A weight decay of some weights.

    Attributes:
        weights: Last part of their names, such as ``pointwise.weight``.
        weight_decay: Theirs.
    """

    weights: str
    weight_decay: float


@dataclass
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, a warm-up, and steps or a cosine.

    Attributes:
        learning_rate: Peak learning rate.
        momentum: In [0, 1).
        nesterov: Whether the gradient is taken ahead of the momentum.
        weight_decay: Added to the gradient, times the weight.
        decays: Weights with another decay.
        warmup_epochs: Epochs in which the rate rises to its peak. With milestones, all steps of an epoch have one rate, as in the code of
            CTR-GCN: the peak times the epoch's number, from one, over these epochs.
        milestones: Epochs, counted from zero, from which on the rate is a tenth. Without any, it follows a cosine, step by step.
        minimum: Rate at the end of the cosine.

    Raises:
        UsageError: A setting is out of range.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 4e-4
    decays: Sequence[Decay] = ()
    warmup_epochs: int = 0
    milestones: Sequence[int] = ()
    minimum: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 <= self.minimum <= self.learning_rate:
            raise UsageError(
                f"optimizer.learning_rate={self.learning_rate}, minimum={self.minimum}: the rate above 0, the minimum up to it"
            )
        if not 0 <= self.momentum < 1 or (self.nesterov and not self.momentum):
            raise UsageError(f"optimizer.momentum={self.momentum}: must be in [0, 1), and above 0 with nesterov")
        if min(self.weight_decay, self.warmup_epochs, *(d.weight_decay for d in self.decays)) < 0:
            raise UsageError("optimizer.weight_decay, the decays and warmup_epochs must be at least 0")
        if list(self.milestones) != sorted({m for m in self.milestones if m > 0}):
            raise UsageError(f"optimizer.milestones={list(self.milestones)}: give rising epochs, from 1")

    def groups(self, weights: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """The optimiser's groups of parameters, by their names.

        Raises:
            UsageError: A decay is of no weight.
        """
        rates = [*(decay.weight_decay for decay in self.decays), self.weight_decay]
        found: list[dict[str, Any]] = [{"params": [], "weight_decay": rate} for rate in rates]
        for name, weight in weights.items():
            matches = (number for number, d in enumerate(self.decays) if f".{name}".endswith(f".{d.weights}"))
            found[next(matches, -1)]["params"].append(weight)
        for decay, group in zip(self.decays, found, strict=False):
            if not group["params"]:
                raise UsageError(f"optimizer.decays: no weight's name ends in {decay.weights}; take the decay out")
        return [group for group in found if group["params"]]

    def make(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.groups(weights), lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov)

    def factor(self, step: int, epoch: int, total: int) -> float:
        now = step // epoch
        if not self.milestones:
            return warmed_cosine(step, self.warmup_epochs * epoch, total, self.minimum / self.learning_rate)
        return (now + 1) / self.warmup_epochs if now < self.warmup_epochs else 0.1 ** sum(now >= m for m in self.milestones)
