"""Resolves configurations through the command line's own parser, and hashes the settings that affect a result."""

from __future__ import annotations

import copy
import io
import json
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from vtlvlm import configs
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.files import write_json
from vtlvlm.system.streams import gist

MACHINE_TRAINER = (
    *("accelerator", "devices", "num_nodes", "strategy", "plugins", "logger", "profiler", "log_every_n_steps", "default_root_dir"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "enable_autolog_hparams", "model_registry", "barebones"),
    *("benchmark", "accumulate_grad_batches", "use_distributed_sampler", "reload_dataloaders_every_n_epochs", "sync_batchnorm"),
    *("limit_predict_batches", "overfit_batches", "fast_dev_run", "detect_anomaly"),
)
"""Settings of the trainer that say how a run is computed or shown, not what it computes"""
MACHINE_DATA = ("features", "events", "target_features", "num_workers", "micro_batch_size", "sampling", "augmentation")
"""Settings of the data module that are places, or that a cache has fixed"""
MACHINE_PARTS = ("chunk", "clips", "compiled", "attention", "gradient_checkpointing", "kernels", "max_positions")
"""Settings of parts, at any depth, that change time and memory only"""
MACHINE_NETWORK_DATA = ("num_workers",)
MACHINE_NETWORK_PARTS = ("compiled", "gradient_checkpointing")
"""The same of a recognition network and its data. Its batch norms depend on ``micro_batch_size``"""
LATER: dict[str, Any] = {"captions": None}
"""Settings of the source that are younger than the runs of older work folders. With these values nothing changes, so they are left out, and
the runs count as finished"""
QUIET = ("--trainer.enable_progress_bar", "false")
Config = dict[str, Any]


def key_of(*values: Any) -> str:
    """A short name for plain values: 12 hexadecimal digits of their hash, whatever the order of keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake2b(text.encode(), digest_size=6).hexdigest()


class Resolver:
    """Configurations as ``fit`` would run them, with all defaults. A file in the work folder keeps them, since the parser imports torch.

    Args:
        store: JSON file of what was resolved before; None keeps nothing. An entry counts only for equal files and an equal program.
    """

    def __init__(self, store: Path | None = None) -> None:
        self.store, self._program = store, _program()
        self._known: dict[str, Config] = {}
        if store is not None and store.is_file():
            with suppress(OSError, ValueError):
                found = json.loads(store.read_text(encoding="utf-8"))
                self._known = found["configs"] if found["program"] == self._program else {}
        self._changed = False

    def __call__(self, files: Sequence[Path], who: str = "") -> Config:
        """The configuration of files given one after the other.

        Args:
            files: Paths of configurations.
            who: Beginning of an error, such as the arm's name.

        Raises:
            UsageError: A file is no configuration, or has a setting that does not exist.
        """
        mark = key_of([str(file) for file in files], [_contents(file) for file in files])
        if mark not in self._known:
            self._known[mark] = _parsed(files, who)
            self._changed = True
        return copy.deepcopy(self._known[mark])

    def save(self) -> None:
        """Write the store, if it is not up to date."""
        if self.store is not None and self._changed:
            write_json(self.store, {"program": self._program, "configs": self._known})
            self._changed = False


def _parsed(files: Sequence[Path], who: str) -> Config:
    """As the parser of ``fit`` reads the files. It prints the result instead of running."""
    from vtlvlm.cli import run, told

    arguments = [part for file in files for part in ("--config", str(file))]
    names = ", ".join(file.name for file in files)
    try:
        with redirect_stdout(said := io.StringIO()), suppress(SystemExit):
            run(["fit", *arguments, "--print_config"])
    except (UsageError, DataError, ArgumentError, ValueError) as error:
        line = told(error, ["fit"])[1] if isinstance(error, ArgumentError | UsageError | DataError) else gist(error)
        raise UsageError(f"{who}{names}: {line}") from error
    found = yaml.safe_load(said.getvalue())
    if not isinstance(found, dict):
        raise UsageError(f"{who}{names}: resolves to no configuration")
    return _plain_sgd(found)


def _plain_sgd(config: Config) -> Config:
    """SGD's settings without their class, as configurations give them and as they were before there was another optimiser: names of runs,
    and settings of grids such as ``model.init_args.optimizer.learning_rate``, stay the same. Changes the configuration in place."""
    from vtlvlm.stages.parts import settings_of
    from vtlvlm.stages.sgd import SGD

    model, default = get(config, "model.init_args", {}), settings_of(SGD())
    if "optimizer" in model:
        given = model["optimizer"] or default  # none given
        model["optimizer"] = given["init_args"] if given.get("class_path") == default["class_path"] else given
    return config


def _program() -> str:
    """Hash of the package's source, which holds the defaults."""
    state = blake2b(digest_size=8)
    package = Path(configs.__file__).parent
    for path in sorted(package.rglob("*.py")):
        state.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return state.hexdigest()


def _contents(file: Path) -> list[str]:
    """The text of a configuration and of the section files that it names."""
    text = file.read_text(encoding="utf-8", errors="replace")
    with suppress(yaml.YAMLError, RecursionError):
        found = yaml.safe_load(text)
        named = [found.get(section) for section in configs.SECTIONS] if isinstance(found, dict) else []
        inner = [file.parent / name for name in named if isinstance(name, str)]
        return [text, *(path.read_text(encoding="utf-8", errors="replace") for path in inner if path.is_file())]
    return [text]


def put(config: Config, name: str, value: Any) -> None:
    """Set a dotted setting, in place.

    Raises:
        UsageError: The configuration has no such setting.
    """
    *parents, last = name.split(".")
    place: Any = config
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        raise UsageError(f"{name}: the configuration has no such setting")
    place[last] = value


def get(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value of a dotted setting; ``default`` if a part of the name is missing."""
    place: Any = config
    for part in name.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return default
        place = place[part]
    return place


def without(value: Any, names: Iterable[str]) -> Any:
    """Plain values without the settings of these names, at any depth."""
    if isinstance(value, Mapping):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    return [without(inner, names) for inner in value] if isinstance(value, list) else value


def training_settings(config: Config, seed: int) -> Config:
    """The settings of a stage that affect what a training computes, apart from its input.

    Args:
        config: From :class:`Resolver`, with protocol and validation set.
        seed: Of the training.
    """
    source = _source(config["data"])
    data = {name: value for name, value in config["data"].items() if name not in (*MACHINE_DATA, "source")}
    trainer = {name: value for name, value in config["trainer"].items() if name not in MACHINE_TRAINER}
    return {"model": without(config["model"], MACHINE_PARTS), "data": {**data, "source": source}, "trainer": trainer, "seed": seed}


def network_settings(config: Config, seed: int) -> Config:
    """The settings of a recognition network that affect what its training computes, apart from the clips.

    Args:
        config: From :class:`Resolver`, with protocol and validation set.
        seed: Of the training.
    """
    section = data_section(config)
    source = _source(section)
    data = {name: value for name, value in section.items() if name not in (*MACHINE_NETWORK_DATA, "source")}
    kind = str(config["data"].get("class_path", "")).rpartition(".")[2]
    trainer = {name: value for name, value in config["trainer"].items() if name not in MACHINE_TRAINER or name == "sync_batchnorm"}
    model = without(config["model"], MACHINE_NETWORK_PARTS if extractor_of(config) is None else MACHINE_PARTS)
    return {"model": model, "data": {**data, "source": source, "kind": kind}, "trainer": trainer, "seed": seed}


def _source(section: Config) -> Config:
    """The settings of a data module's source that affect a result."""
    given = {name: value for name, value in section["source"].items() if name not in ("root", "decoder")}
    return {name: value for name, value in given.items() if name not in LATER or value != LATER[name]}


def extractor_of(config: Config) -> Config | None:
    """The frozen extractor of stage 1, or of a network that reads its features; None for other networks."""
    model = config["model"]["init_args"]
    return model.get("extractor") or get(model, "network.init_args.extractor")


def data_section(config: Config) -> Config:
    """The settings of the data module, whether the configuration names its class or not."""
    data = config["data"]
    return data["init_args"] if "class_path" in data else data


def config_options(files: Sequence[Path]) -> list[str]:
    """The options that give configurations to a command."""
    return [part for file in files for part in ("--config", str(file))]


def steps_of_trainer(config: Config) -> int | None:
    """The fixed number of optimiser steps of a training; None if it counts epochs."""
    steps = config["trainer"]["max_steps"]
    return steps if isinstance(steps, int) and steps > 0 else None


def extraction_settings(config: Config, root: str, covered: str) -> Config:
    """The settings of stage 1, or of a network on frozen features, that affect its feature cache.

    Args:
        config: From :class:`Resolver`.
        root: Name of the videos.
        covered: Name of the clips and views that the cache holds.
    """
    source = {name: config["data"]["source"][name] for name in ("labels", "exclude_missing_skeletons", "decoder")}
    data = {name: config["data"][name] for name in ("sampling", "augmentation", "seed")}
    extractor = without(extractor_of(config), (*MACHINE_PARTS, "trainable"))
    return {"extractor": extractor, "data": {**data, "source": source}, "root": root, "covered": covered}
