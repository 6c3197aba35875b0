"""Adapters of the language model that stage 2 trains: soft prompts, none, low-rank updates, or all weights (arms of Table II)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModel, LlavaForConditionalGeneration, PretrainedConfig, PreTrainedTokenizerBase

from vtlvlm.errors import UsageError


class Adapter(nn.Module, ABC):
    """An adapter of a LLaVA's language model. It does not include the projector.

    The constructor and :meth:`build` check the settings before weights are read. :meth:`attach` changes the loaded model.

    Attributes:
        inner: Whether it trains weights inside the language model, which is then in training mode during training.
        kernels: The attention kernels that it supports.
        tokens: Number of positions that it takes before the text.
    """

    inner: ClassVar[bool] = False
    kernels: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
    tokens: int = 0

    @property
    def trains(self) -> bool:
        """Whether it has anything to train."""
        return True

    @property
    def needs_checkpoint(self) -> bool:
        """Whether a test needs a checkpoint."""
        return self.trains

    def first_layer(self, num_layers: int) -> int:
        """The number of the first layer that it changes. All layers below see the same input in every training step.

        Args:
            num_layers: Number of layers of the language model; also the result if no layer changes.

        Raises:
            UsageError: As in :meth:`build`.
        """
        return 0

    @abstractmethod
    def build(self, config: PretrainedConfig) -> None:
        """Make its parameters and check its settings against a language model (idempotent).

        Args:
            config: The text config of the LLaVA.

        Raises:
            UsageError: The language model does not allow these settings.
        """

    def find_start(self, config: PretrainedConfig, llava: str, revision: str | None) -> None:
        """Read the starting values that its settings name and that need no model, before weights are read.

        Args:
            config: As in :meth:`build`, which is called first.
            llava: Folder or hub name of the LLaVA.
            revision: The hub's branch, tag or commit.

        Raises:
            UsageError: The values belong to another model.
        """
        return

    def start(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compute starting values from the unchanged model, before :meth:`attach`."""

    def require_fit(self, shapes: Mapping[str, torch.Size], source: str | Path) -> None:
        """Refuse a file whose tensors do not fit the settings, before memory is taken for the weights.

        Args:
            shapes: The shapes in the file, by the reasoner's names.
            source: The file, for the message.

        Raises:
            UsageError: Names one that does not fit.
        """

    @abstractmethod
    def attach(self, model: LlavaForConditionalGeneration) -> None:
        """Attach the adapter to the loaded, frozen model. Trained weights then require gradients."""

    @contextmanager
    def off(self, model: LlavaForConditionalGeneration) -> Iterator[None]:
        """Context in which the model runs without the adapter."""
        yield

    def trained(self, model: LlavaForConditionalGeneration) -> list[nn.Parameter]:
        """Trained parameters: its own and those inside the language model, each once."""
        inside = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
        return list(dict.fromkeys([*self.parameters(), *(p for p in inside if p.requires_grad)]))

    def groups(self, model: LlavaForConditionalGeneration) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser. A group without ``weight_decay`` uses the optimiser's."""
        return [{"params": self.trained(model), "weight_decay": 0.0}]


class NoAdapter(Adapter):
    """Trains nothing in the language model: the zero-shot arm, or with ``train_projector`` the arm that trains the projector alone."""

    @property
    def trains(self) -> bool:
        return False

    def first_layer(self, num_layers: int) -> int:
        return num_layers

    def build(self, config: PretrainedConfig) -> None:
        return

    def attach(self, model: LlavaForConditionalGeneration) -> None:
        return


class LoRA(Adapter):
    """Low-rank updates of linear layers (arXiv 2106.09685), through peft. The defaults are those of LLaVA-1.5's own fine-tuning.

    Args:
        rank: Rank of the updates.
        alpha: The scale of the updates is alpha / rank.
        dropout: Dropout on the updates' input in training, in [0, 1).
        targets: ``all-linear`` for every linear layer of the language model except its head, or a list of names, such as ``[q_proj,
            v_proj]``.

    Raises:
        UsageError: A setting is out of range.
    """

    inner = True

    def __init__(self, rank: int = 128, alpha: float = 256.0, dropout: float = 0.05, targets: str | list[str] = "all-linear") -> None:
        super().__init__()
        if rank < 1 or alpha <= 0:
            raise UsageError(f"LoRA rank {rank}, alpha {alpha}: use a rank of 1 or more and an alpha above 0")
        if not 0 <= dropout < 1:
            raise UsageError(f"LoRA dropout {dropout}: use a fraction in [0, 1)")
        if targets != "all-linear" and (isinstance(targets, str) or not targets):
            raise UsageError(f"LoRA targets {targets!r}: use all-linear or a list of names such as [q_proj, v_proj]")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    def build(self, config: PretrainedConfig) -> None:
        """Find the target layers in the language model, without weights.

        Raises:
            UsageError: The language model has no such layers.
        """
        with torch.device("meta"):
            plan = AutoModel.from_config(config, trust_remote_code=False, attn_implementation="eager")
        names = sorted({name.rpartition(".")[2] for name, module in plan.named_modules() if isinstance(module, nn.Linear)})
        missing = [] if isinstance(self.targets, str) else [name for name in self.targets if name not in names]
        if missing:
            raise UsageError(f"LoRA targets {missing}: the language model has no such layers; it has {', '.join(names)}")

    def require_fit(self, shapes: Mapping[str, torch.Size], source: str | Path) -> None:
        ranks = {shape[0] if shape else 0 for name, shape in shapes.items() if ".lora_A." in name}
        if ranks != {self.rank}:
            raise UsageError(
                f"{source}: its weights do not fit its settings (LoRA of rank {self.rank}, the file has "
                f"{', '.join(map(str, sorted(ranks))) or 'none'}); get the file again, or make it again"
            )

    def attach(self, model: LlavaForConditionalGeneration) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        language = model.model.language_model
        for flag in ("is_loaded_in_8bit", "is_loaded_in_4bit"):  # where peft looks for quantised weights
            setattr(language, flag, getattr(model, flag, False))
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.targets)
        inject_adapter_in_model(config, language)

    @contextmanager
    def off(self, model: LlavaForConditionalGeneration) -> Iterator[None]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


class FullFineTuning(Adapter):
    """Trains all weights of the language model with its embeddings and head; checkpoints hold them. They cannot be switched off.

    7 billion parameters need several GPUs and ``trainer/gpu_full.yaml``.
    """

    inner = True

    def build(self, config: PretrainedConfig) -> None:
        return

    def attach(self, model: LlavaForConditionalGeneration) -> None:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)

    def groups(self, model: LlavaForConditionalGeneration) -> list[dict[str, Any]]:
        """The optimiser's weight decay for matrices, none for norms and biases."""
        trained = self.trained(model)
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
