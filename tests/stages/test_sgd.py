"""Learning rates of the skeleton networks' recipes, by hand."""

import pytest
from torch import nn

from vtlvlm.errors import UsageError
from vtlvlm.stages.sgd import SGD, Decay

EPOCH, TOTAL = 10, 650


def rates(settings: SGD, *steps: int) -> list[float]:
    return [settings.learning_rate * settings.factor(step, EPOCH, TOTAL) for step in steps]


def test_ctr_gcn_warms_up_by_epochs_and_falls_in_steps() -> None:
    settings = SGD(learning_rate=0.1, warmup_epochs=5, milestones=(35, 55))
    assert rates(settings, 0, 9, 10, 49, 50, 349, 350, 549, 550, 649) == pytest.approx(
        [0.02, 0.02, 0.04, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_st_gcn_falls_without_warm_up() -> None:
    assert rates(SGD(milestones=(10, 50)), 0, 99, 100, 500) == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_hd_gcn_follows_a_cosine_step_by_step() -> None:
    settings = SGD(learning_rate=0.1, warmup_epochs=5, minimum=1e-4)
    assert rates(settings, 0, 24, 49, 50) == pytest.approx([0.002, 0.05, 0.1, 0.1])
    assert rates(settings, 350)[0] == pytest.approx((0.1 + 1e-4) / 2)  # half of the 600 steps after the warm-up
    assert rates(settings, TOTAL)[0] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"minimum": 0.2},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1.0},
        {"decays": (Decay("mask", -1.0),)},
        {"milestones": (55, 35)},
        {"milestones": (0, 5)},
    ],
)
def test_settings_out_of_range(settings: dict) -> None:
    with pytest.raises(UsageError, match="optimizer"):
        SGD(**settings)


def test_some_weights_have_a_decay_of_their_own() -> None:
    """Shift-GCN's recipe: ten times the decay on pointwise weights, none on masks."""
    names = ("a.pointwise.weight", "a.pointwise.bias", "a.mask", "b.unmask", "pointwise.weight", "b.norm.weight")
    weights = {name: nn.Parameter() for name in names}
    settings = SGD(weight_decay=1e-4, decays=(Decay("pointwise.weight", 1e-3), Decay("mask", 0.0)))
    found = [([next(n for n, w in weights.items() if w is p) for p in g["params"]], g["weight_decay"]) for g in settings.groups(weights)]
    assert found == [
        (["a.pointwise.weight", "pointwise.weight"], 1e-3),
        (["a.mask"], 0.0),
        (["a.pointwise.bias", "b.unmask", "b.norm.weight"], 1e-4),
    ]
    with pytest.raises(UsageError, match="no weight's name ends in masks"):
        SGD(decays=(Decay("masks", 0.0),)).groups(weights)
