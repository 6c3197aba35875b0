"""Caches of a stranger or of a failing disk: each damage is one line that names the file, before anything is trained."""

import json
import shutil
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from events import EventRun
from modules import data_of
from strangers import bulk, spring

from vtlvlm.data.cache import EventCache, EventCacheWriter, FeatureCacheWriter
from vtlvlm.data.cache_format import provenance_hash
from vtlvlm.errors import DataError

REMOVED = object()


class Caches:
    """Clips with a feature cache, an event cache of codes, and a configuration of stage 2 that reads such a one."""

    def __init__(self, folder: Path) -> None:
        self.run = EventRun(folder, people=(1, 2, 3))
        self.features, self.codes = folder / "features", folder / "codes"
        data = data_of(self.run.root, validation=0.0)
        data.prepare_data()
        data.setup()
        keys = data.predict_keys()
        torch.manual_seed(0)
        with FeatureCacheWriter(self.features, {"extractor": {"model": "x"}, "sampling": data.sampling_settings}) as writer:
            writer.add(keys, torch.randn(len(keys), 6, 4, 3), torch.arange(6.0).expand(len(keys), 6))
            writer.flush()
            writer.finish(keys)
        made = {"vtem": "no.ckpt", "vtem_hash": "0" * 32, "protocol": data.source.protocol, "train_hash": data.train_hash}
        with EventCacheWriter(self.codes, made, torch.randn(8, 16)) as writer:
            writer.add(keys, torch.randint(8, (len(keys), 6)), None, torch.zeros(len(keys), 1, 2))
            writer.flush()
            writer.finish(keys)

    def spring(self, capsys: pytest.CaptureFixture[str], cache: Path) -> str:
        """The command that opens a cache first."""
        if (cache / "meta.json").is_file() and b'"features"' in (cache / "meta.json").read_bytes():
            return spring(capsys, "probe", self.run.root, "--features", cache, "--protocol", "xsub60")
        at = ["--trainer.default_root_dir", cache.parent / "run"]
        return spring(capsys, "fit", "--config", self.run.config, "--data.events", cache, "--data.batch_size", 2, *at)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    return Caches(tmp_path_factory.mktemp("caches"))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: Any, body: bytes) -> None:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def entry(**change: Any) -> Callable[[Path, str], None]:
    """Other values in the description of a file's tensor."""

    def damage(path: Path, name: str) -> None:
        header, body = header_of(path)
        header[name] |= change
        write(path, header, body)

    return damage


def content(new: Callable[[bytes], bytes]) -> Callable[[Path, str], None]:
    return lambda path, name: (path.write_bytes(new(path.read_bytes())), None)[1]


def twice(path: Path, name: str) -> None:
    header, body = header_of(path)
    write(path, {**header, "other": header[name]}, body)


DAMAGE: dict[str, Callable[[Path, str], None]] = {
    "empty": content(lambda old: b""),
    "cut": content(lambda old: old[: len(old) // 2]),
    "cut by one": content(lambda old: old[:-1]),
    "longer": content(lambda old: old + b"\0" * 8),
    "zeros": content(lambda old: bytes(len(old))),
    "header without end": content(lambda old: struct.pack("<Q", 2**63) + old[8:]),
    "header of the file's size": content(lambda old: struct.pack("<Q", len(old)) + old[8:]),
    "a list": lambda path, name: write(path, [], b""),
    "null": lambda path, name: write(path, None, b""),
    "nested": lambda path, name: write(path, b"[" * 100_000, b""),
    "not JSON": lambda path, name: write(path, b"\xff\xfe{", b""),
    "no tensor": lambda path, name: write(path, {}, b""),
    "another tensor too": twice,
    "negative offset": entry(data_offsets=[-8, 8]),
    "offsets turned": entry(data_offsets=[8, 0]),
    "offsets of text": entry(data_offsets="08"),
    "no offsets": entry(data_offsets=None),
    "huge shape": entry(shape=[2**40, 2**40]),
    "negative shape": entry(shape=[-1, 6]),
    "shape of text": entry(shape="66"),
    "no shape": entry(shape=[]),
    "flat": entry(shape=[2**62]),
    "unknown type": entry(dtype="F128"),
    "another type": entry(dtype="I16"),
    "type is a list": entry(dtype=["F16"]),
}


@pytest.mark.parametrize(("kind", "name"), bulk(product(["features", "rows", "ids", "table"], DAMAGE), 5))
def test_damaged_files_of_a_cache(caches: Caches, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str) -> None:
    """``ids`` and ``table`` are opened as the data module does; features and their rows through a command."""
    cache = Path(shutil.copytree(caches.features if kind in ("features", "rows") else caches.codes, tmp_path / "c"))
    file = next(cache.glob(f"{kind}*.safetensors"))
    DAMAGE[name](file, kind)
    if kind in ("features", "rows"):
        assert str(cache) in caches.spring(capsys, cache)
        return
    with pytest.raises(DataError, match=str(cache)) as refused:
        EventCache.open(cache)
    assert "\n" not in str(refused.value)


def rows(name: str, value: Any) -> Callable[[Path], None]:
    def damage(cache: Path) -> None:
        file = next(cache.glob("rows-*"))
        header, body = header_of(file)
        header["__metadata__"] |= {name: value if isinstance(value, str) else json.dumps(value)}
        write(file, header, body)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        rows("names", []),
        rows("names", ["a"]),
        rows("names", {"a": 1}),
        rows("names", [1] * 6),
        rows("names", [["a"]] * 6),
        rows("names", ["\ud800"] * 6),
        rows("names", "[" * 100_000),
        rows("names", "no JSON"),
        rows("views", ["0"] * 6),
        rows("views", [0.5] * 6),
        rows("views", [True] * 6),
        rows("views", [-1] * 6),
        rows("views", [2**62] * 6),
        rows("views", [2**64] * 6),
        rows("views", []),
        rows("identities", [None] * 6),
        rows("identities", "3"),
    ],
)
def test_rows_that_are_none(caches: Caches, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]) -> None:
    cache = Path(shutil.copytree(caches.features, tmp_path / "c"))
    damage(cache)
    assert str(cache) in caches.spring(capsys, cache)


@pytest.mark.parametrize(
    ("name", "value"),
    bulk(
        [
            ("version", REMOVED),
            ("version", [2]),
            ("kind", 3),
            ("provenance", REMOVED),
            ("provenance", []),
            ("provenance", {"vtem": 1}),
            ("provenance", {}),
            ("hash", REMOVED),
            ("hash", 3),
            ("complete", "yes"),
            ("complete", REMOVED),
            ("expected", "6"),
        ],
        2,
    ),
)
@pytest.mark.parametrize("hashed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_description_that_is_none(
    caches: Caches, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: Any, hashed: bool
) -> None:
    """Also where its hash was made anew."""
    cache = Path(shutil.copytree(caches.codes, tmp_path / "c"))
    meta = json.loads((cache / "meta.json").read_text())
    if value is REMOVED:
        del meta[name]
    else:
        meta[name] = value
    if hashed and isinstance(meta.get("hash"), str) and isinstance(meta.get("provenance"), dict):
        meta["hash"] = provenance_hash(meta["provenance"])
    (cache / "meta.json").write_text(json.dumps(meta))
    assert str(cache) in caches.spring(capsys, cache)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "[" * 100_000, b"\xff\xfe"], ids=lambda text: repr(text[:40]))
def test_a_damaged_description(caches: Caches, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes) -> None:
    cache = Path(shutil.copytree(caches.codes, tmp_path / "c"))
    (cache / "meta.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert str(cache) in caches.spring(capsys, cache)


def test_codes_that_the_table_does_not_have(caches: Caches, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(caches.codes, tmp_path / "c"))
    file = next(cache.glob("ids-*"))
    header, body = header_of(file)
    write(file, header, struct.pack("<H", 8) + body[2:])
    with pytest.raises(DataError, match="has code 8, but its table has 8 codes"):
        EventCache.open(cache).ids(np.arange(2))


def test_numbers_that_are_none(caches: Caches, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features, times, and the codes' vectors."""
    nan = {"features": b"\x00\x7e", "rows": struct.pack("<f", float("nan"))}
    for kind, bits in nan.items():
        cache = Path(shutil.copytree(caches.features, tmp_path / kind))
        file = next(cache.glob(f"{kind}-*"))
        header, body = header_of(file)
        write(file, header, body[: -len(bits)] + bits)
        assert "nan or infinity" in caches.spring(capsys, cache)
    cache = Path(shutil.copytree(caches.codes, tmp_path / "codes"))
    header, body = header_of(cache / "table.safetensors")
    write(cache / "table.safetensors", header, body[:-4] + nan["rows"])
    with pytest.raises(DataError, match="not a table of code vectors"):
        EventCache.open(cache)


def test_files_that_do_not_go_together(caches: Caches, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without their tensor's number of clips; rows that are missing; a table too many or too few; shards of another kind."""

    def copy(of: Path, name: str) -> Path:
        return Path(shutil.copytree(of, tmp_path / name))

    cache = copy(caches.features, "rows")
    next(cache.glob("rows-*")).unlink()
    assert "damaged" in caches.spring(capsys, cache)
    cache = copy(caches.codes, "kind")
    shutil.copy(next(caches.features.glob("features-*")), cache)
    assert str(cache) in caches.spring(capsys, cache)
    cache = copy(caches.codes, "no table")
    (cache / "table.safetensors").unlink()
    assert "its shards do not fit its table" in caches.spring(capsys, cache)
    cache = copy(caches.run.events, "a table")
    shutil.copy(caches.codes / "table.safetensors", cache)
    assert "its shards do not fit its table" in caches.spring(capsys, cache)
    cache = copy(caches.codes, "none")
    next(cache.glob("ids-*")).unlink()
    assert "an empty cache" in caches.spring(capsys, cache)


def test_an_interrupted_cache_is_not_filled_past_a_damaged_shard(caches: Caches, tmp_path: Path) -> None:
    """The writer opens what is there before it adds to it."""
    cache = Path(shutil.copytree(caches.features, tmp_path / "c"))
    file = next(cache.glob("features-*"))
    file.write_bytes(file.read_bytes()[:-1])
    made = json.loads((cache / "meta.json").read_text())["provenance"]
    with FeatureCacheWriter(cache, made) as writer, pytest.raises(DataError, match=file.name):
        writer.done()
