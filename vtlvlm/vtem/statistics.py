"""Statistics of training features that start VTEM before any gradient: moments, principal components, k-means centres."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtlvlm.errors import DataError, UsageError

KMEANS_SAMPLES_PER_CODE = 32
"""k-means reads at most this many vectors for each code"""
KMEANS_WIDTH = 128
"""k-means compares vectors by at most this many of their principal components. Distances over 1,024 numbers cost eight times as much, and
the omitted components hold little of the distance"""
CHUNK = 4096
"""Rows that are float64 at the same time"""
KMEANS_ITERATIONS = 10
"""Iterations of Lloyd's algorithm; the moving averages of training refine the centres further"""


class Moments(NamedTuple):
    """Per-feature statistics."""

    mean: Tensor
    """(D,) float32"""
    std: Tensor
    """(D,) float32 > 0: see :func:`moments`"""


class Components(NamedTuple):
    """Principal components."""

    mean: Tensor
    """(D,) float32"""
    directions: Tensor
    """(D, R) float32, orthonormal columns, R = min(D, requested rank); the entry of largest magnitude of each column is positive"""
    variances: Tensor
    """(R,) float32, descending"""


def variances(features: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and variance, each (D,) float64, of features (N, ..., D), summed in chunks of the first axis.

    Raises:
        DataError: a value is NaN or infinite, or there is none.
    """
    count = features[..., 0].numel()
    if count == 0:
        raise DataError("no training features: the training split is empty")
    total = torch.zeros(features.shape[-1], dtype=torch.float64, device=features.device)
    for part in features.split(chunk):
        total += part.double().flatten(0, -2).sum(dim=0)
    if not bool(torch.isfinite(total).all()):
        bad = (~torch.isfinite(features.flatten(1)).all(dim=1)).nonzero().flatten()
        raise DataError(
            f"NaN or infinite features in training row {int(bad[0])} ({len(bad)} of {len(features)} rows): extract those clips again"
        )
    mean = total / count
    square = torch.zeros_like(total)
    for part in features.split(chunk):
        square += (part.double() - mean).square().flatten(0, -2).sum(dim=0)
    return mean, square / count


def moments(features: Tensor, chunk: int = 256) -> Moments:
    """Mean and standard deviation of features (N, ..., D), summed in float64 in chunks of the first axis.

    Deviations below the median are raised to it. Otherwise a feature that hardly ever fires in training would be amplified and dominate the
    codes of new people. One factor then scales all deviations, so that predicting the mean has a mean squared error of exactly 1.

    Raises:
        DataError: a value is NaN or infinite, or there is none.
    """
    mean, variance = variances(features, chunk)
    std = variance.sqrt()
    floored = std.clamp(min=max(float(std.median()), 1e-6))
    scale = (std / floored).square().mean().sqrt()
    return Moments(mean.float(), (floored * torch.where(scale > 0, scale, 1.0)).float())


def mean_of(rows: Tensor) -> Tensor:
    """Mean (D,) float64 of rows (N, D), without a float64 copy of all of them."""
    total = sum((part.double().sum(dim=0) for part in rows.split(CHUNK)), torch.zeros((), dtype=torch.float64, device=rows.device))
    return total / max(len(rows), 1)


class Spread(NamedTuple):
    """Mean and products of rows (N, D)."""

    mean: Tensor
    """(D,) float64"""
    products: Tensor
    """(D, D) float64, the sum of the products of deviations"""

    @classmethod
    def of(cls, rows: Tensor) -> Spread:
        """Those of rows (N, D), in float64."""
        mean = mean_of(rows)
        products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
        for part in rows.split(CHUNK):
            deviations = part.double() - mean
            products += deviations.T @ deviations
        return cls(mean, products)


def covariances(x: Tensor, y: Tensor, mean_x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of y (N, E), and the sum (D, E) of the products of the deviations of x (N, D) and y, in float64."""
    mean_y = mean_of(y)
    products = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    for part_x, part_y in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        products += (part_x.double() - mean_x).T @ (part_y.double() - mean_y)
    return mean_y, products


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and the eigenvectors of a symmetric matrix. Few clips lead to thousands of zero eigenvalues. torch's LAPACK may
    fail to converge on these; numpy's does not."""
    matrix = (matrix + matrix.T) / 2
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        found = np.linalg.eigh(matrix.cpu().numpy())
        values, vectors = (torch.from_numpy(part).to(matrix.device) for part in found)
    return values, vectors


def principal_components(samples: Tensor, rank: int, spread: Spread | None = None) -> Components:
    """The first ``rank`` principal components of samples (N, D), from the eigenvectors of their covariance in float64. ``spread`` is that
    of the samples, if it is known."""
    mean, products = spread or Spread.of(samples)
    values, vectors = symmetric_eigen(products / max(len(samples) - 1, 1))
    values, vectors = values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return Components(mean.float(), (vectors * largest.sign()).float(), values.float())


def discriminants(inputs: Tensor, actions: Tensor, ridge: float = 10.0, spread: Spread | None = None) -> Tensor:
    """Directions that separate the actions: the ridge regression from inputs to their action.

    Args:
        inputs: (N, D).
        actions: (N,) int64, -1 where unknown.
        ridge: penalty, in units of the inputs' mean variance. It is strong, because the many inputs of a clip are alike.
        spread: of the inputs, if it is known.

    Returns:
        (A', D) float32, one row for each action that occurs. The outputs have a total variance of 1 over the inputs of known action.

    Raises:
        UsageError: There are fewer than two actions, or all inputs are equal.
    """
    kinds, numbers = torch.unique(actions[actions >= 0], return_inverse=True)
    if len(kinds) < 2:
        raise UsageError(f"lda_weight: the training clips show {len(kinds)} action; give clips of two or more, or set it to 0")
    known, whole = inputs, spread
    if len(numbers) < len(inputs):
        known, whole = inputs[actions >= 0], None
    mean, squares = whole or Spread.of(known)
    _, products = covariances(known, torch.nn.functional.one_hot(numbers, len(kinds)), mean)
    level = squares.diagonal().mean()
    if not bool(level > 0):
        raise UsageError("lda_weight: all training features are equal; look at the videos and the sampling")
    weight = torch.linalg.solve(squares + ridge * level * torch.eye(len(squares)).to(squares), products).T
    total = ((weight @ squares) * weight).sum() / len(known)
    return (weight / total.sqrt()).float()


class Affine(NamedTuple):
    """An affine map."""

    weight: Tensor
    """(D, E) float32"""
    bias: Tensor
    """(D,) float32"""


def least_squares(inputs: Tensor, outputs: Tensor, spread: Spread | None = None) -> Affine:
    """The affine map from inputs (N, E) to outputs (N, D) with the smallest squared error, computed in float64. Directions without variance
    in the inputs are left out. ``spread`` is that of the inputs, if it is known."""
    mean_x, squares = spread or Spread.of(inputs)
    mean_y, products = covariances(inputs, outputs, mean_x)
    values, vectors = symmetric_eigen(squares)
    kept = values > 1e-6 * values.max()
    basis = vectors[:, kept] / values[kept]
    weight = products.T @ (basis @ vectors[:, kept].T)
    return Affine(weight.float(), (mean_y - weight @ mean_x).float())


def kmeans(samples: Tensor, num_centres: int, seed: int) -> tuple[Tensor, Tensor]:
    """k-means from a random start on a seeded subsample, computed on the device of the samples.

    Args:
        samples: (N, E), finite.
        num_centres: K.
        seed: of the subsample and the start; torch's own generators keep their state.

    Returns:
        Centres (K, E) float32 and the number of samples of each centre (K,) float32, on the device of the samples.

    Raises:
        DataError: fewer than K distinct samples.
    """
    from vector_quantize_pytorch.vector_quantize_pytorch import kmeans as lloyd

    remedy = (
        "extract more views of the training clips (--data.sampling.views 4), give more clips, "
        "or take fewer codes (--model.init_args.quantizer.init_args.codes 512)"
    )
    if len(samples) < num_centres:
        raise DataError(f"{len(samples)} training vectors for {num_centres} codes: {remedy}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(samples), generator=generator)[: KMEANS_SAMPLES_PER_CODE * num_centres]
    values = samples.detach()[chosen.to(samples.device)].float()
    # projected on a random line, equal vectors coincide and distinct ones hardly ever do
    distinct = len(torch.unique(values.double() @ torch.randn(values.shape[1], generator=generator).double().to(values.device)))
    if distinct < num_centres:
        raise DataError(f"{distinct} distinct training vectors for {num_centres} codes: {remedy}")
    with torch.random.fork_rng(devices=[samples.device] if samples.is_cuda else []):
        torch.manual_seed(seed)
        short = leading(values, KMEANS_WIDTH)
        centres, _ = lloyd(short[None], num_centres, num_iters=KMEANS_ITERATIONS)
        nearest = torch.cat([torch.cdist(part, centres[0]).argmin(dim=1) for part in short.split(8192)])
    counts = torch.bincount(nearest, minlength=num_centres).float()
    means = values.new_zeros(num_centres, values.shape[1]).index_add(0, nearest, values) / counts.clamp(min=1)[:, None]
    spare = (counts == 0).nonzero().flatten()  # a centre without samples starts at a random vector
    means[spare] = values[torch.randperm(len(values), generator=generator)[: len(spare)].to(values.device)]
    return means, counts.clamp(min=1)


def leading(values: Tensor, width: int) -> Tensor:
    """Values (N, D) in their first ``width`` principal components, estimated on a subset. Returns them unchanged if D is no larger."""
    if values.shape[1] <= width:
        return values
    part = values[: 128 * width]
    mean = part.mean(dim=0)
    return (values - mean) @ torch.pca_lowrank(part - mean, q=width, center=False, niter=2)[2]
