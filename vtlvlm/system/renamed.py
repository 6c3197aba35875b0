"""Old names of settings. A file or command line with an old name is refused, and the message gives the present name."""

from __future__ import annotations

import re

_SOURCE = ("root", "protocol", "labels", "validation", "exclude_missing_skeletons", "allow_duplicates")
_LLAVA = ("dtype", "attention", "quantization", "gradient_checkpointing", "max_positions")
RENAMED = {
    **{name: f"data.source.{name}" for name in _SOURCE},
    **{name: f"reasoner.llava.{name}" for name in _LLAVA},
    "llava": "reasoner.llava.path",
    "align_projector": "reasoner.init_projector (keep or probe)",
    "mean_share": "reasoner.sentence_mean_weight",
    "scores": "reasoner.label_score (log_likelihood or pmi)",
    "motion": "model.inputs.delta_weight",
    "movement": "model.inputs.abs_delta_weight",
    "centre": "model.inputs.subtract_clip_mean",
    "discriminant": "model.inputs.lda_weight",
    "reparameterise": "adapter.reparam_hidden_dim",
    "dead_below": "quantizer.dead_code_threshold",
}
"""Old name -> present place and name"""
_REFUSED = re.compile(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)|\"(llava)\": Unable to load config")


def present_name(setting: str) -> str | None:
    """The present place and name of a setting with an old name; None for any other name. Ignores the place before the last dot."""
    return RENAMED.get(setting.rpartition(".")[2])


def in_refusal(text: str) -> str:
    """The present name, to append to the configuration parser's refusal of an old setting; "" for any other refusal."""
    found = _REFUSED.search(text)
    name = next((group for group in found.groups() if group), "") if found else ""
    present = present_name(name)
    return f"; {name.rpartition('.')[2]} is called {present} now" if present else ""
