"""Linear probes: what a logistic regression reads from given vectors, the yardstick beside every result.

Everything that is fitted or chosen (scaling, regularisation) sees training clips only; the test clips are predicted once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import SplineTransformer, StandardScaler

from vtlvlm.errors import DataError
from vtlvlm.metrics import action_metrics

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths C that are tried, strongest regularisation first."""

FOLDS = 5
"""Largest number of folds of training people."""

VECTORS = ("mean feature", "movement", "mean and movement", "thirds", "thirds of both")
"""Ways to one vector for each clip; all of them look at the whole clip."""

AT_ONCE = 64
"""Clips that are looked at in float32 at once."""


@dataclass(frozen=True)
class ProbeResult:
    """A probe's accuracies on the test clips, each in [0, 1], and how it came about."""

    top1: float
    top5: float
    mean_class: float
    num_train: int
    num_test: int
    dims: int
    """numbers per clip that the probe sees"""
    strength: float
    """the regularisation chosen on training people: C of a linear probe, the penalty of an attention probe"""
    guesses: tuple[int, ...] = ()
    """the likeliest class of each test clip"""

    @classmethod
    def of(cls, probs: np.ndarray, labels: np.ndarray, *, num_train: int, dims: int, strength: float) -> ProbeResult:
        """From the test clips' probabilities (n, A) and labels (n,), by the same metrics, and the same code, as for the models."""
        metrics = action_metrics(probs.shape[1])
        metrics.update(torch.from_numpy(probs), torch.from_numpy(labels.astype(np.int64)))
        found = {name: float(value) for name, value in metrics.compute().items()}
        guesses = tuple(probs.argmax(-1).tolist())
        return cls(found["top1"], found["top5"], found["mean_class_accuracy"], num_train, len(labels), dims, strength, guesses)


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

    C is the one with the best accuracy over folds of whole training groups (equal accuracies: the lower log-loss).

    Args:
        train_x: (N, D) vectors of the training clips.
        train_y: (N,) labels in [0, A).
        test_x: (n, D) vectors of the test clips; used after every choice is made.
        test_y: (n,) labels in [0, A).
        train_groups: (N,) the person of each training clip. Where there is one group only, each clip counts as its own.
        num_classes: A.
        seed: draws the folds.

    Raises:
        DataError: If a side is empty, holds non-finite numbers, or training has a single class.
    """
    for side, x in (("training", train_x), ("test", test_x)):
        if not len(x):
            raise DataError(f"linear probe: no {side} clips; check the protocol and the split")
        if not np.isfinite(x).all():
            raise DataError(f"linear probe: the {side} vectors hold nan or infinity; make the feature cache again")
    if len(np.unique(train_y)) < 2:
        raise DataError("linear probe: all training clips have one label; a probe needs at least two classes")
    strength = _choose_strength(train_x, train_y, train_groups, num_classes, seed)
    probs = _predict(train_x, train_y, test_x, [strength], num_classes)[0]
    return ProbeResult.of(probs, test_y, num_train=len(train_y), dims=train_x.shape[1], strength=strength)


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
    """The probes each result is read against.

    Args:
        features: (N, T', S, D) what the extractor saw, float16 or float32.
        labels: (N,) in [0, A).
        subjects: (N,) the person of each clip, the groups within which C is not chosen and tested.
        lengths: (N,) the clips' lengths, in any unit.
        train: Row numbers of the training clips.
        test: Row numbers of the test clips.
        num_classes: A.
        seed: draws the folds.

    Returns:
        The vectors of :func:`clip_vectors`, by their names, then ``middle frame`` (one step alone) and ``clip length`` (a cubic spline of
        the length).
    """
    spline = SplineTransformer(n_knots=6, degree=3, extrapolation="constant").fit(lengths[train, None].astype(np.float64))
    views = {
        **clip_vectors(features),
        "middle frame": _flat(features[:, features.shape[1] // 2].astype(np.float32)),
        "clip length": spline.transform(lengths[:, None].astype(np.float64)),
    }
    return {
        name: linear_probe(x[train], labels[train], x[test], labels[test], train_groups=subjects[train], num_classes=num_classes, seed=seed)
        for name, x in views.items()
    }


def clip_vectors(features: np.ndarray) -> dict[str, np.ndarray]:
    """One vector for each clip, in several ways.

    Args:
        features: (N, T', S, D) what the extractor saw, float16 or float32.

    Returns:
        Of the names in ``VECTORS``, each (N, d) float32, the cells side by side: ``mean feature`` (over the steps), ``movement`` (the mean
        of |h_t - h_{t-1}| over the steps; zeros where there is one step only), ``mean and movement`` (side by side), ``thirds`` (the mean
        of the first, middle and last third: the least that knows the order of time) and ``thirds of both`` (the thirds' means, then their
        movements; the first step moves as the second does).
    """
    steps = features.shape[1]
    thirds = np.array_split(np.arange(steps), 3) if steps >= 3 else [np.arange(steps)] * 3
    into = [np.unique(np.maximum(third, 1)) - 1 for third in thirds]  # the changes that lead to a third's steps
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


def _choose_strength(x: np.ndarray, y: np.ndarray, groups: np.ndarray, num_classes: int, seed: int) -> float:
    """The C of ``STRENGTHS`` that predicts held-out training groups best."""
    groups = groups if len(np.unique(groups)) > 1 else np.arange(len(y))
    splitter = GroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed)
    probs = np.zeros((len(STRENGTHS), len(y), num_classes))
    for inner, held_out in splitter.split(x, y, groups):
        if len(np.unique(y[inner])) > 1:
            probs[:, held_out] = _predict(x[inner], y[inner], x[held_out], STRENGTHS, num_classes)
    accuracy = (probs.argmax(-1) == y).mean(-1)
    log_loss = -np.log(np.maximum(probs[:, np.arange(len(y)), y], 1e-9)).mean(-1)
    return STRENGTHS[np.lexsort((log_loss, -accuracy))[0]]


def _predict(
    train_x: np.ndarray, train_y: np.ndarray, x: np.ndarray, strengths: list[float] | tuple[float, ...], num_classes: int
) -> np.ndarray:
    """Probabilities (len(strengths), n, A) of vectors ``x`` (n, D) by regressions fitted on the training vectors (N, D).

    With fewer clips than dimensions the regression is solved in the span of the training clips: its weights lie there (representer
    theorem), so nothing is lost, and 5,120 dimensions become at most N.
    """
    scaler = StandardScaler().fit(train_x)
    train_z, z = scaler.transform(train_x).astype(np.float64), scaler.transform(x).astype(np.float64)
    if train_z.shape[1] > train_z.shape[0]:
        _, singular, basis = np.linalg.svd(train_z, full_matrices=False)
        basis = basis[singular > 1e-8 * max(singular[0], 1e-8)].T
        train_z, z = train_z @ basis, z @ basis
    probs = np.zeros((len(strengths), len(x), num_classes))
    if not train_z.shape[1]:  # all training vectors are equal: nothing but the classes' frequencies to go by
        return probs + np.bincount(train_y, minlength=num_classes) / len(train_y)
    model = LogisticRegression(max_iter=1000, tol=1e-4, warm_start=True)
    for row, strength in enumerate(strengths):
        model.set_params(C=strength).fit(train_z, train_y)
        probs[row][:, model.classes_] = model.predict_proba(z)
    return probs
