"""From a grid to work items: which command makes what, in which folder, and which results each row of the table needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtlvlm.ablation.clips import Clips
from vtlvlm.ablation.grid import EACH_PERSON, STAGES, Arm, Grid
from vtlvlm.ablation.items import SCORE, Item
from vtlvlm.ablation.networks import Networks
from vtlvlm.ablation.operations import Load
from vtlvlm.ablation.planned import Machine, Plan, PlannedRun
from vtlvlm.ablation.settings import (
    QUIET,
    Config,
    Resolver,
    config_options,
    data_section,
    extraction_settings,
    get,
    key_of,
    put,
    steps_of_trainer,
    training_settings,
)
from vtlvlm.errors import UsageError
from vtlvlm.report.networks import bare, is_network

KINDS = {1: "VTEMModule", 2: "PromptTuningModule"}
"""Stage -> what its configurations build"""


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
        staged = [arm for arm in grid.arms if not arm.recognition]
        self.files1 = {arm.name: [*grid.stage1, *arm.stage1, *machine.stage1] for arm in staged}
        self.files2 = {arm.name: [*grid.stage2, *arm.stage2, *machine.stage2] for arm in staged if grid.stage2}
        self.config1 = {arm.name: self._resolved(resolve, arm, 1) for arm in staged}
        self.config2 = {arm.name: self._resolved(resolve, arm, 2) for arm in staged if grid.stage2}
        self.networks = Networks(grid, machine, resolve)
        read = [*self.config1.values(), *self.networks.on_videos().values()]
        self.clips = Clips(grid, machine, [data_section(config)["source"]["root"] for config in read])
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
        kind = bare(found.get("model"))
        if (is_network(found) or kind in KINDS.values()) and kind != KINDS[stage]:
            remedy = "; an arm names it under `recognition:`" if is_network(found) else ""
            raise UsageError(f"{who}{base[0].name} is a configuration of {kind}; `stage{stage}:` takes one of {KINDS[stage]}{remedy}")
        return found

    def _folds(self, resolve: Resolver) -> tuple[str, ...]:
        """The protocols of the folds. An overlay may not change the protocol, and both stages need the same one."""
        bases = {stage: resolve(files)["data"]["source"]["protocol"] for stage, files in self._bases().items()}
        for stage, configs in ((1, self.config1), (2, self.config2)):
            for arm, config in configs.items():
                if (own := config["data"]["source"]["protocol"]) != bases[stage]:
                    raise UsageError(f"arm {arm}: protocol {own} beside {bases[stage]} in one table; make a grid for each protocol")
        if self.grid.folds == (EACH_PERSON,):
            recordings = None if self.clips.read else self.networks.recordings(self.clips)
            return tuple(f"leave_out:{person}" for person in self.clips.people(recordings))
        if not self.grid.folds and len(set(bases.values())) > 1:
            raise UsageError(f"{self.grid.name}: protocol {bases[1]} in stage 1 and {bases[2]} in stage 2; name one under `folds:`")
        found = {**{f"stage {stage}": protocol for stage, protocol in bases.items()}, **self.networks.protocols()}
        if not self.grid.folds and len(set(found.values())) > 1:
            (one, first), (other, second) = (
                next((n, p) for n, p in found.items() if p == protocol) for protocol in dict.fromkeys(found.values())
            )
            raise UsageError(f"{self.grid.name}: protocol {first} in {one} and {second} in {other}; name one under `folds:`")
        return self.grid.folds or (next(iter(found.values())),)

    def _bases(self) -> dict[int, list[Path]]:
        """Stage -> configurations without an arm's overlays."""
        found = {1: [*self.grid.stage1, *self.machine.stage1]} if self.grid.stage1 else {}
        return {**found, 2: [*self.grid.stage2, *self.machine.stage2]} if self.grid.stage2 else found

    def _require_different(self) -> None:
        seen: dict[str, str] = {}
        for arm in self.grid.arms:
            if arm.recognition:
                mark = self.networks.mark(arm.name)
            else:
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
            plan.settings[arm.name] = self.networks.facts(arm.name) if arm.recognition else self._axis(arm)
        taken: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}  # chosen on one arm, for all of its stage
        waiting: set[str] = set()  # stages with such a choice to make
        for number, choice in enumerate(self.grid.choices):
            out = {earlier.arm for earlier in self.grid.choices[:number]}
            arms = [arm for arm in self._choosing(choice.stage) if arm.name not in out and self._reads(arm, choice.setting)]
            for arm in arms if choice.arm is None else [arm for arm in self.grid.arms if arm.name == choice.arm]:
                if choice.stage in waiting or arm.name in plan.trials or arm.name in plan.hopeless:
                    continue
                base = {**taken[choice.stage], **plan.rates.get(arm.name, {})}
                best = self._choose(plan, arm, choice.setting, choice.values, base)
                if best is None:
                    waiting |= {choice.stage} if choice.arm is not None else set()
                    if choice.arm is not None and arm.name in plan.hopeless:
                        reason = plan.hopeless[arm.name]
                        plan.hopeless |= {other.name: reason for other in self._choosing(choice.stage)}
                elif choice.arm is not None:
                    taken[choice.stage][choice.setting] = best
                else:
                    plan.rates[arm.name] = {**base, choice.setting: best}
        for arm in self.grid.arms:
            stage = "recognition" if arm.recognition else "stage2"
            if arm in self._choosing(stage) and taken[stage]:
                plan.rates[arm.name] = {**taken[stage], **plan.rates.get(arm.name, {})}
        for arm in self.grid.arms:
            stage, first = "recognition" if arm.recognition else "stage2", arm.init_from or arm.name
            wait = self._trains(arm) and (stage in waiting or first in plan.trials or first in plan.hopeless)
            runs = [self._run(plan, arm, seed, fold, wait) for seed in arm.seeds or self.grid.seeds for fold in self.folds]
            plan.runs[arm.name] = runs
            if first in plan.hopeless:
                plan.hopeless[arm.name] = plan.hopeless[first]
        return plan

    def _choosing(self, stage: str) -> list[Arm]:
        """The arms of a stage that take part in choices of its rates. A network that starts from another has its configuration's rate."""
        arms = [arm for arm in self.grid.arms if bool(arm.recognition) == (stage == "recognition")]
        return [arm for arm in arms if self._trains(arm) and arm.init_from is None]

    def _trains(self, arm: Arm) -> bool:
        """Whether an arm trains a network or a stage 2; the zero-shot model does not."""
        if arm.recognition:
            return True
        if not self.config2:
            return False
        reasoner = get(self.config2[arm.name], "model.init_args.reasoner.init_args", {})
        frozen = str(get(reasoner, "adapter.class_path", "")).rpartition(".")[2] == "NoAdapter"
        return not (frozen and reasoner.get("train_projector") is False)

    def _reads(self, arm: Arm, setting: str) -> bool:
        """Whether a rate changes an arm's training: without an adapter, only the projector has a rate."""
        if arm.recognition:
            return True
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
            rates = {**base, setting: value}
            if arm.recognition:
                item = self.networks.item(plan, arm, seed, fold, rates, self.clips, len(self.folds) > 1, "trial")
            else:
                item = self._stage2(plan, arm, seed, fold, rates, trial=True)
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
        if arm.recognition:
            return PlannedRun(seed, fold) if waiting else self.networks.run(plan, arm, seed, fold, self.clips, len(self.folds) > 1)
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
        return ["--data.source.root", str(self.clips.root), "--data.source.protocol", fold, *more]

    def _settled(self, config: Config, seed: int, fold: str) -> dict[str, Any]:
        """The settings that matter, with this fold and share of validation people."""
        config["data"]["source"]["protocol"] = fold
        if self.grid.validation is not None:
            config["data"]["source"]["validation"] = self.grid.validation
        return training_settings(config, seed)

    def _extract(self, plan: Plan, arm: Arm, fold: str) -> Item:
        return self.clips.features(plan, self.config1[arm.name], self.files1[arm.name], arm.name, fold, len(self.folds) > 1)

    def _fit1(self, plan: Plan, arm: Arm, seed: int, fold: str) -> Item:
        features = self._extract(plan, arm, fold)
        config = json.loads(json.dumps(self.config1[arm.name]))
        key = key_of(self._settled(config, seed, fold), features.name)
        folder = self.machine.work / "stage1" / key
        shared = [
            *config_options(self.files1[arm.name]),
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
            plan,
            Item(
                f"stage1/{key}",
                "fit1",
                folder,
                arguments,
                (features.name,),
                subject,
                steps_of_trainer(config),
                config["data"]["batch_size"],
            ),
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
        inputs = (
            str(self.clips.root),
            "--features",
            str(features.folder),
            "--protocol",
            fold,
            "--vtem",
            str(checkpoint),
            "--seed",
            str(seed),
        )
        arguments = ("probe", *inputs, "--output", str(output))
        item = Item(f"{trained.name}/probe", "probe", trained.folder, arguments, (features.name, trained.name), trained.subject)
        return trained, self._add(plan, item)

    def _llava(self, plan: Plan, config: Config) -> tuple[list[str], tuple[str, ...]]:
        """Options and needs of a composed LLaVA; its name replaces the path in the settings that matter."""
        if not self.grid.composed:
            return [], ()
        folder = self.machine.work / "llava"
        width = next(iter(self.config1.values()))["model"]["init_args"]["event_dim"]
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
        files = [*config_options(self.files2[arm.name]), "--seed_everything", str(seed), *self._data(fold), *QUIET]
        shared = (*files, *llava, *options, "--data.events", str(events.folder), "--trainer.default_root_dir", str(folder))
        subject = f"{arm.name}, {fold}, seed {seed}" + "".join(f", {rate:g}" for rate in rates.values())
        needs = (events.name, *needs)
        share = config["data"]["source"]["validation"]
        cost = steps_of_trainer(config), config["data"]["batch_size"], load
        if trial:
            return self._add(plan, Item(f"trials/{key}", "trial", folder, ("fit", *shared), needs, subject, *cost))
        checkpoint: list[str] = []
        if self._trains(arm):
            fitted = Item(f"stage2/{key}", "fit2", folder, ("fit", *shared), needs, subject, *cost)
            needs = (*needs, self._add(plan, fitted).name)
            checkpoint = ["--ckpt_path", str(folder / "checkpoints" / f"{'best' if share else 'last'}.ckpt")]
        return self._add(plan, Item(f"stage2/{key}/test", "test", folder, ("test", *shared, *checkpoint), needs, subject))
