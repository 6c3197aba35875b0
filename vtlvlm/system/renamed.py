"""Old names of settings. A file or command line with an old name is refused, and the message gives the present name."""

from __future__ import annotations

import re

_REASONER = "model.init_args.reasoner.init_args"
_SOURCE = ("root", "protocol", "labels", "validation", "exclude_missing_skeletons", "allow_duplicates")
_LLAVA = ("revision", "dtype", "attention", "quantization", "gradient_checkpointing", "max_positions")
RENAMED = {
    "prompts": f"{_REASONER}.adapter",
    **{name: f"data.source.{name}" for name in _SOURCE},
    **{name: f"{_REASONER}.llava.{name}" for name in _LLAVA},
    "llava": f"{_REASONER}.llava.path",
    "align_projector": f"{_REASONER}.init_projector (keep or probe)",
    "mean_share": f"{_REASONER}.sentence_mean_weight",
    "scores": f"{_REASONER}.label_score (log_likelihood or pmi)",
    "motion": "model.init_args.inputs.delta_weight",
    "movement": "model.init_args.inputs.abs_delta_weight",
    "centre": "model.init_args.inputs.subtract_clip_mean",
    "discriminant": "model.init_args.inputs.lda_weight",
    "reparameterise": f"{_REASONER}.adapter.init_args.reparam_hidden_dim",
    "dead_below": "model.init_args.quantizer.init_args.dead_code_threshold",
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
