"""The settings of an optimiser of recognition networks, the schedule that they share, and AdamW. SGD is in ``stages.sgd``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vtlvlm.errors import UsageError

TABLES = ("relative_position_bias_table",)
"""Last parts of the names of position tables, which are matrices but take no weight decay"""


def cosine(step: int, begin: int, total: int, low: float = 0.0) -> float:
    """Half a cosine from 1 at step ``begin`` to ``low`` at step ``total`` and later."""
    done = min(1.0, (step - begin) / max(1, total - begin))
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))


def warmed_cosine(step: int, warmup: int, total: int, low: float = 0.0) -> float:
    """Fraction of the peak rate at a step: it rises in ``warmup`` equal steps to 1, and then follows :func:`cosine` to ``low``."""
    return (step + 1) / warmup if step < warmup else cosine(step, warmup, total, low)


class Optimizer(ABC):
    """Settings of an optimiser and its schedule."""

    learning_rate: float
    """Peak learning rate"""

    @abstractmethod
    def make(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of weights, at its peak rates.

        Args:
            weights: Trained weights by name; the first part of a name is ``network`` or ``head``.

        Raises:
            UsageError: A setting is of no weight.
        """

    @abstractmethod
    def factor(self, step: int, epoch: int, total: int) -> float:
        """Fraction of the peak rates at an optimiser step.

        Args:
            step: In [0, total).
            epoch: Steps of an epoch.
            total: Steps of the training.
        """


@dataclass
class AdamW(Optimizer):
    """AdamW with a linear warm-up and a cosine to zero: the usual fine-tuning of video transformers.

    Norms, biases and tables of relative positions take no weight decay. The betas are 0.9 and 0.999. After a configuration that gives
    SGD's settings, those of the same name stay unless they are given again.

    Attributes:
        learning_rate: Peak learning rate of the head, whose weights are new.
        network_factor: Learning rate of the network below the head, in multiples of the head's.
        weight_decay: Decoupled weight decay.
        warmup_epochs: Epochs in which the rates rise to their peaks, step by step; need not be whole.

    Raises:
        UsageError: A setting is out of range.
    """

    learning_rate: float = 1e-3
    network_factor: float = 0.1
    weight_decay: float = 0.05
    warmup_epochs: float = 2.5

    def __post_init__(self) -> None:
        for name in ("learning_rate", "network_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"optimizer.{name}={getattr(self, name)}: must be above 0")
        for name in ("weight_decay", "warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"optimizer.{name}={getattr(self, name)}: must be at least 0")

    def groups(self, weights: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """The optimiser's groups of parameters: network and head, each with and without weight decay, as far as there are any."""
        found: list[dict[str, Any]] = [
            {"params": [], "lr": rate, "weight_decay": decay}
            for rate in (self.learning_rate * self.network_factor, self.learning_rate)
            for decay in (self.weight_decay, 0.0)
        ]
        for name, weight in weights.items():
            plain = weight.ndim < 2 or name.rpartition(".")[2] in TABLES
            found[2 * name.startswith("head.") + plain]["params"].append(weight)
        return [group for group in found if group["params"]]

    def make(self, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(weights), lr=self.learning_rate, weight_decay=self.weight_decay)

    def factor(self, step: int, epoch: int, total: int) -> float:
        return warmed_cosine(step, round(self.warmup_epochs * epoch), total)
