"""Results of probes beside their features: read back equal, another file for anything else, and none from a damaged file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline import Pipeline

from vtlvlm.data.cache import FeatureCache
from vtlvlm.probes import linear
from vtlvlm.probes.kept import KeptProbes
from vtlvlm.probes.linear import ProbeResult

RESULT = ProbeResult(0.5, 1.0, 0.25, 4, 2, 7, 0.1, 0.75, (0, 1))


def kept(cache: FeatureCache, **other: object) -> KeptProbes:
    names, labels, groups = np.array(list("abcdef"), dtype=object), np.array([0, 1, 0, 1, 0, 1]), np.array(list("ppqqrr"), dtype=object)
    settings = {
        "names": names,
        "labels": labels,
        "groups": groups,
        "train": np.arange(4),
        "test": np.arange(4, 6),
        "num_classes": 2,
        "seed": 0,
    }
    return KeptProbes(cache, **{**settings, **other})  # type: ignore[arg-type]


@pytest.fixture
def cache(chain: Pipeline, tmp_path: Path) -> FeatureCache:
    found = FeatureCache.open(chain.features)
    found.folder = tmp_path
    return found


def test_results_come_back_and_add_up(cache: FeatureCache) -> None:
    assert kept(cache).read() == {}
    kept(cache).add({"one": RESULT})
    kept(cache).add({"two": replace(RESULT, top1=1.0)})
    assert kept(cache).read() == {"one": RESULT, "two": replace(RESULT, top1=1.0)}


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"num_classes": 3}, {"labels": np.array([1, 1, 0, 1, 0, 1])}, {"train": np.arange(3)}, {"test": np.array([5, 4])}],
    ids=lambda other: next(iter(other)),
)
def test_anything_else_has_a_file_of_its_own(cache: FeatureCache, other: dict[str, object]) -> None:
    kept(cache).add({"one": RESULT})
    assert kept(cache, **other).read() == {}


def test_changed_videos_have_a_file_of_their_own(cache: FeatureCache) -> None:
    kept(cache).add({"one": RESULT})
    cache.identities = cache.identities + "changed"
    assert kept(cache).read() == {}


@pytest.mark.parametrize(
    "change",
    [{"top1": 1.5}, {"guesses": [0]}, {"guesses": [0, 2]}, {"guesses": ["0", "1"]}, {"num_train": 5}, {"dims": "7"}, {"unknown": 1}],
    ids=lambda change: f"{change}",
)
def test_a_damaged_file_counts_as_none(cache: FeatureCache, change: dict[str, object]) -> None:
    kept(cache).add({"one": RESULT})
    path = kept(cache).path
    held = json.loads(path.read_text())
    held["one"] |= change
    path.write_text(json.dumps(held))
    assert kept(cache).read() == {}
    path.write_text("[1")
    assert kept(cache).read() == {}


def test_a_second_command_fits_nothing(chain: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes of the first command, and a test of stage 2 on the same clips afterwards."""
    arguments = ["probe", chain.root, "--features", chain.features, "--output"]
    assert chain(*arguments, tmp_path / "first.json") == 0
    monkeypatch.setattr(linear, "fit_probe", lambda *_, **__: pytest.fail("a probe was fitted again"))
    assert chain(*arguments, tmp_path / "second.json") == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["probes"] == second["probes"]
    assert chain("test", *chain.on_events, "--trainer.default_root_dir", tmp_path / "run", "--ckpt_path", chain.best2) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["probe"]["num_train"] == first["probes"]["thirds"]["num_train"]
