"""The rule that rejects clips: how familiar a clip is, compared with validation clips, and the least familiarity that is accepted.

A model of A actions always names one of them. The rule joins six signals, each larger for clips that are more like the training's:

- ``probability``: the log of the largest calibrated probability;
- ``in_list``: the log of the probability that the language model's answer is any of the actions;
- ``codes``: the mean squared distance of the event vectors to their codes, negative;
- ``neighbours``: the mean cosine of the clip's mean event vector to its nearest training clips;
- ``motion``: the log of how fast the clip moves, which is low where nobody does anything;
- ``looks``: the log of how far the clip's features are from the training's, negative: other cameras, places and kinds of pictures.

Each signal becomes a p-value: the share of validation clips whose signal is at most as large. The familiarity is the mean of the six
logarithms (Fisher's method without its distribution, which would need independent signals). The threshold is a conformal quantile: of the
familiarities of n validation clips, the ⌊(1 − acceptance)(n + 1)⌋-th smallest. A new clip of the same kind then has a familiarity of at
least the threshold with the probability ``acceptance``, whatever the signals' distribution. Nothing unknown was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.batches import EventTokens
from vtlvlm.errors import DataError, UsageError
from vtlvlm.stages.compatibility import require_numbers

SIGNALS = ("probability", "in_list", "codes", "neighbours", "motion", "looks")
"""The signals, in their order"""
NEAREST = 5
"""Training clips whose cosines are averaged"""
MOST_TRAINING = 4096
"""Training clips that a rule holds, at most"""
SMALLEST = 1e-12
"""A probability, motion or distance below this counts as this"""
FAST = 0.9
"""A clip moves as fast as this quantile of its motion, averaged over three steps"""


class Familiarity(NamedTuple):
    """How familiar a clip is."""

    share: float
    """share of validation clips that are less familiar, in [0, 1]"""
    rejected: bool
    """whether it is less familiar than the threshold: unlike anything that the model was trained on"""
    signals: dict[str, float]
    """value of each signal"""


@dataclass(frozen=True)
class RejectionRule:
    """A fitted rule.

    Attributes:
        acceptance: Share of actions of new people that is to be accepted, in (0, 1).
        training: (N, E) mean event vectors of training clips.
        validation: (n, 6) signals of the validation clips, each column ascending.
        familiarities: (n,) of the validation clips, ascending; each was compared with the others.
    """

    acceptance: float
    training: Tensor
    validation: NDArray[np.float64]
    familiarities: NDArray[np.float64]

    @classmethod
    def fit(cls, training: Tensor, signals: NDArray[np.float64], acceptance: float) -> RejectionRule:
        """Fit a rule.

        Args:
            training: (N, E) mean event vectors of training clips.
            signals: (n, 6) of the validation clips.
            acceptance: In (0, 1).

        Raises:
            UsageError: ``acceptance`` is out of range, or there are too few validation clips for it.
            DataError: A signal is no number.
        """
        if not 0 < acceptance < 1:
            raise UsageError(f"acceptance {acceptance}: a share between 0 and 1, such as 0.95")
        fewest = math.ceil(1 / (1 - acceptance) - 1e-9) - 1
        if len(signals) < fewest:
            raise UsageError(
                f"{len(signals)} validation clips: to accept {acceptance:.1%} of the actions takes at least {fewest}; hold more people out "
                "for validation, or lower the acceptance"
            )
        if not np.isfinite(signals).all() or not bool(torch.isfinite(training).all()):
            raise DataError("a validation clip has a signal that is no number (NaN); look at the validation of the training")
        alone = [_familiarity(signals[i : i + 1], np.sort(np.delete(signals, i, axis=0), axis=0))[0] for i in range(len(signals))]
        return cls(acceptance, training.float().cpu(), np.sort(signals, axis=0), np.sort(alone))

    @property
    def threshold(self) -> float:
        """The least familiarity that is accepted."""
        rank = math.floor((1 - self.acceptance) * (len(self.familiarities) + 1) + 1e-9)
        return float(self.familiarities[min(max(1, rank), len(self.familiarities)) - 1])

    def __call__(self, signals: NDArray[np.float64]) -> list[Familiarity]:
        """The familiarity of each of B clips with signals (B, 6)."""
        values = _familiarity(signals, self.validation)
        shares = np.searchsorted(self.familiarities, values, side="left") / len(self.familiarities)
        return [
            Familiarity(float(share), not bool(value >= self.threshold), dict(zip(SIGNALS, map(float, row), strict=True)))
            for share, value, row in zip(shares, values, signals, strict=True)
        ]

    def values(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """The familiarity (B,) of clips with signals (B, 6): a mean log p-value, at most 0."""
        return _familiarity(signals, self.validation)

    def state(self) -> dict[str, Tensor]:
        """Its tensors, for a file."""
        return {
            "acceptance": torch.tensor(self.acceptance, dtype=torch.float64),
            "training": self.training.contiguous(),
            "validation": torch.from_numpy(self.validation.copy()),
            "familiarities": torch.from_numpy(self.familiarities.copy()),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], width: int, path: Any) -> RejectionRule:
        """The rule of :meth:`state`. The tensors may come from anywhere.

        Args:
            state: The tensors.
            width: E of the model.
            path: Of the file, for errors.

        Raises:
            UsageError: They are not those of a rule of this model.
        """
        clips, number = (state[name].shape[0] if name in state and state[name].ndim else 0 for name in ("training", "validation"))
        shapes = {"acceptance": (), "training": (clips, width), "validation": (number, len(SIGNALS)), "familiarities": (number,)}
        if {name: tuple(tensor.shape) for name, tensor in state.items()} != shapes or not 1 <= clips <= MOST_TRAINING or not number:
            raise UsageError(f"{path}: no rule of rejection for this model; get the bundle again, or export it again")
        wanted = {name: torch.empty(shape, device="meta", dtype=torch.float64) for name, shape in shapes.items()}
        require_numbers(dict(state), wanted, path)
        acceptance = float(state["acceptance"])
        if not 0 < acceptance < 1:
            raise UsageError(f"{path}: an acceptance of {acceptance:g}, which is no share; get the bundle again, or export it again")
        signals, familiarities = (np.sort(state[name].double().numpy(), axis=0) for name in ("validation", "familiarities"))
        return cls(acceptance, state["training"].float(), signals, familiarities)


def signals_of(
    tokens: EventTokens,
    continuous: Tensor,
    probabilities: Tensor,
    in_list_mass: Tensor,
    training: Tensor,
    rates: Tensor,
    distances: Tensor,
) -> NDArray[np.float64]:
    """The signals (B, 6) of clips.

    Args:
        tokens: Their event sentences.
        continuous: (B, M, E) their event vectors before quantisation.
        probabilities: (B, A), calibrated.
        in_list_mass: (B,) in [0, 1].
        training: (N, E) mean event vectors of training clips.
        rates: (B, N') how fast their features change, in their order of time.
        distances: (B,) how far their features are from the training's.
    """
    distance = (tokens.vectors.float() - continuous.float()).square().sum(-1).mean(1)
    columns = (
        probabilities.amax(1).clamp(min=SMALLEST).log(),
        in_list_mass.clamp(min=SMALLEST).log(),
        -distance,
        neighbours(mean_vectors(tokens.vectors), training.to(tokens.vectors.device)),
        speed(rates).clamp(min=SMALLEST).log(),
        -distances.clamp(min=SMALLEST).log(),
    )
    return np.stack([column.double().cpu().numpy() for column in columns], axis=1)


def speed(rates: Tensor) -> Tensor:
    """How fast features change (B, N), NaN where nothing is known -> how fast the clips move (B,); 0 for clips of one picture."""
    if not rates.shape[1]:
        return rates.new_zeros(len(rates))
    steps = rates.float().unfold(1, min(3, rates.shape[1]), 1).nanmean(-1)
    return steps.nanquantile(FAST, dim=1).nan_to_num(0.0)


def mean_vectors(vectors: Tensor) -> Tensor:
    """Event vectors (B, M, E) -> their mean (B, E) float32."""
    return vectors.float().mean(1)


def neighbours(means: Tensor, training: Tensor) -> Tensor:
    """The mean cosine (B,) of clips (B, E) to their nearest training clips (N, E), after the training's mean is taken off."""
    centre = training.mean(0)
    cosines = F.normalize(means - centre, dim=1) @ F.normalize(training - centre, dim=1).T
    return cosines.topk(min(NEAREST, len(training)), dim=1).values.mean(1)


def _familiarity(signals: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """The familiarity (B,): the mean log p-value of signals (B, 6) among ascending known ones (n, 6)."""
    return np.mean([_log_p(signals[:, i], known[:, i]) for i in range(signals.shape[1])], axis=0)


def _log_p(values: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of p-values: one more than the number of ascending known values (n,) that are at most as large, divided by n + 1. Below
    the smallest known value the p-value goes on falling with the distance, in units of the median's distance, so that very strange clips
    differ too."""
    least = float(known[0])
    unit = max(float(np.median(known)) - least, 1e-9 * max(1.0, abs(least)))
    ranks = np.log((np.searchsorted(known, values, "right") + 1) / (len(known) + 1))
    result: NDArray[np.float64] = ranks - np.log1p(np.clip(least - values, 0, None) / unit)
    return result
