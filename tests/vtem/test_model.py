"""VTEM as a whole: its start from training features, tokens, spans, round trips, learning."""

import pytest
import torch
from pixels import DIM, PixelExtractor, step_times, training_features
from torch import Tensor

from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem import (
    VTEM,
    EMAQuantizer,
    EqualSaliencePooler,
    IdentityQuantizer,
    InfoNCE,
    Quantizer,
    UniformPooler,
    reconstruction,
)
from vtlvlm.vtem.poolers import TokenInputs, abs_delta, delta


def make(
    quantizer: Quantizer | None = None,
    event_dim: int = 20,
    fit: bool = True,
    **inputs: float,
) -> VTEM:
    torch.manual_seed(0)
    pooler = EqualSaliencePooler(windows=4, hidden=8)
    vtem = VTEM(PixelExtractor(), pooler, quantizer or EMAQuantizer(codes=32), event_dim, TokenInputs(**inputs))
    vtem.build()
    if fit:
        vtem.fit_statistics(training_features(), seed=1)
    return vtem


def test_shapes_and_facts() -> None:
    vtem = make().eval()
    assert (vtem.num_tokens, vtem.num_codes, vtem.event_dim) == (16, 32, 20)
    features = training_features()[:3]
    encoding = vtem.encode(features, step_times(3))
    assert encoding.tokens.ids.shape == (3, 16)
    assert encoding.tokens.vectors.shape == encoding.continuous.shape == (3, 16, 20)
    assert encoding.tokens.spans.shape == (3, 4, 2)
    assert encoding.reconstruction.shape == encoding.target.shape == features.shape
    assert torch.equal(encoding.tokens.vectors, vtem.quantizer.table()[encoding.tokens.ids])
    alone = vtem.tokens(features, step_times(3))
    assert all(torch.equal(ours, same) for ours, same in zip(alone, encoding.tokens, strict=True))


def test_starts_with_unit_vectors_on_principal_axes_and_a_decoder_that_inverts() -> None:
    vtem = make(IdentityQuantizer()).eval()
    features = training_features()
    encoding = vtem.encode(features, step_times(40))
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
    encoding = vtem.encode(training_features()[:2], step_times(2))
    unpooled = vtem.pooler.unpool(encoding.tokens.vectors.unflatten(1, (4, 4)), encoding.pooled.cumulative)
    torch.testing.assert_close(vtem.decoder(unpooled), encoding.reconstruction, atol=1e-4, rtol=1e-4)


def test_start_is_deterministic_and_seeded() -> None:
    first, second = make(), make()
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    second.fit_statistics(training_features(), seed=2)
    assert not torch.equal(first.quantizer.table(), second.quantizer.table())


@pytest.mark.parametrize(("motion", "movement"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.6, 1.0)])
def test_state_dict_round_trip_is_exact(motion: float, movement: float) -> None:
    vtem = make(delta_weight=motion, abs_delta_weight=movement)
    copy = make(delta_weight=motion, abs_delta_weight=movement, fit=False)
    with pytest.raises(UsageError, match="train stage 1"):
        copy.tokens(training_features(), step_times(40))
    copy.load_state_dict(vtem.state_dict())
    for ours, same in zip(
        vtem.eval().tokens(training_features(), step_times(40)), copy.eval().tokens(training_features(), step_times(40)), strict=True
    ):
        assert torch.equal(ours, same)


def test_from_frames() -> None:
    vtem = VTEM(PixelExtractor(), UniformPooler(windows=2), IdentityQuantizer(), event_dim=DIM)
    vtem.build()
    frames = torch.randint(256, (3, 6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vtem.fit_statistics(vtem.extractor(frames))
    tokens = vtem.eval()(frames, step_times(3, 6))
    expected = vtem.tokens(vtem.extractor(frames), step_times(3, 6))
    assert torch.equal(tokens.vectors, expected.vectors)
    torch.testing.assert_close(tokens.spans, torch.tensor([[0.0, 0.3], [0.3, 0.6]]).expand(3, -1, -1))


def test_motion_tells_the_direction_of_time_and_the_paper_does_not() -> None:
    features = training_features()[:4]
    for motion in (0.0, 1.0):
        vtem = make(IdentityQuantizer(), event_dim=2 * DIM, delta_weight=motion).eval()
        forth, back = (vtem.tokens(each, step_times(4)).vectors.mean(1) for each in (features, features.flip(1)))
        assert ((forth - back).abs().max() < 1e-4) == (motion == 0)
    torch.testing.assert_close(delta(torch.tensor([[1.0, 2.0, 5.0]])), torch.tensor([[0.5, 2.0, 1.5]]))
    assert (delta(torch.ones(2, 1, 3)) == 0).all()


def test_centring_in_full_forgets_what_stays_the_same() -> None:
    """Adding a constant to a whole clip changes nothing with centre 1, and half as much as before with centre 0.5."""
    features = training_features()[:4]
    moved = []
    for centre in (0.0, 0.5, 1.0):
        vtem = make(IdentityQuantizer(), event_dim=2 * DIM, subtract_clip_mean=centre).eval()
        vtem.pooler = UniformPooler(vtem.pooler.windows)
        inputs = [vtem._projection_inputs(vtem.pooler(vtem._scaled(each)).segments) for each in (features, features + 1)]
        moved.append((inputs[1] - inputs[0]).abs().mean().item())
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-3)
    assert moved[2] == pytest.approx(0, abs=1e-5)


def test_movement_tells_shaking_from_standing_still_and_the_paper_does_not() -> None:
    """Two clips of equal window means: one stands still, the other goes to and fro within each window."""
    still = training_features()[:2].mean(dim=1, keepdim=True).expand(-1, 16, -1, -1)
    shaking = still + 3 * torch.tensor([1.0, -1.0]).repeat(8).view(1, 16, 1, 1)
    for movement in (0.0, 1.0):
        vtem = make(IdentityQuantizer(), event_dim=3 * DIM, abs_delta_weight=movement).eval()
        vtem.pooler = UniformPooler(4)
        one, other = (vtem.tokens(each, step_times(2)).vectors for each in (still, shaking))
        assert ((one - other).abs().max() < 1e-4) == (movement == 0)


def test_movement_of_a_padded_clip_is_that_of_the_clip() -> None:
    vtem = make(IdentityQuantizer(), event_dim=3 * DIM, delta_weight=0.6, abs_delta_weight=1.0).eval()
    torch.nn.init.normal_(vtem.pooler.outer.weight, std=2)
    features = training_features()[:3]
    mask = torch.ones(3, 21, dtype=torch.bool)
    mask[:, 16:] = False
    padded = torch.cat([features, torch.full((3, 5, 4, DIM), 99.0)], dim=1)
    alone = vtem.tokens(features, step_times(3)).vectors
    torch.testing.assert_close(vtem.tokens(padded, step_times(3, 21), mask).vectors, alone, atol=1e-4, rtol=1e-4)


def test_movement_is_rebuilt_beside_the_features() -> None:
    """The decoder of the start gives windows and movement back; predicting the means costs 1."""
    vtem = make(IdentityQuantizer(), event_dim=2 * DIM, abs_delta_weight=2.0).eval()
    features = training_features()
    encoding = vtem.encode(features, step_times(40))
    assert encoding.target.shape == encoding.reconstruction.shape == (40, 16, 4, 2 * DIM)
    scale = (2 / (1 + 2.0**2)) ** 0.5
    torch.testing.assert_close(encoding.target[..., :DIM], scale * (features - vtem.mean) / vtem.std, atol=1e-4, rtol=1e-4)
    moved = abs_delta((features - vtem.mean) / vtem.std)
    torch.testing.assert_close(encoding.target[..., DIM:], scale * 2 * (moved - vtem.abs_delta_mean) / vtem.abs_delta_std)
    decoded = vtem.decoder(encoding.continuous).view(40, 4, 4, 2 * DIM)
    torch.testing.assert_close(decoded[..., :DIM], scale * encoding.pooled.segments, atol=1e-4, rtol=0)
    windows = moved.view(40, 4, 4, 4, DIM).mean(2)  # the pooler starts as uniform
    torch.testing.assert_close(decoded[..., DIM:], scale * 2 * (windows - vtem.abs_delta_mean) / vtem.abs_delta_std, atol=1e-3, rtol=0)
    torch.testing.assert_close(windows.mean((0, 1, 2)), vtem.abs_delta_mean, atol=1e-4, rtol=1e-4)


def test_discriminants_have_codes_tell_the_action_and_not_the_scene() -> None:
    """Two actions that differ in one feature of twelve, in scenes that differ as much in each of the others."""

    def clips(seed: int, number: int = 60) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(number) % 2
        values = 8 * torch.randn(number, 1, 1, DIM, generator=generator) + torch.randn(number, 16, 4, DIM, generator=generator)
        values[..., 0] = 16.0 * labels.view(-1, 1, 1) + torch.randn(number, 16, 4, generator=generator)
        return values, labels

    def nearest_class(discriminant: float) -> float:
        torch.manual_seed(0)
        vtem = VTEM(PixelExtractor(), UniformPooler(4), EMAQuantizer(codes=8), 20, TokenInputs(lda_weight=discriminant))
        features, labels = clips(0)
        vtem.fit_statistics(features, labels=labels)
        vtem.eval()
        mean = vtem.tokens(features, step_times(60)).vectors.mean(1)
        centres = torch.stack([mean[labels == action].mean(0) for action in (0, 1)])
        new, truth = clips(1)
        found = torch.cdist(vtem.tokens(new, step_times(60)).vectors.mean(1), centres).argmin(1)
        return float((found == truth).float().mean())

    assert nearest_class(0.0) < 0.75
    assert nearest_class(2.0) > 0.95


def test_discriminants_ask_for_actions() -> None:
    vtem = VTEM(PixelExtractor(), UniformPooler(4), IdentityQuantizer(), 20, TokenInputs(lda_weight=1.0))
    with pytest.raises(UsageError, match="give labels, or set lda_weight to 0"):
        vtem.fit_statistics(training_features())
    with pytest.raises(UsageError, match="show 1 action"):
        vtem.fit_statistics(training_features(), labels=torch.zeros(40, dtype=torch.long))
    with pytest.raises(UsageError, match="leave no room"):
        vtem.fit_statistics(training_features(), labels=torch.arange(40) % 20)
    with pytest.raises(UsageError, match="set lda_weight to 0"):
        VTEM(PixelExtractor(), UniformPooler(4), IdentityQuantizer(), 20, TokenInputs(lda_weight=1.0), target="llava")


def test_trains_on_both_losses_and_gradients_reach_every_part() -> None:
    vtem, contrastive = make(event_dim=12), InfoNCE()
    contrastive.build(12)
    torch.nn.init.zeros_(vtem.decoder.weight)
    features = training_features()[:12]
    vtem.train()
    optimizer = torch.optim.AdamW([*vtem.parameters(), *contrastive.parameters()], lr=1e-2)
    losses = []
    for step in range(40):
        encoding = vtem.encode(features, step_times(12))
        rebuilt = reconstruction(encoding.reconstruction, encoding.target)
        loss = rebuilt + 0.1 * contrastive(encoding.tokens.vectors, encoding.tokens.ids, windows=4) + encoding.commitment
        optimizer.zero_grad()
        loss.backward()
        if step == 1:  # the zero last layer holds back the first layer's gradient for one step
            assert all(parameter.grad.abs().max() > 0 for parameter in vtem.parameters() if parameter.requires_grad)
        vtem.quantizer.update(encoding.continuous.detach(), encoding.tokens.ids, seed=step)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert rebuilt < 0.6  # 1.0 is predicting the mean


def test_float32_under_autocast() -> None:
    vtem = make().eval()
    features = training_features()[:2].half()
    expected = vtem.encode(features, step_times(2))
    with torch.autocast("cpu", torch.bfloat16):
        encoding = vtem.encode(features, step_times(2))
    assert torch.equal(encoding.tokens.ids, expected.tokens.ids)
    assert torch.equal(encoding.reconstruction, expected.reconstruction)


def test_padding() -> None:
    vtem = make().eval()
    features = training_features()[:1]
    padded = torch.cat([features, torch.zeros(1, 5, 4, DIM)], 1)
    padded_times = torch.cat([step_times(1), torch.zeros(1, 5)], 1)
    tokens = vtem.tokens(padded, padded_times, torch.arange(21)[None] < 16)
    alone = vtem.tokens(features, step_times(1))
    assert torch.equal(tokens.ids, alone.ids)
    torch.testing.assert_close(tokens.spans[:, :-1], alone.spans[:, :-1])


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
    with pytest.raises(UsageError, match="delta_weight=-1"):
        make(delta_weight=-1)
    with pytest.raises(UsageError, match="abs_delta_weight=-1"):
        make(abs_delta_weight=-1)
    assert not bool(vtem.fitted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_features_are_named_and_poison_nothing(bad: float) -> None:
    vtem = make().eval()
    before = {name: tensor.clone() for name, tensor in vtem.state_dict().items()}
    features, times = training_features(3), torch.arange(16).float().expand(3, -1)
    features[1, 15, 3, 11] = bad
    for door in (vtem.encode, vtem.tokens, vtem.events):
        with pytest.raises(DataError, match="NaN or infinite features in row 1 of a batch of 3"):
            door(features, times)
    with pytest.raises(DataError, match="clip 2 of the batch is all padding"):
        vtem.encode(training_features(3), times, torch.arange(3)[:, None].expand(-1, 16) < 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in vtem.state_dict().items())


def test_a_single_frame_fills_all_windows() -> None:
    vtem = make().eval()
    encoding = vtem.encode(training_features(2)[:, :1], torch.tensor([[0.5], [0.0]]))
    assert encoding.tokens.ids.shape == (2, 16)
    windows = encoding.tokens.ids.unflatten(1, (4, 4))
    assert (windows == windows[:, :1]).all()
    assert torch.equal(encoding.tokens.spans, torch.tensor([0.5, 0.0])[:, None, None].expand(2, 4, 2))
    assert torch.isfinite(encoding.reconstruction).all()


def test_warns_when_pooling_means_nothing() -> None:
    with pytest.warns(UserWarning, match="6 feature steps for 4 windows"):
        make(fit=False).fit_statistics(training_features()[:, :6])
