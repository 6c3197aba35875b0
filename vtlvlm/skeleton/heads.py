"""Heads of the skeleton networks: features of the blocks to a score for each action, and the losses that a method adds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layouts import Layout


class Scores(NamedTuple):
    """A head's result for a batch."""

    logits: Tensor
    """(N, A): their softmax is the probability of each action"""
    losses: dict[str, Tensor]
    """Scalars by name, beside the cross-entropy of the logits and already weighted; empty without labels"""


class TapShape(NamedTuple):
    """Shape of one block's features, without clips and bodies."""

    channels: int
    """C"""
    frames: int
    """T"""
    joints: int
    """V"""


class Head(nn.Module, ABC):
    """Features of all blocks -> scores of the actions."""

    @abstractmethod
    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout) -> None:
        """Makes the weights. Idempotent.

        Args:
            shapes: Of the features of every block, the last block last.
            classes: The A actions' names.
            layout: The joints of the input.
        """

    @abstractmethod
    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        """Scores a batch.

        Args:
            taps: (N, M, C, T, V) of every block, the last block last.
            labels: (N,) int64 in [0, A); None leaves the losses out.
        """

    def only_in_training(self) -> list[nn.Module]:
        """The modules that only the losses need. Their weights are not counted for inference."""
        return []


def pooled(tap: Tensor) -> Tensor:
    """A block's features (N, M, C, T, V) -> (N, C), the mean over frames, joints and bodies.

    A body that is absent counts too, as in the official code of these networks.
    """
    return tap.mean((3, 4)).mean(1)


def classifier(width: int, actions: int) -> nn.Linear:
    """A linear layer to A logits whose weights start as N(0, 2/A), as in the official code of ST-GCN's successors."""
    layer = nn.Linear(width, actions)
    nn.init.normal_(layer.weight, 0, math.sqrt(2 / actions))
    return layer


class LinearHead(Head):
    """The mean of the last block's features, and a linear layer.

    Args:
        dropout: Share of the mean's entries that training sets to zero.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UsageError(f"head.dropout={dropout}: must be at least 0 and less than 1")
        self.dropout = dropout
        self.fc: nn.Linear | None = None

    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout) -> None:
        if self.fc is None:
            self.fc = classifier(shapes[-1].channels, len(classes))

    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        assert self.fc is not None, "build() first"
        return Scores(self.fc(nn.functional.dropout(pooled(taps[-1]), self.dropout, self.training)), {})
