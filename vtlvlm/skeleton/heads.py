"""Heads of the skeleton networks: features of the blocks to a score for each action, and the losses that a method adds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
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

    files: ClassVar[tuple[str, ...]] = ()
    """Settings that name files which only a new training reads"""

    @abstractmethod
    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout | None) -> None:
        """Makes the weights. Idempotent.

        Args:
            shapes: Of the features of every block, the last block last.
            classes: The A actions' names.
            layout: The joints of the input; None for videos.
        """

    @abstractmethod
    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        """Scores a batch.

        Args:
            taps: (N, M, C, T, V) of every block, the last block last.
            labels: (N,) int64 in [0, A); None leaves the losses out.
        """

    def require_start(self) -> None:
        """Refuse to train from the present weights, where a training cannot begin with new ones.

        Raises:
            UsageError: The weights are new.
        """

    def only_in_training(self) -> list[nn.Module]:
        """The modules that only the losses need. Their weights are not counted for inference."""
        return []

    def drop_training_parts(self) -> None:
        """Remove the modules that only the losses need. The head can then score, but not train."""
        dropped = {*map(id, self.only_in_training())}
        for parent in [*self.modules()]:
            for name, child in [*parent.named_children()]:
                if id(child) in dropped:
                    setattr(parent, name, None)


def pooled(tap: Tensor) -> Tensor:
    """A block's features (N, M, C, T, V) -> (N, C), the mean over frames, joints and bodies.

    A body that is absent counts too, as in the official code of these networks.
    """
    return tap.mean((3, 4)).mean(1)


def classifier(width: int, actions: int, deviation: float | None = None) -> nn.Linear:
    """A linear layer to A logits whose weights start as normal numbers.

    Args:
        width: Of the features.
        actions: A.
        deviation: Standard deviation of the weights; None for the square root of 2/A, as in the official code of ST-GCN's successors.
    """
    layer = nn.Linear(width, actions)
    nn.init.normal_(layer.weight, 0, math.sqrt(2 / actions) if deviation is None else deviation)
    return layer


def one_hot(actions: Tensor, number: int) -> Tensor:
    """(N,) int64 -> (N, A) bool. Unlike torch's, it never looks at the values."""
    return actions[:, None] == torch.arange(number, device=actions.device)


class ClassMeans(NamedTuple):
    """Mean features of some clips of each action."""

    means: Tensor
    """(A, D), zero for an action without such clips"""
    present: Tensor
    """(A,) bool, whether there are such clips"""


def class_means(features: Tensor, actions: Tensor, chosen: Tensor | None, number: int) -> ClassMeans:
    """The mean of the chosen clips of each action, without asking a GPU which actions there are.

    Args:
        features: (N, D).
        actions: (N,) int64, the action that each clip counts for.
        chosen: (N,) bool; None for all.
        number: A.
    """
    member = one_hot(actions, number).to(features.dtype)
    if chosen is not None:
        member = member * chosen[:, None]
    counts = member.sum(dim=0)
    return ClassMeans(member.T @ features / counts.clamp(min=1)[:, None], counts > 0)


class LinearHead(Head):
    """The mean of the last block's features, and a linear layer.

    Args:
        dropout: Share of the mean's entries that training sets to zero.
        deviation: Standard deviation of the starting weights; None for that of the skeleton networks' official code, the square root of
            2/A for A actions. torchvision's video networks have 0.01.
    """

    def __init__(self, dropout: float = 0.0, deviation: float | None = None) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UsageError(f"head.dropout={dropout}: must be at least 0 and less than 1")
        if deviation is not None and deviation < 0:
            raise UsageError(f"head.deviation={deviation}: must be at least 0")
        self.dropout, self.deviation = dropout, deviation
        self.fc: nn.Linear | None = None

    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout | None) -> None:
        if self.fc is None:
            self.fc = classifier(shapes[-1].channels, len(classes), self.deviation)

    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        assert self.fc is not None, "build() first"
        return Scores(self.fc(F.dropout(pooled(taps[-1]), self.dropout, self.training)), {})


class BottleneckHead(Head):
    """InfoGCN's head (CVPR 2022): a feature z drawn from a normal distribution, which training draws towards a fixed vector of its class.

    The mean of the last block's features goes through a layer with ReLU to a mean and a log-variance of the same width C. Training draws
    z; evaluation takes the mean. The class vectors are orthogonal up to C classes, of length ``gain``, drawn once and never trained.

    Losses: ``prior`` is the mean squared difference between the mean z of each class of the batch and the class's vector; ``norm`` is the
    length of the mean z of the batch.

    Args:
        prior_weight: Of the loss ``prior``.
        norm_weight: Of the loss ``norm``.
        gain: Length of a class vector.
        noise: The standard deviation is exp(noise · log-variance), at most 100.
    """

    prior: Tensor | None

    def __init__(self, prior_weight: float = 0.1, norm_weight: float = 1e-4, gain: float = 3.0, noise: float = 0.5) -> None:
        super().__init__()
        if min(prior_weight, norm_weight, gain, noise) < 0:
            raise UsageError("BottleneckHead: prior_weight, norm_weight, gain and noise must be at least 0")
        self.prior_weight, self.norm_weight = prior_weight, norm_weight
        self.gain, self.noise = gain, noise
        self.hidden: nn.Linear | None = None
        self.register_buffer("prior", None)

    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout | None) -> None:
        if self.hidden is not None:
            return
        width = shapes[-1].channels
        self.hidden, self.mean, self.log_variance = (nn.Linear(width, width) for _ in range(3))
        for layer in (self.hidden, self.mean, self.log_variance):
            nn.init.xavier_uniform_(layer.weight, math.sqrt(2))
        self.decoder = classifier(width, len(classes))
        self.prior = nn.init.orthogonal_(torch.empty(len(classes), width), self.gain)

    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        assert self.hidden is not None, "build() first"
        hidden = F.relu(self.hidden(pooled(taps[-1])))
        z = self.mean(hidden)
        if self.training:
            deviation = (self.noise * self.log_variance(hidden)).clamp(max=math.log(100)).exp()  # an infinite exp has no gradient
            z = z + deviation * torch.randn_like(deviation)
        return Scores(self.decoder(z), {} if labels is None else self._losses(z.float(), labels))

    def _losses(self, z: Tensor, labels: Tensor) -> dict[str, Tensor]:
        assert self.prior is not None
        means, present = class_means(z, labels, None, len(self.prior))
        squares = (means - self.prior).square().mean(1)
        return {
            "prior": self.prior_weight * torch.where(present, squares, 0).sum() / present.sum(),
            "norm": self.norm_weight * z.mean(0).norm(),
        }
