"""VTEM as a whole: its start from training features, tokens, spans, round trips, learning."""

import pytest
import torch
from pixels import PixelExtractor
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
from vtlvlm.vtem.poolers import TokenInputs, abs_delta, at_steps, delta, window_spans

DIM = 12


def training_features(clips: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(clips, 16, 4, DIM, generator=generator).cumsum(1)
    return walk @ torch.randn(DIM, DIM, generator=generator) * 3 + 5


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


@pytest.mark.parametrize(("motion", "movement"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.6, 1.0)])
def test_state_dict_round_trip_is_exact(motion: float, movement: float) -> None:
    vtem = make(delta_weight=motion, abs_delta_weight=movement)
    copy = make(delta_weight=motion, abs_delta_weight=movement, fit=False)
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
        vtem = make(IdentityQuantizer(), event_dim=2 * DIM, delta_weight=motion).eval()
        forth, back = (vtem.tokens(each, times(4)).vectors.mean(1) for each in (features, features.flip(1)))
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


def test_abs_delta_by_hand() -> None:
    values = torch.tensor([[1.0, 4.0, 2.0, 2.0]])
    assert abs_delta(values).tolist() == [[3, 3, 2, 0]]
    assert abs_delta(values, torch.tensor([[True, True, True, False]])).tolist() == [[3, 3, 2, 0]]
    assert abs_delta(values, torch.tensor([[True, False, False, False]])).tolist() == [[0, 0, 0, 0]]
    assert abs_delta(torch.ones(2, 1, 3)).tolist() == torch.zeros(2, 1, 3).tolist()


def test_movement_tells_shaking_from_standing_still_and_the_paper_does_not() -> None:
    """Two clips of equal window means: one stands still, the other goes to and fro within each window."""
    still = training_features()[:2].mean(dim=1, keepdim=True).expand(-1, 16, -1, -1)
    shaking = still + 3 * torch.tensor([1.0, -1.0]).repeat(8).view(1, 16, 1, 1)
    for movement in (0.0, 1.0):
        vtem = make(IdentityQuantizer(), event_dim=3 * DIM, abs_delta_weight=movement).eval()
        vtem.pooler = UniformPooler(4)
        one, other = (vtem.tokens(each, times(2)).vectors for each in (still, shaking))
        assert ((one - other).abs().max() < 1e-4) == (movement == 0)


def test_movement_of_a_padded_clip_is_that_of_the_clip() -> None:
    vtem = make(IdentityQuantizer(), event_dim=3 * DIM, delta_weight=0.6, abs_delta_weight=1.0).eval()
    torch.nn.init.normal_(vtem.pooler.outer.weight, std=2)
    features = training_features()[:3]
    mask = torch.ones(3, 21, dtype=torch.bool)
    mask[:, 16:] = False
    padded = torch.cat([features, torch.full((3, 5, 4, DIM), 99.0)], dim=1)
    alone = vtem.tokens(features, times(3)).vectors
    torch.testing.assert_close(vtem.tokens(padded, times(3, 21), mask).vectors, alone, atol=1e-4, rtol=1e-4)


def test_movement_is_rebuilt_beside_the_features() -> None:
    """The decoder of the start gives windows and movement back; predicting the means costs 1."""
    vtem = make(IdentityQuantizer(), event_dim=2 * DIM, abs_delta_weight=2.0).eval()
    features = training_features()
    encoding = vtem.encode(features, times(40))
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
        mean = vtem.tokens(features, times(60)).vectors.mean(1)
        centres = torch.stack([mean[labels == action].mean(0) for action in (0, 1)])
        new, truth = clips(1)
        found = torch.cdist(vtem.tokens(new, times(60)).vectors.mean(1), centres).argmin(1)
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
    with pytest.raises(UsageError, match="delta_weight=-1"):
        make(delta_weight=-1)
    with pytest.raises(UsageError, match="abs_delta_weight=-1"):
        make(abs_delta_weight=-1)
    assert not bool(vtem.fitted)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_features_are_named_and_poison_nothing(training: bool, bad: float) -> None:
    vtem = make().train(training)
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


WIDTH = 7


def seen_by_the_tower(features: Tensor) -> Tensor:
    """An exact affine function of features (B, T', S, D), of other units: (B, T', S, WIDTH)."""
    return features @ torch.randn(DIM, WIDTH, generator=torch.Generator().manual_seed(2)) * 3 - 40


def towards_llava(quantizer: Quantizer | None = None, windows: int = 16, motion: float = 0.0, targets: Tensor | None = None) -> VTEM:
    vtem = VTEM(
        PixelExtractor(), UniformPooler(windows), quantizer or IdentityQuantizer(), WIDTH, TokenInputs(delta_weight=motion), target="llava"
    )
    features = training_features()
    vtem.fit_statistics(features, seen_by_the_tower(features) if targets is None else targets, seed=1)
    return vtem


def error(vtem: VTEM, features: Tensor, targets: Tensor) -> Tensor:
    encoding = vtem.encode(features, times(len(features), features.shape[1]), targets=targets)
    return reconstruction(encoding.reconstruction, encoding.target)


def test_event_vectors_start_as_what_the_tower_sees_and_the_mean_costs_one() -> None:
    vtem, features = towards_llava().eval(), training_features()
    targets = seen_by_the_tower(features)
    tokens = vtem.tokens(features, times(40))
    # a window a step, in the tower's own units
    torch.testing.assert_close(tokens.vectors.view(40, 16, 4, WIDTH), targets, atol=1e-2, rtol=1e-4)
    assert error(vtem, features, targets) < 1e-6
    spread = targets.flatten(0, 2).var(dim=0, correction=0).mean()
    torch.testing.assert_close(vtem.target_scale, spread.sqrt())
    torch.testing.assert_close(error(vtem, features, targets + spread.sqrt()), torch.tensor(1.0), atol=1e-3, rtol=0)
    with torch.no_grad():
        vtem.projection.weight.zero_()
        vtem.projection.bias.copy_(targets.mean(dim=(0, 1, 2)) / vtem.target_scale)
    torch.testing.assert_close(error(vtem, features, targets), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_the_scale_of_targets_by_hand() -> None:
    """Two numbers of variance 4 and 0: a mean variance of 2; an error of 2 in each number costs 4 / 2."""
    features = torch.zeros(1, 2, 4, DIM)
    features[0, 1] = 1
    targets = torch.tensor([[0.0, 5.0], [4.0, 5.0]]).view(1, 2, 1, 2).expand(1, 2, 4, 2)
    vtem = VTEM(PixelExtractor(), UniformPooler(2), IdentityQuantizer(), 2, target="llava")
    with pytest.warns(UserWarning, match="2 feature steps for 2 windows"):
        vtem.fit_statistics(features, targets)
    assert float(vtem.target_scale) == pytest.approx(2**0.5)
    torch.testing.assert_close(vtem.tokens(features, times(1, 2)).vectors, targets.flatten(1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(error(vtem, features, targets + 2), torch.tensor(2.0), atol=1e-4, rtol=0)


def test_targets_of_more_steps_are_averaged_onto_those_of_the_features() -> None:
    steps = torch.tensor([1.0, 3.0, 5.0, 9.0]).view(1, 4, 1, 1).expand(1, 4, 4, 2)
    assert torch.equal(at_steps(steps, 2)[0, :, 0, 0], torch.tensor([2.0, 7.0]))
    features = training_features()
    targets = seen_by_the_tower(features)
    swing = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1, 1)
    finer = (targets[:, :, None] + 100 * swing).flatten(1, 2).half()  # T'' = 2 T'; the mean of each two is the target
    vtem = towards_llava(targets=finer).eval()
    torch.testing.assert_close(vtem.target_scale, towards_llava().target_scale, atol=0, rtol=1e-3)
    encoding = vtem.encode(features, times(40), targets=finer)
    assert encoding.target.shape == encoding.reconstruction.shape == (40, 16, 4, WIDTH)
    assert encoding.target.dtype == torch.float32
    assert reconstruction(encoding.reconstruction, encoding.target) < 1e-4


def test_no_gradient_into_targets_and_no_targets_for_tokens() -> None:
    vtem, features = towards_llava(EMAQuantizer(codes=32), windows=4).train(), training_features()[:4]
    targets = seen_by_the_tower(features).requires_grad_()
    encoding = vtem.encode(features, times(4), targets=targets)
    (reconstruction(encoding.reconstruction, encoding.target) + encoding.commitment).backward()
    assert targets.grad is None
    assert vtem.projection.weight.grad.abs().max() > 0
    vtem.eval()
    tokens = vtem.tokens(features, times(4))
    again = vtem.encode(features, times(4), targets=targets)
    assert all(torch.equal(ours, same) for ours, same in zip(tokens, again.tokens, strict=True))
    assert torch.equal(vtem.events(features, times(4)).continuous, again.continuous)
    copy = VTEM(PixelExtractor(), UniformPooler(4), EMAQuantizer(codes=32), WIDTH, target="llava")
    copy.build()
    copy.load_state_dict(vtem.state_dict())
    assert torch.equal(error(copy.eval(), features, targets), error(vtem, features, targets))


def test_losses_do_not_depend_on_the_towers_units() -> None:
    features = training_features()
    found, weights = [], []
    for factor in (1.0, 1000.0):
        targets = factor * seen_by_the_tower(features)
        vtem = towards_llava(EMAQuantizer(codes=32), windows=4, targets=targets).eval()
        encoding = vtem.encode(features, times(40), targets=targets)
        found.append(torch.stack([reconstruction(encoding.reconstruction, encoding.target), encoding.commitment]))
        weights.append(vtem.projection.weight)
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=1e-3)
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-3)  # so that a learning rate means the same
    assert 0.01 < found[0].min() < found[0].max() < 1


def test_warns_of_a_start_that_is_learnt_by_heart() -> None:
    features = training_features(6)[:, :, :, :4].repeat(1, 1, 1, 3)  # 6 clips of 1 window and 4 cells, for 12 inputs
    vtem = VTEM(PixelExtractor(), UniformPooler(1), IdentityQuantizer(), WIDTH, target="llava")
    with pytest.warns(UserWarning, match=r"24 training windows and cells for 12 inputs: .* extract more clips or views"):
        vtem.fit_statistics(features, seen_by_the_tower(features))


def test_motion_may_help_towards_the_target() -> None:
    """A tower that sees what is about to happen: the change tells it, the window alone does not."""
    features = training_features()
    targets = seen_by_the_tower(
        torch.cat([features[:, 1:], features[:, -1:]], dim=1) - torch.cat([features[:, :1], features[:, :-1]], dim=1)
    )
    still, moving = (error(towards_llava(motion=motion, targets=targets).eval(), features, targets) for motion in (0.0, 1.0))
    assert moving < 1e-4 < 0.5 < still


def test_training_brings_events_to_what_the_tower_sees_the_closer_the_more_codes() -> None:
    features = training_features()
    targets = seen_by_the_tower(features) + 5 * torch.randn(40, 16, 4, WIDTH, generator=torch.Generator().manual_seed(3))
    learn, new = slice(None, 30), slice(30, None)
    reached = []
    for quantizer in (IdentityQuantizer(), EMAQuantizer(codes=64), EMAQuantizer(codes=4)):
        torch.manual_seed(0)
        vtem = VTEM(PixelExtractor(), EqualSaliencePooler(8, hidden=8), quantizer, WIDTH, target="llava")
        vtem.fit_statistics(features[learn], targets[learn])
        torch.nn.init.zeros_(vtem.projection.weight)  # as if nothing were known but a bias
        optimizer = torch.optim.AdamW(vtem.parameters(), lr=0.03)
        before = error(vtem.eval(), features[new], targets[new]).item()
        vtem.train()
        for _ in range(80):
            encoding = vtem.encode(features[learn], times(30), targets=targets[learn])
            loss = reconstruction(encoding.reconstruction, encoding.target) + encoding.commitment
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reached.append(error(vtem.eval(), features[new], targets[new]).item())
        assert reached[-1] < 0.7 * before
    assert reached[0] < 0.1  # 1.0 is predicting the mean
    assert reached[0] < 0.5 * reached[1] < 0.5 * 0.7 * reached[2]


def test_targets_that_do_not_fit() -> None:
    vtem, features = towards_llava(), training_features()
    targets = seen_by_the_tower(features)
    with pytest.raises(UsageError, match=r"fill a feature cache .* with ClipExtractor, and give it as data\.target_features"):
        vtem.encode(features, times(40))
    with pytest.raises(UsageError, match="fill a feature cache"):
        vtem.fit_statistics(features)
    with pytest.raises(UsageError, match=r"targets of 3 x 3 cells for features of 2 x 2: extract them with the same extractor\.grid"):
        vtem.encode(features, times(40), targets=torch.zeros(40, 16, 9, WIDTH))
    with pytest.raises(UsageError, match=r"targets are 8 wide, event_dim=7: set model\.init_args\.event_dim to 8"):
        vtem.encode(features, times(40), targets=torch.zeros(40, 16, 4, 8))
    with pytest.raises(UsageError, match=r"targets of shape \(39, 16, 4, 7\), expected \(40, "):
        vtem.encode(features, times(40), targets=targets[1:])
    with pytest.raises(UsageError, match="target 'features' uses no targets"):
        make().encode(features, times(40), targets=targets)
    with pytest.raises(UsageError, match=r"subtract_clip_mean=0\.5 does not go with target 'llava': set subtract_clip_mean to 0"):
        VTEM(PixelExtractor(), UniformPooler(4), IdentityQuantizer(), WIDTH, TokenInputs(subtract_clip_mean=0.5), target="llava")
    with pytest.raises(UsageError, match="target='clip' must be"):
        VTEM(PixelExtractor(), UniformPooler(4), IdentityQuantizer(), WIDTH, target="clip")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="all training targets are equal"):
        towards_llava(targets=torch.ones_like(targets))
    with pytest.raises(DataError, match="all training features are equal"):
        vtem.fit_statistics(torch.ones_like(features), targets)
