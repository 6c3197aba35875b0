"""A closed-form start for the projector of a LLaVA that was never aligned with anything.

LLaVA-1.5's projector was first trained on half a million captions. One that `vtlvlm compose` made is random, and a few hundred clips are
too few to align it by gradient: it learns the clips by heart instead. What they suffice for is a least-squares fit: each event is to
look like the words of its clip's category. Nothing but the training side is read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vtlvlm.errors import UsageError

RIDGE = 0.1
"""Penalty of the least-squares fit, in units of the mean variance of an event's components"""
REST = 0.3
"""RMS of what is not fitted (the events' principal components, in random directions), in units of what is"""


class AlignmentSums(nn.Module):
    """Sums over events from which the fit is solved; those of several processes add up.

    Args:
        event_dim: E.
        num_classes: A.
    """

    count: Tensor
    """(A,) events of each category"""
    total: Tensor
    """(A, E) their sum"""
    gram: Tensor
    """(E, E) sum of outer products over all events"""

    def __init__(self, event_dim: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_classes))
        self.register_buffer("total", torch.zeros(num_classes, event_dim))
        self.register_buffer("gram", torch.zeros(event_dim, event_dim))

    @torch.no_grad()
    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add event sentences (B, M, E) with labels (B,); unknown ones (-1) are left out."""
        known = labels >= 0
        events = vectors[known].float()
        self.count.index_add_(0, labels[known], torch.full_like(labels[known], events.shape[1], dtype=self.count.dtype))
        self.total.index_add_(0, labels[known], events.sum(1))
        flat = events.flatten(0, 1)
        self.gram += flat.T @ flat

    @torch.no_grad()
    def solve(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The linear map from events towards the words of their categories.

        Args:
            words: (A, L) a vector for each category.

        Returns:
            The mean event (E,), the covariance of events (E, E), and the map (E, L) for centred events; its output is centred too.

        Raises:
            UsageError: There are no events, or they are all equal.
        """
        number = self.count.sum()
        mean = self.total.sum(0) / number.clamp(min=1)
        covariance = self.gram / number.clamp(min=1) - mean[:, None] * mean
        level = covariance.diagonal().mean()
        if number == 0 or level <= 0:
            raise UsageError("align_projector: the training events are all equal, there is nothing to fit; look at stage 1")
        shares = self.count / number
        targets = words - shares @ words
        cross = (self.total / number - shares[:, None] * mean).T @ targets  # (E, L)
        eye = torch.eye(len(mean), device=mean.device)
        return mean, covariance, torch.linalg.solve(covariance + RIDGE * level * eye, cross)


@torch.no_grad()
def align(projector: LlavaMultiModalProjector, sums: AlignmentSums, words: Tensor, scale: float) -> None:
    """Set LLaVA's projector to the fitted map, with the events' principal components beside it so that nothing else is lost.

    Two hidden units carry one linear component exactly, because gelu(z) - gelu(-z) = z (likewise ReLU and SiLU). Words are moved to one
    distance from their mean: that of a name of many tokens is close to it, and would be said too softly to be read.

    Args:
        projector: Changed in place.
        sums: Of the training events.
        words: (A, L) the mean word embedding of each category's name.
        scale: Root mean square of the fitted output, that of word embeddings.

    Raises:
        UsageError: A projector without biases or with another kind of activation.
    """
    first, second = projector.linear_1, projector.linear_2
    probe = torch.linspace(-3, 3, 7, device=first.weight.device)
    if first.bias is None or not torch.allclose(projector.act(probe) - projector.act(-probe), probe, atol=1e-5):
        raise UsageError("align_projector: needs a projector with biases and GELU, SiLU or ReLU between its layers; switch it off")
    words = words.float()
    middle = words.mean(0)
    mean, covariance, fitted = sums.solve(middle + torch.nn.functional.normalize(words - middle))
    pairs = first.out_features // 2
    left, values, right = torch.linalg.svd(fitted, full_matrices=False)
    rank = min(int((values > values[0] * 1e-5).sum()), pairs, len(words))
    inward, outward = left[:, :rank], values[:rank, None] * right[:rank]
    outward = outward * (scale / spread(inward, outward, covariance))
    others = min(pairs - rank, len(mean))
    if others:
        components = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :others]
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(others, second.out_features, generator=generator).to(fitted)
        directions = directions * (REST * scale / spread(components, directions, covariance))
        inward, outward = torch.cat([inward, components], 1), torch.cat([outward, directions])
    size = (inward * (covariance @ inward)).sum(0).clamp(min=1e-12).sqrt()  # hidden units of unit deviation learn at one rate
    inward, outward = inward / size, outward * size[:, None]
    for parameter in (first.weight, first.bias, second.weight):
        parameter.zero_()
    used = inward.shape[1]
    first.weight[: 2 * used] = torch.cat([inward, -inward], 1).T
    first.bias[: 2 * used] = torch.cat([-mean @ inward, mean @ inward])
    second.weight[:, : 2 * used] = torch.cat([outward, -outward]).T
    second.bias.copy_(middle)


def spread(inward: Tensor, outward: Tensor, covariance: Tensor) -> Tensor:
    """Root mean square of ``x @ inward @ outward`` over x of that covariance and over the outputs."""
    mapped = inward @ outward
    return ((mapped * (covariance @ mapped)).sum() / outward.shape[1]).clamp(min=1e-20).sqrt()
