"""Reasoners for tests: the settings of the LLaVA and those of the reasoner in one call."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vtlvlm.lvlm.adapters import Adapter
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava
from vtlvlm.lvlm.reasoner import EventReasoner


def reasoner_of(path: str | Path, adapter: Adapter, instruction: Instruction, **settings: Any) -> EventReasoner:
    """A reasoner that is not built yet; each setting goes to the part that has it."""
    own = {name: settings.pop(name) for name in {field.name for field in fields(Llava)} & settings.keys()}
    return EventReasoner(Llava(str(path), **own), adapter, instruction, **settings)


def placed(model: LlavaForConditionalGeneration, ids: Tensor, projected: Tensor) -> Tensor:
    """Embeddings (B, n, L) of token ids (B, n) with the events (B, M, L) at their placeholders, as transformers places images."""
    table = model.get_input_embeddings()(ids)
    return table.masked_scatter((ids == model.config.image_token_id)[..., None], projected.to(table.dtype))
