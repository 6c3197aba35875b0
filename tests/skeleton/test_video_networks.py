"""Video networks compute what torchvision's do, and have its numbers of parameters."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import LinearHead
from vtlvlm.skeleton.video_networks import FrozenFeatures, VideoNetwork
from vtlvlm.vtem.extractors import TimmExtractor, VideoExtractor


def frames(clips: int, number: int, size: int = 32) -> Tensor:
    return torch.randint(256, (clips, number, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def whole(model: str, actions: int) -> nn.Module:
    """torchvision's own network with a last layer for so many actions."""
    from torchvision.models import get_model

    torch.manual_seed(1)
    return get_model(model, weights=None, num_classes=actions)


@pytest.mark.parametrize(("model", "number"), [("r3d_18", 16), ("mc3_18", 3), ("swin3d_t", 4)])
def test_scores_are_those_of_torchvisions_network(model: str, number: int, tmp_path: Path) -> None:
    from torchvision.models import get_model_weights

    official = whole(model, 5).eval()
    torch.save(official.state_dict(), tmp_path / "weights.pth")
    network, head = VideoNetwork(model, str(tmp_path / "weights.pth"), 32), LinearHead()
    network.build()
    network.begin()
    head.build(network.shapes(number), ["a"] * 5, None)
    last = official.head if model.startswith("swin") else official.fc
    head.fc.load_state_dict(last.state_dict())  # type: ignore[union-attr]
    colours = get_model_weights(model).DEFAULT.transforms()
    mean, std = (torch.tensor(value).view(1, 3, 1, 1, 1) for value in (colours.mean, colours.std))
    clips = frames(2, number)
    with torch.no_grad():
        expected = official((clips.transpose(1, 2).float() / 255 - mean) / std)
        (tap,) = network.eval()(clips)
        torch.testing.assert_close(head([tap]).logits, expected, atol=1e-4, rtol=1e-4)
    (shape,) = network.shapes(number)
    assert tap.shape == (2, 1, shape.channels, shape.frames, shape.joints)


@pytest.mark.parametrize(("model", "actions", "count"), [("r3d_18", 60, 33_197_052), ("swin3d_t", 60, 27_896_610), ("swin3d_t", 120, None)])
def test_numbers_of_parameters_are_torchvisions(model: str, actions: int, count: int | None) -> None:
    with torch.device("meta"):
        network, head = VideoNetwork(model), LinearHead()
        network.build()
        head.build(network.shapes(16), ["a"] * actions, None)
        expected = sum(p.numel() for p in whole(model, actions).parameters())
    assert sum(p.numel() for part in (network, head) for p in part.parameters()) == expected
    assert count in (None, expected)


def test_without_a_file_training_starts_from_random_numbers() -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network = VideoNetwork("mc3_18")
        network.build()
        network.begin()
        made.append(network.state_dict()["trunk.backbone.layer4.1.conv2.0.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_batch_norms_follow_the_mode_and_frozen_ones_do_not() -> None:
    network = VideoNetwork("mc3_18", image_size=16)
    network.build()
    norm = network.trunk.backbone.stem[1]  # type: ignore[index, union-attr]
    before = norm.running_mean.clone()
    network(frames(2, 2, 16))
    assert not torch.equal(norm.running_mean, before)
    after = norm.running_mean.clone()
    network.eval()(frames(2, 2, 16))
    assert torch.equal(norm.running_mean, after)
    frozen = FrozenFeatures(VideoExtractor("mc3_18", grid=1, image_size=16))
    frozen.extractor.build()
    assert not any(module.training for module in frozen.train().extractor.backbone.modules())  # type: ignore[union-attr]


def test_frozen_features_pass_as_they_are() -> None:
    network = FrozenFeatures(VideoExtractor("r3d_18", grid=2))
    network.build(6)
    features = torch.randn(3, 5, 4, 6)
    (tap,) = network(features.half())
    assert tap.dtype == torch.float32
    assert torch.equal(tap[:, 0], features.half().float().permute(0, 3, 1, 2))
    assert network.shapes(33) == [(6, 5, 4)]
    assert not [*network.parameters()]
    with pytest.raises(UsageError, match="features of width 5, the head reads a width of 6"):
        network(features[..., :5])


def test_parameters_of_a_frozen_extractor_are_counted_without_its_weights() -> None:
    network = FrozenFeatures(VideoExtractor("r3d_18"))
    assert network.frozen_parameters == 33_197_052 - (512 + 1) * 60
    assert network.extractor.backbone is None  # type: ignore[attr-defined]
    assert FrozenFeatures(TimmExtractor("no_such_model")).frozen_parameters is None


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="take VideoNetwork"):
        FrozenFeatures(VideoExtractor("r3d_18", trainable=True))
    with pytest.raises(UsageError, match="s3d: no such video model; there are r3d_18"):
        VideoNetwork("s3d")
    with pytest.raises(UsageError, match="image_size=0"):
        VideoNetwork(image_size=0)
    network = VideoNetwork("mc3_18", "nothing.pth")
    network.build()
    with pytest.raises(UsageError, match=r"nothing\.pth: no such weights file"):
        network.begin()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(whole("mc3_18", 5).state_dict(), tmp_path / "mc3.pth")
    network = VideoNetwork("r3d_18", str(tmp_path / "mc3.pth"))
    network.build()
    with pytest.raises(UsageError, match="these weights belong to another model"):
        network.begin()
