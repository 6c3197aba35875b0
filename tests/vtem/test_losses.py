"""The two loss terms against plain loops."""

import pytest
import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.vtem.losses import InfoNCE, draw, reconstruction


def naive_info_nce(loss: InfoNCE, vectors: Tensor, ids: Tensor, windows: int) -> Tensor:
    """The definition, token by token."""
    batch, tokens = ids.shape
    cells = tokens // windows
    points = torch.nn.functional.normalize(vectors @ loss.head.weight.T, dim=-1).view(batch, windows, cells, -1)
    codes = ids.view(batch, windows, cells)
    places = [(b, w, s) for b in range(batch) for w in range(windows) for s in range(cells)]
    terms = []
    for b, w, s in places:
        negatives = [
            torch.dot(points[b, w, s], points[c, v, r]) / loss.temperature
            for c, v, r in places
            if (c != b or abs(v - w) > loss.radius) and (codes[b, w, s] < 0 or codes[c, v, r] != codes[b, w, s])
        ]
        for v in range(max(0, w - loss.radius), min(windows, w + loss.radius + 1)):
            if v != w:
                positive = torch.dot(points[b, w, s], points[b, v, s]) / loss.temperature
                terms.append(torch.logsumexp(torch.stack([positive, *negatives]), 0) - positive)
    return torch.stack(terms).mean()


def built(**settings: float) -> InfoNCE:
    torch.manual_seed(0)
    loss = InfoNCE(head_dim=6, **settings)
    loss.build(5)
    return loss


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("has_codes", [True, False])
def test_info_nce_equals_the_naive_loop(radius: int, has_codes: bool) -> None:
    loss = built(radius=radius, temperature=0.2)
    vectors = torch.randn(3, 10, 5, requires_grad=True)
    ids = torch.randint(4, (3, 10)) if has_codes else torch.full((3, 10), -1)
    found, expected = loss(vectors, ids, windows=5), naive_info_nce(loss, vectors, ids, windows=5)
    torch.testing.assert_close(found, expected)
    wanted = [vectors, loss.head.weight]
    for ours, reference in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-4)


def test_edges_have_no_neighbour_from_the_next_clip_and_one_window_has_none_at_all() -> None:
    loss = built()
    vectors = torch.randn(2, 2, 5, requires_grad=True)
    single = loss(vectors, torch.full((2, 2), -1), windows=1)
    assert single == 0
    single.backward()
    assert (vectors.grad == 0).all()


def test_only_tokens_with_the_anchors_code_leaves_nothing_to_repel() -> None:
    loss = built()
    assert loss(torch.randn(2, 6, 5), torch.zeros(2, 6, dtype=torch.int64), windows=3) == 0


def test_drawing_anchors_is_seeded_and_right_on_average() -> None:
    whole, drawn = built(), built(max_anchors=64)
    vectors, ids = torch.randn(8, 32, 5), torch.randint(50, (8, 32))
    state = torch.get_rng_state()
    with torch.no_grad():
        values = [drawn(vectors, ids, windows=8, seed=seed) for seed in [0, *range(30)]]
        assert values[0] == values[1] != values[2]
        torch.testing.assert_close(torch.stack(values[1:]).mean(), whole(vectors, ids, windows=8), rtol=0.05, atol=0)
    assert torch.equal(state, torch.get_rng_state())


def test_each_clip_has_as_many_draws_and_none_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = draw(4, 10, 12, generator)
    assert drawn.shape == (4, 3)
    assert all(len(set(row)) == 3 and 0 <= min(row) <= max(row) < 10 for row in drawn.tolist())
    assert draw(4, 10, 40, generator).tolist() == [list(range(10))] * 4
    assert draw(4, 10, 1, generator).shape == (4, 1)


@pytest.mark.parametrize("has_codes", [True, False])
def test_evaluation_is_the_mean_over_clips_alone_however_they_are_batched(has_codes: bool) -> None:
    loss = built(radius=2, max_anchors=4, max_negatives=4).eval()
    vectors = torch.randn(3, 12, 5)
    ids = torch.randint(4, (3, 12)) if has_codes else torch.full((3, 12), -1)
    state = torch.get_rng_state()
    each = [loss(vectors[i : i + 1], ids[i : i + 1], windows=6) for i in range(3)]
    expected = [naive_info_nce(loss, vectors[i : i + 1], ids[i : i + 1], windows=6) for i in range(3)]
    torch.testing.assert_close(torch.stack(each), torch.stack(expected))
    torch.testing.assert_close(loss(vectors, ids, windows=6), torch.stack(expected).mean())
    assert torch.equal(state, torch.get_rng_state())


def test_fewer_drawn_negatives_repel_less() -> None:
    vectors, ids = torch.randn(8, 32, 5), torch.randint(50, (8, 32))
    assert built(max_negatives=32)(vectors, ids, windows=8) < built()(vectors, ids, windows=8) - 1


def test_info_nce_is_float32_under_autocast() -> None:
    loss = built()
    vectors, ids = torch.randn(2, 6, 5), torch.arange(12).view(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(vectors, ids, windows=3), loss(vectors, ids, windows=3))
        mixed = loss(vectors, ids, windows=3)
    assert torch.equal(mixed, loss(vectors, ids, windows=3))


def test_reconstruction_is_a_mean_square_without_padding_or_gradient_to_the_target() -> None:
    target = torch.randn(2, 3, 1, 4, requires_grad=True)
    rebuilt = torch.zeros(2, 3, 1, 4, requires_grad=True)
    torch.testing.assert_close(reconstruction(rebuilt, target), target.square().mean())
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = reconstruction(rebuilt, target, mask)
    torch.testing.assert_close(loss, torch.cat([target[0, :2], target[1, :1]]).square().mean())
    loss.backward()
    assert target.grad is None
    assert (rebuilt.grad[1, 1:] == 0).all()


def test_refused_settings() -> None:
    with pytest.raises(UsageError, match="temperature must be positive"):
        InfoNCE(temperature=0)
