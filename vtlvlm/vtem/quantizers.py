"""Conceptual quantisation (eq. 3): continuous event vectors -> the nearest of K codes. All quantisers share one interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.vtem.group import group_rank, group_size
from vtlvlm.vtem.statistics import kmeans, least_squares, principal_components

MOST_CODES = 2**20
SMOOTHING = 1e-5
"""Added to every count, so that no average is divided by zero"""


class Quantized(NamedTuple):
    """The output of every quantiser."""

    vectors: Tensor
    """(..., E) float32: the code vectors, with the straight-through gradient in training"""
    ids: Tensor
    """(...) int64 in [0, K); -1 throughout without a codebook"""
    loss: Tensor
    """scalar term of the training loss: the weighted commitment, or zero"""


class Quantizer(nn.Module, ABC):
    """Event vectors (..., E) -> :class:`Quantized`."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """K; 0 without a codebook."""

    def build(self, dim: int) -> None:
        """Makes the codebook for vectors of width E. Idempotent. Call it after the process group exists, if there is one."""

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        """Starts the codebook from training vectors (N, E). Only this method does so."""

    @abstractmethod
    def table(self) -> Tensor | None:
        """The code vectors (K, E) float32, as the language model's projector reads them; None without a codebook."""

    @abstractmethod
    def forward(self, vectors: Tensor) -> Quantized:
        """Quantises vectors (..., E)."""

    def update(self, vectors: Tensor, ids: Tensor, seed: int = 0) -> None:
        """Moves codes that no gradient moves. Call it once for each optimiser step, after the backward pass.

        Args:
            vectors: (B, M, E) float32, all vectors of this process in the step. Every process of the group has B clips.
            ids: (B, M) int64, their codes from the forward passes.
            seed: of the draws of a step; the same on every process.
        """


class CodebookQuantizer(Quantizer):
    """Base of quantisers with a table of K codes. Everything is float32, also under autocast.

    Args:
        codes: K >= 2.
        commitment: weight of the mean squared distance between vectors and their codes in :attr:`Quantized.loss`.
    """

    def __init__(self, codes: int, commitment: float) -> None:
        super().__init__()
        if codes < 2:
            raise UsageError(f"quantizer.codes={codes}: a codebook needs at least 2 codes; IdentityQuantizer has none")
        if codes > MOST_CODES:
            raise UsageError(f"quantizer.codes={codes}: at most {MOST_CODES:,}")
        if commitment < 0:
            raise UsageError(f"quantizer.commitment={commitment}: must be at least 0")
        self.codes = codes
        self.commitment = commitment
        self.vq: Any = None

    @property
    def num_codes(self) -> int:
        return self.codes

    @abstractmethod
    def table(self) -> Tensor:
        """The code vectors (K, E) float32."""

    @abstractmethod
    def quantize(self, flat: Tensor) -> Quantized:
        """Quantises vectors (N, E) float32."""

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (..., E) -> their nearest codes.

        Raises:
            UsageError: the codebook is not built, or was cast to another type than float32.
        """
        if self.vq is None:
            raise UsageError("the quantiser has no codebook yet: call build(dim) first")
        dtype = next((t.dtype for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()), torch.float32)
        if dtype != torch.float32:
            raise UsageError(f"the codebook is {dtype}: it must stay float32, so train with precision bf16-mixed, not bf16-true")
        with torch.autocast(vectors.device.type, enabled=False):
            quantized, ids, loss = self.quantize(vectors.float().flatten(0, -2))
        return Quantized(quantized.reshape(vectors.shape), ids.reshape(vectors.shape[:-1]).long(), loss)

    def _built(self) -> Any:
        if self.vq is None:
            raise UsageError("the quantiser has no codebook yet: call build(dim) first")
        return self.vq


@torch.no_grad()
def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Vectors (N, E) -> numbers (N,) of the codes (K, E) at the smallest Euclidean distance."""
    return torch.cdist(vectors, codes, compute_mode="use_mm_for_euclid_dist").argmin(dim=-1)


@torch.no_grad()
def nearest_cosine(vectors: Tensor, codes: Tensor) -> Tensor:
    """Vectors (N, E) -> numbers (N,) of the codes (K, E), of length 1, at the smallest angle."""
    return (vectors @ codes.T).argmax(dim=-1)


class EMAQuantizer(CodebookQuantizer):
    """The paper's quantiser: nearest code by Euclidean distance, straight-through gradient, codes that follow the moving average of their
    vectors.

    The codebook is a float32 buffer that only :meth:`update` changes. Each step has the same weight in the moving averages, whatever its
    number of vectors. Rarely used codes restart from random vectors of the step. The clips of all processes count as one batch.

    Args:
        codes: K >= 2.
        decay: of the moving averages, in (0, 1).
        dead_code_threshold: a code restarts when its moving count falls below this fraction of a uniform share (vectors of the step / K);
            with 0 codes never restart. 0.125 is 2 vectors in a step at the paper's 32,768 vectors and 2,048 codes.
        commitment: weight of the mean squared distance between vectors and their codes in :attr:`Quantized.loss`.
        rotation: the rotation trick (arXiv 2410.06424) instead of the straight-through gradient.
    """

    cosine = False

    def __init__(
        self, codes: int = 2048, decay: float = 0.99, dead_code_threshold: float = 0.125, commitment: float = 0.25, rotation: bool = False
    ) -> None:
        super().__init__(codes, commitment)
        if not 0 < decay < 1 or not 0 <= dead_code_threshold < 1:
            raise UsageError(
                f"quantizer: decay={decay}, dead_code_threshold={dead_code_threshold}: need 0 < decay < 1, 0 <= dead_code_threshold < 1"
            )
        self.decay = decay
        self.dead_code_threshold = dead_code_threshold
        self.rotation = rotation

    def build(self, dim: int) -> None:
        if self.vq is not None:
            return
        from vector_quantize_pytorch import VectorQuantize

        self.vq = VectorQuantize(
            dim,
            codebook_size=self.codes,
            use_cosine_sim=self.cosine,
            kmeans_init=False,  # the library's start would also run in eval mode, on validation data
            sync_codebook=False,
        )  # holds the codes and their sums; its forward pass would update for each process, wait for the GPU and make (N, K) one-hot rows

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        """Puts the codes at the k-means centres of samples (N, E).

        Raises:
            DataError: fewer distinct samples than codes.
        """
        book = self._built()._codebook
        centres, counts = kmeans(samples, self.codes, seed)
        if self.cosine:
            centres = F.normalize(centres, dim=-1)
        with torch.no_grad():
            book.embed.copy_(centres)
            book.cluster_size.copy_(counts)
            book.embed_avg.copy_(centres * counts[:, None])

    def table(self) -> Tensor:
        table: Tensor = self._built()._codebook.embed[0].detach()
        return table

    def quantize(self, flat: Tensor) -> Quantized:
        book = self._built()._codebook.embed[0]
        ids = nearest_cosine(flat, book) if self.cosine else nearest(flat, book)
        codes = F.embedding(ids, book)
        loss = self.commitment * F.mse_loss(flat, codes)
        if not (self.training and flat.requires_grad):
            return Quantized(codes, ids, loss)
        if self.rotation:
            from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

            return Quantized(rotate_to(flat, codes), ids, loss)
        return Quantized(flat + (codes - flat).detach(), ids, loss)

    @torch.no_grad()
    def update(self, vectors: Tensor, ids: Tensor, seed: int = 0) -> None:
        """As in :class:`Quantizer`. One sum over processes, and no wait for the GPU. Vectors that are NaN or infinite change nothing."""
        with torch.autocast(vectors.device.type, enabled=False):
            self._move(vectors.float(), ids, torch.Generator(device=vectors.device).manual_seed(seed))

    def _move(self, vectors: Tensor, ids: Tensor, generator: torch.Generator) -> None:
        """Moves the codes towards vectors (B, M, d) with codes (B, M)."""
        book, (clips, tokens), ranks = self._built()._codebook, ids.shape, group_size()
        total = clips * tokens * ranks
        flat, codes = vectors.flatten(0, 1), ids.flatten()
        sums = flat.new_zeros(self.codes, flat.shape[1]).index_add_(0, codes, flat)
        counts = flat.new_zeros(self.codes).index_add_(0, codes, torch.ones_like(codes, dtype=flat.dtype))
        # the vectors that dead codes restart from: clips are dealt to the processes in turn
        place = torch.randperm(total, generator=generator, device=flat.device)[: self.codes]
        clip, held = place // tokens, place // tokens % ranks == group_rank()
        fresh = torch.where(held[:, None], flat[torch.where(held, clip // ranks * tokens + place % tokens, 0)], 0.0)
        if ranks > 1:
            joined = torch.cat([sums.flatten(), counts, fresh.flatten()])
            torch.distributed.all_reduce(joined)
            parts = joined.split([sums.numel(), counts.numel(), fresh.numel()])
            sums, counts, fresh = parts[0].view_as(sums), parts[1], parts[2].view_as(fresh)
        if self.cosine:
            fresh = F.normalize(fresh, dim=-1)

        scale, share = total / book.cluster_size.sum(), total / self.codes
        size = (book.cluster_size[0] * scale).lerp(counts, 1 - self.decay)
        average = (book.embed_avg[0] * scale).lerp(sums, 1 - self.decay)
        smoothed = (size + SMOOTHING) / (size.sum() + self.codes * SMOOTHING) * size.sum()
        code = average / smoothed[:, None]
        if self.cosine:
            code = F.normalize(code, dim=-1)

        dead = size < self.dead_code_threshold * share
        turn = dead.cumsum(0) - 1  # each takes a vector of its own; where vectors are fewer than dead codes, the last ones wait
        dead = (dead & (turn < len(fresh)))[:, None]
        restart = fresh[turn.clamp(0, len(fresh) - 1)]
        finite = torch.isfinite(sums).all()
        for held_value, new in (
            (book.embed[0], torch.where(dead, restart, code)),
            (book.embed_avg[0], torch.where(dead, restart * share, average)),
            (book.cluster_size[0], torch.where(dead[:, 0], share, size)),
        ):
            held_value.copy_(torch.where(finite, new, held_value))


class FactorisedQuantizer(EMAQuantizer):
    """Low-dimensional codes compared by cosine, between two linear maps (factorised and normalised codes, arXiv 2110.04627).

    The maps start at the principal components of the training vectors and at the least-squares inverse.

    Args:
        codes: K >= 2.
        code_dim: width of a code, below E.
        decay: as in :class:`EMAQuantizer`, like the other settings.
    """

    cosine = True

    def __init__(
        self,
        codes: int = 2048,
        code_dim: int = 32,
        decay: float = 0.99,
        dead_code_threshold: float = 0.125,
        commitment: float = 0.25,
        rotation: bool = False,
    ) -> None:
        super().__init__(codes, decay, dead_code_threshold, commitment, rotation)
        if code_dim < 1:
            raise UsageError(f"quantizer.code_dim={code_dim}: must be at least 1")
        self.code_dim = code_dim

    def build(self, dim: int) -> None:
        if self.vq is None:
            super().build(self.code_dim)
            self.project_in, self.project_out = nn.Linear(dim, self.code_dim), nn.Linear(self.code_dim, dim)

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        self._built()
        _start_project_in(self.project_in, samples)
        with torch.no_grad():
            directions = F.normalize(self.project_in(samples), dim=-1)
            super().initialise(directions, seed)
            codes = super().table()
            _start_project_out(self.project_out, codes[(directions @ codes.T).argmax(dim=-1)], samples)

    @torch.no_grad()
    def table(self) -> Tensor:
        found: Tensor = self.project_out(super().table())
        return found

    def quantize(self, flat: Tensor) -> Quantized:
        found = super().quantize(F.normalize(self.project_in(flat), dim=-1))
        return found._replace(vectors=self.project_out(found.vectors))

    def _move(self, vectors: Tensor, ids: Tensor, generator: torch.Generator) -> None:
        super()._move(F.normalize(self.project_in(vectors), dim=-1), ids, generator)


class FSQQuantizer(CodebookQuantizer):
    """Finite scalar quantisation (arXiv 2309.15505): a few coordinates, each rounded to a fixed number of levels. K is the product of the
    levels. No code is learned, so none can die.

    The maps to and from the coordinates start at the principal components of the training vectors and at the least-squares inverse.

    Args:
        levels: number of values of each coordinate, at least 3 each.
    """

    def __init__(self, levels: Sequence[int] = (8, 8, 8, 4)) -> None:
        if not levels or min(levels) < 3:
            raise UsageError(f"quantizer.levels={list(levels)}: give at least one coordinate, each of at least 3 levels")
        super().__init__(math.prod(levels), 0.0)
        self.levels = tuple(levels)

    def build(self, dim: int) -> None:
        if self.vq is None:
            from vector_quantize_pytorch import FSQ

            self.vq = FSQ(list(self.levels))
            self.project_in, self.project_out = nn.Linear(dim, len(self.levels)), nn.Linear(len(self.levels), dim)

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        self._built()
        _start_project_in(self.project_in, samples)
        with torch.no_grad():
            _start_project_out(self.project_out, self.vq(self.project_in(samples)[None])[0][0], samples)

    @torch.no_grad()
    def table(self) -> Tensor:
        found: Tensor = self.project_out(self._built().implicit_codebook)
        return found

    def quantize(self, flat: Tensor) -> Quantized:
        codes, ids = self.vq(self.project_in(flat)[None])
        return Quantized(self.project_out(codes[0]), ids[0], flat.new_zeros(()))


def _start_project_in(project_in: nn.Linear, samples: Tensor) -> None:
    """Starts a map at the first principal components of samples (N, E), each scaled to a standard deviation of 1."""
    found = principal_components(samples, project_in.out_features)
    rank = int((found.variances > 1e-9 * found.variances[0].clamp(min=1e-12)).sum())
    with torch.no_grad():
        project_in.weight.zero_()
        project_in.weight[:rank] = found.directions[:, :rank].T / found.variances[:rank, None].sqrt()
        project_in.bias.copy_(-project_in.weight @ found.mean)


def _start_project_out(project_out: nn.Linear, codes: Tensor, samples: Tensor) -> None:
    """Starts a map at the least-squares fit from the samples' codes (N, d) to the samples (N, E)."""
    back = least_squares(codes, samples)
    with torch.no_grad():
        project_out.weight.copy_(back.weight)
        project_out.bias.copy_(back.bias)


class IdentityQuantizer(Quantizer):
    """No quantisation (the "continuous features" arm): returns the vectors themselves, ids of -1 and no table."""

    @property
    def num_codes(self) -> int:
        return 0

    def table(self) -> None:
        return None

    def forward(self, vectors: Tensor) -> Quantized:
        vectors = vectors.float()
        ids = torch.full(vectors.shape[:-1], -1, dtype=torch.int64, device=vectors.device)
        return Quantized(vectors, ids, vectors.new_zeros(()))
