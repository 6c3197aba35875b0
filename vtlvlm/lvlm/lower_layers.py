"""The language model in two parts: the layers below the first that is trained, and the layers from it on.

The parts are shallow copies of the language model that share its modules. transformers' own forward therefore still makes masks and
rotary positions, and the prompts reach both parts.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

Language = Any
"""A decoder of transformers with ``layers`` and ``norm``"""


def below(language: Language, first: int) -> Language:
    """The layers before number ``first``. Their output is that layer's input."""
    return _with(language, layers=language.layers[:first], norm=nn.Identity())


def above(language: Language, first: int) -> Language:
    """The layers from number ``first`` on, with the final norm."""
    return _with(language, layers=language.layers[first:])


def _with(language: Language, **changed: nn.Module) -> Language:
    """The same module with other parts. Nothing is copied, and the module itself does not change."""
    part = copy.copy(language)
    part.__dict__["_modules"] = {**language._modules, **changed}
    return part
