"""Codebooks that the optimiser trains: plain vectors, or SimVQ's linear map of fixed vectors."""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.vtem.quantizers import CodebookQuantizer, Quantized
from vtlvlm.vtem.statistics import kmeans


class GradientQuantizer(CodebookQuantizer):
    """Base of quantisers whose codes move towards their vectors by gradient (the loss of VQ-VAE, arXiv 1711.00937).

    Args:
        codes: K >= 2.
        commitment: weight of the vectors' term; the codes' term has weight 1.
        rotation: the rotation trick instead of the straight-through gradient.
    """

    def __init__(self, codes: int = 2048, commitment: float = 0.25, rotation: bool = False) -> None:
        super().__init__(codes, commitment)
        self.rotation = rotation


class LearnedQuantizer(GradientQuantizer):
    """Codes that are parameters. Arguments: see :class:`GradientQuantizer`."""

    def build(self, dim: int) -> None:
        if self.vq is None:
            from vector_quantize_pytorch import VectorQuantize

            self.vq = VectorQuantize(
                dim,
                codebook_size=self.codes,
                learnable_codebook=True,
                ema_update=False,
                kmeans_init=False,
                rotation_trick=self.rotation,
                commitment_weight=0.0,
                sync_codebook=False,  # DDP keeps parameters equal
            )

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        """Puts the codes at the k-means centres of samples (N, E).

        Raises:
            DataError: fewer distinct samples than codes.
        """
        book = self._built()._codebook
        with torch.no_grad():
            book.embed.copy_(kmeans(samples, self.codes, seed)[0])

    def table(self) -> Tensor:
        table: Tensor = self._built()._codebook.embed[0].detach()
        return table

    def quantize(self, flat: Tensor) -> Quantized:
        quantized, ids, _ = self.vq(flat[None])
        chosen = self.vq._codebook.embed[0][ids[0]]
        loss = F.mse_loss(chosen, flat.detach()) + self.commitment * F.mse_loss(flat, chosen.detach())
        return Quantized(quantized[0], ids[0], loss)


class SimVQQuantizer(GradientQuantizer):
    """Frozen codes followed by one learned linear map. The map moves all codes at once, so that none dies (SimVQ, arXiv 2411.02038).
    Arguments: see :class:`GradientQuantizer`."""

    def build(self, dim: int) -> None:
        if self.vq is None:
            from vector_quantize_pytorch import SimVQ

            self.vq = SimVQ(
                dim, self.codes, rotation_trick=self.rotation, commitment_weight=1.0, input_to_quantize_commit_loss_weight=self.commitment
            )

    def initialise(self, samples: Tensor, seed: int = 0) -> None:
        """Freezes the k-means centres of samples (N, E) and starts the map at the identity.

        Raises:
            DataError: fewer distinct samples than codes.
        """
        vq = self._built()
        with torch.no_grad():
            vq.frozen_codebook.copy_(kmeans(samples, self.codes, seed)[0])
            nn.init.eye_(vq.code_transform.weight)

    def table(self) -> Tensor:
        table: Tensor = self._built().codebook.detach()
        return table

    def quantize(self, flat: Tensor) -> Quantized:
        quantized, ids, loss = self.vq(flat[None])
        return Quantized(quantized[0], ids[0], loss)
