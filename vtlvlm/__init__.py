"""vtlvlm: fine-grained action recognition in long videos with event sentences and a prompt-tuned LLaVA (VT-LVLM-AR).

Legend, used in every docstring: B clips · T sampled frames · T' feature steps · S spatial cells per step · D feature width ·
W temporal windows · M = W·S event tokens · K codes · E event width · P soft prompt tokens · L language-model width · A actions.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

__version__ = _version("vtlvlm")

_PUBLIC = {
    "ActionRecognizer": "vtlvlm.recognizers.recognizer",
    "EventReasoner": "vtlvlm.lvlm.reasoner",
    "EventTokens": "vtlvlm.batches",
    "NTUDataModule": "vtlvlm.data.datamodule",
    "PromptTuningModule": "vtlvlm.stages.prompt_tuning",
    "VTEM": "vtlvlm.vtem.model",
    "VTEMModule": "vtlvlm.stages.vtem",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> _Any:
    """Import a public name on first use, so that `import vtlvlm` alone does not load torch."""
    if name in _PUBLIC:
        return getattr(_import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'vtlvlm' has no attribute {name!r}")
