"""Builds the report of a ``vtlvlm demo`` folder from the files of its runs. No metric is computed again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import segment_centres
from vtlvlm.data.source import ClipSource
from vtlvlm.data.video import decode, probe
from vtlvlm.errors import DataError
from vtlvlm.recognizers.recognizer import ActionRecognizer, Recognition
from vtlvlm.report.figures import Panel, accuracy_bars, confusion_figure, learning_curves
from vtlvlm.report.page import Conditions, Picture, Report, Section
from vtlvlm.report.runs import Curve, Metrics, Run
from vtlvlm.report.sentence import Sentence, sentence_figure
from vtlvlm.report.tables import ResultRow, Table

LIMITS = {"middle frame": 0.70, "clip length": 0.25}
"""Difficulty of the rendered videos: the highest top-1 that each probe may reach."""
LISTED = ("mean feature", "mean and movement", "thirds", "middle frame", "clip length")
"""Probes that have a row whether they are the best or not"""
TIMED_CLIPS = 12


def pipeline_report(folder: Path, protocol: str = "xsub60") -> Report:
    """Gather a pipeline folder (``videos features events stage1 stage2 untuned bundle probes.json``) into one report.

    Args:
        folder: written by ``vtlvlm demo``.
        protocol: the split of training and test.

    Raises:
        DataError: a step has not been run.
    """
    stage1, stage2, untuned = (Run.open(folder / name) for name in ("stage1", "stage2", "untuned"))
    tested, plain, fit = stage2.test, untuned.test, stage2.fit
    if tested is None or plain is None or fit is None or not (folder / "probes.json").is_file():
        raise DataError(f"{folder}: not all steps have been run: `vtlvlm demo {folder}` continues")
    probed = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    probes = probed["probes"]
    data = NTUDataModule(ClipSource(str(folder / "videos"), protocol, validation=0.0), features=str(folder / "features"))
    data.setup("test")
    recognizer = ActionRecognizer.from_checkpoint(folder / "bundle")
    if not isinstance(recognizer, ActionRecognizer):
        raise DataError(f"{folder / 'bundle'}: holds a linear probe, which has no event sentences; export stage 2 there")
    shown, timing = _recognise(recognizer, data)
    environment = stage2.environment or {}
    rows = _rows(tested, plain, probes, data.num_classes)
    sizes = tested.provenance["split"]["clips"]
    reached = tested.metrics["top1"] or 0.0
    return Report(
        title="Video → event sentences → recognised actions",
        summary=_summary(reached, probes, tested, data.num_classes),
        conditions=Conditions(
            protocol=protocol,
            split_sizes={side: sizes[side] for side in ("train", "val", "test")},
            num_classes=data.num_classes,
            seed=tested.seed or 0,
            trainable_parameters=fit.trainable_parameters,
            total_parameters=fit.parameters,
            seconds_per_clip=timing,
            machine=_machine(environment),
            training_seconds=(stage1.fit.wall_seconds if stage1.fit else 0.0) + fit.wall_seconds,
        ),
        rows=rows,
        difficulty=_difficulty(probes),
        sections=[
            _accuracy_section(rows, data.num_classes),
            _confusion_section(stage2),
            _sentences_section(shown, recognizer),
            _training_section(stage1, stage2),
        ],
        versions=environment.get("versions", {}),
        commands=[f"vtlvlm demo {folder} --seed {tested.seed or 0}"],
    )


def _rows(tested: Metrics, plain: Metrics, probes: dict[str, Any], num_classes: int) -> list[ResultRow]:
    def model(name: str, metrics: Metrics, note: str, ours: bool = False) -> ResultRow:
        found = metrics.metrics
        return ResultRow(name, found["top1"] or 0.0, found["top5"], found["mean_class_accuracy"], metrics.num_clips, note, ours)

    def linear(name: str, probe_name: str, note: str) -> ResultRow:
        found = probes[probe_name]
        return ResultRow(name, found["top1"], found["top5"], found["mean_class"], found["num_test"], note)

    both = "mean and movement"
    best = None if tested.probe is None else str(tested.probe["name"])
    return [
        model("event sentences, prompt-tuned LLaVA", tested, "prompts and projector trained", ours=True),
        model("the same LLaVA untuned", plain, "its projector has never seen an event"),
        *(
            [linear(f"linear probe, {best}", best, "the best one on held-out training people")]
            if best in probes and best not in LISTED
            else []
        ),
        linear("linear probe, mean feature", "mean feature", "the same features, averaged over time"),
        *([linear("linear probe, mean and movement", both, "how much moves, and where")] if both in probes else []),  # older files lack it
        linear("linear probe, three thirds", "thirds", "encodes a little of the order"),
        linear("linear probe, middle frame", "middle frame", "no motion"),
        linear("linear probe, clip length", "clip length", "no pictures"),
        ResultRow("chance", 1 / num_classes, min(1.0, 5 / num_classes), 1 / num_classes),
    ]


def _summary(reached: float, probes: dict[str, Any], tested: Metrics, num_classes: int) -> str:
    mean, middle = probes["mean feature"]["top1"], probes["middle frame"]["top1"]
    return (
        f"A frozen language model with trained soft prompts reads discrete event sentences. It recognises the right one of {num_classes} "
        f"actions in {reached:.1%} of {tested.num_clips} clips of held-out people "
        f"({reached - mean:+.1%} against a linear probe on the mean of the same features, {reached - middle:+.1%} against one "
        f"on the middle frame).{_against_the_best(tested)}"
        "\n\nThe videos are rendered, and are encoded files with NTU names. In two pairs of actions, each action is the other played "
        "backwards, so an average over time cannot separate them. This is one run with one seed. Clips of one person are alike: "
        "differences of a few points between rows are within what another seed would change."
    )


def _against_the_best(tested: Metrics) -> str:
    if tested.probe is None:
        return ""
    low, mean, high = (tested.probe["difference"][name] for name in ("low", "mean", "high"))
    return (
        f" The best linear probe, chosen on held-out training people, reads {tested.probe['name']}; the model minus this probe is "
        f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]."
    )


def _difficulty(probes: dict[str, Any]) -> Table:
    lines = [
        [name, f"{probes[name]['top1']:.3f}", f"{limit:.2f}", "yes" if probes[name]["top1"] <= limit else "no"]
        for name, limit in LIMITS.items()
    ]
    return Table(["probe", "top-1", "at most", "holds"], lines)


def _machine(environment: dict[str, Any]) -> str:
    machine = environment.get("machine", {})
    return f"{machine.get('cpu', 'unknown processor')}, {machine.get('cores', '?')} cores"


def _recognise(recognizer: ActionRecognizer, data: NTUDataModule) -> tuple[list[tuple[Recognition, str, str]], float]:
    """Three test clips (the first, the middle and the last class, one person, one camera) and the median seconds from file to answer."""
    index, test = data.index, data.split.test
    person, camera = index.subject[test[0]], np.sort(index.camera[test])[len(test) // 2]
    alike = test[(index.subject[test] == person) & (index.camera[test] == camera)]
    alike = alike[np.argsort(index.label[alike], kind="stable")]
    chosen = [int(row) for row in alike[np.linspace(0, len(alike) - 1, min(3, len(alike))).round().astype(int)]]
    timed = [int(row) for row in test[np.linspace(0, len(test) - 1, min(TIMED_CLIPS, len(test))).round().astype(int)]]
    seconds = [recognizer.classify(index.file(row)).seconds for row in timed]
    shown = [(recognizer.classify(index.file(row)), data.classes[index.label[row]], str(index.name[row])) for row in chosen]
    return shown, statistics.median(seconds)


def _accuracy_section(rows: Sequence[ResultRow], num_classes: int) -> Section:
    picture = Picture(
        "accuracy", "Top-1 accuracy on the test people, with 95 % confidence intervals over clips.", accuracy_bars(rows, 1 / num_classes)
    )
    return Section("Accuracy", pictures=[picture])


def _confusion_section(stage2: Run) -> Section:
    confusion = stage2.confusion("test")
    if confusion is None:
        return Section("Confusion", text="No confusion matrix was written.")
    caption = "Rows are true actions, columns are recognised actions. Clips of the test people."
    return Section("Confusion", pictures=[Picture("confusion", caption, confusion_figure(confusion))])


@torch.inference_mode()
def _sentences_section(shown: Sequence[tuple[Recognition, str, str]], recognizer: ActionRecognizer) -> Section:
    pictures = []
    windows = recognizer.vtem.pooler.windows
    for found, truth, name in shown:
        frames = decode(found.file, segment_centres(num_frames=probe(found.file).frames, num_segments=12), size=160, crop="pad")
        assert found.events is not None  # a stage-2 model makes them
        best, share = found.actions[0]
        sentence = Sentence(
            title=f"{truth}: recognised as {best} ({share:.0%})",
            frames=frames.frames.permute(0, 2, 3, 1).numpy(),
            times=frames.times.numpy(),
            spans=found.events.spans[0].cpu().numpy(),
            ids=found.events.ids[0].unflatten(0, (windows, -1)).cpu().numpy(),
        )
        caption = f"{name}. Above: frames of the clip. Below: the windows of the pooling, and the codes of each window's cells."
        pictures.append(Picture(f"sentence_{name}", caption, sentence_figure(sentence)))
    text = (
        "Each column is a window of equal salience. Each box is the code of one cell of the picture "
        "(top left, top right, bottom left, bottom right)."
    )
    return Section("Three clips and their event sentences", text=text, pictures=pictures)


def _training_section(stage1: Run, stage2: Run) -> Section:
    first, second = stage1.scalars(), stage2.scalars()

    def panel(title: str, curves: dict[str, Curve], wanted: dict[str, str], unit: str = "", share: bool = False) -> list[Panel]:
        held = {name: tag for name, tag in wanted.items() if tag in curves}
        return [Panel(title, [curves[tag] for tag in held.values()], list(held), unit, share)] if held else []

    panels = [
        *panel(
            "stage 1: reconstruction", first, {"train": "train/reconstruction", "validation": "val/reconstruction"}, "1 = predicts the mean"
        ),
        *panel(
            "stage 1: perplexity of the codebook",
            first,
            {"train": "train/codebook_perplexity", "validation": "val/codebook_perplexity"},
            "codes",
        ),
        *panel("stage 2: cross-entropy", second, {"train": "train/loss", "validation": "val/nll"}, "nats"),
        *panel("stage 2: top-1", second, {"train": "train/top1", "validation": "val/top1"}, share=True),
    ]
    cost = [
        [name, str(run.fit.steps), f"{run.fit.seconds_per_step:.2f}" if run.fit.seconds_per_step else "", f"{run.fit.wall_seconds:.0f}",
         f"{run.fit.trainable_parameters:,}", run.fit.peak_gib]
        for name, run in (("stage 1", stage1), ("stage 2", stage2))
        if run.fit is not None
    ]  # fmt: skip
    table = Table(["", "steps", "seconds per step", "total seconds", "trained parameters", "peak GiB"], cost)
    return Section("Training", pictures=[Picture("curves", "Training and validation curves.", learning_curves(panels))], tables=[table])
