"""Slow forms of layers, by loops over frames, joints and channels, that the units' tests put together; and units with random weights."""

import torch
from torch import Tensor, nn


def randomise(module: nn.Module) -> nn.Module:
    """Every weight and running value drawn at random, in evaluation mode and float64."""
    generator = torch.Generator().manual_seed(1)
    module.double()
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.5)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator))
                part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return module.eval()


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def same(fast: Tensor, slow: Tensor) -> bool:
    return fast.shape == slow.shape and (fast - slow).abs().max().item() <= 1e-5


def pointwise(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """(B, C, T, V) by a loop over frames and joints; weight (C', C)."""
    out = x.new_zeros(len(x), len(weight), *x.shape[2:])
    for frame in range(x.shape[2]):
        for joint in range(x.shape[3]):
            out[:, :, frame, joint] = x[:, :, frame, joint] @ weight.T + (0 if bias is None else bias)
    return out


def over_time(weight: Tensor, bias: Tensor, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """(B, C, T, V) by a loop over frames and taps, zeros outside; weight (C', C, kernel)."""
    taps = weight.shape[2]
    out = x.new_zeros(len(x), len(weight), -(-x.shape[2] // stride), x.shape[3])
    for frame in range(out.shape[2]):
        out[:, :, frame] = bias[:, None]
        for tap in range(taps):
            source = frame * stride + (tap - taps // 2) * dilation
            if 0 <= source < x.shape[2]:
                out[:, :, frame] += torch.einsum("oc,bcv->bov", weight[:, :, tap], x[:, :, source])
    return out


def norm(layer: nn.Module, x: Tensor, channels: slice = slice(None)) -> Tensor:
    """Batch norm of some of a layer's channels, by a loop over them."""
    numbers = range(layer.num_features)[channels]
    out = torch.empty_like(x)
    for place, number in enumerate(numbers):
        scale = layer.weight[number] / (layer.running_var[number] + layer.eps).sqrt()
        out[:, place] = (x[:, place] - layer.running_mean[number]) * scale + layer.bias[number]
    return out


def shortcut(layer: nn.Module, x: Tensor, stride: int = 1) -> Tensor:
    if isinstance(layer, nn.Identity):
        return x
    convolution, batch_norm = layer
    return norm(batch_norm, pointwise(convolution.weight[:, :, 0, 0], convolution.bias, x[:, :, ::stride]))
