"""Selects the layers with prompts, and defines an MLP that can compute their keys and values in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vtlvlm.errors import UsageError


def chosen_layers(layers: str | list[int], num_layers: int) -> list[int]:
    """The layer numbers of a setting, ascending.

    Args:
        layers: ``all``; ``last:n``, the n uppermost; ``every:n``, the last of every n layers (``every:4``: 3, 7, 11, …); or a list of
            numbers from 0.
        num_layers: Number of layers of the language model.

    Raises:
        UsageError: The setting is another word, or names layers that do not exist.
    """
    if isinstance(layers, str):
        word, _, count = layers.partition(":")
        if layers == "all":
            return list(range(num_layers))
        if word not in ("last", "every") or not count.isdigit() or int(count) == 0:
            raise UsageError(f"layers {layers!r}: use all, last:9, every:4 or a list of numbers such as [0, 8, 16]")
        number = int(count)
        if number > num_layers:
            raise UsageError(f"layers {layers!r}: the language model has only {num_layers} layers")
        return list(range(num_layers - number, num_layers)) if word == "last" else list(range(number - 1, num_layers, number))
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or not layers or len(set(layers)) < len(layers):
        what = f"{wrong} do not exist" if wrong else "name each layer once, and at least one"
        raise UsageError(f"layers {layers}: {what}; the language model has layers 0 to {num_layers - 1}")
    return sorted(layers)


class PromptEncoder(nn.Module):
    """An MLP that computes the keys and values of all layers from one vector for each prompt token (Li and Liang 2021; optional in P-Tuning
    v2).

    Its output starts at zero, so that training starts from the prompts' own start. It has H·(P + H + 1) + layers·(H + 1)·2·KV heads·head
    width trained numbers: 9.5 million in 9 layers of LLaVA-1.5-7B at H = 128.

    Args:
        width: H, width of the token vectors and of the hidden layer.
        shape: (layers, KV heads, P, head width)
    """

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        layers, self.heads, tokens, self.head_width = shape
        self.embedding = nn.Parameter(torch.randn(tokens, width))
        self.inner = nn.Linear(width, width)
        self.outer = nn.ModuleList(nn.Linear(width, 2 * self.heads * self.head_width) for _ in range(layers))
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, slot: int) -> Tensor:
        """Keys and values of one chosen layer, (2, KV heads, P, head width)."""
        made: Tensor = self.outer[slot](self.inner(self.embedding).tanh())
        return made.unflatten(-1, (2, self.heads, self.head_width)).movedim(0, 2)


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of trained :class:`DeepPrompts` with the MLP's output added to ``key`` and ``value``, and without the MLP."""
    plain = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
    made = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    if not made:
        return plain
    encoder = PromptEncoder(made["embedding"].shape[1], tuple(plain["key"].shape))
    encoder.load_state_dict(made)
    with torch.no_grad():
        key, value = torch.stack([encoder(slot) for slot in range(len(plain["key"]))], 1)
    return {**plain, "key": plain["key"] + key, "value": plain["value"] + value}
