"""The context as the language model reads it: embedded text, with projected events where LLaVA reads an image (eq. 5).

The events stand in one piece, at the same positions in all clips. Text and events are therefore concatenated. A mask of placeholders would
make the host wait for the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vtlvlm.errors import UsageError


def first_event(context: Tensor, image: int, num_events: int) -> int:
    """The position of the first event in a context.

    Args:
        context: (C,) int64 token ids.
        image: The token id that stands for an event.
        num_events: M, number of events in a sentence.

    Raises:
        UsageError: The context does not hold M placeholders in one piece.
    """
    places = (context == image).nonzero().flatten().tolist()
    if not places or places != list(range(places[0], places[0] + num_events)):
        raise UsageError(
            f"the instruction's context has {len(places)} places for {num_events} events, or not in one piece; let it show the events once"
        )
    return places[0]


def embed_context(model: LlavaForConditionalGeneration, context: Tensor, first: int, projected: Tensor) -> Tensor:
    """Embeddings of a context with the events in it.

    Args:
        model: The LLaVA.
        context: (C,) int64 token ids.
        first: The position of the first event (:func:`first_event`).
        projected: (B, M, L) event vectors after LLaVA's projector.

    Returns:
        (B, C, L) in the type of the model's embeddings.
    """
    before, after = embed(model, context[:first]), embed(model, context[first + projected.shape[1] :])
    batch = len(projected)
    return torch.cat([before.expand(batch, -1, -1), projected.to(before.dtype), after.expand(batch, -1, -1)], 1)


def embed(model: LlavaForConditionalGeneration, ids: Tensor) -> Tensor:
    """Token ids (..., n) int64 → embeddings (..., n, L)."""
    found: Tensor = model.get_input_embeddings()(ids)
    return found
