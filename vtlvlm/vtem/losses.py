"""The terms of L = α·L_rec + β·L_cont (eq. 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError


def reconstruction(rebuilt: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """L_rec: mean squared error in standardised units; predicting the training mean costs 1.0.

    Args:
        rebuilt: (B, T', S, D).
        target: (B, T', S, D) standardised features; no gradient flows into them.
        mask: (B, T') bool, False on padding, which is left out.
    """
    error = (rebuilt.float() - target.detach().float()).square()
    return error.mean() if mask is None else error[mask].mean()


class InfoNCE(nn.Module):
    """L_cont: InfoNCE on a linear projection of the tokens. Neighbours in time attract; distant tokens and other clips repel.

    Positives are the tokens of the same cell at most ``radius`` windows away. Each positive makes one term; the loss is the mean of the
    terms. Negatives are tokens of the same clip more than ``radius`` windows away, in any cell, and tokens of other clips. Tokens with the
    anchor's own code are never negatives.

    Args:
        temperature: divides the cosine similarities.
        radius: in windows.
        max_anchors: anchors drawn at random on each rank and step.
        max_negatives: negatives drawn at random in a step, over all ranks together.
        head_dim: width of the projection.
    """

    def __init__(
        self, temperature: float = 0.1, radius: int = 1, max_anchors: int = 1024, max_negatives: int = 8192, head_dim: int = 128
    ) -> None:
        super().__init__()
        if temperature <= 0 or min(radius, max_anchors, max_negatives, head_dim) < 1:
            raise UsageError("InfoNCE: temperature must be positive; radius, max_anchors, max_negatives and head_dim at least 1")
        self.temperature = temperature
        self.radius = radius
        self.max_anchors = max_anchors
        self.max_negatives = max_negatives
        self.head_dim = head_dim
        self.head: nn.Linear | None = None

    def build(self, dim: int) -> None:
        """Makes the projection for tokens of width E. Idempotent."""
        if self.head is None:
            self.head = nn.Linear(dim, self.head_dim, bias=False)

    def forward(self, vectors: Tensor, ids: Tensor, windows: int, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Event tokens (B, M, E) with ids (B, M) of ``windows`` W windows -> scalar loss; zero if W = 1, which leaves no positives.

        Args:
            vectors: (B, M, E), window by window.
            ids: (B, M) code numbers; -1 for tokens without a code, which exclude no negatives.
            windows: W; M = W·S.
            gather: concatenates a tensor (equal shapes on all ranks) over ranks along the first axis. None stands for :func:`gather_ranks`
                when training under a process group, else for this rank alone.
        """
        if self.head is None:
            raise UsageError("InfoNCE has no projection yet: call build(event_dim) first")
        if gather is None and self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            gather = gather_ranks
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if gather is gather_ranks else (0, 1)
        with torch.autocast(vectors.device.type, enabled=False):
            batch, tokens = ids.shape
            cells, device = tokens // windows, vectors.device
            points = F.normalize(F.linear(vectors.float().flatten(0, 1), self.head.weight), dim=-1)  # (B·M, head_dim)
            codes = ids.flatten()
            place = torch.arange(batch * tokens, device=device)
            clip, window = place // tokens, place % tokens // cells

            anchors = draw(batch * tokens, self.max_anchors, device)
            offsets = torch.cat([torch.arange(-self.radius, 0, device=device), torch.arange(1, self.radius + 1, device=device)])
            target = window[anchors, None] + offsets  # (A, 2·radius)
            valid = (target >= 0) & (target < windows)
            neighbours = (anchors[:, None] + offsets * cells).clamp(0, batch * tokens - 1)
            positives = torch.einsum("ad,apd->ap", points[anchors], points[neighbours]) / self.temperature

            drawn = draw(batch * tokens, max(self.max_negatives // ranks, 1), device)
            others = (points[drawn], codes[drawn], clip[drawn] + rank * batch, window[drawn])
            if gather is not None:
                others = tuple(gather(column) for column in others)  # type: ignore[assignment]
            other_points, other_codes, other_clip, other_window = others
            near = (clip[anchors, None] + rank * batch == other_clip) & ((window[anchors, None] - other_window).abs() <= self.radius)
            same_code = (codes[anchors, None] == other_codes) & (codes[anchors, None] >= 0)
            negatives = (points[anchors] @ other_points.T / self.temperature).masked_fill(near | same_code, -torch.inf)

            # -log(e^p / (e^p + Σ e^n)) = softplus(logsumexp(n) - p)
            terms = F.softplus(torch.logsumexp(negatives, dim=1, keepdim=True) - positives)
            return (terms * valid).sum() / valid.sum().clamp(min=1)


def draw(count: int, limit: int, device: torch.device) -> Tensor:
    """At most ``limit`` distinct positions of [0, count), from the default generator; all of them, in order, if they fit."""
    if count <= limit:
        return torch.arange(count, device=device)
    return torch.randperm(count, device=device)[:limit]


def gather_ranks(column: Tensor) -> Tensor:
    """Concatenates a tensor of equal shapes over ranks along the first axis. Only this rank's own part carries gradient."""
    column = column.contiguous()
    parts = [torch.empty_like(column) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, column.detach())
    parts[torch.distributed.get_rank()] = column
    return torch.cat(parts)
