"""A closed-form start for a LLaVA's projector that was never aligned.

LLaVA-1.5's projector was first trained on half a million captions. The projector of `vtlvlm compose` is random, and a few hundred clips are
too few to align it by gradient: it overfits. They suffice for a least-squares fit that maps each sentence to the words of its clip's
category. The fit is a linear probe on the means of sentences. Its penalty is chosen on held-out groups (people, sources). Before any
training step, the model then reads about what the probe reads. Only training clips are used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vtlvlm.errors import UsageError

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Candidate penalties of the least-squares fit, for standardised components of sentence means"""
FOLDS = 5
"""Number of folds of groups that choose the penalty"""
MOST_GAIN = 4.0
"""Largest gain of votes over those with the smallest error: if held-out groups are hardly predicted, louder votes do not help"""
REST = 0.3
"""RMS of the part that is not fitted (the events' principal components, in random directions), in units of the RMS of word embeddings"""


class Votes(NamedTuple):
    """Votes of a sentence for the categories, ``(mean over its events - mean) @ weight``: about 1 for its own category and 0 for the
    others, all minus 1 / (number of categories with clips)."""

    mean: Tensor
    """(E,) the average sentence"""
    weight: Tensor
    """(E, A)"""
    penalty: float
    """the entry of ``PENALTIES`` that predicts held-out groups best"""
    gain: float
    """factor that raises the votes of held-out sentences for their own category to 1 on average; ``weight`` includes it"""
    held_out: float
    """fraction of training sentences whose own category has most votes, from fits without their group"""


@torch.no_grad()
def fit_votes(means: Tensor, labels: Tensor, groups: Tensor, num_classes: int) -> Votes:
    """Ridge regression from sentence means to categories; all categories have equal weight.

    Args:
        means: (n, E), mean event of each training sentence.
        labels: (n,) int64, -1 where unknown (left out).
        groups: (n,) int64, group of each clip. If there is only one group, each sentence is its own group.
        num_classes: A.

    Returns:
        The votes, on the device of the means. A category without clips gets no votes.

    Raises:
        UsageError: There are fewer than two sentences, or all are equal.
    """
    known = labels >= 0
    x, y = means[known].double(), labels[known]
    target = nn.functional.one_hot(y, num_classes).double()
    weights = (1 / target.sum(0).clamp(min=1))[y]
    place = groups[known].cpu().numpy()
    if len(np.unique(place)) < 2:
        place = np.arange(len(y))
    if len(y) < 2 or not bool((x - x[0]).square().sum() > 0):
        raise UsageError("init_projector: the training events are all equal, nothing can be fitted; look at stage 1")
    folds = GroupKFold(min(FOLDS, len(np.unique(place))), shuffle=True, random_state=0)
    predicted = x.new_zeros(len(PENALTIES), len(y), num_classes)
    for inner, outer in folds.split(place, groups=place):
        fitted, out = (torch.from_numpy(rows).to(x.device) for rows in (inner, outer))
        fit = _ridges(x[fitted], target[fitted], weights[fitted])
        predicted[:, out] = (x[out] - fit.mean) @ fit.weight
    fit = _ridges(x, target, weights)
    fraction = weights / weights.sum()
    wanted = target - fraction @ target
    agreement = (fraction[:, None] * wanted * predicted).sum((1, 2))
    size = (fraction[:, None] * predicted.square()).sum((1, 2)).clamp(min=1e-12)
    best = int((agreement.clamp(min=0).square() / size).argmax())  # most explained variance, at the best gain
    whole, along = float((fraction[:, None] * wanted.square()).sum()), max(float(agreement[best]), 1e-12)
    gain = min(whole / along, MOST_GAIN * along / float(size[best]))
    right = (predicted[best].argmax(-1) == y).double().mean()
    return Votes(fit.mean.float(), (gain * fit.weight[best]).float(), PENALTIES[best], gain, float(right))


class _Ridges(NamedTuple):
    mean: Tensor
    """(E,)"""
    weight: Tensor
    """(penalties, E, A)"""


def _ridges(x: Tensor, target: Tensor, weights: Tensor) -> _Ridges:
    """Weighted ridge regression of centred ``target`` (n, A) on standardised ``x`` (n, E), for all ``PENALTIES`` from one decomposition.

    ``x`` is standardised because ``lda_weight`` in stage 1 makes a few components large. They separate the training clips' actions, would
    dominate the fit, and overestimate its accuracy on other clips.
    """
    fraction = weights / weights.sum()
    mean = fraction @ x
    size = (fraction @ (x - mean).square()).sqrt()
    size = torch.where(size > 1e-6 * size.max(), size, torch.inf)  # components without variance are ignored
    scaled, wanted = (x - mean) / size * fraction.sqrt()[:, None], (target - fraction @ target) * fraction.sqrt()[:, None]
    found = np.linalg.eigh((scaled.T @ scaled).cpu().numpy())  # torch's may fail on the many zero eigenvalues of few clips
    values, basis = (torch.from_numpy(part).to(x) for part in found)
    products = basis.T @ (scaled.T @ wanted)
    weight = [basis @ (products / (values.clamp(min=0) + penalty)[:, None]) / size[:, None] for penalty in PENALTIES]
    return _Ridges(mean, torch.stack(weight))


class EventMoments(nn.Module):
    """Sums over events that give their mean and covariance. The sums of several processes add up.

    Args:
        event_dim: E.
    """

    count: Tensor
    """() number of events"""
    total: Tensor
    """(E,) sum of the events"""
    gram: Tensor
    """(E, E) sum of their outer products"""

    def __init__(self, event_dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("total", torch.zeros(event_dim))
        self.register_buffer("gram", torch.zeros(event_dim, event_dim))

    @torch.no_grad()
    def add(self, vectors: Tensor) -> None:
        """Add event sentences (B, M, E)."""
        flat = vectors.float().flatten(0, 1)
        self.count += len(flat)
        self.total += flat.sum(0)
        self.gram += flat.T @ flat

    def covariance(self) -> Tensor:
        """(E, E)"""
        mean = self.total / self.count.clamp(min=1)
        return self.gram / self.count.clamp(min=1) - mean[:, None] * mean


@torch.no_grad()
def align(projector: LlavaMultiModalProjector, votes: Votes, moments: EventMoments, words: Tensor, scale: float) -> None:
    """Set LLaVA's projector so that it adds each category's name in proportion to the event's vote for it. The events' principal components
    are added, so that no other information is lost.

    Two hidden units represent one linear component exactly, because gelu(z) - gelu(-z) = z (likewise ReLU and SiLU). All names are scaled
    to the same distance from their mean: the mean embedding of a name of many tokens lies close to it and would be too weak to read.

    Args:
        projector: Changed in place.
        votes: Of the training sentences.
        moments: Of the training events after the mix with their sentence's mean.
        words: (A, L), mean word embedding of each category's name.
        scale: Root mean square of word embeddings. A vote of 1 moves an event by the length of a word embedding.

    Raises:
        UsageError: The projector has no biases, or another kind of activation.
    """
    first, second = projector.linear_1, projector.linear_2
    probe = torch.linspace(-3, 3, 7, device=first.weight.device)
    if first.bias is None or not torch.allclose(projector.act(probe) - projector.act(-probe), probe, atol=1e-5):
        raise UsageError("init_projector: needs a projector with biases and GELU, SiLU or ReLU between its layers; set it to keep")
    words, covariance, mean = words.float(), moments.covariance(), votes.mean
    middle = words.mean(0)
    said = nn.functional.normalize(words - middle) * scale * words.shape[1] ** 0.5
    pairs = first.out_features // 2
    left, values, right = torch.linalg.svd(votes.weight @ said, full_matrices=False)
    rank = min(int((values > values[0] * 1e-5).sum()), pairs, len(words))
    project_in, project_out = left[:, :rank], values[:rank, None] * right[:rank]
    others = min(pairs - rank, len(mean))
    if others:
        components = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :others]
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(others, second.out_features, generator=generator).to(project_in)
        directions = directions * (REST * scale / std_along(components, directions, covariance))
        project_in, project_out = torch.cat([project_in, components], 1), torch.cat([project_out, directions])
    size = (project_in * (covariance @ project_in)).sum(0).clamp(min=1e-12).sqrt()  # with unit deviation, hidden units learn at one rate
    project_in, project_out = project_in / size, project_out * size[:, None]
    for parameter in (first.weight, first.bias, second.weight):
        parameter.zero_()
    used = project_in.shape[1]
    first.weight[: 2 * used] = torch.cat([project_in, -project_in], 1).T
    first.bias[: 2 * used] = torch.cat([-mean @ project_in, mean @ project_in])
    second.weight[:, : 2 * used] = torch.cat([project_out, -project_out]).T
    second.bias.copy_(middle)


def std_along(project_in: Tensor, project_out: Tensor, covariance: Tensor) -> Tensor:
    """Root mean square of ``x @ project_in @ project_out``, over outputs and over x with this covariance."""
    mapped = project_in @ project_out
    return ((mapped * (covariance @ mapped)).sum() / project_out.shape[1]).clamp(min=1e-20).sqrt()
