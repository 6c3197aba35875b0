"""Work folders and run folders with made-up results, in the files that runs and `vtlvlm ablate` write."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtlvlm.system.files import write_json

CLASSES = ("brush hair", "drink water", "drop", "put on jacket", "sit down", "stand up")


def write_run(
    folder: Path,
    accuracy: float = 0.8,
    *,
    seed: int = 0,
    clips: int = 60,
    protocol: str = "xsub60",
    start: int = 0,
    probe: float | None = 0.7,
    classes: Sequence[str] = CLASSES,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """A tested run folder: its answers are right with this probability, and its metrics follow from them."""
    rng = np.random.default_rng([seed, round(1000 * accuracy), start])
    truth = np.arange(clips) % len(classes)
    right = rng.random(clips) < accuracy
    recognised = np.where(right, truth, (truth + 1) % len(classes))
    confidence = 0.5 + 0.5 * rng.random(clips)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions_test.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "truth", "recognised", *classes])
        for clip in range(clips):
            probs = np.full(len(classes), (1 - confidence[clip]) / (len(classes) - 1))
            probs[recognised[clip]] = confidence[clip]
            row = [f"c{start + clip:05d}", classes[truth[clip]], classes[recognised[clip]], *(f"{p:.6f}" for p in probs)]
            writer.writerow(row)
    top1 = float(right.mean())
    environment = {
        "versions": {"torch": "2.14.1", "transformers": "5.23.0"},
        "machine": {"cpu": "a processor", "cores": 2},
        "git": {"commit": "0123456789abcdef", "dirty": False},
    }
    found = {"top1": top1, "top5": 1.0, "mean_class_accuracy": top1, "nll": 0.5, "nll_calibrated": 0.4, "ece": 0.1, "ece_calibrated": 0.05}
    content = {
        "protocol": protocol,
        "split": "test",
        "num_clips": clips,
        "seed": seed,
        "device": {"name": "cpu", "count": 1},
        "metrics": found if metrics is None else metrics,
        "provenance": {"adapter": "DeepPrompts", "split": {"classes": len(classes)}, "environment": environment},
    }
    if probe is not None:
        content["probe"] = {"name": "movement", "top1": probe, "num_train": 1, "num_test": clips, "difference": None}
    write_json(folder / "metrics.json", content)
    write_fit(folder)
    return folder


def write_fit(folder: Path, finished: bool = True, steps: int = 50) -> None:
    """The record of a training."""
    session = {"first_step": 0, "last_step": steps, "epochs": 1, "wall_seconds": 9.0, "finished": finished}
    content = {"steps": steps, "wall_seconds": 9.0, "seconds_per_step": 0.2, "peak_rss_bytes": 10, "parameters": 100}
    write_json(folder / "fit.json", {**content, "trainable_parameters": 7, "sessions": [session]})


def run_entry(stage2: str | None, seed: int = 0, status: str = "done", **more: Any) -> dict[str, Any]:
    """A run in a plan."""
    entry = {"seed": seed, "fold": None, "learning_rate": None, "stage1": None, "events": None, "stage2": stage2, "status": status}
    return {**entry, "reason": None, **more}


def write_grid(work: Path, name: str, arms: Sequence[dict[str, Any]], **more: Any) -> Path:
    """A plan. Every arm is a dictionary with ``name`` and ``runs``, and what else it needs."""
    plan = {"version": 1, "name": name, "table": "II", "title": f"title of {name}", "protocol": "xsub60", "metric": "top1"}
    filled = [{"label": arm["name"], "paper": None, "settings": {}, **arm} for arm in arms]
    path = work / "grids" / f"{name}.json"
    write_json(path, {**plan, "arms": filled, "compare": [arm["name"] for arm in arms], **more})
    return path
