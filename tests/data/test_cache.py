import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vtlvlm.data import cache_writer
from vtlvlm.data.cache import EventCache, EventCacheWriter, FeatureCache, FeatureCacheWriter, provenance_hash
from vtlvlm.data.cache_format import first_difference
from vtlvlm.errors import DataError

MADE = {"extractor": {"model": "lite0", "sha256": "ab"}, "sampling": {"frames": 8, "size": 64}}


def features(first: int, count: int) -> tuple[list[tuple[str, int]], torch.Tensor, torch.Tensor]:
    """Keys, (n, 2, 4, 3) features and (n, 2) times that say which clip they are."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    keys = [(f"clip{i // 2:03}", i % 2) for i in range(first, first + count)]
    return keys, numbers[:, None, None, None].expand(-1, 2, 4, 3) + torch.arange(24).reshape(2, 4, 3) / 32, numbers[:, None].expand(-1, 2)


def filled(folder: Path, count: int = 10, shards: int = 3) -> Path:
    writer = FeatureCacheWriter(folder, MADE, expected=count)
    for part in np.array_split(np.arange(count), shards):
        writer.add(*features(int(part[0]), len(part)))
        writer.flush()
    writer.close()
    writer.finish(features(0, count)[0])
    return folder


def test_features_round_trip_in_any_order_over_shards(tmp_path: Path) -> None:
    cache = FeatureCache.open(filled(tmp_path / "f"), expect={"sampling": {"frames": 8, "size": 64}})
    assert len(list((tmp_path / "f").glob("features-*"))) == 3
    assert (cache.steps, cache.cells, cache.grid, cache.dim, len(cache)) == (2, 4, 2, 3, 10)
    assert (cache.provenance, cache.hash) == (MADE, provenance_hash(MADE))
    rows = np.array([9, 0, 4, 4, 3])
    _, expected, times = features(0, 10)
    assert cache.features(rows).dtype == torch.float16
    torch.testing.assert_close(cache.features(rows).float(), expected[rows])
    torch.testing.assert_close(cache.times(rows), times[rows])
    assert cache.rows(["clip004", "clip000", "other"], view=1).tolist() == [9, 1, -1]
    assert cache.rows(["clip004"], view=5).tolist() == [-1]
    assert cache.features(np.array([], dtype=np.int64)).shape == (0, 2, 4, 3)


def test_interrupted_work_continues_and_is_not_read_before_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    with FeatureCacheWriter(folder, MADE, expected=6) as writer:
        writer.add(*features(0, 4))
    left = folder / f".features-r00000-000001.safetensors.{socket.gethostname()}.999999999.0.tmp"
    left.write_bytes(b"half a shard")
    (folder / "rows-r00000-000001.safetensors").write_bytes(b"rows without their shard")
    with pytest.raises(DataError, match=r"incomplete, 4 of 6 clips and views .* run `vtlvlm extract` again"):
        FeatureCache.open(folder)
    writer = FeatureCacheWriter(folder, MADE)
    assert writer.done() == {("clip000", 0), ("clip000", 1), ("clip001", 0), ("clip001", 1)}
    with pytest.raises(DataError, match=r"incomplete, 4 of 6 \(first missing: \('clip002', 0\)\)"):
        writer.finish(features(0, 6)[0])
    writer.add(*features(4, 2))
    writer.close()
    writer.finish(features(0, 6)[0])
    assert not left.exists()
    assert FeatureCache.open(folder).features(np.arange(6))[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_ranks_write_shards_of_their_own(tmp_path: Path) -> None:
    first, second = FeatureCacheWriter(tmp_path, MADE, rank=0), FeatureCacheWriter(tmp_path, MADE, rank=1)
    first.add(*features(0, 2))
    second.add(*features(2, 2))
    first.close()
    second.close()
    first.finish(features(0, 4)[0])
    cache = FeatureCache.open(tmp_path)
    assert cache.features(cache.rows(["clip001", "clip000"], 1))[:, 0, 0, 0].tolist() == [3, 1]


def test_notes_are_no_part_of_what_a_cache_is(tmp_path: Path) -> None:
    """A cache from before the place was noted, and one whose features have moved, are the same as ever; the newest place is kept."""
    for place in ({}, {"features_folder": "/one"}, {"features_folder": "/two", "extractor_settings": {}}):
        with EventCacheWriter(tmp_path, {**MADE, **place}, torch.zeros(2, 3)) as writer:
            if not place:
                writer.add([("a", 0)], torch.zeros(1, 4, dtype=torch.int64), None, torch.zeros(1, 2, 2))
                writer.flush()
            writer.finish([("a", 0)])
        cache = EventCache.open(tmp_path)
        assert (cache.hash, cache.provenance) == (provenance_hash(MADE), {**MADE, **place})


def test_another_provenance_is_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path / "f")
    other = {"extractor": {"model": "lite0", "sha256": "cd"}, "sampling": MADE["sampling"]}
    with pytest.raises(DataError, match=r"f: made with extractor\.sha256 = 'ab', expected 'cd'; name another folder or delete"):
        FeatureCacheWriter(tmp_path / "f", other)
    with pytest.raises(DataError, match=r"made with extractor\.sha256"):
        FeatureCache.open(tmp_path / "f", expect={"extractor": other["extractor"]})
    with pytest.raises(DataError, match="made with vtem = None, expected 'x'"):
        FeatureCache.open(tmp_path / "f", expect={"vtem": "x"})
    assert len(FeatureCache.open(tmp_path / "f")) == 10
    FeatureCacheWriter(tmp_path / "f", MADE).close()  # the refused writer left no lock behind


def test_first_difference() -> None:
    assert first_difference({"a": 1, "b": {"c": [1]}}, {"b": {"c": [2]}, "a": 1}) == ("b.c", [1], [2])
    assert first_difference({"a": 1}, {"a": 1}) is None
    assert provenance_hash({"a": 1, "b": 2}) == provenance_hash({"b": 2, "a": 1}) != provenance_hash({"a": 1, "b": 3})


def test_folders_that_are_no_such_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no cache of features; make it with `vtlvlm extract`"):
        FeatureCache.open(tmp_path)
    with pytest.raises(DataError, match=r"a cache of features .*expected one of events"):
        EventCache.open(filled(tmp_path / "f"))
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        FeatureCacheWriter(tmp_path / "g", MADE)
    assert os.listdir(tmp_path / "g") == ["thesis.txt"]  # noqa: PTH208


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shard = sorted(filled(tmp_path / "f").glob("features-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    for use in (lambda: FeatureCache.open(tmp_path / "f"), lambda: FeatureCacheWriter(tmp_path / "f", MADE).done()):
        with pytest.raises(DataError, match=rf"{shard.name}: damaged cache file; delete it and run"):
            use()
    shard.unlink()
    with FeatureCacheWriter(tmp_path / "f", MADE) as writer:
        assert len(writer.done()) < 10


def test_verify_finds_what_no_header_shows(tmp_path: Path) -> None:
    folder = filled(tmp_path / "cache")
    cache = FeatureCache.open(folder)
    assert cache.verify(progress=False) == cache.gather(np.arange(len(cache))).nbytes
    shard = sorted(folder.glob("features-*"))[1]
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{shard.name}: has changed since it was written.*delete this file and run `vtlvlm extract` again"
    ):
        FeatureCache.open(folder).verify(progress=False)


def test_features_that_float16_cannot_hold(tmp_path: Path) -> None:
    keys, values, times = features(0, 2)
    with FeatureCacheWriter(tmp_path / "f", MADE) as writer, pytest.raises(DataError, match="clip000: its features are not finite"):
        writer.add(keys, values + torch.tensor([0.0, 1e6])[:, None, None, None], times)


CHILD = """
import sys, time, torch
from pathlib import Path
from vtlvlm.data import cache_writer
from vtlvlm.data.cache import FeatureCacheWriter
cache_writer._SHARD_BYTES = 4_000_000
writer = FeatureCacheWriter(sys.argv[1], {"a": 1})
for i in range(10_000):
    writer.add([(f"c{i}", 0)], torch.full((1, 50, 16, 768), float(i % 1000)), torch.zeros(1, 50))
    if i == 20:
        print("writing", flush=True)
"""


def start_child(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    return child


def test_second_writer_is_refused_and_kill_leaves_whole_shards(tmp_path: Path) -> None:
    child = start_child(tmp_path)
    try:
        with pytest.raises(DataError, match=rf"another process writes to it \(process {child.pid} on .*\); wait for it"):
            FeatureCacheWriter(tmp_path, {"a": 1})
        time.sleep(0.2)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    writer = FeatureCacheWriter(tmp_path, {"a": 1})  # the dead writer's lock is gone
    done = writer.done()
    assert len(done) >= 3
    assert done == {(f"c{i}", 0) for i in range(len(done))}
    with pytest.raises(DataError, match="this process already writes to it"):
        FeatureCacheWriter(tmp_path, {"a": 1})
    writer.close()
    writer.finish(done)
    cache = FeatureCache.open(tmp_path)
    assert (cache.features(np.arange(len(done)))[:, 0, 0, 0].numpy() == np.arange(len(done)) % 1000).all()


def fill_what_is_missing(folder: Path, total: int) -> None:
    cache_writer._SHARD_BYTES = 60_000
    with FeatureCacheWriter(folder, {"a": 1}) as writer:
        done = writer.done()
        for number in range(total):
            if (f"c{number}", 0) not in done:
                writer.add([(f"c{number}", 0)], torch.full((1, 4, 4, 64), float(number % 1000)), torch.full((1, 4), float(number)))


def test_killed_again_and_again_it_ends_whole(tmp_path: Path) -> None:
    context, rng, total, kills = multiprocessing.get_context("fork"), np.random.default_rng(0), 2500, 0
    while True:
        child = context.Process(target=fill_what_is_missing, args=(tmp_path, total))
        child.start()
        child.join(timeout=float(rng.uniform(0.01, 0.06)) * 1.03**kills)  # a busy machine gets there too
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    with FeatureCacheWriter(tmp_path, {"a": 1}) as writer:
        writer.finish([(f"c{number}", 0) for number in range(total)])
    cache = FeatureCache.open(tmp_path)
    print(f"{kills} kills, {len(list(tmp_path.glob('features-*')))} shards, {len(cache)} rows")
    assert kills >= 3
    assert sorted(cache.names) == sorted(f"c{number}" for number in range(total))
    numbers = np.array([int(name[1:]) for name in cache.names])
    assert (cache.features(np.arange(total))[:, 3, 3, 63].numpy() == numbers % 1000).all()
    assert (cache.times(np.arange(total))[:, 0].numpy() == numbers).all()
    cache.verify(progress=False)
    assert not list(tmp_path.glob(".*.tmp"))


def test_full_disk_loses_nothing_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    writer = FeatureCacheWriter(tmp_path, MADE)
    writer.add(*features(0, 2))
    writer.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
        for i in range(2, 102, 2):
            writer.add(*features(i, 2))
        with pytest.raises(DataError, match=r"cannot be written \(File too large\); finished shards stay"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert writer.done() == {("clip000", 0), ("clip000", 1)}
    assert not list(tmp_path.glob(".*.tmp"))


def test_events_as_codes(tmp_path: Path) -> None:
    table = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(12).reshape(3, 4) * 6
    spans = torch.arange(12.0).reshape(3, 2, 2)
    keys = [("a", 0), ("b", 0), ("a", 1)]
    with EventCacheWriter(tmp_path, {"vtem": "x.ckpt"}, table) as writer:
        writer.add(keys[:2], ids[:2], None, spans[:2], identities=["i", "j"])
        writer.flush()
        writer.add(keys[2:], ids[2:], None, spans[2:])
        with pytest.raises(ValueError, match=r"code numbers 0\.\.70 for a table of 70"):
            writer.add([("c", 0)], torch.tensor([[0, 70, 1, 2]]), None, spans[:1])
    writer.finish(keys)
    cache = EventCache.open(tmp_path, expect={"vtem": "x.ckpt"})
    assert (cache.num_tokens, cache.event_dim, cache.num_codes, len(cache)) == (4, 5, 70, 3)
    assert cache.table is not None
    assert torch.equal(cache.table, table)
    rows = np.concatenate([cache.rows(["b", "a"]), cache.rows(["a"], 1)])
    assert rows.tolist() == [1, 0, 2]
    assert torch.equal(cache.ids(rows), ids[rows])
    assert cache.ids(rows).dtype == torch.int64
    assert cache.vectors(rows) is None
    assert torch.equal(cache.spans(rows), spans[rows])
    assert cache.identities.tolist() == ["i", "j", ""]
    assert next(tmp_path.glob("ids-*")).stat().st_size < 2 * 4 * 2 + 150  # two bytes a code and a header


def test_events_as_vectors(tmp_path: Path) -> None:
    vectors = torch.randn(3, 4, 5).half()
    with EventCacheWriter(tmp_path, {"vtem": "x.ckpt"}, None) as writer:
        with pytest.raises(ValueError, match="pass them"):
            writer.add([("a", 0)], torch.full((1, 4), -1), None, torch.zeros(1, 2, 2))
        writer.add([("a", 0), ("b", 0), ("c", 0)], torch.full((3, 4), -1), vectors, torch.zeros(3, 2, 2))
    writer.finish([("a", 0), ("b", 0), ("c", 0)])
    cache = EventCache.open(tmp_path)
    assert (cache.table, cache.num_codes, cache.num_tokens, cache.event_dim) == (None, 0, 4, 5)
    read = cache.vectors(np.array([2, 0]))
    assert read is not None
    assert torch.equal(read, vectors[[2, 0]])
    assert cache.ids(np.array([2, 0])).tolist() == [[-1] * 4] * 2


def test_many_codes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="65537 codes"):
        EventCacheWriter(tmp_path, {}, torch.zeros(2**16 + 1, 1))


def test_shards_are_cut_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "_SHARD_BYTES", 100)
    with FeatureCacheWriter(tmp_path, MADE) as writer:
        for i in range(0, 8, 2):
            writer.add(*features(i, 2))  # 2 x 24 float16 and 2 x 2 float32: 112 bytes
    assert len(list(tmp_path.glob("features-*"))) == 4
