"""Measures what a model does with videos that hold more than its actions: clips of actions that it was not trained on, idle people, foreign
videos, and long videos of several actions.

Each draw leaves some of the rendered actions out of the training of both stages, and fits the rule of rejection on the validation people.
Test people never train, and neither they nor the left-out actions nor the foreign videos choose any setting. Draw 0 leaves nothing out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vtlvlm.bench.harness import Measurement
from vtlvlm.configs import config
from vtlvlm.data import ntu
from vtlvlm.data.listing import videos_in
from vtlvlm.data.playing import playing
from vtlvlm.data.video import VideoError, decode_sampled
from vtlvlm.errors import DataError
from vtlvlm.metrics.open_set import auroc, false_acceptance
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.rejection import SIGNALS
from vtlvlm.segments.finding import Found, decided, find
from vtlvlm.segments.formats import read_truth
from vtlvlm.segments.live import Reading
from vtlvlm.segments.metrics import mean_average_precision, step_scores
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.timeline import Segment, to_steps
from vtlvlm.segments.windows import Grid, windows
from vtlvlm.synth.actions import ACTIONS
from vtlvlm.synth.untrimmed import FILMS, FOLLOWS, SUITABLE
from vtlvlm.system.files import write_json, write_text

SUBJECTS, SEED = 16, 1
"""The demo's people and seed"""
FILM_SEED = 3
"""Of the long and idle videos: other rooms and performances than those on which their treatment was designed"""
LEFT_OUT = 3
"""Actions that a draw leaves out, at least"""
VALIDATION = "0.2"
"""Share of the training people"""
ACCEPTANCE = 0.95
FOREIGN = 60
"""Foreign videos that are read, at most, evenly spread over their list"""
VARIANTS = {
    "path": (Rule(), True, True),
    "path, without rejection": (Rule(), False, True),
    "path, without motion": (Rule(motion=False), True, True),
    "each window alone": (Rule(decide="windows"), True, True),
    "hysteresis": (Rule(decide="hysteresis"), True, True),
    "windows without overlap": (Rule(decide="windows"), True, False),
}
"""From windows to segments: the rule, whether windows may be rejected, and whether windows overlap"""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """A model that knows some of the actions.

    Attributes:
        number: 0 leaves nothing out.
        work: Folder of all draws.
    """

    number: int
    work: Path

    @property
    def left_out(self) -> list[int]:
        """Numbers of the actions that it is not trained on; pairs whose one action undoes the other stay together."""
        if not self.number:
            return []
        units = [(one, FOLLOWS[one]) if one in FOLLOWS else (one,) for one in SUITABLE if one not in FOLLOWS.values()]
        order = np.random.default_rng([SEED, self.number]).permutation(len(units)).tolist()
        found: list[int] = []
        while len(found) < LEFT_OUT:
            found += units[order.pop(0)]
        return sorted(found)

    @property
    def folder(self) -> Path:
        """Its files."""
        return self.work / f"draw{self.number}"

    @property
    def bundle(self) -> Path:
        """Its model."""
        return self.folder / "bundle"

    def commands(self, videos: Path, features: Path, llava: Path) -> list[tuple[Path, list[str]]]:
        """What makes the model: the file that each command leaves, and the command."""
        labels = self.folder / "classes.txt"
        stage1, stage2, events = self.folder / "stage1", self.folder / "stage2", self.folder / "events"
        data = ["--data.source.root", str(videos), "--data.source.labels", str(labels), "--data.source.validation", VALIDATION]
        first = ["--config", config("stage1_small.yaml"), "--seed_everything", str(SEED), *data, "--data.features", str(features)]
        second = ["--config", config("stage2_small.yaml"), "--seed_everything", str(SEED), *data, "--data.events", str(events)]
        second += ["--model.init_args.reasoner.init_args.llava.path", str(llava)]
        best1, best2 = (run / "checkpoints" / "best.ckpt" for run in (stage1, stage2))
        long, idle = self.folder / "long", self.work / "idle"
        hidden = ["--unlisted", *map(str, self.left_out)] if self.left_out else []
        return [
            (idle / "synth.json", ["synth", str(idle), "--untrimmed", "1", "--parts", "0", "--seed", str(FILM_SEED)]),
            (long / "synth.json", ["synth", str(long), "--untrimmed", "1", "--seed", str(FILM_SEED), *hidden]),
            (best1, ["fit", *first, "--trainer.default_root_dir", str(stage1)]),
            (events / "meta.json", ["tokenize", *first, "--ckpt_path", str(best1), "--output", str(events)]),
            (best2, ["fit", *second, "--trainer.default_root_dir", str(stage2)]),
            (self.bundle / "bundle.json", ["export", str(stage2), str(self.bundle), "--acceptance", str(ACCEPTANCE)]),
        ]


def measure(work: Path, draws: Sequence[int], foreign: Path | None) -> tuple[list[Measurement], dict[str, Any]]:
    """Train and measure the draws that are not measured yet.

    Args:
        work: Keeps videos, features, models and the result of each draw.
        draws: Their numbers; 0 leaves nothing out.
        foreign: Folder of videos of something else.

    Returns:
        Means over the draws, and the result of each.

    Raises:
        DataError: A command failed; the message names its log.
    """
    videos, features, llava = work / "videos", work / "features", work / "llava"
    shared = [
        (videos / "synth.json", ["synth", str(videos), "--subjects", str(SUBJECTS), "--seed", str(SEED)]),
        (llava / "config.json", ["compose", str(llava)]),
        (
            features / "meta.json",
            ["extract", "--config", config("stage1_small.yaml"), "--data.source.root", str(videos), "--output", str(features)],
        ),
    ]
    _run(shared, work)
    results = []
    for number in draws:
        draw = Draw(number, work)
        file = draw.folder / "result.json"
        if not file.is_file():
            draw.folder.mkdir(parents=True, exist_ok=True)
            listed = [one for one in ACTIONS if one not in draw.left_out]
            write_text(draw.folder / "classes.txt", "".join(f"A{one:03d} {ntu.ACTIONS[one - 1]}\n" for one in listed))
            _run(draw.commands(videos, features, llava), draw.folder)
            write_json(file, _measured(draw, videos, foreign))
        results.append(json.loads(file.read_text(encoding="utf-8")))
    return _figures(results), {"draws": results}


def _run(commands: Sequence[tuple[Path, list[str]]], logs: Path) -> None:
    """Run the commands whose file is missing."""
    for number, (file, words) in enumerate(commands, 1):
        if file.exists():
            continue
        log = logs / f"{number}_{words[0]}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"vtlvlm {words[0]} … ({log})", flush=True)
        with log.open("wb") as stream:
            code = subprocess.run([sys.executable, "-m", "vtlvlm", *words], stdout=stream, stderr=subprocess.STDOUT).returncode
        if code:
            raise DataError(f"{log}: vtlvlm {words[0]} failed ({code}); its last lines say why")


def _measured(draw: Draw, videos: Path, foreign: Path | None) -> dict[str, Any]:
    """The figures of a draw."""
    model = ActionRecognizer.from_checkpoint(draw.bundle)
    assert isinstance(model, ActionRecognizer)
    assert model.rejection is not None
    names = {path.stem.removesuffix("_rgb"): path for path in sorted((videos / "nturgb+d_rgb").glob("*.avi"))}
    train = ntu.PROTOCOLS["xsub60"].train_ids
    test = {ntu.ClipName.parse(name): path for name, path in names.items() if ntu.ClipName.parse(name).subject not in train}
    known = [path for name, path in test.items() if name.action not in draw.left_out]
    unknown = [path for name, path in test.items() if name.action in draw.left_out]
    kinds = {"known": _clips(model, known), "left out": _clips(model, unknown), "idle": _idle(model, draw.work / "idle" / FILMS)}
    if foreign is not None:
        listed = [foreign / name for name in videos_in(foreign).paths]
        chosen = [listed[i] for i in np.unique(np.linspace(0, len(listed) - 1, min(FOREIGN, len(listed))).round().astype(int))]
        kinds["foreign"] = _clips(model, chosen)
    scores = {name: _scores(model, signals) for name, signals in kinds.items()}
    rejection: dict[str, Any] = {
        "threshold": model.rejection.threshold,
        "validation_clips": len(model.rejection.familiarities),
        "clips": {name: len(signals) for name, signals in kinds.items()},
        "accepted": float(np.mean(scores["known"]["rule"] >= model.rejection.threshold)),
    }
    for name in kinds:
        if name != "known" and len(kinds[name]):
            rejection[name] = {
                "auroc": {score: auroc(scores["known"][score], scores[name][score]) for score in scores[name]},
                "false_acceptance": {score: false_acceptance(scores["known"][score], scores[name][score]) for score in scores[name]},
                "accepted": float(np.mean(scores[name]["rule"] >= model.rejection.threshold)),
            }
    return {
        "draw": draw.number,
        "left_out": [ntu.ACTIONS[one - 1] for one in draw.left_out],
        "rejection": rejection,
        "segments": _segments(model, draw.folder / "long"),
    }


@torch.inference_mode()
def _clips(model: ActionRecognizer, files: Sequence[Path]) -> Values:
    """The signals (n, 6) of files that can be read."""
    assert model.rejection is not None
    rows = []
    for file in tqdm(files, unit="clip", disable=None):
        try:
            rows.append(model.signals(decode_sampled(file, model.sampling), model.rejection.training.to(model.device)))
        except VideoError as error:
            print(f"left out: {error}", flush=True)
    return np.array(rows).reshape(-1, len(SIGNALS))


@torch.inference_mode()
def _idle(model: ActionRecognizer, folder: Path) -> Values:
    """The signals (n, 6) of parts of the idle videos that do not overlap."""
    assert model.rejection is not None
    grid, training = model.grid(), model.rejection.training.to(model.device)
    rows = []
    for file in sorted(folder.glob("*.mp4")):
        with playing(file, model.sampling) as video:
            parts = windows(video.frames, video.rate, Grid(grid.clip, grid.clip), model.sampling)
            rows += [model.signals(one.clip, training) for one in parts]
    return np.array(rows).reshape(-1, len(SIGNALS))


def _scores(model: ActionRecognizer, signals: Values) -> dict[str, Values]:
    """Scores of clips, larger for those that are more like the training: the rule's, and each signal by itself."""
    assert model.rejection is not None
    return {"rule": model.rejection.values(signals), **{name: signals[:, i] for i, name in enumerate(SIGNALS)}}


def _segments(model: ActionRecognizer, folder: Path) -> dict[str, Any]:
    """The scores of each variant on the long videos."""
    truth, grid = read_truth(folder / "truth.json"), model.grid()
    films = sorted((folder / FILMS).glob("*.mp4"))
    read = {film.stem: find(model, film, grid, Rule()) for film in tqdm(films, unit="video", disable=None)}
    scores: dict[str, Any] = {"videos": len(films), "segments": sum(map(len, truth.values())), "clip": grid.clip, "hop": grid.hop}
    for name, (rule, rejecting, overlapping) in VARIANTS.items():
        found = dict(_found(read, model.classes, grid, rule, rejecting, overlapping))
        scores[name] = _scored(truth, found, model.classes)
    return scores


def _found(
    read: dict[str, Found], classes: list[str], grid: Grid, rule: Rule, rejecting: bool, overlapping: bool
) -> Iterator[tuple[str, Found]]:
    """The segments of each video from its windows; without overlap, from every window that begins where the last one ended."""
    step = 1 if overlapping else round(grid.clip / grid.hop)
    for name, one in read.items():
        told = one.rejected if rejecting else np.zeros_like(one.rejected)
        motions: Sequence[Values | None] = one.motions or [None] * len(told)
        readings = [Reading(*row) for row in zip(one.windows[::step], told[::step].tolist(), motions[::step], strict=True)]
        yield name, decided(readings, classes, Grid(grid.clip, grid.hop * step), one.seconds, rule)


def _scored(truth: dict[str, list[Segment]], found: dict[str, Found], classes: list[str]) -> dict[str, float]:
    segments = {name: one.segments for name, one in found.items()}
    wanted = {name: truth[name] for name in found}
    step = 0.1  # seconds; the same for every variant
    true, given = ([to_steps(of[name], classes, step, one.seconds) for name, one in found.items()] for of in (wanted, segments))
    steps = step_scores(true, given)
    overlaps = (0.3, 0.5, 0.7)
    precision = dict(zip(overlaps, mean_average_precision(wanted, segments, overlaps), strict=True))
    return {
        **{f"mAP@{level:g}": float(value) for level, value in precision.items()},
        **{f"F1@{level:g}": float(value) for level, value in steps.f1.items()},
        "edit": steps.edit,
        "steps": steps.accuracy_all,
        "found": float(sum(map(len, segments.values()))),
    }


def _figures(results: Sequence[dict[str, Any]]) -> list[Measurement]:
    """Means over the draws, with the least and the largest."""
    drawn, rows = [one for one in results if one["left_out"]], []

    def add(work: str, values: list[float], target: float | None = None, note: str = "", unit: str = "") -> None:
        if values:
            spread = f"{min(values):.3f} to {max(values):.3f} in {len(values)} draws" if len(values) > 1 else "one draw"
            rows.append(Measurement(work, float(np.mean(values)), unit, target, ">=", f"{spread}{note}"))

    for kind, target, of in (("left out", 0.80, drawn), ("idle", 0.95, results), ("foreign", 0.95, results)):
        have = [one["rejection"][kind] for one in of if kind in one["rejection"]]
        clips = sum(one["rejection"]["clips"].get(kind, 0) for one in of)
        add(f"{kind}: AUROC of the rule", [one["auroc"]["rule"] for one in have], target, f"; {clips} clips")
        add(f"{kind}: AUROC of the largest probability", [one["auroc"]["probability"] for one in have])
        add(f"{kind}: accepted where 95 % of known test clips are", [one["false_acceptance"]["rule"] for one in have])
        add(f"{kind}: the same by the largest probability", [one["false_acceptance"]["probability"] for one in have])
        add(f"{kind}: accepted at the rule's threshold", [one["accepted"] for one in have])
    add("known test clips accepted at the rule's threshold", [one["rejection"]["accepted"] for one in results])
    for title, of in (("all actions known", [one for one in results if not one["left_out"]]), ("actions left out", drawn)):
        for variant in VARIANTS:
            for measure, target in (("mAP@0.5", 0.60), ("F1@0.5", 0.70)):
                goal = target if variant == "path" and title == "all actions known" else None
                add(f"long videos, {title}: {variant}, {measure}", [one["segments"][variant][measure] for one in of], goal)
    return rows
