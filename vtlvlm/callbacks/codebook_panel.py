"""Reports the health of stage 1's codebook in TensorBoard and the run folder, and warns of a collapse."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from vtlvlm.batches import FeatureBatch, VideoBatch
from vtlvlm.dictionary.crops import KeptEvents, decode_crops, select_crops
from vtlvlm.metrics.codebook import ENOUGH_TOKENS, CodeTally, CollapseKind, SeenEvents, zipf_fit
from vtlvlm.report.codebook import CodebookFacts, CodePictures, Pair, SalientClip, codebook_figure, signed
from vtlvlm.report.curves import add_picture
from vtlvlm.report.runs import Curve
from vtlvlm.report.style import beside_the_result, png
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.system.files import replacing, write_json
from vtlvlm.vtem.learned_quantizers import SimVQQuantizer
from vtlvlm.vtem.quantizers import CodebookQuantizer, EMAQuantizer, FSQQuantizer, Quantizer

LOG = logging.getLogger(__name__)
SALIENT_CLIPS = 4
PICTURED_CODES = 8
LATER = "pictures follow at the end of the training"
REDRAWN_SECONDS = 1800.0
"""Least time between two drawings during a training: a drawing takes seconds, in which the other processes wait"""
OPTION = "--model.init_args.quantizer.init_args"


class CodebookPanel(Callback):
    """Draws the codebook's health: ``codebook/{split}_panel`` in TensorBoard, ``codebook_{split}.json`` and ``.png`` in the run folder.

    The JSON file is written after each validation of a training, and after ``validate`` and ``test``. In a training, the figure is drawn
    after the first validation, then at most every half hour, and at the end. The pictures of codes come only at the end. A training without
    validation gets one panel at its end, with the training tokens of its last epoch. Numbers cover all processes; sample clips and pictures
    come from rank zero. Other modules, and stage 1 without a codebook, are ignored.

    Each kind of collapse causes one warning per training, with the likely remedy.

    Args:
        clock: Monotonic seconds, for the half hour.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._forget()

    def _forget(self) -> None:
        self._tallies: dict[str, CodeTally] = {}
        self._kept: dict[str, KeptEvents] = defaultdict(KeptEvents)
        self._clips: dict[str, list[SalientClip]] = {}
        self._errors: dict[str, dict[int, Tensor]] = defaultdict(dict)
        self._warned: set[CollapseKind] = set()
        self._drawn: float | None = None

    # -- training ----------------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the previous training."""
        self._forget()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the clips of the previous epoch."""
        self._start("train")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep some clips, and the reconstruction error at each logged step."""
        self._keep("train", trainer, pl_module, batch, batch_idx)
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if trainer.global_step % every == 0:
            self._note_error("train", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the counts before the module empties them."""
        self._take("train", trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation again, with pictures. Without validation, draw the training tokens."""
        self._draw("val" if "val" in self._tallies else "train", trainer, pl_module)

    # -- evaluation --------------------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the clips of the evaluation before."""
        self._start("val")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep some clips."""
        self._keep("val", trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the counts before the module empties them."""
        self._take("val", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the numbers, and draw the panel. In a training, draw rarely, and decode no video."""
        if not trainer.sanity_checking:
            self._note_error("val", trainer)
            self._draw("val", trainer, pl_module, LATER if trainer.state.fn == "fit" else "")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the clips of the evaluation before."""
        self._start("test")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep some clips."""
        self._keep("test", trainer, pl_module, batch, batch_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the counts before the module empties them."""
        self._take("test", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self._note_error("test", trainer)
        self._draw("test", trainer, pl_module)

    # -- collecting --------------------------------------------------------------------------------------------------------------

    def _start(self, split: str) -> None:
        self._kept[split], self._clips[split] = KeptEvents(), []

    def _keep(self, split: str, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        kept = self._kept[split]
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(module, VTEMModule):
            return
        if module.seen is None or not kept.wants(number):
            return
        seen = module.seen
        middles = ((seen.edges[:, :-1] + seen.edges[:, 1:]) / 2).long()
        kept.add(number, seen.ids.unflatten(1, (module.pooler.windows, -1)), middles, batch.clips, batch.views)
        if number == 0:
            seen = SeenEvents(*(tensor.cpu() for tensor in seen))
            self._clips[split] = salient_clips(seen, batch, module, trainer.datamodule)  # type: ignore[attr-defined]

    def _note_error(self, split: str, trainer: Trainer) -> None:
        error = trainer.callback_metrics.get(f"{split}/reconstruction")
        if error is not None:
            self._errors[split][trainer.global_step] = error.detach()

    def _take(self, split: str, trainer: Trainer, module: LightningModule) -> None:
        """Copy the counts; all processes call this."""
        if trainer.sanity_checking or not isinstance(module, VTEMModule):
            return
        metric = module.train_codes if split == "train" else module.val_codes
        if metric is None:
            return
        tally = self._tallies[split] = CodeTally(*(tensor.cpu() for tensor in metric.tally()))
        found = set(tally.collapse())
        if found - self._warned and trainer.is_global_zero:
            self._warned |= found
            LOG.warning(f"{alarm(tally)} ({split} tokens, step {trainer.global_step}). {remedy(module, tally)}")

    # -- drawing -----------------------------------------------------------------------------------------------------------------

    def _draw(self, split: str, trainer: Trainer, module: LightningModule, later: str = "") -> None:
        """Write and draw a split. If ``later`` holds a line, it replaces the pictures, and the figure is drawn at most every half hour."""
        tally = self._tallies.get(split)
        if tally is None or not tally.tokens or not trainer.is_global_zero or not isinstance(module, VTEMModule):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        fitting, step = trainer.state.fn == "fit", trainer.global_step
        errors = {name: Curve(name, np.array([*found]), np.array([*map(float, found.values())])) for name, found in self._errors.items()}
        error = float(errors[split].values[-1]) if split in errors else math.nan
        pairs = [Pair(found.code, data.classes[found.label], found.pmi, found.tokens, found.clips) for found in tally.top_pmi_pairs()]
        path = Path(trainer.default_root_dir) / f"codebook_{split}.png"
        content = {"split": split, "step": step, **panel_facts(tally, module), "reconstruction": error, "pairs": [*map(asdict, pairs)]}
        write_json(path.with_suffix(".json"), content)
        if later and self._drawn is not None and self._clock() - self._drawn < REDRAWN_SECONDS:
            return

        with beside_the_result("the picture of the codebook"):
            codes, note = ([], later) if later else self._pictures(split, tally, module, data)
            figure = codebook_figure(
                CodebookFacts(
                    title=f"Codebook of {len(tally.counts):,} codes, {split} tokens" + (f", step {step:,}" if fitting else ""),
                    counts=tally.counts.numpy(),
                    zipf=tuple(map(float, zipf_fit(tally.counts))),  # type: ignore[arg-type]
                    runs=tally.runs.numpy(),
                    numbers=numbers(tally, module.vtem.num_tokens, error),
                    errors=[errors[name] for name in (("train", "val") if fitting else (split,)) if name in errors],
                    pairs=pairs,
                    clips=self._clips.get(split, []),
                    codes=codes,
                    note=note,
                    alarm=alarm(tally) if tally.collapse() else "",
                )
            )
            with replacing(path) as temporary:
                temporary.write_bytes(png(figure, dpi=110))
            add_picture(trainer.loggers, f"codebook/{split}_panel", figure, step)
        self._drawn = self._clock()

    def _pictures(self, split: str, tally: CodeTally, module: VTEMModule, data: Any) -> tuple[list[CodePictures], str]:
        kept = self._kept[split]
        if not kept:
            return [], "no clip was kept"
        if not data.source.has_videos:  # nor is any path of the cache's index opened
            return [], "no pictures of codes: the videos are not here"
        most_used = tally.counts.topk(min(PICTURED_CODES, int((tally.counts > 0).sum()))).indices.tolist()
        places = select_crops(kept.column(0), kept.column(2), most_used)
        found = decode_crops(places, kept, data, module.extractor.grid, module.extractor.frame_stride)
        shown = [
            CodePictures(
                code,
                float(tally.counts[code] / tally.tokens),
                [picture for picture, _ in pictures],
                [action_name(int(data.index.label[clip]), data) for _, clip in pictures],
            )
            for code, pictures in found.pictures.items()
        ]
        return shown, found.note


def salient_clips(seen: SeenEvents, batch: FeatureBatch | VideoBatch, module: VTEMModule, data: Any) -> list[SalientClip]:
    """Up to ``SALIENT_CLIPS`` clips of a batch, of different actions if possible."""
    times = module.extractor.step_times(batch.times) if isinstance(batch, VideoBatch) else batch.times
    labels, clips = batch.labels.tolist(), batch.clips.tolist()
    new = [row for row, label in enumerate(labels) if label not in labels[:row]]
    others = [row for row in range(len(labels)) if row not in new and clips[row] not in clips[:row]]
    found = []
    for row in [*new, *others][:SALIENT_CLIPS]:
        share = seen.cumulative[row].diff()
        borders = torch.cat([seen.spans[row, :1, 0], seen.spans[row, :, 1]])
        title = f"{action_name(labels[row], data)} ({data.clip_names([clips[row]])[0]})"
        found.append(SalientClip(title, times[row].cpu().float().numpy(), (share * len(share)).numpy(), borders.numpy()))
    return found


def action_name(label: int, data: Any) -> str:
    """The category of a label, "unknown" for -1."""
    return str(data.classes[label]) if label >= 0 else "unknown"


def panel_facts(tally: CodeTally, module: VTEMModule) -> dict[str, Any]:
    """The counts as plain values: codes in use by falling frequency, run lengths from 1 window up, figures, collapse and remedy."""
    kinds = tally.collapse()
    order = tally.counts.argsort(descending=True, stable=True)[: int((tally.counts > 0).sum())]
    return {
        "num_codes": len(tally.counts),
        "tokens": tally.tokens,
        "figures": {name: float(value) for name, value in tally.figures().items()},
        "codes": order.tolist(),
        "frequencies": tally.counts[order].tolist(),
        "run_lengths": tally.runs.tolist(),
        "collapse": list(kinds),
        "remedy": remedy(module, tally) if kinds else None,
    }


def numbers(tally: CodeTally, num_tokens: int, error: float) -> list[tuple[str, str]]:
    """The panel's small table.

    Args:
        tally: the counts.
        num_tokens: M, tokens of a clip.
        error: reconstruction error in standardised units; nan if not measured.
    """
    found = {name: float(value) for name, value in tally.figures().items()}
    num_codes = len(tally.counts)
    rows = [
        ("tokens", f"{tally.tokens:,} in {-(-tally.tokens // num_tokens):,} clips"),
        ("perplexity", f"{found['perplexity']:,.1f} of {num_codes:,} ({found['perplexity_share']:.0%})"),
        ("codes in use", f"{num_codes - int(found['dead_codes']):,} ({found['used_share']:.0%})"),
        ("dead codes", f"{int(found['dead_codes']):,}"),
        ("Zipf slope", signed(found["zipf_slope"])),
        ("mean run", f"{found['mean_run_length']:.2f} of {len(tally.runs)} windows"),
    ]
    if "action_information" in found:
        rough = " (rough)" if tally.tokens < ENOUGH_TOKENS * num_codes else ""
        rows.append((f"action information{rough}", f"{found['action_information']:.2f} nats ({found['action_information_share']:.0%})"))
    if math.isfinite(error):
        rows.append(("reconstruction error", f"{error:.3f}"))
    return [(name, "–" if "nan" in value else value) for name, value in rows]


def alarm(tally: CodeTally) -> str:
    """One line that describes a collapse."""
    found = {name: float(value) for name, value in tally.figures().items()}
    return (
        f"CODEBOOK COLLAPSE: perplexity {found['perplexity']:,.1f} of {len(tally.counts):,} codes ({found['perplexity_share']:.1%}), "
        f"{found['used_share']:.1%} of them in use over {tally.tokens:,} tokens"
    )


def remedy(module: VTEMModule, tally: CodeTally) -> str:
    """Likely remedies of a collapse, the best first, as options of this module.

    If the codes in use occur about equally often, the codebook is too large. If a few codes dominate, training failed.
    """
    quantizer, rate = module.quantizer, module.optimizer.learning_rate
    slower = f"a lower learning rate (--model.init_args.optimizer.learning_rate {rate / 3:.1e})"
    if isinstance(quantizer, FSQQuantizer):  # it has no dead codes to revive: its maps use a corner of the grid
        coarser = f"fewer or coarser levels ({OPTION}.levels, {list(quantizer.levels)} now)"
        return f"Likely remedies: {coarser}; {slower}; another arm (EMAQuantizer)"
    found = [*_revival(quantizer), slower]
    if isinstance(quantizer, CodebookQuantizer):
        found.insert(-1, f"a higher commitment ({OPTION}.commitment {2 * quantizer.commitment or 0.25:g})")
        fewer = 2 ** math.ceil(math.log2(max(2 * float(tally.figures()["perplexity"]), 16)))
        if fewer < quantizer.codes:
            found.insert(0 if tally.collapse() == ("unused",) else len(found), f"fewer codes ({OPTION}.codes {fewer})")
    arm = "FSQQuantizer" if isinstance(quantizer, SimVQQuantizer) else "SimVQQuantizer"
    return f"Likely remedies: {'; '.join(found)}; another arm ({arm})"


def _revival(quantizer: Quantizer) -> list[str]:
    """The option for an earlier revival of dead codes, if the quantiser has it."""
    if not isinstance(quantizer, EMAQuantizer) or quantizer.dead_code_threshold >= 0.5:
        return []
    revive = f"({OPTION}.dead_code_threshold {min(2 * quantizer.dead_code_threshold, 0.5) or 0.125:g})"
    return [f"earlier revival of dead codes {revive}" if quantizer.dead_code_threshold else f"revival of dead codes, which is off {revive}"]
