"""The terms of L = α·L_rec + β·L_cont (eq. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.vtem.group import gather_clips, group_rank, group_size


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

    In training, the clips of all processes are one batch: each clip has the same number of anchors and of negatives, and the loss and its
    gradient do not depend on the number of processes. In evaluation, every token is an anchor and the negatives come from its own clip.
    Nothing is drawn then, and the mean over clips does not depend on how the clips are batched.

    Args:
        temperature: divides the cosine similarities.
        radius: in windows.
        max_anchors: anchors drawn at random in a training step, over all processes together.
        max_negatives: negatives drawn at random in a training step, over all processes together.
        head_dim: width of the projection.
    """

    def __init__(
        self, temperature: float = 0.1, radius: int = 1, max_anchors: int = 4096, max_negatives: int = 8192, head_dim: int = 128
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

    def forward(self, vectors: Tensor, ids: Tensor, windows: int, seed: int = 0) -> Tensor:
        """Event tokens (B, M, E) with ids (B, M) of ``windows`` W windows -> scalar loss; zero if W = 1, which leaves no positives.

        Args:
            vectors: (B, M, E), window by window. In training, every process of the group has B clips.
            ids: (B, M) code numbers; -1 for tokens without a code, which exclude no negatives.
            windows: W; M = W·S.
            seed: of the draws of a training step; the same on every process.

        Returns:
            The mean over this process's terms. In training, their weights make the mean over processes equal the mean over the terms of all
            processes.
        """
        if self.head is None:
            raise UsageError("InfoNCE has no projection yet: call build(event_dim) first")
        with torch.autocast(vectors.device.type, enabled=False):
            points = F.normalize(F.linear(vectors.float(), self.head.weight), dim=-1)  # (B, M, head_dim)
            return self._over_batch(points, ids, windows, seed) if self.training else self._within_clips(points, ids, windows)

    def _over_batch(self, points: Tensor, ids: Tensor, windows: int, seed: int) -> Tensor:
        """The loss with anchors (B, a) of each clip and negatives (N,) of all clips of all processes."""
        ranks, rank = group_size(), group_rank()
        (batch, tokens), device = ids.shape, ids.device
        clips, cells = batch * ranks, tokens // windows
        generator = torch.Generator(device=device).manual_seed(seed)
        anchors = draw(clips, tokens, self.max_anchors, generator)
        chosen = draw(clips, tokens, self.max_negatives, generator)
        clip = torch.arange(clips, device=device)
        every = self._in_bounds(anchors // cells, windows).sum()
        mine = slice(rank, None, ranks)  # clips are dealt to the processes in turn
        anchors = anchors[mine]

        other_points = of_clips(points, chosen[mine])
        other_codes = ids.gather(1, chosen[mine])
        if ranks > 1:
            other_points, other_codes = gather_clips(other_points), gather_clips(other_codes)
        other_points, other_codes = other_points.flatten(0, 1), other_codes.flatten()
        other_clip, other_window = clip.repeat_interleave(chosen.shape[1], output_size=chosen.numel()), chosen.flatten() // cells

        window, codes = (anchors // cells)[..., None], ids.gather(1, anchors)[..., None]
        near = (clip[mine, None, None] == other_clip) & ((window - other_window).abs() <= self.radius)
        same_code = (codes == other_codes) & (codes >= 0)
        here = of_clips(points, anchors)
        negatives = (here @ other_points.T / self.temperature).masked_fill(near | same_code, -torch.inf)
        terms, valid = self._terms(here, points, anchors, negatives, windows)
        return ranks * (terms * valid).sum() / every.clamp(min=1)

    def _within_clips(self, points: Tensor, ids: Tensor, windows: int) -> Tensor:
        """The loss with every token as anchor, and with negatives from its own clip."""
        batch, tokens = ids.shape
        anchors = torch.arange(tokens, device=ids.device).expand(batch, tokens)
        window = anchors[0] // (tokens // windows)
        near = (window[:, None] - window).abs() <= self.radius
        same_code = (ids[:, :, None] == ids[:, None]) & (ids[:, :, None] >= 0)
        negatives = (points @ points.mT / self.temperature).masked_fill(near | same_code, -torch.inf)
        terms, valid = self._terms(points, points, anchors, negatives, windows)
        return (terms * valid).sum() / valid.sum().clamp(min=1)

    def _in_bounds(self, window: Tensor, windows: int) -> Tensor:
        """Windows (...) of anchors -> (..., 2·radius) bool, whether there is a window at each offset."""
        target = window[..., None] + self._offsets(window.device)
        return (target >= 0) & (target < windows)

    def _offsets(self, device: torch.device) -> Tensor:
        """(2·radius,) distances of the positives, in windows."""
        return torch.cat([torch.arange(-self.radius, 0, device=device), torch.arange(1, self.radius + 1, device=device)])

    def _terms(self, here: Tensor, points: Tensor, anchors: Tensor, negatives: Tensor, windows: int) -> tuple[Tensor, Tensor]:
        """One term for each positive.

        Args:
            here: (B, a, d) the anchors' points.
            points: (B, M, d) the clips' points.
            anchors: (B, a) the anchors' positions in their clips.
            negatives: (B, a, N) similarities over the temperature, -inf for tokens that are no negatives.
            windows: W.

        Returns:
            Terms (B, a, 2·radius), and whether each positive exists.
        """
        tokens = points.shape[1]
        cells = tokens // windows
        neighbours = (anchors[..., None] + self._offsets(anchors.device) * cells).clamp(0, tokens - 1)
        there = of_clips(points, neighbours.flatten(1)).unflatten(1, neighbours.shape[1:])
        positives = torch.einsum("bad,bapd->bap", here, there) / self.temperature
        # -log(e^p / (e^p + Σ e^n)) = softplus(logsumexp(n) - p)
        terms = F.softplus(torch.logsumexp(negatives, dim=-1, keepdim=True) - positives)
        return terms, self._in_bounds(anchors // cells, windows)


def of_clips(points: Tensor, places: Tensor) -> Tensor:
    """Points (B, M, d) at the places (B, n) of their clips -> (B, n, d)."""
    return points.gather(1, places[..., None].expand(-1, -1, points.shape[-1]))


def draw(clips: int, tokens: int, limit: int, generator: torch.Generator) -> Tensor:
    """Distinct positions (clips, n) in [0, tokens), the same number n >= 1 for each clip, about ``limit`` in all; all of them, in order, if
    they fit."""
    each = max(1, limit // clips)
    if tokens <= each:
        return torch.arange(tokens, device=generator.device).expand(clips, tokens)
    return torch.rand(clips, tokens, generator=generator, device=generator.device).topk(each).indices
