"""Caches of thousands of shards (NTU RGB+D 120 has 2,700) in a process that may open few files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pipeline import alone
from safetensors.numpy import save_file

from vtlvlm.data.cache import FeatureCache
from vtlvlm.data.cache_format import digest, rows_file
from vtlvlm.errors import DataError

MANY, SOME = 2700, 400

SCRIPT = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np, torch
from vtlvlm.data.cache import EventCache, EventCacheWriter, FeatureCache, FeatureCacheWriter
from vtlvlm.data.cache_rows import StoredViews
from vtlvlm.data.datasets import FeatureDataset, loader
from vtlvlm.data.samplers import ExactSampler

folder, many, some = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for make, name, count in (
    (lambda place: FeatureCacheWriter(place, {}), "features", many),
    (lambda place: EventCacheWriter(place, {}, torch.zeros(50_000, 2)), "events", some),
):
    with make(f"{folder}/{name}") as writer:
        assert len(writer.done()) == count
        writer.finish(writer.done())

before = len(os.listdir("/proc/self/fd"))
cache, events = FeatureCache.open(f"{folder}/features"), EventCache.open(f"{folder}/events")
order = np.random.default_rng(0).permutation(many)
for rows in np.array_split(order, 90):
    assert cache.features(rows)[:, 0, 0, 0].tolist() == (rows % 2048).tolist()
    assert cache.times(rows)[:, 0].tolist() == rows.tolist()
rows = order[order < some]
assert events.ids(rows)[:, 0].tolist() == rows.tolist()
assert events.spans(rows)[:, 0, 0].tolist() == rows.tolist()
assert len(os.listdir("/proc/self/fd")) == before
assert cache.verify(progress=False) and events.verify(progress=False)

clips = np.arange(many)
data = FeatureDataset(clips, cache, *StoredViews(np.zeros(1, dtype=np.int64), clips[None]))
loading = loader(data, ExactSampler(order, np.zeros_like(order)), 30, 2)
seen = [number for batch in loading for number in batch.features[:, 0, 0, 0].tolist()]
assert seen == (order % 2048).tolist()
print("all read")
"""


def shard(folder: Path, name: str, number: int, value: np.ndarray, side: np.ndarray) -> Path:
    """A shard of one clip, without waiting for the disk."""
    path = folder / f"{name}-r00000-{number:06}.safetensors"
    facts = {"names": json.dumps([f"clip{number:04}"]), "views": "[0]", "identities": '[""]', "digest": digest(value, side)}
    save_file({"rows": side}, rows_file(path), facts)
    save_file({name: value}, path, {})
    return path


def feature_shard(folder: Path, number: int) -> Path:
    return shard(
        folder, "features", number, np.full((1, 1, 1, 2), number % 2048, dtype=np.float16), np.full((1, 1), number, dtype=np.float32)
    )


@pytest.mark.slow
def test_thousands_of_shards_and_few_open_files(tmp_path: Path) -> None:
    """`ulimit -n` is 1,024 by default; the paper's stage 1 ended after some 120 passes with "Too many open files"."""
    for name in ("features", "events"):
        (tmp_path / name).mkdir()
    for number in range(MANY):
        feature_shard(tmp_path / "features", number)
    for number in range(SOME):
        ids, spans = np.full((1, 3), number, dtype=np.uint16), np.full((1, 1, 2), number, dtype=np.float32)
        shard(tmp_path / "events", "ids", number, ids, spans)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(MANY), str(SOME)]
    done = subprocess.run(command, env=alone(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "all read\n"


@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_a_shard_that_vanishes_or_is_cut_after_the_cache_was_opened(tmp_path: Path, fault: str) -> None:
    paths = [feature_shard(tmp_path, number) for number in range(2)]
    facts = {"version": 2, "kind": "features", "provenance": {}, "hash": "", "complete": True, "expected": 2}
    (tmp_path / "meta.json").write_text(json.dumps(facts))
    cache = FeatureCache.open(tmp_path)
    assert cache.features(np.array([0])).tolist() == [[[[0, 0]]]]
    if fault == "gone":
        paths[1].unlink()
    else:
        paths[1].write_bytes(paths[1].read_bytes()[:-1])
    said = {"gone": "no such file", "cut": "shorter than it was"}[fault]
    with pytest.raises(DataError, match=rf"features-r00000-000001\.safetensors: {said}.*; .*run the command that made the cache") as caught:
        cache.features(np.array([0, 1]))
    assert "\n" not in str(caught.value)
