"""Linear probes: logistic regressions on given vectors, the baselines of every result.

Scaling and regularisation are fitted and chosen on training clips only. The test clips are predicted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import SplineTransformer, StandardScaler

from vtlvlm.errors import DataError
from vtlvlm.metrics.actions import action_metrics

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths C to try, strongest regularisation first."""

FOLDS = 5
"""Largest number of folds of training people."""

VECTORS = ("mean feature", "movement", "mean and movement", "thirds", "thirds of both")
"""Names of the clip vectors that read the whole clip."""

SUITE = (*VECTORS, "middle frame", "clip length")
"""Names of the probes of :func:`probe_suite`."""

AT_ONCE = 64
"""Clips in memory as float32 at the same time."""

ABSENT = -1e9
"""Score of a class without training clips: a number that can be stored and gives probability zero."""


def _alone() -> bool:
    return False


@dataclass(frozen=True)
class ProbeResult:
    """A probe's accuracies on the test clips, each in [0, 1], and its settings."""

    top1: float
    top5: float
    mean_class: float
    num_train: int
    num_test: int
    dims: int
    """numbers per clip that the probe reads"""
    strength: float
    """the regularisation chosen on training people: C of a linear probe, the penalty of an attention probe"""
    chosen_accuracy: float
    """accuracy on held-out training groups at the chosen strength, independent of the test clips"""
    guesses: tuple[int, ...] = ()
    """the most likely class of each test clip"""

    @classmethod
    def of(
        cls, probs: np.ndarray, labels: np.ndarray, *, num_train: int, dims: int, strength: float, chosen_accuracy: float
    ) -> ProbeResult:
        """From the test clips' probabilities (n, A) and labels (n,), with the same metrics as the models."""
        metrics = action_metrics(probs.shape[1])
        for metric in metrics.values():
            metric.distributed_available_fn = _alone  # one process computes a probe alone; the others may have ended
        metrics.update(torch.from_numpy(probs), torch.from_numpy(labels.astype(np.int64)))
        found = {name: float(value) for name, value in metrics.compute().items()}
        guesses = tuple(probs.argmax(-1).tolist())
        accuracies = found["top1"], found["top5"], found["mean_class_accuracy"]
        return cls(*accuracies, num_train, len(labels), dims, strength, chosen_accuracy, guesses)


@dataclass(frozen=True)
class LinearProbe:
    """A logistic regression on standardised vectors: softmax(weight (x - mean) / scale + bias)."""

    mean: np.ndarray
    """(d,) float64, of the training vectors"""
    scale: np.ndarray
    """(d,) float64, their standard deviation; 1 if they are all equal"""
    weight: np.ndarray
    """(A, d) float64"""
    bias: np.ndarray
    """(A,) float64; ``ABSENT`` for a class without a training clip"""

    def probabilities(self, x: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Vectors (n, d) -> (n, A), calibrated if a temperature is given."""
        scores = (x - self.mean) / self.scale @ self.weight.T + self.bias
        found: np.ndarray = softmax(scores / temperature, axis=-1)
        return found


class FittedProbe(NamedTuple):
    """A probe, and how it was chosen."""

    probe: LinearProbe
    strength: float
    held_out: np.ndarray
    """(N, A) the training clips' probabilities from probes of that strength, fitted without the clips' groups; zeros if the other groups
    have one class only"""
    chosen_accuracy: float


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    train_groups: np.ndarray,
    num_classes: int,
    seed: int = 0,
) -> ProbeResult:
    """Fit a multinomial logistic regression on standardised vectors and test it.

    C has the best accuracy over folds of whole training groups. Among equal accuracies, it has the lowest log-loss.

    Args:
        train_x: (N, D) vectors of the training clips.
        train_y: (N,) labels in [0, A).
        test_x: (n, D) vectors of the test clips, used only after all choices.
        test_y: (n,) labels in [0, A).
        train_groups: (N,) the person of each training clip. If there is only one group, each clip is its own group.
        num_classes: A.
        seed: of the folds.

    Raises:
        DataError: The training or test clips are missing or have non-finite numbers, or the training clips have a single class.
    """
    _require_vectors(test_x, "test")
    found = fit_probe(train_x, train_y, groups=train_groups, num_classes=num_classes, seed=seed)
    made = {"num_train": len(train_y), "dims": train_x.shape[1], "strength": found.strength, "chosen_accuracy": found.chosen_accuracy}
    return ProbeResult.of(found.probe.probabilities(test_x), test_y, **made)


def fit_probe(x: np.ndarray, y: np.ndarray, *, groups: np.ndarray, num_classes: int, seed: int = 0) -> FittedProbe:
    """The probe of :func:`linear_probe`, from training vectors (N, d), labels (N,) and groups (N,).

    Raises:
        DataError: There are no clips, non-finite numbers, or a single class.
    """
    _require_vectors(x, "training")
    if len(np.unique(y)) < 2:
        raise DataError("linear probe: all training clips have one label; a probe needs at least two classes")
    strength, held_out = _choose_strength(x, y, groups, num_classes, seed)
    accuracy = float((held_out.argmax(-1) == y).mean())
    return FittedProbe(_fits(x, y, [strength], num_classes)[0], strength, held_out, accuracy)


def best_probe(found: Mapping[str, ProbeResult]) -> str:
    """The name of the probe with the best accuracy on held-out training groups, among those that read the whole clip (``VECTORS``).
    Among equals, it has the fewest numbers, then the first name."""
    return min((name for name in VECTORS if name in found), key=lambda name: (-found[name].chosen_accuracy, found[name].dims))


def _require_vectors(x: np.ndarray, side: str) -> None:
    if not len(x):
        raise DataError(f"linear probe: no {side} clips; check the protocol and the split")
    if not np.isfinite(x).all():
        raise DataError(f"linear probe: the {side} vectors hold nan or infinity; make the feature cache again")


def probe_suite(
    features: np.ndarray,
    labels: np.ndarray,
    subjects: np.ndarray,
    lengths: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    num_classes: int,
    seed: int = 0,
) -> dict[str, ProbeResult]:
    """The probes that each result is compared with.

    Args:
        features: (N, T', S, D), float16 or float32.
        labels: (N,) in [0, A).
        subjects: (N,) the person of each clip; folds keep a person's clips together.
        lengths: (N,) the clips' lengths, in any unit.
        train: Row numbers of the training clips.
        test: Row numbers of the test clips.
        num_classes: A.
            seed: of the folds.

    Returns:
        A result for each vector of :func:`clip_vectors`, by name, then ``middle frame`` (one step alone) and ``clip length`` (a cubic
        spline of the length).
    """
    spline = SplineTransformer(n_knots=6, degree=3, extrapolation="constant").fit(lengths[train, None].astype(np.float64))
    views = {
        **clip_vectors(features),
        "middle frame": _flat(features[:, features.shape[1] // 2].astype(np.float32)),
        "clip length": spline.transform(lengths[:, None].astype(np.float64)),
    }
    return probes_of(views, labels, subjects, train, test, num_classes=num_classes, seed=seed)


def probes_of(
    vectors: Mapping[str, np.ndarray],
    labels: np.ndarray,
    subjects: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    num_classes: int,
    seed: int = 0,
) -> dict[str, ProbeResult]:
    """A linear probe on each kind of vectors (N, d), such as those of :func:`clip_vectors`. Other arguments as in :func:`probe_suite`."""
    return {
        name: linear_probe(x[train], labels[train], x[test], labels[test], train_groups=subjects[train], num_classes=num_classes, seed=seed)
        for name, x in vectors.items()
    }


def clip_vectors(features: np.ndarray) -> dict[str, np.ndarray]:
    """Several vectors for each clip.

    Args:
        features: (N, T', S, D), float16 or float32.

    Returns:
        Name in ``VECTORS`` -> (N, d) float32, the cells side by side: ``mean feature`` (over the steps), ``movement`` (the mean
        of |h_t - h_{t-1}| over the steps; zeros for a clip of one step), ``mean and movement`` (side by side), ``thirds`` (the means
        of the first, middle and last third: the simplest vector that encodes the order of time) and ``thirds of both`` (the thirds' means,
        then their movements; the first step has the movement of the second).
    """
    steps = features.shape[1]
    thirds = np.array_split(np.arange(steps), 3) if steps >= 3 else [np.arange(steps)] * 3
    into = [np.unique(np.maximum(third, 1)) - 1 for third in thirds]  # the changes into a third's steps
    parts: list[list[np.ndarray]] = []
    for start in range(0, len(features), AT_ONCE):
        seen = features[start : start + AT_ONCE].astype(np.float32)
        change = np.abs(np.diff(seen, axis=1)) if steps > 1 else np.zeros_like(seen)
        means = [seen[:, third].mean(axis=1) for third in thirds]
        parts.append([seen.mean(axis=1), change.mean(axis=1), *means, *(change[:, third].mean(axis=1) for third in into)])
    mean, movement, *both = (_flat(np.concatenate(part)) for part in zip(*parts, strict=True))
    found = mean, movement, np.hstack([mean, movement]), np.hstack(both[:3]), np.hstack(both)
    return dict(zip(VECTORS, found, strict=True))


def _flat(x: np.ndarray) -> np.ndarray:
    """(N, S, D) -> (N, S·D)."""
    return x.reshape(len(x), -1)


def _choose_strength(x: np.ndarray, y: np.ndarray, groups: np.ndarray, num_classes: int, seed: int) -> tuple[float, np.ndarray]:
    """The C of ``STRENGTHS`` with the best predictions for held-out training groups, and these predictions (N, A)."""
    groups = groups if len(np.unique(groups)) > 1 else np.arange(len(y))
    splitter = GroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed)
    probs = np.zeros((len(STRENGTHS), len(y), num_classes))
    for inner, held_out in splitter.split(x, y, groups):
        if len(np.unique(y[inner])) > 1:
            for row, probe in enumerate(_fits(x[inner], y[inner], STRENGTHS, num_classes)):
                probs[row, held_out] = probe.probabilities(x[held_out])
    accuracy = (probs.argmax(-1) == y).mean(-1)
    log_loss = -np.log(np.maximum(probs[:, np.arange(len(y)), y], 1e-9)).mean(-1)
    best = np.lexsort((log_loss, -accuracy))[0]
    return STRENGTHS[best], probs[best]


def _fits(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], num_classes: int) -> list[LinearProbe]:
    """Regressions fitted on training vectors (N, d), one for each strength.

    With fewer clips than dimensions, the regression is solved in the span of the training clips, which contains its weights (representer
    theorem). The solution is the same, and 5,120 dimensions become at most N.
    """
    scaler = StandardScaler().fit(x)
    z, basis = scaler.transform(x).astype(np.float64), None
    if z.shape[1] > z.shape[0]:
        squared, left = np.linalg.eigh(z @ z.T)  # a tenth of the time of a singular value decomposition of z
        kept = squared > 1e-12 * max(squared[-1], 1e-4)
        basis = (left[:, kept] / np.sqrt(squared[kept])).T @ z
        z = left[:, kept] * np.sqrt(squared[kept])
    found = []
    model = LogisticRegression(max_iter=1000, tol=1e-4, warm_start=True)
    for strength in strengths:
        weight, bias = np.zeros((num_classes, x.shape[1])), np.full(num_classes, ABSENT)
        if not z.shape[1]:  # all training vectors are equal: only the class frequencies are known
            held, count = np.unique(y, return_counts=True)
            bias[held] = np.log(count / len(y))
        else:
            model.set_params(C=strength).fit(z, y)
            slopes, starts = model.coef_, model.intercept_
            if len(slopes) == 1:  # for two classes, scikit-learn keeps the second one's scores; the first one's are zero
                slopes, starts = np.vstack([np.zeros_like(slopes), slopes]), np.append(0.0, starts)
            weight[model.classes_], bias[model.classes_] = slopes if basis is None else slopes @ basis, starts
        found.append(LinearProbe(scaler.mean_, scaler.scale_, weight, bias))
    return found
