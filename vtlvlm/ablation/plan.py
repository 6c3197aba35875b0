"""From a grid to work items: which command makes what, in which folder, and which results each row of the table needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtlvlm.ablation.grid import EACH_PERSON, Arm, Grid
from vtlvlm.ablation.items import SCORE, Item
from vtlvlm.ablation.operations import Load
from vtlvlm.ablation.planned import Machine, Plan, PlannedRun
from vtlvlm.ablation.settings import Config, Resolver, extraction_settings, get, key_of, put, training_settings
from vtlvlm.errors import UsageError

QUIET = ("--trainer.enable_progress_bar", "false")
KINDS = {1: "VTEMModule", 2: "PromptTuningModule"}
"""Stage -> what its configurations build"""
SMALL_PROTOCOLS, LARGE_PROTOCOLS = ("xsub60", "xview60"), ("xsub120", "xset120")
"""Protocols over the same clips"""


class Planner:
    """Plans a grid on a machine. ``plan`` is called again when trials of learning rates have ended.

    Args:
        grid: The grid.
        machine: Its places.
        resolve: Reads configurations.

    Raises:
        UsageError: An overlay changes nothing, two arms are the same, or the table would mix protocols.
    """

    def __init__(self, grid: Grid, machine: Machine, resolve: Resolver) -> None:
        self.grid, self.machine = grid, machine
        self.files1 = {arm.name: [*grid.stage1, *arm.stage1, *machine.stage1] for arm in grid.arms}
        self.files2 = {arm.name: [*grid.stage2, *arm.stage2, *machine.stage2] for arm in grid.arms if grid.stage2}
        self.config1 = {arm.name: self._resolved(resolve, arm, 1) for arm in grid.arms}
        self.config2 = {arm.name: self._resolved(resolve, arm, 2) for arm in grid.arms if grid.stage2}
        self.root = self._root()
        self.folds = self._folds(resolve)
        self._require_different()

    # -- checks ------------------------------------------------------------------------------------------------------------------

    def _resolved(self, resolve: Resolver, arm: Arm, stage: int) -> Config:
        """An arm's configuration of a stage. Every overlay has to change something."""
        base, overlays = (self.grid.stage1, arm.stage1) if stage == 1 else (self.grid.stage2, arm.stage2)
        more = self.machine.stage1 if stage == 1 else self.machine.stage2
        who = f"arm {arm.name}: "
        for number, overlay in enumerate(overlays):
            before, after = ([*base, *overlays[:end]] for end in (number, number + 1))
            if resolve(before, who) == resolve(after, who):
                raise UsageError(f"{who}{overlay.name} changes nothing in stage {stage}; remove it, or correct it")
        found = resolve([*base, *overlays, *more], who)
        kind = str(get(found, "model.class_path", "")).rpartition(".")[2]
        if kind in (*KINDS.values(), "Recognition") and kind != KINDS[stage]:
            raise UsageError(f"{who}{base[0].name} is a configuration of {kind}; `stage{stage}:` takes one of {KINDS[stage]}")
        return found

    def _root(self) -> Path:
        """The folder of the videos."""
        if self.machine.videos is not None:
            return self.machine.videos.absolute()
        if self.grid.videos is not None:
            return self.machine.work / "videos" / key_of(self.grid.videos.subjects, self.grid.videos.seed)
        roots = {config["data"]["source"]["root"] for config in self.config1.values()}
        if len(roots) > 1 or None in roots:
            raise UsageError(f"{self.grid.name}: no folder of videos, or several ({', '.join(map(str, roots))}): give --videos")
        return Path(roots.pop()).absolute()

    def _folds(self, resolve: Resolver) -> tuple[str, ...]:
        """The protocols of the folds. An overlay may not change the protocol, and both stages need the same one."""
        bases = {stage: resolve(files)["data"]["source"]["protocol"] for stage, files in self._bases().items()}
        for stage, configs in ((1, self.config1), (2, self.config2)):
            for arm, config in configs.items():
                if (own := config["data"]["source"]["protocol"]) != bases[stage]:
                    raise UsageError(f"arm {arm}: protocol {own} beside {bases[stage]} in one table; make a grid for each protocol")
        if self.grid.folds == (EACH_PERSON,):
            return tuple(f"leave_out:{person}" for person in self._people())
        if not self.grid.folds and len(set(bases.values())) > 1:
            raise UsageError(f"{self.grid.name}: protocol {bases[1]} in stage 1 and {bases[2]} in stage 2; name one under `folds:`")
        return self.grid.folds or (bases[1],)

    def _bases(self) -> dict[int, list[Path]]:
        """Stage -> configurations without an arm's overlays."""
        found = {1: [*self.grid.stage1, *self.machine.stage1]}
        return {**found, 2: [*self.grid.stage2, *self.machine.stage2]} if self.grid.stage2 else found

    def _people(self) -> list[str]:
        if self.machine.videos is None and self.grid.videos is not None:
            return [f"P{person:03d}" for person in range(1, self.grid.videos.subjects + 1)]
        from vtlvlm.data.index import ClipIndex

        index = ClipIndex.scan(self.root, fast=True, progress=False)
        people = sorted({str(index.group[row]) for row in index.usable} - {""})
        if len(people) < 2:
            raise UsageError(f"{self.root}: folds: {EACH_PERSON}: needs two people or more, named in NTU names or a CSV's groups")
        return people

    def _require_different(self) -> None:
        seen: dict[str, str] = {}
        for arm in self.grid.arms:
            configs = [training_settings(config[arm.name], 0) for config in (self.config1, self.config2) if config]
            mark = key_of(*configs, extraction_settings(self.config1[arm.name], "", ""))
            if mark in seen:
                raise UsageError(
                    f"{self.grid.name}: arms {seen[mark]} and {arm.name} have the same settings; remove one, or correct its overlay"
                )
            seen[mark] = arm.name

    # -- items -------------------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """All items that can be planned now. Learning rates are chosen from the trials that have ended."""
        for_all = frozenset(choice.arm for choice in self.grid.choices if choice.arm is not None)
        plan = Plan("leave_out" if len(self.folds) > 1 else self.folds[0], for_all=for_all)
        for arm in self.grid.arms:
            plan.settings[arm.name] = self._axis(arm)
        taken: dict[str, float] = {}  # chosen on one arm, for all
        open_choice = False
        for number, choice in enumerate(self.grid.choices):
            out = {earlier.arm for earlier in self.grid.choices[:number]}
            arms = [arm for arm in self.grid.arms if self._trains(arm) and arm.name not in out and self._reads(arm, choice.setting)]
            for arm in arms if choice.arm is None else [arm for arm in self.grid.arms if arm.name == choice.arm]:
                if open_choice or arm.name in plan.trials or arm.name in plan.hopeless:
                    continue
                base = {**taken, **plan.rates.get(arm.name, {})}
                best = self._choose(plan, arm, choice.setting, choice.values, base)
                if best is None:
                    open_choice = open_choice or choice.arm is not None
                    if choice.arm is not None and arm.name in plan.hopeless:
                        reason = plan.hopeless[arm.name]
                        plan.hopeless |= {other.name: reason for other in self.grid.arms if self._trains(other)}
                elif choice.arm is not None:
                    taken[choice.setting] = best
                else:
                    plan.rates[arm.name] = {**base, choice.setting: best}
        for arm in self.grid.arms:
            if self._trains(arm) and taken:
                plan.rates[arm.name] = {**taken, **plan.rates.get(arm.name, {})}
            waiting = self._trains(arm) and (open_choice or arm.name in plan.trials or arm.name in plan.hopeless)
            runs = [self._run(plan, arm, seed, fold, waiting) for seed in arm.seeds or self.grid.seeds for fold in self.folds]
            plan.runs[arm.name] = runs
        return plan

    def _trains(self, arm: Arm) -> bool:
        """Whether an arm trains a stage 2; the zero-shot model does not."""
        if not self.config2:
            return False
        reasoner = get(self.config2[arm.name], "model.init_args.reasoner.init_args", {})
        frozen = str(get(reasoner, "adapter.class_path", "")).rpartition(".")[2] == "NoAdapter"
        return not (frozen and reasoner.get("train_projector") is False)

    def _reads(self, arm: Arm, setting: str) -> bool:
        """Whether a rate changes an arm's training: without an adapter, only the projector has a rate."""
        adapter = str(get(self.config2[arm.name], "model.init_args.reasoner.init_args.adapter.class_path", "")).rpartition(".")[2]
        return not (setting.endswith("optimizer.learning_rate") and adapter == "NoAdapter")

    def _axis(self, arm: Arm) -> dict[str, float]:
        """Numbers of stage 1 that plots use: windows, tokens (M) and codes (K)."""
        parts = self.config1[arm.name]["model"]["init_args"]
        windows, cells = get(parts, "pooler.init_args.windows"), get(parts, "extractor.init_args.grid")
        found = {"windows": windows, "tokens": windows and cells and windows * cells**2, "codes": get(parts, "quantizer.init_args.codes")}
        return {name: number for name, number in found.items() if number is not None}

    def _choose(self, plan: Plan, arm: Arm, setting: str, values: Sequence[float], base: dict[str, float]) -> float | None:
        """The rate of lowest loss on the validation people; None while trials are missing, which it plans."""
        seed, fold = (arm.seeds or self.grid.seeds)[0], self.folds[0]
        scores: dict[float, float | None] = {}
        names = []
        for value in values:
            item = self._stage2(plan, arm, seed, fold, {**base, setting: value}, trial=True)
            names.append(item.name)
            if item.done():
                scores[value] = json.loads((item.folder / SCORE).read_text(encoding="utf-8"))["nll"]
        if len(scores) < len(values):
            plan.trials[arm.name] = names
            return None
        finite = {value: score for value, score in scores.items() if score is not None}
        if not finite:
            tried = ", ".join(f"{value:g}" for value in values)
            plan.hopeless[arm.name] = f"arm {arm.name}: diverges at every learning rate ({tried}); name lower ones in the grid"
            return None
        return min(finite, key=lambda value: finite[value])

    def _run(self, plan: Plan, arm: Arm, seed: int, fold: str, waiting: bool) -> PlannedRun:
        """The items of one run."""
        if not self.config2:
            trained, probed = self._probe(plan, arm, seed, fold)
            return PlannedRun(seed, fold, trained.name, final=probed.name)
        events = self._tokenize(plan, arm, seed, fold)
        run = PlannedRun(seed, fold, events.needs[-1], events.name)
        if waiting:
            return run
        rates = plan.rates.get(arm.name, {})
        item = self._stage2(plan, arm, seed, fold, rates)
        run.stage2, run.final = str(item.folder.relative_to(self.machine.work)), item.name
        run.learning_rate = next(reversed(rates.values()), None)
        return run

    def _add(self, plan: Plan, item: Item) -> Item:
        return plan.items.setdefault(item.name, item)

    def _data(self, fold: str) -> list[str]:
        more = [] if self.grid.validation is None else ["--data.source.validation", f"{self.grid.validation:g}"]
        return ["--data.source.root", str(self.root), "--data.source.protocol", fold, *more]

    def _settled(self, config: Config, seed: int, fold: str) -> dict[str, Any]:
        """The settings that matter, with this fold and share of validation people."""
        config["data"]["source"]["protocol"] = fold
        if self.grid.validation is not None:
            config["data"]["source"]["validation"] = self.grid.validation
        return training_settings(config, seed)

    def _videos(self, plan: Plan) -> tuple[str, ...]:
        if self.grid.videos is None or self.machine.videos is not None:
            return ()
        people, seed = self.grid.videos.subjects, self.grid.videos.seed
        arguments = ("synth", str(self.root), "--subjects", str(people), "--seed", str(seed))
        name = f"videos/{self.root.name}"
        return (self._add(plan, Item(name, "synth", self.root, arguments, subject=f"{people} people, seed {seed}")).name,)

    def _extract(self, plan: Plan, arm: Arm, fold: str) -> Item:
        """One feature cache for all folds, if the folds may share it."""
        config = self.config1[arm.name]
        sampling = config["data"]["sampling"]
        tested = sampling["test_clips"] * sampling["test_crops"]
        protocol = covered = "all" if len(self.folds) > 1 and tested == 1 else fold
        if sampling["views"] == tested == 1:  # every clip has one view, whatever side it is on
            covered = "60 actions" if fold in SMALL_PROTOCOLS else "120 actions" if fold in LARGE_PROTOCOLS else covered
        key = key_of(extraction_settings(config, str(self._root_name()), covered))
        folder = self.machine.work / "features" / key
        files = _configs([*self.files1[arm.name], *self.machine.extract])
        where = ["--data.source.root", str(self.root), "--data.source.protocol", protocol]
        arguments = ("extract", *files, *where, *QUIET, "--output", str(folder))
        return self._add(plan, Item(f"features/{key}", "extract", folder, arguments, self._videos(plan), arm.name))

    def _root_name(self) -> str:
        """Rendered videos are the same wherever the work folder lies."""
        inside = self.machine.videos is None and self.grid.videos is not None
        return f"videos/{self.root.name}" if inside else str(self.root)

    def _fit1(self, plan: Plan, arm: Arm, seed: int, fold: str) -> Item:
        features = self._extract(plan, arm, fold)
        config = json.loads(json.dumps(self.config1[arm.name]))
        key = key_of(self._settled(config, seed, fold), features.name)
        folder = self.machine.work / "stage1" / key
        shared = [
            *_configs(self.files1[arm.name]),
            "--seed_everything",
            str(seed),
            *self._data(fold),
            *QUIET,
            "--data.features",
            str(features.folder),
        ]
        arguments = ("fit", *shared, "--trainer.default_root_dir", str(folder))
        subject = f"{arm.name}, {fold}, seed {seed}"
        return self._add(
            plan, Item(f"stage1/{key}", "fit1", folder, arguments, (features.name,), subject, _steps(config), config["data"]["batch_size"])
        )

    def _checkpoint1(self, trained: Item, arm: Arm) -> Path:
        share = self.config1[arm.name]["data"]["source"]["validation"] if self.grid.validation is None else self.grid.validation
        chosen = self.grid.stage1_checkpoint or ("best" if share else "last")
        return trained.folder / "checkpoints" / f"{chosen}.ckpt"

    def _tokenize(self, plan: Plan, arm: Arm, seed: int, fold: str) -> Item:
        trained = self._fit1(plan, arm, seed, fold)
        checkpoint = self._checkpoint1(trained, arm)
        key = key_of(trained.name, checkpoint.name)
        folder = self.machine.work / "events" / key
        shared = trained.arguments[1 : trained.arguments.index("--trainer.default_root_dir")]
        arguments = ("tokenize", *shared, "--ckpt_path", str(checkpoint), "--output", str(folder))
        return self._add(plan, Item(f"events/{key}", "tokenize", folder, arguments, (*trained.needs, trained.name), trained.subject))

    def _probe(self, plan: Plan, arm: Arm, seed: int, fold: str) -> tuple[Item, Item]:
        trained = self._fit1(plan, arm, seed, fold)
        features = plan.items[trained.needs[0]]
        checkpoint, output = self._checkpoint1(trained, arm), trained.folder / "probes.json"
        inputs = (str(self.root), "--features", str(features.folder), "--protocol", fold, "--vtem", str(checkpoint), "--seed", str(seed))
        arguments = ("probe", *inputs, "--output", str(output))
        item = Item(f"{trained.name}/probe", "probe", trained.folder, arguments, (features.name, trained.name), trained.subject)
        return trained, self._add(plan, item)

    def _llava(self, plan: Plan, config: Config) -> tuple[list[str], tuple[str, ...]]:
        """Options and needs of a composed LLaVA; its name replaces the path in the settings that matter."""
        if not self.grid.composed:
            return [], ()
        folder = self.machine.work / "llava"
        width = self.config1[self.grid.arms[0].name]["model"]["init_args"]["event_dim"]
        item = self._add(plan, Item("llava", "compose", folder, ("compose", str(folder), "--event-dim", str(width))))
        put(config, "model.init_args.reasoner.init_args.llava.path", f"composed, {width}")
        return ["--model.init_args.reasoner.init_args.llava.path", str(folder)], (item.name,)

    def _load(self, arm: Arm) -> Load:
        reasoner = self.config2[arm.name]["model"]["init_args"]["reasoner"]["init_args"]
        path = str(self.machine.work / "llava") if self.grid.composed else str(reasoner["llava"]["path"])
        layers = get(reasoner, "adapter.init_args.layers") or ""
        name = str(reasoner["adapter"]["class_path"]).rpartition(".")[2]
        tokens = int(self._axis(arm).get("tokens", 0))
        return Load(path, tokens, name, layers if isinstance(layers, str) else tuple(layers), bool(reasoner["train_projector"]))

    def _stage2(self, plan: Plan, arm: Arm, seed: int, fold: str, rates: dict[str, float], trial: bool = False) -> Item:
        """The test of a run, or the training of a trial."""
        events = self._tokenize(plan, arm, seed, fold)
        config = json.loads(json.dumps(self.config2[arm.name]))
        llava, needs = self._llava(plan, config)
        load = self._load(arm)
        options = [part for setting, rate in rates.items() for part in (f"--{setting}", str(rate))]
        for setting, rate in rates.items():
            put(config, setting, rate)
        if trial:
            length = {"max_steps": self.grid.trial_steps, "val_check_interval": self.grid.trial_steps}
            config["trainer"] |= {**length, "check_val_every_n_epoch": None, "max_epochs": None}
            options += [part for name, number in length.items() for part in (f"--trainer.{name}", str(number))]
            options += ["--trainer.check_val_every_n_epoch", "null", "--trainer.max_epochs", "null"]
        key = key_of(self._settled(config, seed, fold), events.name)
        place = "trials" if trial else "stage2"
        folder = self.machine.work / place / key
        files = [*_configs(self.files2[arm.name]), "--seed_everything", str(seed), *self._data(fold), *QUIET]
        shared = (*files, *llava, *options, "--data.events", str(events.folder), "--trainer.default_root_dir", str(folder))
        subject = f"{arm.name}, {fold}, seed {seed}" + "".join(f", {rate:g}" for rate in rates.values())
        needs = (events.name, *needs)
        share = config["data"]["source"]["validation"]
        if trial:
            return self._add(
                plan,
                Item(
                    f"trials/{key}", "trial", folder, ("fit", *shared), needs, subject, _steps(config), config["data"]["batch_size"], load
                ),
            )
        checkpoint: list[str] = []
        if self._trains(arm):
            fitted = Item(
                f"stage2/{key}", "fit2", folder, ("fit", *shared), needs, subject, _steps(config), config["data"]["batch_size"], load
            )
            needs = (*needs, self._add(plan, fitted).name)
            checkpoint = ["--ckpt_path", str(folder / "checkpoints" / f"{'best' if share else 'last'}.ckpt")]
        return self._add(plan, Item(f"stage2/{key}/test", "test", folder, ("test", *shared, *checkpoint), needs, subject))


def _configs(files: Sequence[Path]) -> list[str]:
    return [part for file in files for part in ("--config", str(file))]


def _steps(config: Config) -> int | None:
    steps = config["trainer"]["max_steps"]
    return steps if isinstance(steps, int) and steps > 0 else None
