"""What adapters make of event sentences: a small language model adapted in every way, on people never seen, beside a linear probe."""

from __future__ import annotations

import csv
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

from vtlvlm.bench.events import FULL, RAW, Setting, by_seed, command, fit, prepare, spread
from vtlvlm.bench.harness import Figure
from vtlvlm.errors import DataError, UsageError
from vtlvlm.report.paired import paired_difference
from vtlvlm.report.provenance import write_json

PREFIX, LORA = "prompts", "LoRA"
ARMS: dict[str, tuple[str, ...]] = {
    PREFIX: (),
    "projector only": ("ablations/arm_projector.yaml",),
    LORA: ("ablations/arm_lora.yaml",),
    "full fine-tuning": ("ablations/arm_full.yaml",),
}
"""Name -> the overlays that make it, after the small stage-2 configuration, which trains the projector in all of them"""
UNTUNED = "ablations/arm_none.yaml"
SUBJECTS = 27
"""of the rendered videos: 15 of these people train, 12 test (504 clips)"""
VALIDATION = 0.2
"""Share of the training people who choose learning rate and checkpoint and fit the temperature"""
RATES = (5e-5, 3e-4, 2e-3, 1e-2)
"""Peak learning rates that are tried for every arm, where there is one split"""
RATE_STEPS = 50
"""... and for how many steps"""
MARGIN = 0.02
"""How far prompts may be behind LoRA"""
SURE = 500
"""Test clips from which an ECE is worth a target"""


@dataclass(frozen=True)
class Tested:
    """One test: its clips in the order of the index, its figures, and how many numbers were trained for it."""

    right: NDArray[np.bool_]
    groups: NDArray[Any]
    metrics: dict[str, float]
    trained: int


def measure(work: Path, *, videos: Path | None, repeats: int, arms: Sequence[str] | None = None) -> tuple[list[Figure], dict[str, Any]]:
    """All figures of this bench; what is done already in ``work`` is not done again.

    Args:
        work: Folder for videos, features, runs and results; that of ``bench events`` where the videos are given.
        videos: Clips whose people are left out in turn, with the configurations' own learning rates; None for rendered ones with one
            split, for which each arm's rate is chosen on validation people.
        repeats: Seeds, from 0.
        arms: Names of ``ARMS`` beside the prompts; None for all.

    Raises:
        UsageError: no such arm.
    """
    from tqdm import tqdm

    from vtlvlm.commands.probe import step_probes
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.lvlm.compose import compose

    names = list(ARMS) if arms is None else [PREFIX, *(arm for arm in arms if arm != PREFIX)]
    if unknown := [arm for arm in names if arm not in ARMS]:
        raise UsageError(f"--arms {unknown[0]}: no such arm; there are {', '.join(ARMS)}")
    setting, llava = prepare(work, videos, SUBJECTS), compose(work / "llava")
    rates = {arm: chosen_rate(setting, work, llava, arm) if len(setting.folds) == 1 else None for arm in names}
    found: dict[str, list[Tested]] = {arm: [] for arm in names}
    linear, untuned = [], []
    for seed in tqdm(range(repeats), desc="seeds", unit="seed"):
        for fold in setting.folds:
            events = sentences(setting, work, fold, seed)
            for arm in names:
                found[arm].append(trained(setting, work, llava, events, arm, fold, seed, rates[arm]))
            path = work / "adapters" / f"linear-{plain(fold)}-{seed}.json"
            if not path.is_file():
                data = NTUDataModule(str(setting.root), fold, features=str(setting.features), validation=0.0)
                data.setup("test")
                probe = step_probes(data, stage1(work, fold, seed) / "checkpoints" / "last.ckpt", seed, (RAW,))[RAW]
                write_json(path, {"right": (np.asarray(probe.guesses) == data.index.label[data.split.test]).tolist()})
            linear.append(np.asarray(json.loads(path.read_text(encoding="utf-8"))["right"]))
            if seed == 0 and arms is None:
                untuned.append(test(setting, work, llava, events, "untuned", fold, 0, ("--config", _config(UNTUNED))))
    figures = [*against_linear(found[PREFIX], linear, repeats), *against_arms(found, repeats, rates), *calibration(found[PREFIX])]
    if untuned:
        score = float(np.concatenate([tested.right for tested in untuned]).mean())
        figures.append(Figure("zero-shot, top-1", score, "", note="its projector was composed and never trained"))
    facts = {"videos": str(videos or "rendered, seed 1"), "folds": list(setting.folds), "seeds": repeats, "rates": rates}
    return figures, facts


def plain(text: str) -> str:
    """As part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in text)


def _config(name: str) -> str:
    from vtlvlm.configs import config

    return config(name)


QUIET = ("--trainer.logger", "false", "--trainer.enable_model_summary", "false")


def stage1(work: Path, fold: str, seed: int) -> Path:
    """The run folder of stage 1."""
    return work / "adapters" / f"stage1-{plain(fold)}-{seed}"


def sentences(setting: Setting, work: Path, fold: str, seed: int) -> Path:
    """Stage 1 trained without the validation people, and the event cache it makes."""
    run = stage1(work, fold, seed)
    checkpoint = fit(setting, run, FULL, seed, fold, "--data.validation", VALIDATION)
    events = run / "events"
    data = ["--data.root", setting.root, "--data.features", setting.features, "--data.protocol", fold, "--data.validation", VALIDATION]
    command("tokenize", "--config", _config("stage1_small.yaml"), *data, "--ckpt_path", checkpoint, "--output", events)
    return events


def arguments(setting: Setting, llava: Path, events: Path, arm: str, fold: str, seed: int, rate: float | None) -> list[object]:
    """What ``fit`` and ``test`` of an arm share."""
    overlays = [part for overlay in ARMS.get(arm, ()) for part in ("--config", _config(overlay))]
    first = ["--config", _config("stage2_small.yaml"), *overlays, "--seed_everything", seed]
    data = ["--data.root", setting.root, "--data.events", events, "--data.protocol", fold, "--data.validation", VALIDATION]
    trains = "projector_learning_rate" if arm == "projector only" else "optimizer.learning_rate"
    rated = [] if rate is None else [f"--model.init_args.{trains}", rate]
    return [*first, *data, "--model.init_args.reasoner.init_args.llava", llava, *rated, *QUIET]


def chosen_rate(setting: Setting, work: Path, llava: Path, arm: str) -> float:
    """The rate of least negative log-likelihood on the validation people after a short training; one that diverges has none.

    Raises:
        DataError: all diverged.
    """
    fold = setting.folds[0]
    events = sentences(setting, work, fold, 0)
    costs: dict[float, float] = {}
    for rate in RATES:
        run = work / "adapters" / f"rate-{plain(arm)}-{rate:g}"
        score, short = run / "score.json", ["--trainer.max_steps", RATE_STEPS, "--trainer.val_check_interval", RATE_STEPS]
        if not score.is_file():
            try:
                costs[rate] = finish_fit(run, [*arguments(setting, llava, events, arm, fold, 0, rate), *short])
            except DataError:  # it diverged
                costs[rate] = math.inf
            shutil.rmtree(run / "checkpoints", ignore_errors=True)  # gigabytes of the whole model
            write_json(score, {"nll": costs[rate]})
        costs[rate] = float(json.loads(score.read_text(encoding="utf-8"))["nll"])
    if min(costs.values()) == math.inf:
        raise DataError(f"{arm}: no training ended with any of the rates {RATES}; look at {work / 'adapters'}")
    return min(costs, key=costs.__getitem__)


def finish_fit(run: Path, options: Sequence[object]) -> float:
    """Train, unless that was done, continuing what was interrupted; returns the best NLL on the validation people."""
    from vtlvlm.report.runs import fit_finished

    last = run / "checkpoints" / "last.ckpt"
    if not fit_finished(run):
        command("fit", *options, "--trainer.default_root_dir", run, *(["--ckpt_path", last] if last.is_file() else []))
    kept = torch.load(run / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)["callbacks"].values()
    return float(next(state["best_model_score"] for state in kept if state.get("monitor")))


def trained(setting: Setting, work: Path, llava: Path, events: Path, arm: str, fold: str, seed: int, rate: float | None) -> Tested:
    """One arm trained on one fold with one seed, and its best checkpoint on the validation people tested."""
    rated = "" if rate is None else f"-{rate:g}"
    run = work / "adapters" / f"{plain(arm)}-{plain(fold)}-{seed}{rated}"
    options = arguments(setting, llava, events, arm, fold, seed, rate)
    if not (run / "metrics.json").is_file():
        finish_fit(run, options)
        best = run / "checkpoints" / "best.ckpt"
        command("test", *options, "--trainer.default_root_dir", run, "--ckpt_path", best)
        if arm != PREFIX:
            shutil.rmtree(run / "checkpoints")  # gigabytes of the whole model
    return read(setting, run, fold)


def test(setting: Setting, work: Path, llava: Path, events: Path, name: str, fold: str, seed: int, more: Sequence[object]) -> Tested:
    """The model as it comes."""
    run = work / "adapters" / f"{name}-{plain(fold)}-{seed}"
    if not (run / "metrics.json").is_file():
        command("test", *arguments(setting, llava, events, name, fold, seed, None), *more, "--trainer.default_root_dir", run)
    return read(setting, run, fold)


def read(setting: Setting, run: Path, fold: str) -> Tested:
    """What ``test`` left in a run folder."""
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.report.runs import Run

    tested, fitted = Run.open(run).test, Run.open(run).fit
    assert tested is not None
    data = NTUDataModule(str(setting.root), fold, features=str(setting.features), validation=VALIDATION)
    data.setup("test")
    with (run / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        right = {row["clip"]: row["truth"] == row["recognised"] for row in csv.DictReader(file)}
    clips = data.split.test
    figures = {name: math.nan if value is None else value for name, value in tested.metrics.items()}
    marks = np.array([right[name] for name in data.index.name[clips]])
    return Tested(marks, data.index.group[clips], figures, fitted.trainable_parameters if fitted else 0)


def marks_by_seed(results: Sequence[Tested], repeats: int) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """(seeds, n) whether each clip of all folds was right, and (n,) the clips' groups."""
    folds = len(results) // repeats
    return by_seed([(number // folds, tested.right, tested.groups) for number, tested in enumerate(results)])


def against_linear(prompts: Sequence[Tested], linear: Sequence[NDArray[np.bool_]], repeats: int) -> list[Figure]:
    """Prompts against the linear probe on the mean of the features that stage 1 reads."""
    ours, groups = marks_by_seed(prompts, repeats)
    theirs = np.concatenate(linear).reshape(ours.shape)
    clips, people = paired_difference(ours, theirs), paired_difference(ours, theirs, groups)
    note = f"{spread(ours)} and {spread(theirs)}; 95 % [{clips.low:+.3f}, {clips.high:+.3f}] over clips, "
    note += f"[{people.low:+.3f}, {people.high:+.3f}] over people; {ours.shape[1]} test clips of {len(np.unique(groups))} people, "
    note += f"{repeats} seeds; the probe learns from validation people too, of many clips from the plain views only"
    return [Figure("prompts minus linear probe on mean features, top-1", clips.mean, "", 0, ">=", note)]


def against_arms(found: dict[str, list[Tested]], repeats: int, rates: dict[str, float | None]) -> list[Figure]:
    """Every arm's accuracy, and the prompts' gain over it."""
    ours = marks_by_seed(found[PREFIX], repeats)[0]
    figures = []
    for arm, results in found.items():
        right = marks_by_seed(results, repeats)[0]
        rate = "" if rates[arm] is None else f"; learning rate {rates[arm]:g}"
        figures.append(Figure(f"{arm}, top-1", float(right.mean()), "", note=f"{spread(right)}; {results[0].trained:,} trained{rate}"))
        if arm != PREFIX:
            gain = paired_difference(ours, right)
            figures.append(Figure(f"... prompts minus {arm}", gain.mean, "", -MARGIN if arm == LORA else None, ">=", str(gain)))
    return figures


def calibration(prompts: Sequence[Tested]) -> list[Figure]:
    """What the temperature does to the prompts' probabilities: pooled over folds, mean over seeds."""
    sizes = np.array([len(tested.right) for tested in prompts])

    def mean(name: str) -> float:
        return float(np.average([tested.metrics[name] for tested in prompts], weights=sizes))

    before, after = mean("nll"), mean("nll_calibrated")
    figures = [Figure("prompts, NLL with the temperature minus without", after - before, "nats", 0, note=f"{before:.3f} to {after:.3f}")]
    if sizes.min() >= SURE:
        figures.append(
            Figure("... ECE with it", mean("ece_calibrated"), "", 0.05, note=f"{mean('ece'):.3f} without; {sizes[0]} clips a test")
        )
    return figures
