"""Conceptual quantisation (eq. 3): continuous event vectors -> the nearest of K codes, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.statistics import kmeans


class Quantized(NamedTuple):
    """What every quantiser returns."""

    vectors: Tensor
    """(..., E) float32: the codes' vectors, with the straight-through gradient in training"""
    ids: Tensor
    """(...) int64 in [0, K); -1 throughout without a codebook"""
    loss: Tensor
    """scalar, to be added to the training loss as it is: the weighted commitment, or zero"""


class Quantizer(nn.Module, ABC):
    """Event vectors (..., E) -> :class:`Quantized`."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """K; 0 without a codebook."""

    def build(self, dim: int) -> None:
        """Makes the codebook for vectors of width E. Idempotent; call it after the process group exists, if there is one."""

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        """Starts the codebook from training vectors (N, E). Nothing else ever does."""

    @abstractmethod
    def table(self) -> Tensor | None:
        """The codes' vectors (K, E) float32 as the language model's projector sees them; None without a codebook."""

    @abstractmethod
    def forward(self, vectors: Tensor) -> Quantized:
        """Quantises vectors (..., E)."""


class EMAQuantizer(Quantizer):
    """The paper's arm: nearest code by Euclidean distance, straight-through gradient, codes that follow the mean of their vectors.

    The codebook is a float32 buffer, updated in training mode only. Each training step weighs the same in the moving averages,
    whatever its number of vectors. Codes used too rarely restart from random vectors of the step.

    Args:
        codes: K >= 2.
        decay: of the moving averages, in (0, 1).
        dead_below: a code is dead when its moving count falls below this share of a uniform share (vectors of the step / K); 0 never.
            0.125 is 2 vectors a step at the paper's 32,768 vectors and 2,048 codes.
        commitment: weight of the mean squared distance between vectors and their codes in :attr:`Quantized.loss`.
    """

    def __init__(self, codes: int = 2048, decay: float = 0.99, dead_below: float = 0.125, commitment: float = 0.25) -> None:
        super().__init__()
        if codes < 2:
            raise UsageError(f"quantizer.codes={codes}: a codebook needs at least 2 codes; IdentityQuantizer has none")
        if not 0 < decay < 1 or not 0 <= dead_below < 1 or commitment < 0:
            given = f"decay={decay}, dead_below={dead_below}, commitment={commitment}"
            raise UsageError(f"quantizer: {given}: need 0 < decay < 1, 0 <= dead_below < 1, commitment >= 0")
        self.codes = codes
        self.decay = decay
        self.dead_below = dead_below
        self.commitment = commitment
        self.vq: Any = None

    @property
    def num_codes(self) -> int:
        return self.codes

    def build(self, dim: int) -> None:
        if self.vq is not None:
            return
        from vector_quantize_pytorch import VectorQuantize

        self.world_size = (
            torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1
        )
        self.vq = VectorQuantize(
            dim,
            codebook_size=self.codes,
            decay=self.decay,
            threshold_ema_dead_code=self.dead_below,
            kmeans_init=False,  # the library's own start would also run in eval mode, on validation data
            rotation_trick=False,
            commitment_weight=0.0,  # ours is also reported in eval mode
            sync_codebook=self.world_size > 1,
        )

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        """Puts the codes at the k-means centres of samples (N, E).

        Raises:
            DataError: fewer distinct samples than codes.
        """
        book = self._codebook()
        centres, counts = kmeans(samples, self.codes, seed)
        with torch.no_grad():
            book.embed.copy_(centres)
            book.cluster_size.copy_(counts)
            book.embed_avg.copy_(centres * counts[:, None])

    def table(self) -> Tensor:
        table: Tensor = self._codebook().embed[0].detach()
        return table

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (..., E) -> their nearest codes. Moves the codebook in training mode.

        Raises:
            UsageError: the codebook was cast to another type than float32.
            DataError: NaN or infinite vectors in training, before they reach the codebook.
        """
        book = self._codebook()
        if book.embed.dtype != torch.float32:
            raise UsageError(f"the codebook is {book.embed.dtype}: it must stay float32, so train with precision bf16-mixed, not bf16-true")
        with torch.autocast(vectors.device.type, enabled=False):
            flat = vectors.float().reshape(1, -1, vectors.shape[-1])
            if self.training:
                if not bool(torch.isfinite(flat).all()):
                    raise DataError(
                        "event vectors are NaN or infinite, the codebook was left as it is: look at the features, or lower the rate"
                    )
                self._weigh_step(flat.shape[1] * self.world_size)
            quantized, ids, _ = self.vq(flat)
            loss = self.commitment * F.mse_loss(flat, quantized.detach())
        return Quantized(quantized.reshape(vectors.shape), ids.reshape(vectors.shape[:-1]), loss)

    @torch.no_grad()
    def _weigh_step(self, count: int) -> None:
        """Puts the moving counts into units of this step's ``count`` vectors, and the threshold of dead codes with them."""
        book = self._codebook()
        scale = count / book.cluster_size.sum()
        book.cluster_size.mul_(scale)
        book.embed_avg.mul_(scale)
        book.threshold_ema_dead_code = self.dead_below * count / self.codes
        book.reset_cluster_size = count / self.codes  # a revived code gets the time of an average one to prove itself

    def _codebook(self) -> Any:
        if self.vq is None:
            raise UsageError("the quantiser has no codebook yet: call build(dim) first")
        return self.vq._codebook


class IdentityQuantizer(Quantizer):
    """No quantisation (the "continuous features" arm): the vectors themselves, ids -1, no table."""

    @property
    def num_codes(self) -> int:
        return 0

    def table(self) -> None:
        return None

    def forward(self, vectors: Tensor) -> Quantized:
        vectors = vectors.float()
        ids = torch.full(vectors.shape[:-1], -1, dtype=torch.int64, device=vectors.device)
        return Quantized(vectors, ids, vectors.new_zeros(()))
