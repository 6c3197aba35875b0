"""Reads a grid file: a small YAML with base configurations, arms (overlays), seeds, folds, and learning rates to choose from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vtlvlm.configs import config, shipped
from vtlvlm.errors import UsageError
from vtlvlm.system.text import shown

EACH_PERSON = "each person"
"""Word for ``folds``: leave out each person in turn"""
STAGES = ("stage2", "recognition")
"""What a learning rate belongs to"""
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        name: Short name, unique in the grid.
        label: Text of the row.
        paper: The paper's figure, in percent; None if it has none.
        stage1: Overlays on the grid's stage 1.
        stage2: Overlays on the grid's stage 2.
        seeds: Training seeds of this arm; None for the grid's.
        recognition: Configuration of a recognition network and overlays on it, which stand for both stages; empty for an arm of the stages.
        init_from: The arm whose trained network this one's training starts from.
    """

    name: str
    label: str
    paper: float | None = None
    stage1: tuple[Path, ...] = ()
    stage2: tuple[Path, ...] = ()
    seeds: tuple[int, ...] | None = None
    recognition: tuple[Path, ...] = ()
    init_from: str | None = None


@dataclass(frozen=True)
class Choice:
    """A learning rate that validation people choose.

    Attributes:
        setting: Dotted name in the configuration.
        values: The rates to try.
        arm: The arm whose best rate all arms take. None: each arm takes its own best rate.
        stage: ``stage2``, or ``recognition`` for the arms that are networks.
    """

    setting: str
    values: tuple[float, ...]
    arm: str | None = None
    stage: str = "stage2"


@dataclass(frozen=True)
class Rendered:
    """Rendered videos (``vtlvlm synth``).

    Attributes:
        subjects: Number of people; None for all of the recordings.
        seed: Of everything random.
        motion: Recorded skeletons that the bodies play; None for the project's own actions.
    """

    subjects: int | None
    seed: int
    motion: Path | None = None


@dataclass(frozen=True)
class Grid:
    """A grid file.

    Attributes:
        name: The file's name without its suffix.
        title: One line.
        table: Number of the paper's table; None for a table that the paper lacks.
        metric: A metric of ``test``; without a stage 2, a probe of ``vtlvlm probe --vtem``.
        stage1: Configurations of stage 1, the base of all arms that are no networks; empty if all are.
        stage2: Configurations of stage 2; empty if the grid ends with stage 1, or if all arms are networks.
        arms: The rows. The first one is compared with the others.
        seeds: Training seeds.
        folds: Protocols. Several ones, such as ``leave_out:P001``, test each clip once. ``("each person",)`` leaves out each person in
            turn. Empty for the protocol of the configuration.
        validation: Share of the training people held out; None for the configuration's.
        videos: Videos to render; None for the configuration's ``data.source.root``.
        composed: Whether stage 2 reads a LLaVA from ``vtlvlm compose`` in the work folder instead of the configuration's.
        choices: Learning rates to choose, in this order. An arm that a choice names takes no part in later choices.
        trial_steps: Optimiser steps to try a learning rate.
        stage1_checkpoint: ``last`` or ``best``: the checkpoint of stage 1 that writes the event sentences.
        compare: Names of arms: the first against each of the others.
    """

    name: str
    title: str
    table: str | None
    metric: str
    stage1: tuple[Path, ...]
    stage2: tuple[Path, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    folds: tuple[str, ...]
    validation: float | None
    videos: Rendered | None
    composed: bool
    choices: tuple[Choice, ...]
    trial_steps: int
    stage1_checkpoint: str | None
    compare: tuple[str, ...]


KEYS = (
    *("title", "table", "metric", "stage1", "stage2", "arms", "seeds", "folds", "validation", "videos", "composed_llava", "rates"),
    *("stage1_checkpoint", "compare"),
)
ARM_KEYS = ("name", "label", "paper", "stage1", "stage2", "seeds", "recognition", "init_from")


def read_grid(path: Path) -> Grid:
    """Read and check a grid file.

    Args:
        path: The file. A name that does not exist here is looked up among the shipped ``experiments/``.

    Raises:
        UsageError: The file is missing or no grid, has an unknown key, no arm, two arms of one name, or an overlay that does not exist.
    """
    path = _grid_file(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise UsageError(f"{path}: not a readable YAML file{where}: {shown(str(error).splitlines()[0], 200)}") from error
    reading = _Reading(path, f"{path}: ")
    reading.require_keys(content, KEYS, "a grid")
    stage2 = reading.files(content, "stage2")
    arms = tuple(_arm(path, entry) for entry in reading.entries(content, "arms"))
    if not arms:
        raise UsageError(f"{path}: no arms; list at least one under `arms:`, such as - {{name: full}}")
    names = [arm.name for arm in arms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{path}: two arms are called {twice}; give each a name of its own")
    compare = tuple(str(name) for name in reading.entries(content, "compare")) or tuple(names)
    if strange := next((name for name in compare if name not in names), None):
        raise UsageError(f"{path}: compare: {shown(strange, 60)}: no such arm; there are {', '.join(names)}")
    stage1 = reading.files(content, "stage1")
    _require_stages(path, arms, stage1, stage2, rated=content.get("rates") is not None)
    choices, steps = _choices(reading, content.get("rates"), arms, "stage2" if stage2 else "recognition")
    composed = content.get("composed_llava", False)
    if not isinstance(composed, bool):
        raise UsageError(f"{path}: composed_llava: {shown(composed, 40)}: expected true or false")
    grid = Grid(
        name=path.stem,
        title=str(content.get("title") or path.stem),
        table=None if content.get("table") is None else str(content["table"]),
        metric=str(content.get("metric") or ("top1" if stage2 or not stage1 else "codes: attention")),
        stage1=stage1,
        stage2=stage2,
        arms=arms,
        seeds=reading.seeds(content) or (0,),
        folds=folds_of(content.get("folds"), f"{path}: folds: "),
        validation=reading.share(content.get("validation")),
        videos=_videos(reading, content.get("videos")),
        composed=composed,
        choices=choices,
        trial_steps=steps,
        stage1_checkpoint=content.get("stage1_checkpoint"),
        compare=compare,
    )
    if grid.stage1_checkpoint not in (None, "last", "best"):
        raise UsageError(f"{path}: stage1_checkpoint: {shown(grid.stage1_checkpoint, 40)}: give last or best")
    if choices and grid.validation == 0:
        raise UsageError(f"{path}: validation: 0, but learning rates are chosen on validation people; give a share above 0")
    return grid


def _require_stages(path: Path, arms: Sequence[Arm], stage1: Sequence[Path], stage2: Sequence[Path], rated: bool) -> None:
    """Every arm has a base, each overlay and learning rate a stage, and all arms one kind of result."""
    networks = {arm.name: arm for arm in arms if arm.recognition}
    if not stage2 and ((rated and not networks) or any(arm.stage2 for arm in arms)):
        raise UsageError(f"{path}: has overlays or learning rates of stage 2, but no `stage2:`; name its configuration")
    if not stage1 and len(networks) < len(arms):
        raise UsageError(f"{path}: no `stage1:`; name the configuration of stage 1, such as stage1_small.yaml")
    if networks and len(networks) < len(arms) and not stage2:
        raise UsageError(
            f"{path}: arm {next(iter(networks))} is a network, which is tested, and the others end with stage 1: name a `stage2:`"
        )
    for arm in arms:
        where = f"{path}: arm {arm.name}: "
        if arm.recognition and (arm.stage1 or arm.stage2):
            raise UsageError(f"{where}a network has no stages; give overlays after its configuration in `recognition:`")
        if arm.init_from is None:
            continue
        if not arm.recognition or arm.init_from not in networks or networks[arm.init_from].init_from is not None:
            others = ", ".join(name for name, other in networks.items() if other.init_from is None and other is not arm)
            raise UsageError(f"{where}init_from: {shown(arm.init_from, 60)}: a network starts from one of the other networks: {others}")


def _grid_file(path: Path) -> Path:
    if path.is_file():
        return path
    inner = re.sub(r"^(\./)*(lightning_configs/)?(experiments/)?", "", path.as_posix())
    found = shipped() / "experiments" / inner
    if path.is_absolute() or ".." in path.parts or not found.is_file():
        raise UsageError(f"{path}: no such grid file; `vtlvlm configs` lists the shipped ones under experiments/")
    return found


class _Reading:
    """Typed values of one mapping in a grid file, with one-line refusals that begin with ``where``."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where

    def refuse(self, what: str) -> UsageError:
        return UsageError(f"{self.where}{what}")

    def require_keys(self, content: Any, known: Sequence[str], what: str) -> None:
        if not isinstance(content, Mapping):
            raise self.refuse(f"not {what}: expected settings such as `{known[0]}:`")
        if unknown := next((key for key in content if key not in known), None):
            raise self.refuse(f"{shown(unknown, 60)}: no such key; there are {', '.join(known)}")

    def entries(self, content: Mapping[str, Any], key: str) -> list[Any]:
        found = content.get(key)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.refuse(f"{key}: expected a list")
        return found

    def files(self, content: Mapping[str, Any], key: str) -> tuple[Path, ...]:
        found = content.get(key)
        names = [] if found is None else found if isinstance(found, list) else [found]
        return tuple(self.overlay(key, name) for name in names)

    def overlay(self, key: str, name: Any) -> Path:
        if not isinstance(name, str) or not name:
            raise self.refuse(f"{key}: {shown(name, 60)}: expected the name of a configuration")
        for place in (self.path.parent / name, Path(name)):
            if place.is_file():
                return place.resolve()
        try:
            return Path(config(re.sub(r"^(\./)*(lightning_configs/)?", "", name)))
        except UsageError:
            where = f"{self.path.parent}, the working folder, or the shipped configurations"
            raise self.refuse(f"{key}: {shown(name, 120)}: no such configuration in {where}") from None

    def seeds(self, content: Mapping[str, Any]) -> tuple[int, ...]:
        found = self.entries(content, "seeds")
        if bad := [seed for seed in found if type(seed) is not int or not 0 <= seed < 2**32]:
            raise self.refuse(f"seeds: {shown(bad[0], 40)}: expected whole numbers from 0")
        return tuple(dict.fromkeys(found))

    def share(self, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise self.refuse(f"validation: {shown(value, 40)}: expected a share of the training people in [0, 1)")
        return float(value)


def _arm(path: Path, entry: Any) -> Arm:
    reading = _Reading(path, f"{path}: arms: ")
    reading.require_keys(entry, ARM_KEYS, "an arm")
    name, paper = entry.get("name"), entry.get("paper")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise reading.refuse(f"name: {shown(name, 60)}: expected letters, digits, and . _ + - such as no_coherence")
    if paper is not None and (isinstance(paper, bool) or not isinstance(paper, int | float)):
        raise reading.refuse(f"{name}: paper: {shown(paper, 40)}: expected a number in percent")
    inner = _Reading(path, f"{path}: arm {name}: ")
    start = entry.get("init_from")
    return Arm(
        name,
        str(entry.get("label") or name),
        None if paper is None else float(paper),
        inner.files(entry, "stage1"),
        inner.files(entry, "stage2"),
        inner.seeds(entry) or None,
        inner.files(entry, "recognition"),
        None if start is None else str(start),
    )


def _choices(reading: _Reading, content: Any, arms: Sequence[Arm], usual: str) -> tuple[tuple[Choice, ...], int]:
    if content is None:
        return (), 0
    reading = _Reading(reading.path, f"{reading.path}: rates: ")
    reading.require_keys(content, ("steps", "choose"), "a choice of learning rates")
    steps, found = content.get("steps"), []
    if type(steps) is not int or steps < 1:
        raise reading.refuse(f"steps: {shown(steps, 40)}: expected the optimiser steps to try a rate, at least 1")
    for entry in reading.entries(content, "choose"):
        reading.require_keys(entry, ("setting", "values", "arm", "stage"), "a choice")
        setting, values, arm, stage = entry.get("setting"), reading.entries(entry, "values"), entry.get("arm"), entry.get("stage", usual)
        if not isinstance(setting, str) or not setting.startswith("model."):
            raise reading.refuse(f"setting: {shown(setting, 60)}: expected a name such as model.init_args.optimizer.learning_rate")
        if len(values) < 2 or any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < float("inf") for v in values):
            raise reading.refuse(f"{setting}: values: expected two or more numbers above 0 (YAML reads 1e-3 as text: write 1.0e-3)")
        if stage not in STAGES or (stage == "stage2" and usual != "stage2"):
            raise reading.refuse(f"stage: {shown(stage, 60)}: expected {' or '.join(STAGES)}, and a grid that has it")
        fitting = [one.name for one in arms if bool(one.recognition) == (stage == "recognition") and one.init_from is None]
        if not fitting or (arm is not None and arm not in fitting):
            raise reading.refuse(f"arm: {shown(arm, 60)}: no such arm of {stage}; there are {', '.join(fitting) or 'none'}")
        found.append(Choice(setting, tuple(map(float, values)), arm, stage))
    if not found:
        raise reading.refuse("choose: no setting; leave `rates:` out to use the configuration's rates")
    return tuple(found), steps


def folds_of(found: Any, where: str) -> tuple[str, ...]:
    """Check the protocols of the folds.

    Args:
        found: One protocol or a list.
        where: Beginning of an error.

    Raises:
        UsageError: They do not belong in one table.
    """
    names = [] if found is None else found if isinstance(found, list) else [found]
    if bad := [name for name in names if not isinstance(name, str) or not name]:
        raise UsageError(f"{where}{shown(bad[0], 40)}: expected protocols such as xsub60 or leave_out:P003, or `{EACH_PERSON}`")
    if len(names) > 1 and not all(name.startswith("leave_out:") for name in names):
        mixed = shown(" and ".join(names[:3]), 120)
        raise UsageError(f"{where}{mixed} in one table: only leave_out:... folds go together; make a grid for each protocol")
    return tuple(dict.fromkeys(names))


def _videos(reading: _Reading, found: Any) -> Rendered | None:
    if found is None:
        return None
    reading = _Reading(reading.path, f"{reading.path}: videos: ")
    reading.require_keys(found, ("subjects", "seed", "motion"), "a description of rendered videos")
    people, seed, motion = found.get("subjects"), found.get("seed", 0), found.get("motion")
    if motion is not None and (not isinstance(motion, str) or not motion):
        raise reading.refuse(f"motion: {shown(motion, 60)}: expected a file of recorded skeletons, such as data/nw_ucla.npz")
    counted = type(people) is int and people >= 2
    if not (counted or (people is None and motion)) or type(seed) is not int or seed < 0:
        raise reading.refuse("expected {subjects: N, seed: S} with 2 people or more; with motion: FILE, subjects may be left out")
    return Rendered(people, seed, None if motion is None else Path(motion))
