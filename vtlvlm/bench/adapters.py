"""Accuracy of adapters on event sentences: a small language model with each adapter, on held-out people, beside a linear probe."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vtlvlm.bench.events import (
    FULL,
    RAW,
    SEED,
    ClipFolds,
    by_seed,
    command,
    fit,
    mean_and_deviation,
    prepare,
    run_name,
    stage1_configuration,
)
from vtlvlm.bench.harness import Measurement
from vtlvlm.configs import config
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.source import ClipSource
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.compose import compose
from vtlvlm.metrics.paired import paired_difference
from vtlvlm.probes.stage1 import step_probes
from vtlvlm.report.runs import Run, fit_finished
from vtlvlm.stages.checkpoints import to_continue
from vtlvlm.stages.nan_guard import NotFiniteError
from vtlvlm.system.files import write_json
from vtlvlm.system.text import cell

QUIET = ("--trainer.logger", "false", "--trainer.enable_model_summary", "false")

PREFIX, PROJECTOR, LORA, UNTUNED = "prompts", "projector only", "LoRA", "zero-shot"
ARMS: dict[str, tuple[str, ...]] = {
    PREFIX: (),
    PROJECTOR: ("ablations/adapter_projector.yaml",),
    LORA: ("ablations/adapter_lora.yaml",),
    "full fine-tuning": ("ablations/adapter_full.yaml",),
    UNTUNED: ("ablations/adapter_none.yaml",),
}
"""Name -> its overlays on the small stage-2 configuration. All but the last train the projector, too"""
ADAPTERS_SUBJECTS = 27
"""People in the rendered videos: 12 train, 3 validate and 12 test (504 clips)"""
VALIDATION = 0.2
"""Share of the training people held out for learning rates, checkpoint and temperature"""
RATES = (5e-5, 3e-4, 2e-3, 1e-2)
"""Peak learning rates to try with a single split"""
RATE_STEPS = 50
"""Steps to try a learning rate, by default"""
FEW_STEPS = 40
"""Steps if people are left out in turn: with so few clips, training overfits even earlier"""
MARGIN = 0.02
"""Largest accuracy by which prompts may be below LoRA"""
SURE = 500
"""Fewest test clips for which the ECE has a target"""


@dataclass(frozen=True)
class Rates:
    """Peak learning rates; None for the configurations' rates."""

    adapter: float | None = None
    projector: float | None = None

    def options(self) -> list[object]:
        """The rates as options of the command line."""
        named = {"optimizer.learning_rate": self.adapter, "projector_learning_rate": self.projector}
        return [part for name, rate in named.items() if rate is not None for part in (f"--model.init_args.{name}", rate)]

    def __str__(self) -> str:
        named = {"adapter": self.adapter, "projector": self.projector}
        return ", ".join(f"{name} {rate:g}" for name, rate in named.items() if rate is not None)


@dataclass(frozen=True)
class Tested:
    """One test: its clips in the order of the index, its metrics, and the number of trained parameters."""

    right: NDArray[np.bool_]
    groups: NDArray[Any]
    metrics: dict[str, float]
    trained: int


@dataclass(frozen=True)
class Runs:
    """All runs of this bench, each in its own folder, whose name describes it. A finished run is only read.

    Attributes:
        source: Clips, features and folds.
        folder: Folder of the runs.
        llava: Folder of the small LLaVA.
        validation: Share of the training people held out for learning rates, checkpoint and temperature.
        steps: Steps of every training; None for the configuration's, or for ``FEW_STEPS`` if people are left out in turn.
        rate_steps: Steps to try a learning rate.
        overlays: Configurations on top of every arm's.
    """

    source: ClipFolds
    folder: Path
    llava: Path
    validation: float = VALIDATION
    steps: int | None = None
    rate_steps: int = RATE_STEPS
    overlays: tuple[Path, ...] = ()

    def name(self, *parts: object) -> str:
        """The name of a stage-2 run in this bench's folder. It includes the overlays."""
        marks = [f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:6]}" for path in self.overlays]
        return run_name(*parts, *marks)

    def data(self, fold: str) -> list[object]:
        """The options of the clips for the command line."""
        return ["--data.source.root", self.source.root, "--data.source.protocol", fold, "--data.source.validation", self.validation]

    def stage1(self, fold: str, seed: int) -> Path:
        """The checkpoint of stage 1, trained without the validation people."""
        return fit(self.source, self.folder / run_name("stage1", fold, seed), FULL, seed, fold, "--data.source.validation", self.validation)

    def events(self, fold: str, seed: int) -> Path:
        """The event cache, made with stage 1."""
        checkpoint, cache = self.stage1(fold, seed), self.folder / run_name("events", fold, seed)
        more = ["--data.features", self.source.features, "--ckpt_path", checkpoint, "--output", cache]
        command("tokenize", *stage1_configuration(FULL), *self.data(fold), *more)
        return cache

    def options(self, arm: str, fold: str, seed: int, rates: Rates) -> list[object]:
        """The options that ``fit`` and ``test`` of an arm share."""
        overlays = [part for overlay in (*map(config, ARMS[arm]), *self.overlays) for part in ("--config", overlay)]
        first = ["--config", config("stage2_small.yaml"), *overlays, "--seed_everything", seed, *rates.options()]
        llava = ["--model.init_args.reasoner.init_args.llava.path", self.llava]
        steps = self.steps or (FEW_STEPS if len(self.source.folds) > 1 else None)
        return [*first, *llava, *self.data(fold), "--data.events", self.events(fold, seed), *(length(steps, 2) if steps else []), *QUIET]

    def fit(self, run: Path, options: Sequence[object]) -> Path:
        """Train, continuing an interrupted run. Returns the best checkpoint on the validation people, or the last one without them."""
        last, best = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
        if not fit_finished(run):
            begun = to_continue(run)
            command("fit", *options, "--trainer.default_root_dir", run, *(["--ckpt_path", begun] if begun else []))
        return best if self.validation else last

    def cost(self, arm: str, rates: Rates) -> float:
        """The calibrated NLL on the validation people after a short training at these rates; infinite if it diverges."""
        fold = self.source.folds[0]
        run = self.folder / self.name("rate", arm, *rates.options()[1::2], self.rate_steps)
        path = run / "score.json"
        if not path.is_file():
            options = self.options(arm, fold, 0, rates)
            try:
                cost = best_score(self.fit(run, [*options, *length(self.rate_steps, 1)]))
            except NotFiniteError:
                cost = math.inf
            write_json(path, {"nll": cost})
            shutil.rmtree(run / "checkpoints", ignore_errors=True)  # gigabytes for full fine-tuning
        cost = json.loads(path.read_text(encoding="utf-8"))["nll"]
        return math.inf if cost is None else float(cost)  # JSON has no infinity

    def best(self, arm: str, choices: Sequence[Rates]) -> Rates:
        """The rates of lowest cost. Tries two in the middle of a rising list, then further ones on the better side until the cost rises.

        Raises:
            UsageError: The arm diverges at all rates that were tried.
        """
        at = (len(choices) - 1) // 2
        step = 1 if at + 1 < len(choices) and self.cost(arm, choices[at + 1]) < self.cost(arm, choices[at]) else -1
        at += max(step, 0)
        while 0 <= at + step < len(choices) and self.cost(arm, choices[at + step]) < self.cost(arm, choices[at]):
            at += step
        if math.isinf(self.cost(arm, choices[at])):
            raise UsageError(f"{arm}: diverges at every learning rate ({', '.join(map(str, choices))})")
        return choices[at]

    def rates(self, arms: Sequence[str]) -> dict[str, Rates]:
        """The rates of lowest cost for each arm: first for the projector alone, then for every adapter at this projector's rate."""
        if len(self.source.folds) > 1:
            return dict.fromkeys(arms, Rates())
        found = {UNTUNED: Rates(), PROJECTOR: self.best(PROJECTOR, [Rates(projector=rate) for rate in RATES])}
        for arm in arms:
            if arm not in found:
                found[arm] = self.best(arm, [Rates(rate, found[PROJECTOR].projector) for rate in RATES])
        return {arm: found[arm] for arm in arms}

    def tested(self, arm: str, fold: str, seed: int, rates: Rates) -> Tested:
        """Train an arm on one fold with one seed, and test the checkpoint that is best on the validation people."""
        run = self.folder / self.name(arm, fold, seed, *rates.options()[1::2], *[f"{self.steps}_steps"] * bool(self.steps))
        if not (run / "metrics.json").is_file():
            options, checkpoint = self.options(arm, fold, seed, rates), []
            if arm != UNTUNED:
                checkpoint = ["--ckpt_path", self.fit(run, options)]
            command("test", *options, "--trainer.default_root_dir", run, *checkpoint)
            if arm != PREFIX:
                shutil.rmtree(run / "checkpoints", ignore_errors=True)
        return read(test_data(self.source, fold, self.validation), run)

    def made_by(self) -> dict[str, Any]:
        """Run -> the version of the code that made it, since a work folder may hold older runs."""
        found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*/versions.json"))}
        return {name: {"vtlvlm": made["versions"].get("vtlvlm"), "git": made["git"]} for name, made in found.items()}

    def linear(self, fold: str, seed: int, validation: float) -> NDArray[np.bool_]:
        """(n,) whether the linear probe on the mean features is right on each test clip. It trains without a share of validation people."""
        path = self.folder / f"{run_name('linear', fold, seed, *[validation] * bool(validation))}.json"
        if not path.is_file():
            data = test_data(self.source, fold, validation)
            probe = step_probes(data, self.stage1(fold, seed), seed, (RAW,))[RAW]
            write_json(path, {"right": (np.asarray(probe.guesses) == data.index.label[data.split.test]).tolist()})
        return np.asarray(json.loads(path.read_text(encoding="utf-8"))["right"])


def length(steps: int, checks: int) -> list[object]:
    """The options for a number of optimiser steps and a number of validations."""
    return ["--trainer.max_steps", steps, "--trainer.val_check_interval", max(1, steps // checks)]


def test_data(source: ClipFolds, fold: str, validation: float) -> NTUDataModule:
    """The clips of a fold, set up for its test."""
    data = NTUDataModule(ClipSource(str(source.root), fold, validation=validation), features=str(source.features))
    data.setup("test")
    return data


def best_score(checkpoint: Path) -> float:
    """The calibrated NLL of the best checkpoint on the validation people."""
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"].values()
    return float(next(state["best_model_score"] for state in kept if state.get("monitor")))


def read(data: NTUDataModule, folder: Path) -> Tested:
    """The results of ``test`` in a run folder."""
    run = Run.open(folder)
    assert run.test is not None
    with (folder / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        right = {row["clip"]: row["truth"] == row["recognised"] for row in csv.DictReader(file)}
    clips = data.split.test
    figures = {name: math.nan if value is None else value for name, value in run.test.metrics.items()}
    marks = np.array([right[cell(name)] for name in data.index.name[clips]])
    return Tested(marks, data.index.group[clips], figures, run.fit.trainable_parameters if run.fit else 0)


def measure(
    work: Path,
    *,
    videos: Path | None,
    repeats: int,
    arms: Sequence[str] | None = None,
    arm_repeats: int | None = None,
    validation: float = VALIDATION,
    steps: int | None = None,
    rate_steps: int = RATE_STEPS,
    overlays: Sequence[Path] = (),
) -> tuple[list[Measurement], dict[str, Any]]:
    """All measurements of this bench. Finished runs in ``work`` are not repeated.

    Args:
        work: Folder for videos, features, runs and results.
        videos: Clips with NTU names. If their people are few, each is left out in turn, with the configurations' learning rates
            and fewer steps. None renders clips with one split, and chooses learning rates on validation people.
        repeats: Number of seeds, from 0.
        arms: Names of ``ARMS`` beside the prompts; None for all.
        arm_repeats: Number of seeds of these arms; None for ``repeats``.
        validation: Share of the training people held out for learning rates, checkpoint and temperature. 0 trains on all people and
            uses the last checkpoint; it is possible only if no learning rates are chosen.
        steps: Steps of every training of stage 2; None for the configuration's, or for ``FEW_STEPS`` if people are left out in turn.
        rate_steps: Steps to try a learning rate.
        overlays: Configurations on top of every arm's stage 2.

    Raises:
        UsageError: An arm does not exist, or no people are held out to choose learning rates.
    """
    names = list(ARMS) if arms is None else [PREFIX, *(arm for arm in arms if arm != PREFIX)]
    if unknown := [arm for arm in names if arm not in ARMS]:
        raise UsageError(f"--arms {unknown[0]}: no such arm; there are {', '.join(ARMS)}")
    source = prepare(work, videos, ADAPTERS_SUBJECTS)
    if len(source.folds) == 1 and not validation:
        raise UsageError("--validation 0: learning rates are chosen on validation people; give a share above 0")
    folder = work / ("adapters" if validation == VALIDATION else f"adapters-{validation:g}")
    runs = Runs(source, folder, compose(work / "llava"), validation, steps, rate_steps, tuple(overlays))
    folds, rates = runs.source.folds, runs.rates(names)
    fewer = repeats if arm_repeats is None else min(arm_repeats, repeats)
    jobs = [(seed, fold, arm) for seed in range(repeats) for fold in folds for arm in names if arm == PREFIX or seed < fewer]
    found: dict[str, list[Tested]] = {arm: [] for arm in names}
    for seed, fold, arm in tqdm(jobs, desc="stage 2", unit="run", smoothing=0.1):
        found[arm].append(runs.tested(arm, fold, seed, rates[arm]))
    figures = []
    for share in sorted({0.0, validation}):
        linear = [runs.linear(fold, seed, share) for seed in range(repeats) for fold in folds]
        figures.append(against_linear(found[PREFIX], linear, len(folds), share))
    figures += [*against_arms(found, len(folds), rates), *(calibration(found[PREFIX]) if validation else ())]
    chosen = {arm: str(rate) for arm, rate in rates.items()}
    facts = {"videos": str(videos or f"rendered, seed {SEED}"), "folds": list(folds), "seeds": repeats, "arm_seeds": fewer}
    trained = {
        "steps": steps or "as configured",
        "rate_steps": rate_steps,
        "validation": validation,
        "overlays": [path.name for path in overlays],
    }
    return figures, {**facts, **trained, "rates": chosen, "runs": runs.made_by()}


def marks_by_seed(results: Sequence[Tested], folds: int) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """(seeds, n) whether each clip of all folds was right, and (n,) the clips' groups."""
    return by_seed([(number // folds, tested.right, tested.groups) for number, tested in enumerate(results)])


def against_linear(prompts: Sequence[Tested], linear: Sequence[NDArray[np.bool_]], folds: int, validation: float) -> Measurement:
    """Prompts against the linear probe on the mean features. The probe trains without that share of validation people."""
    ours, groups = marks_by_seed(prompts, folds)
    theirs = np.concatenate(linear).reshape(ours.shape)
    clips, people = paired_difference(ours, theirs), paired_difference(ours, theirs, groups)
    note = f"{mean_and_deviation(ours)} and {mean_and_deviation(theirs)}; 95 % [{clips.low:+.3f}, {clips.high:+.3f}] over clips, "
    note += f"[{people.low:+.3f}, {people.high:+.3f}] over people; {ours.shape[1]} test clips of {len(np.unique(groups))} people, "
    note += f"{len(ours)} seeds; with many clips the probe trains on the plain views only"
    if validation:
        return Measurement("... with a probe that also trains without the validation people", clips.mean, "", note=note)
    return Measurement("prompts minus linear probe on mean features, top-1", clips.mean, "", 0, ">=", note)


def against_arms(found: dict[str, list[Tested]], folds: int, rates: dict[str, Rates]) -> list[Measurement]:
    """Each arm's accuracy, and the prompts' gain over it with the same seeds."""
    ours = marks_by_seed(found[PREFIX], folds)[0]
    figures = []
    for arm, results in found.items():
        right = marks_by_seed(results, folds)[0]
        note = f"{mean_and_deviation(right)}; {len(right)} seeds; {results[0].trained:,} trained"
        note += f"; learning rates: {rates[arm]}" * bool(str(rates[arm]))
        note += "; its projector is untrained" * (arm == UNTUNED)
        figures.append(Measurement(f"{arm}, top-1", float(right.mean()), "", note=note))
        if arm != PREFIX:
            gain = paired_difference(ours[: len(right)], right)
            figures.append(Measurement(f"... prompts minus {arm}", gain.mean, "", -MARGIN if arm == LORA else None, ">=", str(gain)))
    return figures


def calibration(prompts: Sequence[Tested]) -> list[Measurement]:
    """The effect of the temperature on the prompts' probabilities, pooled over folds, mean over seeds."""
    sizes = np.array([len(tested.right) for tested in prompts])

    def mean(name: str) -> float:
        return float(np.average([tested.metrics[name] for tested in prompts], weights=sizes))

    before, after = mean("nll"), mean("nll_calibrated")
    figures = [
        Measurement("prompts, NLL with the temperature minus without", after - before, "nats", 0, note=f"{before:.3f} to {after:.3f}")
    ]
    if sizes.min() >= SURE:
        figures.append(
            Measurement("... ECE with it", mean("ece_calibrated"), "", 0.05, note=f"{mean('ece'):.3f} without; {sizes[0]} clips a test")
        )
    return figures
