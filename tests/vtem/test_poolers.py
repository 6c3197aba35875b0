"""Equal-salience windows: exact weights, gradients, edges, and back."""

import pytest
import torch
from torch import Tensor

from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.poolers import EqualSaliencePooler, TemporalPooler, UniformPooler, abs_delta, window_spans


class GivenSalience(TemporalPooler):
    """Pools by the salience it is given."""

    def __init__(self, windows: int, values: Tensor) -> None:
        super().__init__(windows)
        self.values = values

    def salience(self, features: Tensor) -> Tensor:
        return self.values


def dense_weights(salience: Tensor, windows: int) -> Tensor:
    """(B, W, T') by the definition: W times the overlap of the step's and the window's share."""
    ends = salience.double().cumsum(1) / salience.double().sum(1, keepdim=True)
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
    borders = torch.arange(windows + 1, dtype=torch.float64) / windows
    upper = torch.minimum(ends[:, None], borders[None, 1:, None])
    lower = torch.maximum(starts[:, None], borders[None, :-1, None])
    return windows * (upper - lower).clamp(min=0)


def learned(windows: int, dim: int) -> EqualSaliencePooler:
    torch.manual_seed(0)
    pooler = EqualSaliencePooler(windows, hidden=8)
    pooler.build(dim)
    torch.nn.init.normal_(pooler.outer.weight, std=3)
    return pooler


def test_hand_computed_weights() -> None:
    # Salience 1, 3, 2, 2 ends at 1/8, 4/8, 6/8, 1. Two windows meet at 1/2: weights (1/4, 3/4, 0, 0) and (0, 0, 1/2, 1/2).
    features = torch.eye(4)[None, :, None, :]
    pooled = GivenSalience(2, torch.tensor([[1.0, 3.0, 2.0, 2.0]]))(features)
    torch.testing.assert_close(pooled.segments[0, :, 0], torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5]]))
    torch.testing.assert_close(pooled.edges, torch.tensor([[0.0, 2.0, 4.0]]))
    torch.testing.assert_close(pooled.cumulative, torch.tensor([[0, 0.125, 0.5, 0.75, 1]], dtype=torch.float64))
    # Three windows: the first ends at 1/3, that is after (1/3 - 1/8) / (3/8) = 5/9 of step 1.
    pooled = GivenSalience(3, torch.tensor([[1.0, 3.0, 2.0, 2.0]]))(features)
    torch.testing.assert_close(pooled.segments[0, 0, 0], torch.tensor([3 / 8, 5 / 8, 0, 0]))
    torch.testing.assert_close(pooled.segments[0, 1, 0], torch.tensor([0, 1 / 2, 1 / 2, 0]))
    torch.testing.assert_close(pooled.segments[0, 2, 0], torch.tensor([0, 0, 1 / 4, 3 / 4]))
    torch.testing.assert_close(pooled.edges, torch.tensor([[0.0, 1 + 5 / 9, 2 + 2 / 3, 4.0]]))


def test_hand_computed_unpooling() -> None:
    pooler = GivenSalience(3, torch.tensor([[1.0, 3.0, 2.0, 2.0]]))
    cumulative = pooler(torch.zeros(1, 4, 1, 1)).cumulative
    rebuilt = pooler.unpool(torch.eye(3)[None, :, None, :], cumulative)[0, :, 0]
    torch.testing.assert_close(rebuilt, torch.tensor([[1, 0, 0], [5 / 9, 4 / 9, 0], [0, 2 / 3, 1 / 3], [0, 0, 1]]))


@pytest.mark.parametrize(("steps", "windows"), [(9, 5), (3, 8), (1, 4), (1, 1), (12, 1), (7, 7), (32, 16)])
def test_equals_the_dense_definition(steps: int, windows: int) -> None:
    pooler = learned(windows, 6)
    features = torch.randn(2, steps, 3, 6)
    weights = dense_weights(pooler.salience(features), windows)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, windows, dtype=torch.float64))
    pooled = pooler(features)
    expected = torch.einsum("bwt,btsd->bwsd", weights, features.double())
    torch.testing.assert_close(pooled.segments.double(), expected, atol=1e-5, rtol=0)
    rebuilt = torch.einsum("bwt,bwsd->btsd", weights / weights.sum(1, keepdim=True), expected)
    torch.testing.assert_close(pooler.unpool(pooled.segments, pooled.cumulative).double(), rebuilt, atol=2e-5, rtol=0)


def test_gradient_reaches_the_salience_network_and_equals_autograd_through_the_dense_weights() -> None:
    pooler = learned(5, 6)
    features = torch.randn(2, 9, 3, 6, requires_grad=True)
    direction, back = torch.randn(2, 5, 3, 6), torch.randn(2, 9, 3, 6)
    wanted = [features, *pooler.parameters()]
    pooled = pooler(features)
    found = torch.autograd.grad(
        (pooled.segments * direction).sum() + (pooler.unpool(pooled.segments, pooled.cumulative) * back).sum(), wanted
    )
    weights = dense_weights(pooler.salience(features), 5).float()
    dense = torch.einsum("bwt,btsd->bwsd", weights, features)
    rebuilt = torch.einsum("bwt,bwsd->btsd", weights / weights.sum(1, keepdim=True), dense)
    expected = torch.autograd.grad((dense * direction).sum() + (rebuilt * back).sum(), wanted)
    for ours, reference in zip(found, expected, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(ours, reference, atol=2e-4, rtol=2e-4)


def test_salience_reads_value_and_change_of_the_cell_mean() -> None:
    pooler = learned(2, 3)
    features = torch.randn(2, 5, 4, 3)
    mean = features.mean(2)
    change = torch.cat([torch.zeros(2, 1, 3), mean.diff(dim=1)], 1)
    hidden = torch.nn.functional.gelu(pooler.inner(torch.cat([mean, change], -1)))
    expected = torch.nn.functional.softplus(pooler.outer(hidden)).squeeze(-1) + pooler.floor
    torch.testing.assert_close(pooler.salience(features), expected)


def test_starts_as_uniform_pooling_and_then_learns() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 11, 2, 4)
    pooler = EqualSaliencePooler(windows=4)
    pooler.build(4)
    pooled, uniform = pooler(features), UniformPooler(windows=4)(features)
    torch.testing.assert_close(pooled.segments, uniform.segments, atol=1e-6, rtol=0)
    torch.testing.assert_close(uniform.edges[0], torch.tensor([0, 2.75, 5.5, 8.25, 11]))
    pooled.segments.square().sum().backward()
    assert pooler.outer.weight.grad.abs().max() > 0


def test_padding_changes_nothing() -> None:
    pooler = learned(4, 5)
    features = torch.randn(1, 7, 2, 5)
    padded = torch.cat([features, torch.randn(1, 3, 2, 5)], 1)
    mask = torch.arange(10)[None] < 7
    alone, pooled = pooler(features), pooler(padded, mask)
    torch.testing.assert_close(pooled.segments, alone.segments)
    torch.testing.assert_close(pooled.edges, alone.edges)
    rebuilt = pooler.unpool(pooled.segments, pooled.cumulative)
    torch.testing.assert_close(rebuilt[:, :7], pooler.unpool(alone.segments, alone.cumulative))
    assert (rebuilt[:, 7:] == 0).all()
    with pytest.raises(DataError, match="clip 1 of the batch is all padding"):
        pooler(torch.randn(2, 3, 1, 5), torch.tensor([[True] * 3, [False] * 3]))


def test_a_long_video_keeps_its_precision_and_backpropagates() -> None:
    pooler = learned(256, 8)
    features = torch.randn(1, 54_000, 1, 8)
    pooled = pooler(features)
    shares = pooler.salience(features).double()
    ends = shares.cumsum(1) / shares.sum(1, keepdim=True)
    integral = torch.cat(
        [
            torch.zeros(1, 1, 8, dtype=torch.float64),
            (features[:, :, 0].double() * ends.diff(dim=1, prepend=torch.zeros(1, 1))[..., None]).cumsum(1),
        ],
        1,
    )
    borders = (torch.arange(257, dtype=torch.float64) / 256)[None]
    step = torch.searchsorted(ends, borders).clamp(max=53_999)
    start = torch.cat([torch.zeros(1, 1, dtype=torch.float64), ends], 1).gather(1, step)
    at = integral[0, step[0]] + (borders - start)[0, :, None] * features[0, step[0], 0].double()
    torch.testing.assert_close(pooled.segments[0, :, 0].double(), 256 * at.diff(dim=0), atol=1e-5, rtol=0)
    pooled.segments.square().sum().backward()
    assert torch.isfinite(pooler.inner.weight.grad).all()


def test_float32_inside_under_autocast() -> None:
    pooler = learned(4, 5)
    features = torch.randn(2, 9, 2, 5)
    expected = pooler(features)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooler(features)
        rebuilt = pooler.unpool(pooled.segments.bfloat16(), pooled.cumulative)
    assert pooled.segments.dtype == rebuilt.dtype == torch.float32
    assert torch.equal(pooled.segments, expected.segments)


def test_needs_a_window() -> None:
    with pytest.raises(UsageError, match="windows=0"):
        UniformPooler(windows=0)


def test_abs_delta_by_hand() -> None:
    values = torch.tensor([[1.0, 4.0, 2.0, 2.0]])
    assert abs_delta(values).tolist() == [[3, 3, 2, 0]]
    assert abs_delta(values, torch.tensor([[True, True, True, False]])).tolist() == [[3, 3, 2, 0]]
    assert abs_delta(values, torch.tensor([[True, False, False, False]])).tolist() == [[0, 0, 0, 0]]
    assert abs_delta(torch.ones(2, 1, 3)).tolist() == torch.zeros(2, 1, 3).tolist()


def test_spans_in_seconds() -> None:
    edges = torch.tensor([[0.0, 0.5, 2.0, 3.0]])
    spans = window_spans(edges, torch.tensor([[0.1, 0.3, 0.7]]))
    # steps meet at 0.2 and 0.5 and reach from 0.0 to 0.9
    torch.testing.assert_close(spans, torch.tensor([[[0.0, 0.1], [0.1, 0.5], [0.5, 0.9]]]))
    torch.testing.assert_close(window_spans(torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.4]])), torch.full((1, 2, 2), 0.4))
