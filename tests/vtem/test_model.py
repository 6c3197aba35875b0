"""VTEM as a whole: its start from training features, tokens, spans, round trips, learning."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem import (
    VTEM,
    EMAQuantizer,
    EqualSaliencePooler,
    FeatureExtractor,
    IdentityQuantizer,
    InfoNCE,
    Quantizer,
    UniformPooler,
    reconstruction,
)
from vtlvlm.vtem.model import change_between, window_spans

DIM = 12


class PixelExtractor(FeatureExtractor):
    """A tiny real extractor: the mean colour of each cell, times four."""

    def __init__(self) -> None:
        super().__init__(grid=2, image_size=8, chunk=4)

    @property
    def dim(self) -> int:
        return DIM

    def build(self) -> None:
        pass

    def load_weights(self) -> None:
        pass

    def fingerprint(self) -> dict[str, Any]:
        return {"extractor": "PixelExtractor"}

    def extract(self, frames: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1).float(), self.grid)
        return pooled.flatten(2).transpose(1, 2).repeat(1, 1, 4).unflatten(0, frames.shape[:2])


def training_features(clips: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(clips, 16, 4, DIM, generator=generator).cumsum(1)
    return walk @ torch.randn(DIM, DIM, generator=generator) * 3 + 5


def make(quantizer: Quantizer | None = None, event_dim: int = 20, motion: float = 0.0, centre: float = 0.0, fit: bool = True) -> VTEM:
    torch.manual_seed(0)
    vtem = VTEM(PixelExtractor(), EqualSaliencePooler(windows=4, hidden=8), quantizer or EMAQuantizer(codes=32), event_dim, motion, centre)
    vtem.build()
    if fit:
        vtem.fit_statistics(training_features(), seed=1)
    return vtem


def times(clips: int, steps: int = 16) -> Tensor:
    return ((torch.arange(steps) + 0.5) / 10).expand(clips, -1)


def test_shapes_and_facts() -> None:
    vtem = make().eval()
    assert (vtem.num_tokens, vtem.num_codes, vtem.event_dim) == (16, 32, 20)
    features = training_features()[:3]
    encoding = vtem.encode(features, times(3))
    assert encoding.tokens.ids.shape == (3, 16)
    assert encoding.tokens.vectors.shape == encoding.continuous.shape == (3, 16, 20)
    assert encoding.tokens.spans.shape == (3, 4, 2)
    assert encoding.reconstruction.shape == encoding.target.shape == features.shape
    assert torch.equal(encoding.tokens.vectors, vtem.quantizer.table()[encoding.tokens.ids])
    alone = vtem.tokens(features, times(3))
    assert all(torch.equal(ours, same) for ours, same in zip(alone, encoding.tokens, strict=True))


def test_starts_with_unit_vectors_on_principal_axes_and_a_decoder_that_inverts() -> None:
    vtem = make(IdentityQuantizer()).eval()
    features = training_features()
    encoding = vtem.encode(features, times(40))
    torch.testing.assert_close(encoding.continuous.square().mean().sqrt(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert (encoding.continuous[..., DIM:] == 0).all()  # E exceeds D
    covariance = torch.cov(encoding.continuous[..., :DIM].flatten(0, 1).T)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3 * covariance.diag().max()
    assert (covariance.diag().diff() <= 1e-4).all()
    torch.testing.assert_close(vtem.decoder(encoding.continuous).view(40, 4, 4, DIM), encoding.pooled.segments, atol=1e-4, rtol=0)
    torch.testing.assert_close(encoding.target.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_decoding_windows_equals_decoding_steps() -> None:
    vtem = make().eval()
    torch.nn.init.normal_(vtem.pooler.outer.weight, std=2)
    encoding = vtem.encode(training_features()[:2], times(2))
    unpooled = vtem.pooler.unpool(encoding.tokens.vectors.unflatten(1, (4, 4)), encoding.pooled.cumulative)
    torch.testing.assert_close(vtem.decoder(unpooled), encoding.reconstruction, atol=1e-4, rtol=1e-4)


def test_start_is_deterministic_and_seeded() -> None:
    first, second = make(), make()
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    second.fit_statistics(training_features(), seed=2)
    assert not torch.equal(first.quantizer.table(), second.quantizer.table())


@pytest.mark.parametrize("motion", [0.0, 1.0])
def test_state_dict_round_trip_is_exact(motion: float) -> None:
    vtem = make(motion=motion)
    copy = make(motion=motion, fit=False)
    with pytest.raises(UsageError, match="train stage 1"):
        copy.tokens(training_features(), times(40))
    copy.load_state_dict(vtem.state_dict())
    for ours, same in zip(
        vtem.eval().tokens(training_features(), times(40)), copy.eval().tokens(training_features(), times(40)), strict=True
    ):
        assert torch.equal(ours, same)


def test_from_frames() -> None:
    vtem = VTEM(PixelExtractor(), UniformPooler(windows=2), IdentityQuantizer(), event_dim=DIM)
    vtem.build()
    frames = torch.randint(256, (3, 6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vtem.fit_statistics(vtem.extractor(frames))
    tokens = vtem.eval()(frames, times(3, 6))
    expected = vtem.tokens(vtem.extractor(frames), times(3, 6))
    assert torch.equal(tokens.vectors, expected.vectors)
    torch.testing.assert_close(tokens.spans, torch.tensor([[0.0, 0.3], [0.3, 0.6]]).expand(3, -1, -1))


def test_motion_tells_the_direction_of_time_and_the_paper_does_not() -> None:
    features = training_features()[:4]
    for motion in (0.0, 1.0):
        vtem = make(IdentityQuantizer(), event_dim=2 * DIM, motion=motion).eval()
        forth, back = (vtem.tokens(each, times(4)).vectors.mean(1) for each in (features, features.flip(1)))
        assert ((forth - back).abs().max() < 1e-4) == (motion == 0)
    torch.testing.assert_close(change_between(torch.tensor([[1.0, 2.0, 5.0]])), torch.tensor([[0.5, 2.0, 1.5]]))
    assert (change_between(torch.ones(2, 1, 3)) == 0).all()


def test_centring_in_full_forgets_what_stays_the_same() -> None:
    """Adding a constant to a whole clip changes nothing with centre 1, and half as much as before with centre 0.5."""
    features = training_features()[:4]
    moved = []
    for centre in (0.0, 0.5, 1.0):
        vtem = make(IdentityQuantizer(), event_dim=2 * DIM, centre=centre).eval()
        vtem.pooler = UniformPooler(vtem.pooler.windows)
        inputs = [vtem._projection_inputs(vtem.pooler(vtem._scaled(each)).segments) for each in (features, features + 1)]
        moved.append((inputs[1] - inputs[0]).abs().mean().item())
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-3)
    assert moved[2] == pytest.approx(0, abs=1e-5)


def test_trains_on_both_losses_and_gradients_reach_every_part() -> None:
    vtem, contrastive = make(event_dim=12), InfoNCE()
    contrastive.build(12)
    torch.nn.init.zeros_(vtem.decoder.weight)
    features = training_features()[:12]
    vtem.train()
    optimizer = torch.optim.AdamW([*vtem.parameters(), *contrastive.parameters()], lr=1e-2)
    losses = []
    for step in range(40):
        encoding = vtem.encode(features, times(12))
        rebuilt = reconstruction(encoding.reconstruction, encoding.target)
        loss = rebuilt + 0.1 * contrastive(encoding.tokens.vectors, encoding.tokens.ids, windows=4) + encoding.commitment
        optimizer.zero_grad()
        loss.backward()
        if step == 1:  # the zero last layer holds back the first layer's gradient for one step
            assert all(parameter.grad.abs().max() > 0 for parameter in vtem.parameters() if parameter.requires_grad)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert rebuilt < 0.6  # 1.0 is predicting the mean


def test_float32_under_autocast() -> None:
    vtem = make().eval()
    features = training_features()[:2].half()
    expected = vtem.encode(features, times(2))
    with torch.autocast("cpu", torch.bfloat16):
        encoding = vtem.encode(features, times(2))
    assert torch.equal(encoding.tokens.ids, expected.tokens.ids)
    assert torch.equal(encoding.reconstruction, expected.reconstruction)


def test_padding() -> None:
    vtem = make().eval()
    features = training_features()[:1]
    padded = torch.cat([features, torch.zeros(1, 5, 4, DIM)], 1)
    padded_times = torch.cat([times(1), torch.zeros(1, 5)], 1)
    tokens = vtem.tokens(padded, padded_times, torch.arange(21)[None] < 16)
    alone = vtem.tokens(features, times(1))
    assert torch.equal(tokens.ids, alone.ids)
    torch.testing.assert_close(tokens.spans[:, :-1], alone.spans[:, :-1])


def test_spans_in_seconds() -> None:
    edges = torch.tensor([[0.0, 0.5, 2.0, 3.0]])
    spans = window_spans(edges, torch.tensor([[0.1, 0.3, 0.7]]))
    # steps meet at 0.2 and 0.5 and reach from 0.0 to 0.9
    torch.testing.assert_close(spans, torch.tensor([[[0.0, 0.1], [0.1, 0.5], [0.5, 0.9]]]))
    torch.testing.assert_close(window_spans(torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.4]])), torch.full((1, 2, 2), 0.4))


def test_refusals() -> None:
    vtem = make(fit=False)
    features = training_features()
    with pytest.raises(UsageError, match=r"expected \(clips, steps, 4, 12\): made by another extractor"):
        vtem.fit_statistics(features[..., :5])
    with pytest.raises(DataError, match="16 training vectors for 32 codes"):
        vtem.fit_statistics(features[:1])
    features[3, 2, 1, 0] = torch.nan
    with pytest.raises(DataError, match="NaN or infinite features in training row 3"):
        vtem.fit_statistics(features)
    with pytest.raises(DataError, match="all training features are equal"):
        vtem.fit_statistics(torch.ones(4, 16, 4, DIM))
    with pytest.raises(UsageError, match="motion=-1"):
        make(motion=-1)
    assert not bool(vtem.fitted)


def test_warns_when_pooling_means_nothing() -> None:
    with pytest.warns(UserWarning, match="6 feature steps for 4 windows"):
        make(fit=False).fit_statistics(training_features()[:, :6])
