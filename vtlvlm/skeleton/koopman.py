"""Koopman pooling ("Neural Koopman Pooling", CVPR 2023): an action is a linear map from each frame's features to the next frame's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import Head, Scores, TapShape
from vtlvlm.skeleton.layouts import Layout


class KoopmanHead(Head):
    """An action's score is minus the mean distance between a frame's features and those that the action's map predicts for it.

    Features are the mean of the last block over joints and bodies. The head needs a trunk that keeps all frames: every stride is 1.

    The paper trains twice. The second training starts from the weights of the first one. It first changes the maps as
    :func:`normalised_maps` does, so that features neither grow nor vanish in time. It then trains the trunk on, and leaves the maps alone.
    With ``second``, that happens when the head loads weights: those of a first training are changed, those of a second one are not.

    Args:
        second: Second training. The maps are not trained.
        leading: Number of eigenvalues of each map that the second training changes.
        power: Their absolute values are raised to this power.

    Raises:
        UsageError: A setting is out of range.
    """

    maps: nn.Parameter
    """(A, C, C); rows are outputs"""
    is_normalised: Tensor
    """() bool, whether the maps were changed for the second training; kept in checkpoints"""

    def __init__(self, second: bool = False, leading: int = 32, power: float = 0.25) -> None:
        super().__init__()
        if leading < 1 or not 0 <= power <= 1:
            raise UsageError(f"head.leading={leading}, head.power={power}: use a number of at least 1, and one from 0 to 1")
        self.second = second
        self.leading = leading
        self.power = power
        self._started = False  # whether is_normalised was seen to be true

    def build(self, shapes: Sequence[TapShape], classes: Sequence[str], layout: Layout | None) -> None:
        """Makes the weights, from N(0, 1) as in the official code. Idempotent.

        Raises:
            UsageError: The features have a single frame.
        """
        if hasattr(self, "maps"):
            return
        width, frames = shapes[-1].channels, shapes[-1].frames
        if frames < 2:
            raise UsageError(f"the last block has {frames} frame: Koopman pooling needs two; use a longer window, or strides of 1")
        self.maps = nn.Parameter(torch.randn(len(classes), width, width), requires_grad=not self.second)
        self.register_buffer("is_normalised", torch.tensor(False))
        if self.second:
            self.register_load_state_dict_post_hook(_normalise_once)

    def forward(self, taps: Sequence[Tensor], labels: Tensor | None = None) -> Scores:
        """Scores a batch, in float32 also under autocast. There is no loss beside the cross-entropy.

        Raises:
            UsageError: The second training has no weights of a first one.
        """
        self.require_start()
        with torch.autocast(taps[-1].device.type, enabled=False):
            return Scores(-residuals(self.maps.float(), taps[-1].float().mean(4).mean(1)), {})

    def require_start(self) -> None:
        """Refuse a second training whose maps are random.

        Raises:
            UsageError: No weights were loaded.
        """
        if not self.second or self._started:
            return
        self._started = bool(self.is_normalised)
        if not self._started:
            raise UsageError(
                "head.second: the second training of Koopman pooling starts from the weights of the first one; name its checkpoint with "
                "--model.init_args.init_from FIRST.ckpt"
            )

    def normalise(self) -> None:
        """Changes the maps for the second training, once."""
        if not self.is_normalised:
            with torch.no_grad():
                self.maps.copy_(normalised_maps(self.maps, self.leading, self.power))
            self.is_normalised.fill_(True)


def residuals(maps: Tensor, features: Tensor) -> Tensor:
    """Mean distance between K h_t and h_{t+1} for each map K: (A, C, C) and (N, C, T) -> (N, A), T at least 2.

    The gradient of a distance of 0 is 0.
    """
    predicted = torch.einsum("aij,njt->nait", maps, features[:, :, :-1])
    return torch.linalg.vector_norm(predicted - features[:, None, :, 1:], dim=2).mean(dim=2)


def normalised_maps(maps: Tensor, leading: int = 32, power: float = 0.25) -> Tensor:
    """The maps (A, C, C) with their largest eigenvalues drawn towards the unit circle, computed in float64.

    The absolute value r of an eigenvalue becomes r^power; its angle stays. If the smallest eigenvalue that is changed is one of a complex
    pair, the other one is changed too: the result is real. The official code then changes one of the two and takes the real part.

    Args:
        maps: Real.
        leading: Number of eigenvalues of each map that are changed, largest first; all if there are fewer.
        power: In [0, 1]; 0 puts them on the circle.

    Raises:
        UsageError: A map has no basis of eigenvectors.
    """
    values, vectors = torch.linalg.eig(maps.double())
    sizes = values.abs()
    smallest = sizes.topk(min(leading, sizes.shape[1]), dim=1).values[:, -1:]
    chosen = (sizes >= smallest * (1 - 1e-9)) & (sizes > 0)  # both of a pair have the same size, but for rounding
    changed = torch.where(chosen, values * sizes.where(chosen, 1.0) ** (power - 1), values)
    if not _composed(vectors, values).real.allclose(maps.double(), rtol=1e-6, atol=1e-6 * float(maps.abs().max())):
        raise UsageError("a Koopman map has no basis of eigenvectors: train the first stage longer before the second")
    return _composed(vectors, changed).real.to(maps.dtype)


def _composed(vectors: Tensor, values: Tensor) -> Tensor:
    """vectors diag(values) vectors⁻¹, for each map; not a number where the vectors have no inverse."""
    return torch.linalg.solve_ex(vectors.mT, (vectors * values[:, None, :]).mT).result.mT


def _normalise_once(head: nn.Module, _: Any) -> None:
    assert isinstance(head, KoopmanHead)
    head.normalise()
