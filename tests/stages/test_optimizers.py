"""AdamW of recognition networks: its groups, rates and first step, by hand."""

from pathlib import Path

import lightning
import pytest
import torch
from shipped import resolved
from torch import nn
from videos import block_clips

from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.source import ClipSource
from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import LinearHead
from vtlvlm.skeleton.video_networks import VideoNetwork
from vtlvlm.stages.optimizers import AdamW, cosine
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.sgd import SGD


def test_rates_rise_for_two_and_a_half_epochs_and_follow_a_cosine_to_zero() -> None:
    """Epochs of ten steps: 25 steps of warm-up, then 75."""
    factors = [AdamW().factor(step, 10, 100) for step in (0, 12, 24, 25, 50, 75, 100)]
    assert factors == pytest.approx([1 / 25, 13 / 25, 1, 1, 0.75, 0.25, 0])
    assert AdamW(warmup_epochs=0).factor(0, 10, 100) == 1
    assert max(AdamW(warmup_epochs=0.25).factor(step, 10, 100) for step in range(100)) == 1  # 2.5 steps are 2
    assert cosine(7, 3, 3) == 0


def test_norms_biases_and_position_tables_take_no_decay_and_the_network_a_tenth_of_the_rate() -> None:
    shapes = {
        "network.trunk.backbone.patch_embed.proj.weight": (2, 3, 2, 4, 4),
        "network.trunk.backbone.patch_embed.proj.bias": (2,),
        "network.trunk.backbone.features.0.0.norm1.weight": (2,),
        "network.trunk.backbone.features.0.0.attn.relative_position_bias_table": (5, 2),
        "network.trunk.backbone.features.0.0.mlp.0.weight": (4, 2),
        "network.scale": (),
        "head.fc.weight": (3, 2),
        "head.fc.bias": (3,),
    }
    weights = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    names = {id(weight): name.removeprefix("network.trunk.backbone.") for name, weight in weights.items()}
    groups = AdamW(2e-3, 0.1, 0.02).groups(weights)
    assert [([names[id(w)] for w in group["params"]], group["lr"], group["weight_decay"]) for group in groups] == [
        (["patch_embed.proj.weight", "features.0.0.mlp.0.weight"], pytest.approx(2e-4), 0.02),
        (
            [
                "patch_embed.proj.bias",
                "features.0.0.norm1.weight",
                "features.0.0.attn.relative_position_bias_table",
                "network.scale",
            ],
            pytest.approx(2e-4),
            0.0,
        ),
        (["head.fc.weight"], 2e-3, 0.02),
        (["head.fc.bias"], 2e-3, 0.0),
    ]
    (weight, bias) = AdamW().groups({name: weights[name] for name in weights if name.startswith("head.")})  # a frozen network
    assert (weight["weight_decay"], bias["weight_decay"], bias["lr"]) == (0.05, 0, 1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"network_factor": 0.0},
        {"network_factor": float("inf")},
        {"weight_decay": -0.1},
        {"warmup_epochs": -1.0},
        {"warmup_epochs": float("nan")},
    ],
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"optimizer.{next(iter(settings))}="):
        AdamW(**settings)


def test_the_first_step_of_a_video_swin(tmp_path: Path) -> None:
    """Adam's first step is the rate, against the gradient's sign, whatever its size; the decay has been taken off before."""
    settings, clips = AdamW(1e-3, 0.1, 0.5, warmup_epochs=0), block_clips(tmp_path / "clips", (1, 2))
    torch.manual_seed(0)
    stage = Recognition(VideoNetwork("swin3d_t", image_size=32), LinearHead(deviation=0.01), settings, calibrate=False)
    data = NTUDataModule(ClipSource(str(clips), "xsub60"), sampling=FrameSampling(frames=4, size=32), batch_size=4, num_workers=0)
    before: dict[str, torch.Tensor] = {}
    steps: dict[str, torch.Tensor] = {}

    class Watch(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            before.update({name: weight.detach().clone() for name, weight in pl_module.named_parameters()})

        def on_before_optimizer_step(
            self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            steps.update({name: weight.grad.clone() for name, weight in pl_module.named_parameters() if weight.grad is not None})

    lightning.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, callbacks=[Watch()],
    ).fit(stage, datamodule=data)  # fmt: skip
    trained = dict(stage.named_parameters())
    assert steps.keys() == trained.keys()
    decayed = 0
    for name, weight in trained.items():
        rate = 1e-3 if name.startswith("head.") else 1e-4
        decays = weight.ndim > 1 and not name.endswith("relative_position_bias_table")
        decayed += decays
        clear = steps[name].abs() > 1e-4  # where the gradient is far above Adam's epsilon
        expected = before[name] * (1 - rate * 0.5 * decays) - rate * steps[name].sign()
        torch.testing.assert_close(weight.detach()[clear], expected[clear], atol=2e-7, rtol=1e-5)
    assert decayed == 2 + 4 * 12 + 3  # first and last layer, four matrices of each of the twelve blocks, three merges
    assert any((steps[name].abs() > 1e-4).any() for name in steps if name.startswith("network."))


def test_a_configuration_names_the_class_or_gives_the_settings_of_sgd(tmp_path: Path) -> None:
    def optimizer(text: str) -> object:
        place = tmp_path / "config.yaml"
        place.write_text(
            "model:\n  class_path: Recognition\n  init_args:\n    network: VideoNetwork\n    head: LinearHead\n"
            f"{text}\ndata:\n  source: {{root: data}}\n"
        )
        return resolved(place)["model"]["init_args"]["optimizer"]

    sgd, adamw = (f"vtlvlm.stages.{name}" for name in ("sgd.SGD", "optimizers.AdamW"))
    plain = optimizer("    optimizer: {learning_rate: 0.3, milestones: [2]}")
    assert plain == {"class_path": sgd, "init_args": {**vars(SGD(0.3)), "decays": [], "milestones": [2]}}
    assert optimizer("    optimizer: {class_path: SGD, init_args: {learning_rate: 0.3, milestones: [2]}}") == plain
    assert optimizer("    optimizer: AdamW") == {"class_path": adamw, "init_args": vars(AdamW())}  # SGD's rate would be 100 times too high
    assert optimizer("    optimizer: {class_path: AdamW, init_args: {weight_decay: 0.02}}") == {
        "class_path": adamw,
        "init_args": {**vars(AdamW()), "weight_decay": 0.02},
    }
    assert optimizer("") is None
    assert Recognition(VideoNetwork(), LinearHead()).optimizer == SGD()
