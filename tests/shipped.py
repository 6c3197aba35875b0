"""The shipped configurations at a size for tests. Settings are found by their name alone, wherever in the configuration they stand."""

import io
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from vtlvlm.cli import main
from vtlvlm.data.cache import EventCacheWriter, FeatureCacheWriter
from vtlvlm.data.datamodule import NTUDataModule

FOLDER = Path(__file__).parents[1] / "lightning_configs"


def resolved(*files: str | Path, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The whole configuration that ``fit`` would run with: shipped files (or overlays) one after the other, defaults filled in."""
    arguments = [part for file in files for part in ("--config", str(file if Path(file).is_absolute() else FOLDER / file))]
    with redirect_stdout(said := io.StringIO()), suppress(SystemExit):
        main(["fit", *arguments, *more, "--print_config"])
    found = yaml.safe_load(said.getvalue())
    assert isinstance(found, dict), f"{files}: no configuration"
    return found


def holders(config: Any, name: str) -> Iterator[dict[str, Any]]:
    """Every dictionary in a configuration, at any depth, that has a setting of this name."""
    if isinstance(config, dict):
        if name in config:
            yield config
        for value in config.values():
            yield from holders(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from holders(value, name)


def put(config: dict[str, Any], **settings: Any) -> None:
    """Give settings other values. Each has to stand in the configuration, so that a renamed one is noticed."""
    for name, value in settings.items():
        found = list(holders(config, name))
        assert found, f"no setting is called {name!r}"
        for holder in found:
            holder[name] = value


def data_of(config: dict[str, Any]) -> NTUDataModule:
    """The data module of a configuration, set up."""
    parser = ArgumentParser()
    parser.add_class_arguments(NTUDataModule, "data")
    with warnings.catch_warnings(action="ignore"):
        data: NTUDataModule = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    data.prepare_data()
    data.setup()
    return data


def write_features(folder: Path, data: NTUDataModule, features: Tensor, extractor: dict[str, str]) -> None:
    """A feature cache of all clips and views of a data module, from (n, T', S, D) numbers, said to be made by an extractor."""
    times = torch.linspace(0, 1, features.shape[1]).expand(len(features), -1)
    with FeatureCacheWriter(folder, {"extractor": extractor, "sampling": data.sampling_settings}) as writer:
        writer.add(data.predict_keys(), features, times)
        writer.flush()
        writer.finish(data.predict_keys())


def write_events(folder: Path, data: NTUDataModule, vectors: Tensor, windows: int = 1) -> None:
    """An event cache of all clips and views of a data module, from (n, M, E) vectors without codes."""
    made = {"vtem": "no.ckpt", "vtem_hash": "0" * 32, "protocol": data.source.protocol, "train_hash": data.train_hash}
    with EventCacheWriter(folder, made, None) as writer:
        writer.add(data.predict_keys(), torch.full(vectors.shape[:2], -1), vectors, torch.zeros(len(vectors), windows, 2))
        writer.flush()
        writer.finish(data.predict_keys())
