"""Tells the loggers the settings of a run, so that TensorBoard's HPARAMS tab compares the arms of an ablation by their results."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from vtlvlm.report.curves import Absent, begin_session, end_session
from vtlvlm.report.provenance import global_seed
from vtlvlm.stages.parts import flat, settings_of
from vtlvlm.stages.stage import Stage

NUMBERS = {
    "windows": "stage1.pooler.windows",
    "coherence": "stage1.beta",
    "delta weight": "stage1.inputs.delta_weight",
    "abs delta weight": "stage1.inputs.abs_delta_weight",
    "discriminant weight": "stage1.inputs.lda_weight",
    "subtracted clip mean": "stage1.inputs.subtract_clip_mean",
    "learning rate 1": "stage1.optimizer.learning_rate",
    "prompt tokens": "stage2.reasoner.adapter.tokens",
    "sentence mean weight": "stage2.reasoner.sentence_mean_weight",
    "learning rate 2": "stage2.optimizer.learning_rate",
    "projector learning rate": "stage2.projector_learning_rate",
}
WORDS = {
    "extractor": "stage1.extractor.model",
    "Pooler": "stage1.pooler.class",
    "Quantizer": "stage1.quantizer.class",
    "Adapter": "stage2.reasoner.adapter.class",
    "prompt layers": "stage2.reasoner.adapter.layers",
    "trained projector": "stage2.reasoner.train_projector",
    "objective": "stage2.objective",
    "label score": "stage2.reasoner.label_score",
    "listed categories": "stage2.reasoner.instruction.list_categories",
}
"""Columns of the HPARAMS tab -> settings, the same for every run. The tab sorts them, capitals first, and shows the first five
until others are ticked: Adapter, K, M, Pooler and Quantizer."""
METRICS = (
    *("stage2/test/top1", "stage2/test/mean_class_accuracy", "stage2/test/nll_calibrated", "stage2/test/ece_calibrated"),
    *("stage2/val/top1", "stage2/val/nll_calibrated", "stage1/val/reconstruction", "stage1/val/codebook_perplexity"),
    "stage1/test/reconstruction",
)
"""Curves whose last values the HPARAMS tab shows"""
TITLES = {"vtem": "stage1", "prompt_tuning": "stage2"}
"""Name of a stage in its checkpoints -> first part of its curves' names"""
LARGEST_CONFIG = 1 << 20
"""Bytes of a configuration that is read"""
LONGEST = 80
"""Characters of a text in the HPARAMS tab"""


class HyperParameters(Callback):
    """Writes the settings when training or a test begins, and marks the run as finished at the end.

    A run of stage 2 also has the settings of the stage 1 that made its events, if that run folder still has its ``config.yaml``. A failure
    is a warning.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings."""
        if trainer.is_global_zero and trainer.loggers:
            settings = all_settings(trainer, pl_module)
            begin_session(trainer.loggers, settings, columns(settings), METRICS)

    on_test_start = on_train_start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the run as finished."""
        if trainer.is_global_zero:
            end_session(trainer.loggers)

    on_test_end = on_fit_end


def all_settings(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """The settings of a run by dotted name, in plain types: ``stage1.…``, ``stage2.…``, and those of the run itself."""
    data: Any = getattr(trainer, "datamodule", None)
    source = getattr(data, "source", None)
    found: dict[str, Any] = {
        "seed": global_seed(),
        "protocol": getattr(source, "protocol", None),
        "max_steps": trainer.max_steps if trainer.max_steps >= 0 else None,
        "batch_size": getattr(data, "batch_size", None),
    }
    if isinstance(module, Stage):
        title = TITLES.get(module.stage, module.stage)
        found |= {f"{title}.{name}": _plain(value) for name, value in flat(settings_of(module))}
    events = getattr(data, "events_cache", None)
    if events is not None:
        found |= {"tokens": events.num_tokens, "codes": getattr(events, "num_codes", None)}
        found |= {f"stage1.{name}": _plain(value) for name, value in stage1_settings(events.provenance)}
    return {name: value for name, value in found.items() if value is not None}


def stage1_settings(provenance: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings of the stage 1 that made an event cache, from ``config.yaml`` in its run folder; none if the folder is not here."""
    with suppress(OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        path = Path(str(provenance["vtem"])).parent.parent / "config.yaml"
        if path.is_file() and path.stat().st_size <= LARGEST_CONFIG:  # the cache may be a stranger's
            return list(flat(yaml.safe_load(path.read_text(encoding="utf-8"))["model"]))
    return []


def columns(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the HPARAMS tab. Every run has all of them, in the same order and with the same types."""
    tokens, codes = settings.get("tokens"), settings.get("codes", settings.get("stage1.quantizer.codes"))
    found: dict[str, Any] = {"M": _number(tokens), "K": _number(codes)}
    found |= {name: _word(settings.get(setting)) for name, setting in WORDS.items()}
    found |= {name: _number(settings.get(setting)) for name, setting in NUMBERS.items()}
    own = {"protocol": _word(settings.get("protocol")), "seed": _number(settings.get("seed"))}
    return {**found, **own, "steps": _number(settings.get("max_steps")), "batch": _number(settings.get("batch_size"))}


def _number(value: Any) -> float | Absent:
    return float(value) if isinstance(value, int | float) else Absent(0.0)


def _word(value: Any) -> str | Absent:
    return Absent("") if value is None else str(value)[:LONGEST]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
