"""VTEM whose events have to equal what the CLIP tower of a LLaVA sees (``target: llava``)."""

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
    Quantizer,
    UniformPooler,
    reconstruction,
)
from vtlvlm.vtem.poolers import TokenInputs, at_steps

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
    encoding = vtem.encode(features, step_times(len(features), features.shape[1]), targets=targets)
    return reconstruction(encoding.reconstruction, encoding.target)


def test_event_vectors_start_as_what_the_tower_sees_and_the_mean_costs_one() -> None:
    vtem, features = towards_llava().eval(), training_features()
    targets = seen_by_the_tower(features)
    tokens = vtem.tokens(features, step_times(40))
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
    torch.testing.assert_close(vtem.tokens(features, step_times(1, 2)).vectors, targets.flatten(1, 2), atol=1e-5, rtol=0)
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
    encoding = vtem.encode(features, step_times(40), targets=finer)
    assert encoding.target.shape == encoding.reconstruction.shape == (40, 16, 4, WIDTH)
    assert encoding.target.dtype == torch.float32
    assert reconstruction(encoding.reconstruction, encoding.target) < 1e-4


def test_no_gradient_into_targets_and_no_targets_for_tokens() -> None:
    vtem, features = towards_llava(EMAQuantizer(codes=32), windows=4).train(), training_features()[:4]
    targets = seen_by_the_tower(features).requires_grad_()
    encoding = vtem.encode(features, step_times(4), targets=targets)
    (reconstruction(encoding.reconstruction, encoding.target) + encoding.commitment).backward()
    assert targets.grad is None
    assert vtem.projection.weight.grad.abs().max() > 0
    vtem.eval()
    tokens = vtem.tokens(features, step_times(4))
    again = vtem.encode(features, step_times(4), targets=targets)
    assert all(torch.equal(ours, same) for ours, same in zip(tokens, again.tokens, strict=True))
    assert torch.equal(vtem.events(features, step_times(4)).continuous, again.continuous)
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
        encoding = vtem.encode(features, step_times(40), targets=targets)
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
            encoding = vtem.encode(features[learn], step_times(30), targets=targets[learn])
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
        vtem.encode(features, step_times(40))
    with pytest.raises(UsageError, match="fill a feature cache"):
        vtem.fit_statistics(features)
    with pytest.raises(UsageError, match=r"targets of 3 x 3 cells for features of 2 x 2: extract them with the same extractor\.grid"):
        vtem.encode(features, step_times(40), targets=torch.zeros(40, 16, 9, WIDTH))
    with pytest.raises(UsageError, match=r"targets are 8 wide, event_dim=7: set model\.init_args\.event_dim to 8"):
        vtem.encode(features, step_times(40), targets=torch.zeros(40, 16, 4, 8))
    with pytest.raises(UsageError, match=r"targets of shape \(39, 16, 4, 7\), expected \(40, "):
        vtem.encode(features, step_times(40), targets=targets[1:])
    plain = VTEM(PixelExtractor(), UniformPooler(4), IdentityQuantizer(), WIDTH)
    plain.fit_statistics(features)
    with pytest.raises(UsageError, match="target 'features' uses no targets"):
        plain.encode(features, step_times(40), targets=targets)
    with pytest.raises(UsageError, match=r"subtract_clip_mean=0\.5 does not go with target 'llava': set subtract_clip_mean to 0"):
        VTEM(PixelExtractor(), UniformPooler(4), IdentityQuantizer(), WIDTH, TokenInputs(subtract_clip_mean=0.5), target="llava")
    with pytest.raises(UsageError, match="target='clip' must be"):
        VTEM(PixelExtractor(), UniformPooler(4), IdentityQuantizer(), WIDTH, target="clip")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="all training targets are equal"):
        towards_llava(targets=torch.ones_like(targets))
    with pytest.raises(DataError, match="all training features are equal"):
        vtem.fit_statistics(torch.ones_like(features), targets)
