"""How much of the action event sentences keep: stage 1 and its ablations, trained per fold and seed and probed on held-out people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.bench.harness import Measurement
from vtlvlm.errors import UsageError
from vtlvlm.metrics.paired import Difference, paired_difference

FULL = "full"
ARMS: dict[str, tuple[str, ...]] = {
    FULL: (),
    "w/o quantisation": ("ablations/no_quantization.yaml",),
    "w/o adaptive pooling": ("ablations/uniform_pooling.yaml",),
    "w/o event coherence": ("ablations/no_coherence.yaml",),
    "paper's form: no motion, not centred": ("ablations/paper_tokens.yaml",),
    "K = 512": ("ablations/codes_512.yaml",),
    "rotation trick": ("ablations/rotation.yaml",),
    "learned codebook": ("ablations/learned.yaml",),
    "factorised codes": ("ablations/factorised.yaml",),
    "SimVQ": ("ablations/simvq.yaml",),
    "FSQ": ("ablations/fsq.yaml",),
}
"""Name -> its overlays on the small stage-1 configuration"""
EVENTS_SUBJECTS, SEED = 16, 1
"""People and seed of the rendered videos, the same as in the demo"""
MOST_FOLDS = 8
"""With more people, one split (X-Sub) replaces leaving out each person in turn"""
CODES, CODES_VALIDATION = 512, 0.3
RAW, FEATURES, SENTENCE, MEAN = "features: linear, mean", "features: attention", "codes: attention", "codes: linear, mean"


@dataclass(frozen=True)
class ClipFolds:
    """Clips, features and folds.

    Attributes:
        root: Folder of the videos.
        features: Feature cache of all clips in all training views.
        folds: Protocols, one per fold. Together they test every clip once; a single split tests its own test clips.
    """

    root: Path
    features: Path
    folds: Sequence[str]


def measure(
    work: Path, *, videos: Path | None, repeats: int, arms: Sequence[str] | None = None
) -> tuple[list[Measurement], dict[str, Any]]:
    """All measurements of this bench. Finished runs in ``work`` are not repeated.

    Args:
        work: Folder for features, runs and probe results.
        videos: Clips whose NTU names identify the people; None for the demo's rendered videos.
        repeats: Number of seeds, from 0.
        arms: Names of ``ARMS``; None for all.

    Raises:
        UsageError: An arm does not exist.
    """
    from tqdm import tqdm

    names = list(ARMS) if arms is None else [FULL, *(arm for arm in arms if arm != FULL)]
    if unknown := [arm for arm in names if arm not in ARMS]:
        raise UsageError(f"--arms {unknown[0]}: no such arm; there are {', '.join(ARMS)}")
    source = prepare(work, videos)
    jobs = [(arm, seed, fold) for seed in range(repeats) for arm in names for fold in source.folds]
    found: dict[str, dict[str, list[Any]]] = {arm: {} for arm in names}
    for arm, seed, fold in tqdm(jobs, desc="stage 1 and probes", unit="run", smoothing=0.1):
        result = one_run(source, work / "runs", arm, seed, fold)
        for name, guesses in result["guesses"].items():
            right = np.asarray(guesses) == np.asarray(result["labels"])
            found[arm].setdefault(name, []).append((seed, right, np.asarray(result["groups"])))
    figures = [*against_raw(found[FULL], repeats), *against_full(found, repeats)]
    if arms is None or "K = 512" in arms:
        figures += codebook_use(source, work / "runs")
    facts = {"videos": str(videos or f"rendered, seed {SEED}"), "folds": list(source.folds), "seeds": repeats, "arms": names}
    return figures, facts


def prepare(work: Path, videos: Path | None, subjects: int = EVENTS_SUBJECTS) -> ClipFolds:
    """Prepare the videos, the folds over their people, and one feature cache for all folds.

    Args:
        work: Folder for all files.
        videos: Clips with NTU names; None renders some.
        subjects: People in rendered videos.
    """
    from vtlvlm.configs import config
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.data.source import ClipSource

    root, features = videos or work / "videos", work / "features"
    if videos is None:
        command("synth", root, "--subjects", subjects, "--seed", SEED)
    data = NTUDataModule(ClipSource(str(root), "all", validation=0.0))
    data.prepare_data()
    data.setup("fit")
    people = np.unique(data.index.group[data.split.train]).tolist()
    each = len(people) <= MOST_FOLDS
    protocol = ["--data.source.protocol", "all" if each else "xsub60"]  # each person trains in some fold, with all views
    command("extract", "--config", config("stage1_small.yaml"), "--data.source.root", root, *protocol, "--output", features)
    return ClipFolds(root, features, [f"leave_out:{person}" for person in people] if each else ["xsub60"])


def command(*arguments: object) -> None:
    """Run one of the project's commands as a user would.

    Raises:
        RuntimeError: The command failed.
    """
    from vtlvlm.cli import run

    if code := run([str(argument) for argument in arguments]):
        raise RuntimeError(f"vtlvlm {arguments[0]} ended with {code}")


def stage1_configuration(arm: str) -> list[object]:
    """The configuration options of an arm's stage 1, for ``fit`` and the later commands."""
    from vtlvlm.configs import config

    return [part for name in ("stage1_small.yaml", *ARMS[arm]) for part in ("--config", config(name))]


def fit(source: ClipFolds, run: Path, arm: str, seed: int, fold: str, *more: object) -> Path:
    """Train stage 1 and return its last checkpoint. A finished run is not repeated; an unfinished one starts again."""
    import shutil

    from vtlvlm.report.runs import fit_finished

    checkpoint = run / "checkpoints" / "last.ckpt"
    if not (checkpoint.is_file() and fit_finished(run)):
        shutil.rmtree(run, ignore_errors=True)
        data = ["--data.source.root", source.root, "--data.source.protocol", fold, "--data.source.validation", 0]
        data += ["--data.features", source.features]
        quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        command("fit", *stage1_configuration(arm), "--seed_everything", seed, *data, *quiet, "--trainer.default_root_dir", run, *more)
    return checkpoint


def run_name(*parts: object) -> str:
    """A folder name from parts such as arm, fold and seed, without special characters of file systems and shells."""
    return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in str(part)) for part in parts)


def one_run(source: ClipFolds, runs: Path, arm: str, seed: int, fold: str) -> dict[str, Any]:
    """Train and probe one arm on one fold with one seed. Returns ``{"guesses": {probe: [...]}, "labels", "groups"}`` of the test clips."""
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.data.source import ClipSource
    from vtlvlm.probes.stage1 import step_probes
    from vtlvlm.system.files import write_json

    run = runs / run_name(arm, fold, seed)
    path = run / "probes.json"
    if not path.is_file():
        checkpoint = fit(source, run, arm, seed, fold)
        data = NTUDataModule(ClipSource(str(source.root), fold, validation=0.0), features=str(source.features))
        data.setup("test")
        wanted = (RAW, FEATURES, SENTENCE, MEAN) if arm == FULL else (SENTENCE, MEAN)
        probes = step_probes(data, checkpoint, seed, wanted)
        test = data.split.test
        content = {"guesses": {name: probe.guesses for name, probe in probes.items()}, "labels": data.index.label[test].tolist()}
        write_json(path, {**content, "groups": data.index.group[test].tolist()})
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def by_seed(results: list[Any]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """(seeds, n) whether each test clip of all folds was right, and (n,) the clips' groups."""
    seeds = sorted({seed for seed, _, _ in results})
    right = np.stack([np.concatenate([r for s, r, _ in results if s == seed]) for seed in seeds])
    return right, np.concatenate([g for s, _, g in results if s == seeds[0]])


def mean_and_deviation(right: NDArray[np.bool_]) -> str:
    """Mean and standard deviation over seeds: ``0.912 ± 0.010``."""
    each = right.mean(axis=1)
    return f"{each.mean():.3f}" + (f" ± {each.std(ddof=1):.3f}" if len(each) > 1 else "")


def against_raw(found: dict[str, list[Any]], repeats: int) -> list[Measurement]:
    """Attention on event sentences against a linear probe on the mean of the raw features."""
    sentence, groups = by_seed(found[SENTENCE])
    raw = by_seed(found[RAW])[0]
    clips: Difference = paired_difference(sentence, raw)
    people = paired_difference(sentence, raw, groups)
    size = f"{sentence.shape[1]} test clips of {len(np.unique(groups))} people, {repeats} seeds"
    note = f"{mean_and_deviation(sentence)} and {mean_and_deviation(raw)}; 95 % [{clips.low:+.3f}, {clips.high:+.3f}] over clips, "
    note += f"[{people.low:+.3f}, {people.high:+.3f}] over people; {size}"
    figures = [Measurement("attention on codes minus linear on mean features, top-1", clips.mean, "", -0.03, ">=", note)]
    for name in (MEAN, FEATURES):
        right = by_seed(found[name])[0]
        figures.append(Measurement(f"... {name}, top-1", float(right.mean()), "", note=mean_and_deviation(right)))
    return figures


def against_full(found: dict[str, dict[str, list[Any]]], repeats: int) -> list[Measurement]:
    """Each arm's event sentences against those of the full model, both read by attention."""
    full = by_seed(found[FULL][SENTENCE])[0]
    figures = []
    for arm, results in found.items():
        if arm != FULL:
            right = by_seed(results[SENTENCE])[0]
            difference = paired_difference(full, right)
            figures.append(
                Measurement(
                    f"full minus {arm}, top-1", difference.mean, "", note=f"{mean_and_deviation(right)}; {difference}, {repeats} seeds"
                )
            )
    return figures


@torch.no_grad()
def codebook_use(source: ClipFolds, runs: Path) -> list[Measurement]:
    """Codes of a codebook of 512 that validation people use, in eval mode, over all stored views."""
    from vtlvlm.data.datamodule import NTUDataModule
    from vtlvlm.data.source import ClipSource
    from vtlvlm.metrics.codebook import CodebookHealth
    from vtlvlm.stages.vtem import VTEMModule

    fold = source.folds[0]
    checkpoint = fit(source, runs / "use", f"K = {CODES}", 0, fold, "--data.source.validation", CODES_VALIDATION)
    module = VTEMModule.load_from_checkpoint(checkpoint)
    data = NTUDataModule(ClipSource(str(source.root), fold, validation=CODES_VALIDATION), features=str(source.features))
    data.setup("validate")
    cache, health = data.features_cache, CodebookHealth(module.quantizer.num_codes, data.num_classes, module.pooler.windows)
    assert cache is not None
    for view in range(data.num_views):
        rows = cache.rows(data.index.name[data.split.val], view)
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) // 64)):
            ids = module.vtem.tokens(cache.features(rows[part]), cache.times(rows[part])).ids
            health.update(ids, torch.from_numpy(data.index.label[data.split.val[part]]))
    tally = health.tally()
    found, total = tally.figures(), tally.tokens
    people = len(np.unique(data.index.group[data.split.val]))
    note = f"{total:,} tokens of {len(data.split.val)} clips in {data.num_views} views, {people} validation people, eval mode"
    return [
        Measurement(f"K = {CODES}, codes in use", 100 * float(found["used_share"]), "%", 80, ">=", note),
        Measurement("... perplexity over K", float(found["perplexity_share"]), "", 0.3, ">="),
    ]
