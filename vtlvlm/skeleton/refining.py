"""FR-Head (arXiv 2303.03729): training also compares features of several blocks with those of actions that the network confuses.

Each compared block has two branches, over joints and over frames. A branch has a prototype for each action, a moving mean of the features
of recognised clips. The loss pulls a clip's features towards its action's prototype and the clips of its action that were missed. It pushes
them away from the other prototypes and from the clips that were wrongly taken for its action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import ClassMeans, Head, Scores, TapShape, class_means, classifier, one_hot, pooled
from vtlvlm.skeleton.layouts import Layout
from vtlvlm.vtem.group import gather_clips, group_size


class Guesses(NamedTuple):
    """What the classifier makes of the batch's clips."""

    labels: Tensor
    """(N,) int64, the actions"""
    taken: Tensor
    """(N,) int64, the actions of the highest scores"""
    doubt: Tensor
    """(N,) in [0, 1]: 1 - the probability of the clip's action"""


class RefiningHead(Head):
    """The mean of the last block's features and a linear layer; training adds the contrast of FR-Head.

    The scores that tell which actions are confused pass no gradient. Prototypes, and the clips that a clip is compared with, come from the
    whole batch of all processes, which must have equally many clips; they do not depend on the number of processes. Where an optimiser step
    takes several smaller batches, each of them is a batch here.

    The number of frames and joints is fixed when the weights are made.

    Args:
        weight: Of the added loss.
        blocks: Numbers of the compared blocks, from 1.
        block_weights: Of each block's loss.
        width: D, width of the compared features.
        temperature: Divides the similarities.
        penalty: Weight of the confused clips in the similarities.
        momentum: Share of a prototype that a batch keeps.

    Raises:
        UsageError: A setting is out of range.
    """

    def __init__(
        self,
        weight: float = 0.1,
        blocks: Sequence[int] = (1, 5, 8, 10),
        block_weights: Sequence[float] = (0.1, 0.2, 0.5, 1.0),
        width: int = 256,
        temperature: float = 0.125,
        penalty: float = 0.125,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if not blocks or len(blocks) != len(block_weights):
            raise UsageError(
                f"head.blocks names {len(blocks)} blocks, head.block_weights has {len(block_weights)} numbers: give one a block"
            )
        if min(blocks) < 1 or width < 1:
            raise UsageError(f"head.blocks={list(blocks)}, head.width={width}: use numbers of at least 1")
        if not temperature > 0 or not 0 <= momentum < 1:
            raise UsageError(f"head.temperature={temperature}, head.momentum={momentum}: use one above 0, and one from 0 to below 1")
        self.weight = weight
        self.blocks = list(blocks)
        self.block_weights = list(block_weights)
        self.width = width
        self.temperature = temperature
        self.penalty = penalty
        self.momentum = momentum
        self.fc: nn.Linear | None = None
        self.over_joints = nn.ModuleList()
        self.over_frames = nn.ModuleList()

    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout | None) -> None:
        """Makes the weights. Idempotent.

        Raises:
            UsageError: The network has fewer blocks than are named, or more frames or joints than a branch is wide.
        """
        if self.fc is not None:
            return
        if max(self.blocks) > len(shapes):
            raise UsageError(f"head.blocks={self.blocks}: the network has {len(shapes)} blocks")
        chosen = [shapes[block - 1] for block in self.blocks]
        longest = max(max(shape.frames, shape.joints) for shape in chosen)
        if longest > self.width:
            raise UsageError(f"head.width={self.width}: it is less than the {longest} frames or joints of a block; use at least {longest}")
        self.fc = classifier(shapes[-1].channels, len(classes))
        for shape in chosen:
            self.over_joints.append(Branch(shape.channels, shape.joints, len(classes), self.width))
            self.over_frames.append(Branch(shape.channels, shape.frames, len(classes), self.width))

    def only_in_training(self) -> list[nn.Module]:
        return [self.over_joints, self.over_frames]

    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        """Scores a batch. The loss ``refining`` is computed in training only, since it moves the prototypes."""
        assert self.fc is not None, "build() first"
        logits = self.fc(pooled(taps[-1]))
        if labels is None or not self.training:
            return Scores(logits, {})
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = logits.detach().float().softmax(dim=1)
            own = Guesses(labels, probabilities.argmax(dim=1), 1 - probabilities.gather(1, labels[:, None]).squeeze(1))
            total = logits.new_zeros((), dtype=torch.float32)
            for block, weight, joints, frames in zip(self.blocks, self.block_weights, self.over_joints, self.over_frames, strict=True):
                bodies = taps[block - 1].float().mean(dim=1)  # (N, C, T, V)
                for branch, line in ((joints, bodies.mean(dim=2)), (frames, bodies.mean(dim=3))):
                    total = total + weight * branch(line, own, self.temperature, self.penalty, self.momentum)
        return Scores(logits, {"refining": self.weight * total})


class Branch(nn.Module):
    """One branch of one block: features along frames or joints -> its contrast.

    Args:
        channels: C.
        places: L, the number of frames or joints.
        actions: A.
        width: D.
    """

    prototypes: Tensor
    """(A, D), of any length; kept in checkpoints"""

    def __init__(self, channels: int, places: int, actions: int, width: int) -> None:
        super().__init__()
        each = width // places
        self.places = places
        self.squeeze = nn.Sequential(nn.Conv1d(channels, each, 1), nn.BatchNorm1d(each), nn.ReLU())
        self.map = nn.Linear(each * places, width)
        self.register_buffer("prototypes", torch.randn(actions, width))

    def forward(self, line: Tensor, own: Guesses, temperature: float, penalty: float, momentum: float) -> Tensor:
        """Features (N, C, L) -> the mean loss over the clips; moves the prototypes.

        Raises:
            UsageError: There are more or fewer places than the weights were made for.
        """
        if line.shape[2] != self.places:
            raise UsageError(f"features at {line.shape[2]} frames or joints: FR-Head was built for {self.places}; keep the window's length")
        features = self.map(self.squeeze(line).flatten(1))
        everyone, every = gathered(features, own)
        actions, missing = len(self.prototypes), every.labels != every.taken
        recognised, any_recognised = class_means(everyone, every.labels, ~missing, actions)
        moved = torch.where(any_recognised[:, None], momentum * self.prototypes + (1 - momentum) * recognised, self.prototypes)
        loss = contrast(
            features,
            own,
            moved,
            class_means(everyone, every.labels, missing, actions),
            class_means(everyone, every.taken, missing, actions),
            temperature,
            penalty,
        )
        self.prototypes.copy_(moved.detach())
        return loss


def contrast(
    features: Tensor, own: Guesses, prototypes: Tensor, missed: ClassMeans, intruders: ClassMeans, temperature: float, penalty: float
) -> Tensor:
    """The sum of two cross-entropies of similarities with the prototypes, mean over the clips.

    In one of them, the similarity with the clip's own action is lowered by the distance to the action's missed clips, in the other by the
    closeness to the clips that were taken for the action. Both count as much as the classifier doubts the clip.

    Args:
        features: (N, D).
        own: Of the N clips.
        prototypes: (A, D).
        missed: Clips of an action that were taken for another one.
        intruders: Clips of other actions that were taken for an action.
        temperature: Divides the similarities.
        penalty: Weight of both terms.
    """
    units = F.normalize(features, dim=1)
    similar = units @ F.normalize(prototypes, dim=1).T  # (N, A)
    truth = one_hot(own.labels, similar.shape[1])
    loss = similar.new_zeros(())
    for others, sign in ((missed, 1), (intruders, -1)):
        closeness = (units * F.normalize(others.means, dim=1)[own.labels]).sum(dim=1)
        term = penalty * own.doubt * (sign * closeness - 1) * others.present[own.labels]
        loss = loss + F.cross_entropy((similar + truth * term[:, None]) / temperature, own.labels)
    return loss


def gathered(features: Tensor, own: Guesses) -> tuple[Tensor, Guesses]:
    """Features (N, D) and guesses of the clips of all processes. Gradients flow to every process."""
    if group_size() == 1:
        return features, own
    return gather_clips(features), Guesses(*(gather_clips(column) for column in own))
