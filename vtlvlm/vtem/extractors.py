"""Feature extractors (eq. 1): sampled frames to features for each feature step and spatial cell.

Three families of library models: timm image backbones, torchvision video models (3D ResNets and Swin), and the CLIP tower of a LLaVA.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.vtem.folding import Folding
from vtlvlm.vtem.precision import Precision, computing
from vtlvlm.vtem.weights import PACKAGE_PREFIX, match_tensors, named_weights, tensors_hash


class FeatureExtractor(nn.Module, ABC):
    """Frames -> features (B, T', S, D). Frozen unless ``trainable``, and always in eval mode.

    Args:
        grid: g; the features of each step are averaged over g x g spatial cells, S = g².
        image_size: side of the square input of the backbone, pixels; frames of another size are resized (bilinear, antialiased).
        chunk: frames of one clip in one pass of the backbone, at most; limits the memory of long videos.
        trainable: train the backbone (needs videos, not caches). It stays in eval mode, so that its batch statistics do not change.
        clips: clips in one pass, at most ``data.micro_batch_size``; None for as many as ``chunk`` frames hold, at least one. More clips
            occupy a GPU better and take more of its memory. Features do not depend on it.
    """

    frame_stride: int = 1
    """sampled frames per feature step"""

    def __init__(self, grid: int, image_size: int, chunk: int, trainable: bool = False, clips: int | None = None) -> None:
        super().__init__()
        for name, value in (("grid", grid), ("image_size", image_size), ("chunk", chunk), ("clips", clips)):
            if value is not None and value < 1:
                raise UsageError(f"extractor.{name}={value}: must be at least 1")
        self.grid = grid
        self.image_size = image_size
        self.chunk = chunk
        self.trainable = trainable
        self.clips = clips

    @property
    def cells(self) -> int:
        """S = grid²."""
        return self.grid**2

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the feature width. Builds the architecture without weights."""

    @abstractmethod
    def build(self) -> None:
        """Makes the architecture without its weights. Idempotent."""

    @abstractmethod
    def load_weights(self) -> None:
        """Loads the pretrained weights once. The first forward calls it.

        Raises:
            UsageError: the weights cannot be found, or do not fit the architecture.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the features, in plain values: architecture, weights (SHA-256), grid, image size, library version."""

    @abstractmethod
    def extract(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8, at most ``clips`` clips and ``chunk`` frames of each -> (B, T', S, D) float32."""

    def steps(self, num_frames: int) -> int:
        """T' for T sampled frames; a last incomplete stride counts."""
        return -(-num_frames // self.frame_stride)

    def step_times(self, times: Tensor) -> Tensor:
        """Frame times (B, T) seconds -> the centres of the feature steps (B, T'). An incomplete stride repeats its last frame, as features
        do."""
        if self.frame_stride == 1:
            return times
        steps = self.steps(times.shape[1])
        lacking = steps * self.frame_stride - times.shape[1]
        return F.adaptive_avg_pool1d(torch.cat([times, times[:, -1:].expand(-1, lacking)], dim=1), steps)

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in eval mode. A frozen backbone must keep its batch statistics, and batches are too small for new ones."""
        return super().train(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) uint8 RGB -> features (B, T', S, D) float32, also under autocast; without gradient unless trainable.

        Clips longer than ``chunk`` frames are cut into pieces of whole feature steps. Each piece is extracted independently, in one pass
        with those of up to ``clips`` clips.

        Raises:
            UsageError: frames are not uint8 of that shape.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2] != 3:
            raise UsageError(f"frames of {frames.dtype}, shape {tuple(frames.shape)}: the extractor takes uint8 (B, T, 3, H, W)")
        self.load_weights()
        piece = max(self.frame_stride, self.chunk // self.frame_stride * self.frame_stride)
        clips = self.clips or max(1, self.chunk // frames.shape[1])
        with torch.autocast(frames.device.type, enabled=False), torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return torch.cat(
                [torch.cat([self.extract(part) for part in group.split(piece, dim=1)], dim=1) for group in frames.split(clips)]
            )


class Backbone(FeatureExtractor):
    """Base of extractors with a pretrained network: its weights, normalisation and fingerprint. See :class:`FeatureExtractor`.

    Args:
        model: name of the architecture.
        weights: None downloads the library's own weights; ``package:NAME`` takes the only weights file of an installed package, without
            importing it; otherwise the path of a file (.pth, .pt, .bin, .safetensors). Tensors are matched by name, else by order and
            shape.
        grid: g; features are averaged over g x g cells.
        image_size: side of the square input of the backbone, pixels.
        chunk: frames of one clip in one pass of the backbone, at most.
        trainable: train the backbone.
        compiled: compile the backbone with ``torch.compile`` (the first batch then takes minutes).
        clips: clips in one pass, at most; see :class:`FeatureExtractor`.
        precision: of the backbone's products and convolutions. ``tf32`` rounds their inputs to 10 bits of mantissa, on GPUs only;
            ``float16`` also has 10 bits and overflows above 65,504; ``bfloat16`` has 7 bits. Weights and features stay float32. Caches
            record a precision other than float32, because its features are others.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        weights: str | None,
        grid: int,
        image_size: int,
        chunk: int,
        trainable: bool = False,
        compiled: bool = False,
        clips: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(grid, image_size, chunk, trainable, clips)
        if precision not in get_args(Precision):
            raise UsageError(
                f"extractor.precision={precision!r}: must be {', '.join(get_args(Precision)[:-1])} or {get_args(Precision)[-1]}"
            )
        if trainable and precision == "float16":
            raise UsageError("extractor.precision=float16: the gradients of a trained backbone would underflow; use bfloat16")
        self.model = model
        self.weights = weights
        self.compiled = compiled
        self.precision = precision
        self.loaded = False
        self.backbone: nn.Module | None = None

    class Made(NamedTuple):
        """An architecture and the colour statistics of its training."""

        backbone: nn.Module
        mean: tuple[float, ...]
        """for RGB in [0, 1]"""
        std: tuple[float, ...]

    @abstractmethod
    def make(self) -> Made:
        """The architecture without weights.

        Raises:
            UsageError: no such model.
        """

    @abstractmethod
    def download(self) -> dict[str, Tensor]:
        """The library's own weights; may raise anything."""

    @abstractmethod
    def library(self) -> dict[str, str]:
        """Name and version of the library that defines the architecture, and any other setting that determines the features."""

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """Normalised frames (B, T, 3, image_size, image_size) -> (B, T', D, h, w)."""

    def build(self) -> None:
        if self.backbone is not None:
            return
        made = self.make()
        self.backbone = made.backbone.requires_grad_(self.trainable).eval()
        shape = (1, 1, 3, 1, 1)
        self.register_buffer("mean", 255 * torch.tensor(made.mean).view(shape), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(made.std).view(shape), persistent=False)
        self.run = torch.compile(self.feature_map) if self.compiled else self.feature_map

    def load_weights(self) -> None:
        backbone = self.built()
        if self.loaded:
            return
        if self.weights is not None:
            found = named_weights(self.weights)
        else:
            try:
                found = self.download()
            except Exception as error:  # hub, network and library raise different classes
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UsageError(
                    f"{self.model}: no weights from the hub ({reason}); set extractor.weights to a file or {PACKAGE_PREFIX}NAME"
                ) from error
        backbone.load_state_dict(match_tensors(found, backbone.state_dict(), f"{self.weights or 'hub'} for {self.model}"))
        self.loaded = True

    def fingerprint(self) -> dict[str, Any]:
        self.load_weights()
        return {
            "extractor": type(self).__name__,
            "model": self.model,
            "weights_sha256": tensors_hash(self.built().state_dict()),
            "grid": self.grid,
            "image_size": self.image_size,
            "mean": [round(float(value) / 255, 6) for value in self.mean.flatten()],
            "std": [round(float(value) / 255, 6) for value in self.std.flatten()],
            **({} if self.precision == "float32" else {"precision": self.precision}),  # so that older fingerprints stay valid
            **self.library(),
        }

    def images(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) uint8 -> the network's input (B, T, 3, image_size, image_size), resized and normalised."""
        images = frames.float()
        if images.shape[-2:] != (self.image_size, self.image_size):
            small = F.interpolate(images.flatten(0, 1), size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
            images = small.unflatten(0, images.shape[:2])
        self.build()
        return (images - self.mean) / self.std

    def extract(self, frames: Tensor) -> Tensor:
        images = self.images(frames)
        with computing(self.precision, images.device.type):
            found = self.run(images).float()
        cells = F.adaptive_avg_pool2d(found.flatten(0, 1), self.grid).flatten(2).transpose(1, 2)
        return cells.unflatten(0, found.shape[:2]).contiguous()

    def built(self) -> Any:
        """The network, built on first use."""
        self.build()
        return self.backbone

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.backbone is not None and all(f"{prefix}backbone.{name}" in state_dict for name in self.backbone.state_dict()):
            self.loaded = True


class TimmExtractor(Backbone):
    """A timm image backbone with a (N, D, h, w) feature map, one feature step per frame.

    Args:
        model: timm architecture.
        weights: see :class:`Backbone`, like the other settings.
    """

    def __init__(
        self,
        model: str = "tf_efficientnet_lite0",
        weights: str | None = None,
        grid: int = 2,
        image_size: int = 128,
        chunk: int = 32,
        trainable: bool = False,
        compiled: bool = False,
        clips: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(model, weights, grid, image_size, chunk, trainable, compiled, clips, precision)
        self.folding = Folding()

    @property
    def dim(self) -> int:
        return int(self.built().num_features)

    def make(self) -> Backbone.Made:
        import timm

        if not timm.is_model(self.model):
            raise UsageError(f"{self.model}: timm {timm.__version__} has no such model; timm.list_models() names them")
        try:
            backbone = timm.create_model(self.model, pretrained=False, num_classes=0)
        except RuntimeError as error:  # a suffix that names no weights of this architecture
            raise UsageError(f"{self.model}: timm has no such weights ({str(error).strip().splitlines()[0]})") from error
        config = backbone.pretrained_cfg
        # On a CPU, EfficientNet-Lite0 at 128 pixels is 1.7 times as fast as in the contiguous layout.
        return self.Made(backbone.to(memory_format=torch.channels_last), config["mean"], config["std"])

    def download(self) -> dict[str, Tensor]:
        import timm

        return timm.create_model(self.model, pretrained=True, num_classes=0).state_dict()

    def library(self) -> dict[str, str]:
        import timm

        return {"timm": timm.__version__}

    def feature_map(self, images: Tensor) -> Tensor:
        backbone, flat = self.built(), images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        if not (self.trainable or self.compiled):

            def exactly(network: Any) -> Tensor:
                """The trial pass. In a lower precision, rounding would look like a fault of the folding."""
                with computing("float32", flat.device.type):
                    found: Tensor = network.forward_features(flat[:1])
                return found

            backbone = self.folding.of(backbone, exactly)
        found = backbone.forward_features(flat)
        if found.ndim != 4 or found.shape[1] != backbone.num_features:
            raise UsageError(f"{self.model}: its features are not an (N, D, h, w) map; choose a convolutional timm model")
        return found.unflatten(0, images.shape[:2])


class VideoExtractor(Backbone):
    """A torchvision video model (3D ResNet, Video Swin; Kinetics-400). Each feature step covers several frames.

    Args:
        model: one of r3d_18, mc3_18, r2plus1d_18, swin3d_t, swin3d_s, swin3d_b.
        weights: see :class:`Backbone`, like the other settings.
    """

    STRIDES = {"r3d_18": 8, "mc3_18": 1, "r2plus1d_18": 8, "swin3d_t": 2, "swin3d_s": 2, "swin3d_b": 2}  # noqa: RUF012 - never changed

    def __init__(
        self,
        model: str = "swin3d_t",
        weights: str | None = None,
        grid: int = 4,
        image_size: int = 224,
        chunk: int = 64,
        trainable: bool = False,
        compiled: bool = False,
        clips: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(model, weights, grid, image_size, chunk, trainable, compiled, clips, precision)
        if model not in self.STRIDES:
            raise UsageError(f"{model}: no such video model; there are {', '.join(self.STRIDES)}")
        self.frame_stride = self.STRIDES[model]

    @property
    def dim(self) -> int:
        backbone = self.built()
        return int(backbone.num_features if self.model.startswith("swin") else 512)

    def make(self) -> Backbone.Made:
        from torchvision.models import get_model, get_model_weights

        backbone = get_model(self.model, weights=None)
        setattr(backbone, "head" if self.model.startswith("swin") else "fc", nn.Identity())
        colours = get_model_weights(self.model).DEFAULT.transforms()
        return self.Made(backbone, tuple(colours.mean), tuple(colours.std))

    def download(self) -> dict[str, Tensor]:
        from torchvision.models import get_model_weights

        return dict(get_model_weights(self.model).DEFAULT.get_state_dict(progress=True))

    def library(self) -> dict[str, str]:
        import torchvision

        return {"torchvision": torchvision.__version__, "chunk": str(self.chunk)}

    def feature_map(self, images: Tensor) -> Tensor:
        backbone, last = self.built(), -images.shape[1] % self.frame_stride
        if last:  # repeat the last frame to complete the last step
            images = torch.cat([images, images[:, -1:].expand(-1, last, -1, -1, -1)], dim=1)
        video = images.transpose(1, 2)
        if self.model.startswith("swin"):
            found = backbone.norm(backbone.features(backbone.pos_drop(backbone.patch_embed(video))))
            return found.permute(0, 1, 4, 2, 3)
        for layer in (backbone.stem, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            video = layer(video)
        return video.transpose(1, 2)
