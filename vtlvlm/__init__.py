"""vtlvlm: fine-grained action recognition in long videos with event sentences and a prompt-tuned LLaVA (VT-LVLM-AR).

Legend, used in every docstring: B clips · T sampled frames · T' feature steps · S spatial cells per step · D feature width ·
W temporal windows · M = W·S event tokens · K codes · E event width · P soft prompt tokens · L language-model width · A actions.
"""

from importlib.metadata import version as _version

__version__ = _version("vtlvlm")
