"""Plans the arms of a grid that are recognition networks: a training and a test each, on recordings of skeletons or on videos."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from vtlvlm.ablation.clips import Clips, Place
from vtlvlm.ablation.grid import Arm, Grid
from vtlvlm.ablation.items import Item
from vtlvlm.ablation.network_cost import NetworkLoad
from vtlvlm.ablation.planned import Machine, Plan, PlannedRun
from vtlvlm.ablation.settings import (
    QUIET,
    Config,
    Resolver,
    config_options,
    data_section,
    extractor_of,
    key_of,
    network_settings,
    put,
    steps_of_trainer,
)
from vtlvlm.errors import UsageError
from vtlvlm.report.networks import VIDEO, bare, described, is_network

INIT_FROM = "model.init_args.init_from"


class Networks:
    """The arms of a grid that are recognition networks.

    Args:
        grid: The grid.
        machine: Its places.
        resolve: Reads configurations.

    Raises:
        UsageError: A configuration is not one of a network, or an overlay changes nothing.
    """

    def __init__(self, grid: Grid, machine: Machine, resolve: Resolver) -> None:
        self.grid, self.machine = grid, machine
        self.arms = {arm.name: arm for arm in grid.arms if arm.recognition}
        self.files = {name: [*arm.recognition, *machine.recognition] for name, arm in self.arms.items()}
        self.config = {name: self._resolved(resolve, arm) for name, arm in self.arms.items()}

    def _resolved(self, resolve: Resolver, arm: Arm) -> Config:
        who, (first, *_) = f"arm {arm.name}: ", arm.recognition
        for number in range(1, len(arm.recognition)):
            before, after = (arm.recognition[:end] for end in (number, number + 1))
            if resolve(before, who) == resolve(after, who):
                raise UsageError(
                    f"{who}{arm.recognition[number].name} changes nothing in the network's configuration; remove it, or correct it"
                )
        found = resolve(self.files[arm.name], who)
        if not is_network(found):
            kind = bare(found.get("model")) or "no model"
            raise UsageError(f"{who}{first.name} is a configuration of {kind}; `recognition:` takes one of Recognition")
        return found

    def on_videos(self) -> dict[str, Config]:
        """The configurations of the networks that read videos."""
        return {name: config for name, config in self.config.items() if described(config).reads == VIDEO}

    def recordings(self, clips: Clips) -> Path:
        """What the first network that reads recordings reads."""
        name, config = next((name, config) for name, config in self.config.items() if described(config).reads != VIDEO)
        return clips.recordings(data_section(config)["source"]["root"], name)

    def protocols(self) -> dict[str, str]:
        """Arm → the protocol of its configuration."""
        return {name: str(data_section(config)["source"]["protocol"]) for name, config in self.config.items()}

    def facts(self, name: str) -> dict[str, str | bool]:
        """What the table says of an arm: what it reads, and whether it is our reading of a method."""
        found = described(self.config[name])
        return {
            "method": found.method,
            "reads": found.reads,
            "stream": found.stream,
            **({"reconstruction": True} if found.reconstruction else {}),
        }

    def mark(self, name: str) -> str:
        """Equal for two arms that would train the same."""
        return key_of(network_settings(self.config[name], 0), self.arms[name].init_from)

    def run(self, plan: Plan, arm: Arm, seed: int, fold: str, clips: Clips, several: bool) -> PlannedRun:
        """The items of one run, at the rates that the plan has chosen."""
        item = self.item(plan, arm, seed, fold, plan.rates.get(arm.name, {}), clips, several)
        folder = str(item.folder.relative_to(self.machine.work))
        rate = next(reversed(plan.rates.get(arm.name, {}).values()), None)
        return PlannedRun(seed, fold, recognition=folder, learning_rate=rate, final=item.name)

    def item(
        self, plan: Plan, arm: Arm, seed: int, fold: str, rates: Mapping[str, float], clips: Clips, several: bool, kind: str = "test"
    ) -> Item:
        """The test of a run (``kind`` "test"), its training ("fit"), or the training of a trial ("trial").

        Args:
            plan: Gets the item and those that it needs.
            arm: The arm.
            seed: Of the training.
            fold: Protocol.
            rates: Setting → learning rate.
            clips: Where the clips lie.
            several: Whether the grid has several folds.
            kind: What is asked for.
        """
        config = copy.deepcopy(self.config[arm.name])
        source = data_section(config)["source"]
        options: list[str] = []
        if described(config).reads != VIDEO:
            root = clips.recordings(source["root"], arm.name)
            place = Place(root, str(root))
        elif extractor_of(config) is None:
            place = clips.videos(plan)
        else:
            features = clips.features(plan, config, self.files[arm.name], arm.name, fold, several)
            place = Place(clips.root, features.name, (*features.needs, features.name))
            options += ["--data.features", str(features.folder)]
        source["protocol"] = fold
        if self.grid.validation is not None:
            source["validation"] = self.grid.validation
        checkpoint = f"{'best' if source['validation'] else 'last'}.ckpt"
        options += [part for setting, rate in rates.items() for part in (f"--{setting}", str(rate))]
        for setting, rate in rates.items():
            put(config, setting, rate)
        needs, name = place.needs, "network"
        if arm.init_from is not None:
            other = self.arms[arm.init_from]
            first = self.item(plan, other, seed, fold, plan.rates.get(other.name, {}), clips, several, "fit")
            needs, name = (*needs, first.name), "network_again"
            put(config, INIT_FROM, first.name)
            options += [f"--{INIT_FROM}", str(first.folder / "checkpoints" / checkpoint)]
        if kind == "trial":
            length = {"max_steps": self.grid.trial_steps, "val_check_interval": self.grid.trial_steps}
            config["trainer"] |= {**length, "check_val_every_n_epoch": None, "max_epochs": None}
            options += [part for key, number in length.items() for part in (f"--trainer.{key}", str(number))]
            options += ["--trainer.check_val_every_n_epoch", "null", "--trainer.max_epochs", "null"]
        key = key_of(network_settings(config, seed), place.name)
        home = "trials" if kind == "trial" else "recognition"
        folder = self.machine.work / home / key
        more = [] if self.grid.validation is None else ["--data.source.validation", f"{self.grid.validation:g}"]
        where = ["--data.source.root", str(place.root), "--data.source.protocol", fold, *more]
        shared = (*config_options(self.files[arm.name]), "--seed_everything", str(seed), *where, *QUIET, *options)
        shared = (*shared, "--trainer.default_root_dir", str(folder))
        subject = f"{arm.name}, {fold}, seed {seed}" + "".join(f", {rate:g}" for rate in rates.values())
        fitted = Item(
            f"{home}/{key}",
            "network_trial" if kind == "trial" else name,  # type: ignore[arg-type]
            folder,
            ("fit", *shared),
            needs,
            subject,
            steps_of_trainer(config),
            int(data_section(config)["batch_size"]),
            NetworkLoad.of(config, str(place.root)),
        )
        fitted = plan.items.setdefault(fitted.name, fitted)
        if kind != "test":
            return fitted
        tested = ("test", *shared, "--ckpt_path", str(folder / "checkpoints" / checkpoint))
        item = Item(f"{fitted.name}/test", "test", folder, tested, (*place.needs, fitted.name), subject)
        return plan.items.setdefault(item.name, item)
