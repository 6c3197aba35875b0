"""Moments, principal components and k-means against scikit-learn and by hand."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.statistics import Spread, discriminants, kmeans, least_squares, moments, principal_components


def test_moments_put_the_mean_square_to_one_and_hold_rare_features_down() -> None:
    torch.manual_seed(0)
    features = torch.randn(700, 3, 2, 5) * torch.tensor([1e-3, 1.0, 2.0, 3.0, 0.0]) + 7
    found = moments(features, chunk=128)
    torch.testing.assert_close(found.mean, features.flatten(0, 2).mean(0), atol=1e-5, rtol=0)
    standardised = (features - found.mean) / found.std
    torch.testing.assert_close(standardised.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    deviations = features.flatten(0, 2).std(0, correction=0)
    floored = deviations.clamp(min=deviations.median())
    torch.testing.assert_close(found.std / found.std[3], floored / floored[3], atol=1e-4, rtol=0)


def test_moments_of_constant_features() -> None:
    found = moments(torch.full((4, 2, 1, 3), 5.0))
    assert torch.equal(found.mean, torch.full((3,), 5.0))
    assert (found.std > 0).all()


def test_moments_name_the_bad_row() -> None:
    features = torch.zeros(6, 2, 1, 3)
    features[4, 1, 0, 2] = torch.inf
    features[5, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"training row 4 \(2 of 6 rows\)"):
        moments(features)
    with pytest.raises(DataError, match="training split is empty"):
        moments(torch.zeros(0, 2, 1, 3))


def test_principal_components_equal_scikit_learn() -> None:
    torch.manual_seed(0)
    samples = torch.randn(500, 12) @ torch.randn(12, 12) + 3
    reference = PCA(5, svd_solver="full").fit(samples.double().numpy())
    found = principal_components(samples, 5)
    torch.testing.assert_close(found.mean.double(), torch.from_numpy(reference.mean_), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.variances.double(), torch.from_numpy(reference.explained_variance_), rtol=1e-4, atol=0)
    cosines = (found.directions.T.double() * torch.from_numpy(reference.components_)).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0)
    largest = found.directions.gather(0, found.directions.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_principal_components_of_a_wider_rank() -> None:
    found = principal_components(torch.randn(50, 4), 9)
    assert found.directions.shape == (4, 4)
    torch.testing.assert_close(found.directions.T @ found.directions, torch.eye(4), atol=1e-5, rtol=0)


def test_kmeans_counts_and_order_do_not_depend_on_anything_but_the_seed() -> None:
    torch.manual_seed(0)
    samples = torch.randn(300, 3)
    centres, counts = kmeans(samples, 10, seed=1)
    torch.randn(10)
    again, _ = kmeans(samples, 10, seed=1)
    assert torch.equal(centres, again)
    assert counts.sum() == 300
    inertia = [torch.cdist(samples, each).amin(1).square().mean() for each in (centres, samples[:10])]
    assert inertia[0] < 0.7 * inertia[1]


def test_least_squares_finds_an_affine_map_where_inputs_vary() -> None:
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(200, 4), torch.ones(200, 1)], dim=1)  # the last column is constant
    weight, bias = torch.randn(3, 4), torch.randn(3)
    found = least_squares(inputs, inputs[:, :4] @ weight.T + bias)
    torch.testing.assert_close(found.weight[:, :4], weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs @ found.weight.T + found.bias, inputs[:, :4] @ weight.T + bias, atol=1e-4, rtol=0)
    assert found.weight[:, 4].abs().max() < 1e-4


def test_kmeans_of_wide_vectors_is_as_good_as_that_of_all_their_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, 301).float() ** -0.7  # a few components hold most of the spread, as those of backbones do
    samples = torch.randn(4000, 300, generator=generator) * spectrum + 3
    centres, counts = kmeans(samples, 40, seed=0)
    found = torch.cdist(samples, centres).min(dim=1)
    reference = KMeans(40, n_init=1, init="random", max_iter=10, random_state=0).fit(samples[: 32 * 40].numpy())
    best = torch.cdist(samples, torch.from_numpy(reference.cluster_centers_)).min(dim=1).values.square().mean()
    assert found.values.square().mean() < 1.02 * best
    assert counts.sum() == 32 * 40
    assert counts.min() >= 1


def test_discriminants_are_a_ridge_regression_of_unit_variance() -> None:
    torch.manual_seed(0)
    actions = torch.randint(-1, 3, (500,))
    inputs = torch.randn(500, 6) * torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 1.0])
    inputs[:, 1] += actions
    found = discriminants(inputs, actions, ridge=0.5)
    known = actions >= 0
    centred = inputs[known] - inputs[known].mean(0)
    penalty = 0.5 * float(centred.square().sum(0).mean())
    expected = Ridge(alpha=penalty).fit(inputs[known].numpy(), torch.nn.functional.one_hot(actions[known]).numpy())
    weight = torch.from_numpy(expected.coef_).float()
    torch.testing.assert_close(found, weight / (centred @ weight.T).square().mean(0).sum().sqrt(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((centred @ found.T).square().mean(0).sum(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_discriminants_of_nothing_to_tell() -> None:
    with pytest.raises(UsageError, match="show 1 action"):
        discriminants(torch.randn(9, 3), torch.zeros(9, dtype=torch.long))
    with pytest.raises(UsageError, match="all training features are equal"):
        discriminants(torch.ones(9, 3), torch.arange(9) % 2)


def test_a_spread_that_is_known_changes_nothing() -> None:
    """Not taken where some actions are unknown: it would hold their rows too."""
    generator = torch.Generator().manual_seed(0)
    inputs, actions = torch.randn(90, 7, generator=generator), torch.arange(90) % 3
    spread = Spread.of(inputs)
    assert torch.equal(discriminants(inputs, actions, spread=spread), discriminants(inputs, actions))
    for mine, other in zip(principal_components(inputs, 3, spread), principal_components(inputs, 3), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(least_squares(inputs, inputs[:, :2], spread), least_squares(inputs, inputs[:, :2]), strict=True):
        assert torch.equal(mine, other)
    actions[:30] = -1
    assert torch.equal(discriminants(inputs, actions, spread=spread), discriminants(inputs[30:], actions[30:]))
