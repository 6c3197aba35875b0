"""Batch norms in the convolutions before them: the same outputs, fewer modules, and networks that do not fold stay as they are."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vtlvlm.vtem.extractors import TimmExtractor
from vtlvlm.vtem.folding import Folding, folded


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def scrambled(network: nn.Module) -> nn.Module:
    """Running statistics and weights as after a training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet", "mobilenetv3_small_050"])
def test_timm_networks_fold_whole_and_stay_as_they_are(name: str) -> None:
    network = scrambled(timm.create_model(name, pretrained=False, num_classes=0))
    before, images = norms(network), torch.randn(2, 3, 64, 64)
    twin = folded(network, lambda net: net.forward_features(images))
    assert norms(network) == before > 0
    assert norms(twin) == 0
    torch.testing.assert_close(twin.forward_features(images), network.forward_features(images), rtol=1e-3, atol=1e-3)


class Residual(nn.Module):
    """The raw output of the convolution is read a second time, so that folding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images)
        return self.norm(found) + found


class Shared(Residual):
    """The convolution runs twice."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(images)))


@pytest.mark.parametrize("kind", [Residual, Shared])
def test_a_network_that_would_change_is_left_alone(kind: type[nn.Module]) -> None:
    network, images = scrambled(kind()), torch.randn(2, 3, 4, 4)
    kept = folded(network, lambda net: net(images))
    assert torch.equal(kept(images), network(images))
    assert norms(kept) == 1


def test_the_copy_follows_the_weights() -> None:
    network, folding, images = scrambled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), Folding(), torch.randn(1, 3, 4, 4)
    first = folding.of(network, lambda net: net(images))
    assert folding.of(network, lambda net: net(images)) is first
    network.load_state_dict({name: tensor + 1 for name, tensor in network.state_dict().items()})
    second = folding.of(network, lambda net: net(images))
    assert second is not first
    torch.testing.assert_close(second(images), network(images))


@torch.inference_mode()
def test_a_network_made_in_inference_mode_folds() -> None:
    """Its weights count no changes."""
    network, images = scrambled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), torch.randn(1, 3, 4, 4)
    twin = Folding().of(network, lambda net: net(images))
    assert norms(twin) == 0
    torch.testing.assert_close(twin(images), network(images))


def test_the_extractor_keeps_its_fingerprint_and_features() -> None:
    frames = torch.randint(256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    extractor = TimmExtractor("test_resnet", None, image_size=64)
    extractor.build()
    scrambled(extractor.backbone)
    extractor.loaded = True
    before = extractor.fingerprint()
    found = extractor(frames)
    assert extractor.fingerprint() == before
    assert norms(extractor.folding._network) == 0
    short = TimmExtractor("test_resnet", None, image_size=64, precision="bfloat16")
    short.build()
    short.backbone.load_state_dict(extractor.backbone.state_dict())
    short.loaded = True
    torch.testing.assert_close(short(frames), found, rtol=0.05, atol=0.05 * float(found.abs().max()))
    assert norms(short.folding._network) == 0
    extractor.compiled = True  # reads the network itself
    torch.testing.assert_close(found, extractor(frames), rtol=1e-3, atol=1e-3)
