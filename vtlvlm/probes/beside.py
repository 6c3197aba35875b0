"""A linear probe on the test clips of stage 2, to show whether the language model is better."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from vtlvlm.data.cache import FeatureCache
from vtlvlm.data.cache_format import made_of, provenance_hash, read_meta
from vtlvlm.errors import DataError
from vtlvlm.metrics.paired import Difference, paired_difference
from vtlvlm.probes.kept import KeptProbes
from vtlvlm.probes.linear import VECTORS, best_probe, clip_vectors, probes_of
from vtlvlm.report.style import beside_the_result
from vtlvlm.system.files import write_json
from vtlvlm.system.text import shown

LONGEST_PATH = 4_096
LONG = 1_000
"""Training clips above which a line announces the wait"""
READ_AT_ONCE = 256
"""Clips whose features are in memory at the same time"""


class ProbeBeside(Callback):
    """Compares stage 2 with a linear probe on the same clips after ``test``: prints two lines, and adds ``probe`` to ``metrics.json``.

    The probe is the best one of ``vtlvlm probe``, chosen on held-out training people. It trains on the plain views of all
    training and validation clips. Results are kept beside the features (``probes.kept``), and are not fitted twice. It needs a
    feature cache: the run's own, or the source of the event cache, if it has not moved. Without one, a log line says so. All other
    results are written before, and an error here does not end the test. ``vtlvlm test`` has this callback by default. To disable
    it, add one with ``most_clips: 0`` to ``trainer.callbacks``.

    Args:
        most_clips: Largest number of training clips for which a probe is fitted. The time grows with its square.
    """

    def __init__(self, most_clips: int = 2_000) -> None:
        self.most_clips = most_clips
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the clips of an evaluation that failed."""
        self._parts = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep which clips are right, if the test step returns ``clips``, ``labels`` and ``probs`` (averaged over views)."""
        if isinstance(outputs, Mapping) and "probs" in outputs:
            right = outputs["probs"].argmax(-1) == outputs["labels"]
            self._parts.append((outputs["clips"].cpu().numpy(), right.cpu().numpy()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send all processes' clips to the first."""
        if trainer.world_size > 1:
            everyone: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(self._parts, everyone)
            self._parts = [part for rank in everyone or () for part in rank]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fit the probe, compare, print and write. No other process waits for this."""
        parts, self._parts = self._parts, []
        if stage != "test" or not trainer.is_global_zero or not parts or self.most_clips < 1:
            return
        with beside_the_result("the linear probe beside the result"):
            clips, right = map(np.concatenate, zip(*parts, strict=True))
            clips, first = np.unique(clips, return_index=True)
            self._compare(trainer, clips, right[first], trained=getattr(pl_module, "needs_checkpoint", True))

    def _compare(self, trainer: Trainer, clips: NDArray[np.int64], right: NDArray[np.bool_], trained: bool) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        learned = np.concatenate([data.split.train, data.split.val])
        if len(learned) > self.most_clips:
            return rank_zero_info(f"no linear probe beside the result: {len(learned):,} training clips, more than {self.most_clips:,}")
        try:
            cache = features_of(data)
            rows = data.plain_rows(cache)
        except DataError as error:
            return rank_zero_info(f"no linear probe beside the result: {shown(error, 300)}")
        if len(learned) > LONG:
            rank_zero_info(
                f"linear probes on {len(learned):,} training clips take minutes; all results are written, Ctrl-C leaves them as they are"
            )
        both = np.concatenate([learned, clips])
        train, test = np.arange(len(learned)), np.arange(len(learned), len(both))
        sides = data.index.label[both], data.index.group[both], train, test
        known = {"num_classes": data.num_classes, "seed": data.seed}
        kept = KeptProbes(cache, data.index.name[both], *sides, **known)
        found = kept.read()
        if not set(VECTORS) <= set(found):
            found = probes_of(vectors_of(cache, rows[both]), *sides, **known)
            kept.add(found)
        name = best_probe(found)
        probe = found[name]
        theirs = np.asarray(probe.guesses) == data.index.label[clips]
        gain = paired_difference(right[None], theirs[None])
        print(
            f"event sentences {right.mean():.3f}, linear probe ({name}) {theirs.mean():.3f} on the same {len(clips)} clips: {gain}, "
            "95 % over clips"
        )
        better = f" {verdict(gain)} {command(data, cache)} makes it a recogniser." if trained and gain.mean < 0 else ""
        print(learning(probe.num_train, len(data.split.val)) + better, flush=True)
        path = Path(trainer.default_root_dir) / "metrics.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        told = {
            "name": name,
            "top1": float(theirs.mean()),
            "num_train": probe.num_train,
            "num_test": len(clips),
            "difference": asdict(gain),
        }
        write_json(path, {**content, "probe": told})


def verdict(gain: Difference) -> str:
    """One sentence on a negative difference from the probe."""
    if gain.high < 0:
        return "The probe is better here than the language model."
    return "The probe is as good here, or better: more clips would show which."


def learning(clips: int, validation: int) -> str:
    """One sentence on the probe's training clips."""
    people = f", {validation} of them from validation people" if validation else ""
    return f"The probe learned from the plain views of {clips} training clips{people}."


def command(data: Any, cache: FeatureCache) -> str:
    """The command that makes a recogniser of the probe."""
    more = [*(["--labels", data.source.labels] if data.source.labels else []), *(["--seed", str(data.seed)] if data.seed else [])]
    root = [] if data.source.root is None else [data.source.root]
    words = ["vtlvlm", "probe", *root, "--features", str(cache.folder), "--protocol", data.source.protocol, *more]
    return f"{shown(shlex.join(words))} --export BUNDLE"


def features_of(data: Any) -> FeatureCache:
    """The feature cache of a run: its own, or the source of its event cache, if that has neither moved nor changed.

    Raises:
        DataError: There is none, it has moved, or it is another one.
    """
    if data.features_cache is not None:
        held: FeatureCache = data.features_cache
        return held
    events = data.events_cache
    if events is None:
        raise DataError("the run reads videos, but a probe needs a feature cache")
    if events.provenance.get("features_folder") is None:
        raise DataError(f"{events.folder}: does not say where its features are")
    folder = made_of(events, "features_folder", str)
    if len(folder) > LONGEST_PATH or "\0" in folder:
        raise DataError(f"{events.folder}: names no valid path of its features")
    if provenance_hash(read_meta(Path(folder), FeatureCache.kind)["provenance"]) != made_of(events, "features", str):
        raise DataError(f"{folder}: holds other features than those that {events.folder} was made from")
    return FeatureCache.open(folder)


def vectors_of(cache: FeatureCache, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """:func:`clip_vectors` of rows of a cache, a few clips in memory at once."""
    parts = [clip_vectors(cache.features(rows[start : start + READ_AT_ONCE]).numpy()) for start in range(0, len(rows), READ_AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
