"""Liger's fused kernels in a frozen Llama: normalisation, rotary embedding and gated activation take one GPU kernel each.

Matrices, attention and the vocabulary head stay as they are. Measured on an H100 at the size of LLaVA-1.5-7B, a training step takes 0.78
of its time (``vtlvlm bench gpu``).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llama import modeling_llama

from vtlvlm.errors import UsageError

Kernels = Literal["torch", "liger"]


def has_liger() -> bool:
    """Whether the package is installed."""
    return find_spec("liger_kernel") is not None


def require_liger(config: LlavaConfig, name: str) -> None:
    """Check that a LLaVA can take the kernels on this machine.

    Args:
        config: The LLaVA's.
        name: Its folder or hub name, for messages.

    Raises:
        UsageError: The package or the GPU is missing, or the language model is not a Llama.
    """
    if not has_liger():
        raise UsageError("kernels liger: needs liger-kernel; run: pip install 'vtlvlm[kernels]', or leave kernels out")
    if not torch.cuda.is_available():
        raise UsageError("kernels liger: torch sees no CUDA device; leave kernels out")
    if (kind := config.text_config.model_type) != "llama":
        raise UsageError(f"{name}: its language model is of type {kind}, the kernels are for a llama; leave kernels out")


def use_liger(base: LlavaForConditionalGeneration) -> None:
    """Give a LLaVA's Llama the kernels. Other models of the process keep their normalisation and activation."""
    from liger_kernel.transformers.monkey_patch import apply_liger_kernel_to_llama  # type: ignore[import-not-found]
    from liger_kernel.transformers.rope import liger_rotary_pos_emb  # type: ignore[import-not-found]

    kept = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP
    language = base.model.language_model
    apply_liger_kernel_to_llama(rope=False, cross_entropy=False, fused_linear_cross_entropy=False, model=language)
    modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP = kept
    if not isinstance(modeling_llama.apply_rotary_pos_emb, OnGpu):
        modeling_llama.apply_rotary_pos_emb = OnGpu(liger_rotary_pos_emb, modeling_llama.apply_rotary_pos_emb)


class OnGpu:
    """The rotary embedding of all Llamas of the process: Liger's for queries on a GPU, transformers' for others.

    Args:
        fused: Liger's.
        plain: transformers'.
    """

    def __init__(self, fused: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.fused, self.plain = fused, plain

    def __call__(self, q: torch.Tensor, *others: Any, **settings: Any) -> Any:
        return (self.fused if q.is_cuda else self.plain)(q, *others, **settings)
