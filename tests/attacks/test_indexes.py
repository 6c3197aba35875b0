"""Index files of strangers and failing disks: one line, or made anew; never a traceback, and never more memory than a set takes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.data.index import ClipIndex
from vtlvlm.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "set"
    for number, name in enumerate(("walk/a.mp4", "run/b.mp4")):
        encode(root / name, moving_block(6, 32, falls=True, shade=30 + number))
    ClipIndex.scan(root, progress=False)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    for name in ("walk", "run"):
        shutil.copytree(made / name, tmp_path / "set" / name)
    (tmp_path / "set" / ".vtlvlm").mkdir()
    return tmp_path / "set"


def changed(table: pa.Table, **facts: Any) -> pa.Table:
    old = json.loads(table.schema.metadata[b"vtlvlm"])
    return table.replace_schema_metadata({"vtlvlm": json.dumps({**old, **facts})})


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


HOSTILE: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no facts": lambda t: t.replace_schema_metadata({}),
    "facts that are no JSON": lambda t: t.replace_schema_metadata({"vtlvlm": "{"}),
    "facts as a list": lambda t: t.replace_schema_metadata({"vtlvlm": "[1]"}),
    "facts a million deep": lambda t: t.replace_schema_metadata({"vtlvlm": "[" * 1_000_000}),
    "a column less": lambda t: t.drop_columns(["identity"]),
    "texts as numbers": lambda t: with_column(t, "path", pa.array(np.arange(len(t)))),
    "numbers as texts": lambda t: with_column(t, "frames", pa.array(["6"] * len(t))),
    "floats as counts": lambda t: with_column(t, "frames", pa.array([6.0] * len(t))),
    "gaps": lambda t: with_column(t, "path", pa.array([None] * len(t), pa.string())),
    "lists": lambda t: with_column(t, "path", pa.array([["a"]] * len(t))),
    "labels of no class": lambda t: with_column(t, "label", pa.array(np.full(len(t), 99))),
    "labels below": lambda t: with_column(t, "label", pa.array(np.full(len(t), -2))),
    "classes as numbers": lambda t: changed(t, classes=[1, 2]),
    "classes as a text": lambda t: changed(t, classes=7),
    "a layout of its own": lambda t: changed(t, layout="zip"),
    "a root as a list": lambda t: changed(t, root=["/"]),
    "an answer that is no word": lambda t: changed(t, official="yes"),
    "another version": lambda t: changed(t, version="99"),
    "no rows": lambda t: t.slice(0, 0),
    "a path of megabytes": lambda t: with_column(t, "path", pa.array(["x" * 5_000_000] * len(t))),
    "a foreign table": lambda t: pa.table({"mine": [1]}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_indexes_are_made_anew(kind: str, made: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = root / ".vtlvlm" / "index.parquet"
    pq.write_table(HOSTILE[kind](pq.read_table(made / ".vtlvlm" / "index.parquet")), store)
    if kind != "no rows":
        with pytest.raises(DataError, match="not an index of this version"):
            ClipIndex.read(store)
    assert main(["prepare", str(root)]) == 0
    assert "2 usable, 2 classes" in capsys.readouterr().out
    assert ClipIndex.read(store).frames.tolist() == [6, 6]


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "text", "flipped"])
def test_damaged_indexes_are_made_anew(damage: str, made: Path, root: Path) -> None:
    store, whole = root / ".vtlvlm" / "index.parquet", (made / ".vtlvlm" / "index.parquet").read_bytes()
    generator = np.random.default_rng(0)
    for round_ in range(30 if damage in ("flipped", "cut") else 1):
        content = bytearray(whole)
        if damage == "flipped":
            for at in generator.integers(0, len(whole), 4):
                content[at] ^= int(generator.integers(1, 256))
        kinds = {"cut": whole[: (round_ + 1) * len(whole) // 31], "zeros": bytes(len(whole)), "empty": b"", "text": b"hello\n"}
        store.write_bytes(kinds.get(damage, bytes(content)))
        try:
            assert len(ClipIndex.read(store)) >= 0
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
    assert main(["prepare", str(root)]) == 0


def test_paths_in_an_index_lead_nowhere(made: Path, root: Path, tmp_path: Path) -> None:
    """Rows are those of the files that are there; an index adds none."""
    secret = tmp_path / "secret.mp4"
    secret.write_text("mine")
    table = pq.read_table(made / ".vtlvlm" / "index.parquet")
    for path in (str(secret), "../secret.mp4", "walk/../../secret.mp4", ".."):
        pq.write_table(with_column(table, "path", pa.array(["walk/a..mp4", path])), root / ".vtlvlm" / "index.parquet")
        with pytest.raises(DataError, match="not an index"):
            ClipIndex.read(root / ".vtlvlm" / "index.parquet")
    index = ClipIndex.scan(root, progress=False)
    assert index.path.tolist() == ["run/b.mp4", "walk/a.mp4"]
    assert index.frames.tolist() == [6, 6]


def test_sixty_million_rows_in_a_small_file(made: Path, root: Path) -> None:
    store = root / ".vtlvlm" / "index.parquet"
    table = pq.read_table(made / ".vtlvlm" / "index.parquet").slice(0, 1)
    huge = pa.table({name: pa.repeat(table.column(name)[0], 1_000_000) for name in table.column_names}).replace_schema_metadata(
        table.schema.metadata
    )
    with pq.ParquetWriter(store, huge.schema, compression="zstd") as writer:
        for _ in range(6):  # six million are over the limit too, and are written sooner
            writer.write_table(huge)
    assert store.stat().st_size < 2_000_000
    code = (
        "import sys; from vtlvlm.cli import main; code = main(['prepare', sys.argv[1], '--fast']);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert int(done.stderr) < 600_000  # KiB; six million rows of Python texts and numbers take several times that


def test_names_from_a_stranger_are_shown_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("wa\x1b[31mlk/a.mp4", "run/b\x1b]0;title\x07\n.mp4", "jump/c‮4pm.mp4", "hop/d.m\x1bp")):
        encode(tmp_path / "x.mp4", moving_block(6, 32, falls=True, shade=30 + number))
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.mp4").rename(tmp_path / "set" / name)
    (tmp_path / "set" / "run" / "\x1b[2Jbroken.mp4").write_text("x")
    (tmp_path / "set" / ".\x1b[5m").mkdir()
    assert main(["prepare", str(tmp_path / "set")]) == 0
    text = capsys.readouterr().out + (tmp_path / "set" / ".vtlvlm" / "index.txt").read_text()
    assert not set(text) & {"\x1b", "\x07", "‮"}
    assert r"\x1b[2Jbroken.mp4" in text
