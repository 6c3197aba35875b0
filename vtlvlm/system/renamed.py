"""Settings by the names they had before: files and command lines with such a name are refused with the present one."""

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
    """What a setting is called now, by its old name without the place; None for a name that has not changed."""
    return RENAMED.get(setting.rpartition(".")[2])


def in_refusal(text: str) -> str:
    """What to add to the configuration parser's refusal of a setting: its present name; "" where it has none."""
    found = _REFUSED.search(text)
    name = next((group for group in found.groups() if group), "") if found else ""
    present = present_name(name)
    return f"; {name.rpartition('.')[2]} is called {present} now" if present else ""
