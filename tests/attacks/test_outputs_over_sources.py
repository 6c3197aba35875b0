"""No command line of ours destroys what it reads: every command, every pair of its paths, equal, linked, nested and spelt differently."""

import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import pytest
from pipeline import Pipeline

from vtlvlm.cli import main


class Command(NamedTuple):
    """A command line with places: names in angle brackets are replaced by paths."""

    line: str
    outputs: tuple[str, ...]
    """places that it writes to"""
    inputs: tuple[str, ...]


SHORT = "--trainer.max_steps 1 --trainer.limit_val_batches 0"
STAGE1 = "--config <stage1> --data.source.root <videos>"
STAGE2 = "--config <stage2> --data.source.root <videos> --data.events <events>"
STUDY = "<run2> <new> --events <events> --videos <videos> --features <features>"
NO_MORE = "--controls 0 --practice 0 --checks 0 --repeats 0"
COMMANDS = {
    "prepare": Command("prepare <videos> --csv <table> --output <new>", ("new",), ("videos", "table")),
    "prepare --transcode": Command("prepare <videos> --transcode <new>", ("new",), ("videos",)),
    "prepare --transcode --csv": Command("prepare <videos> --csv <table> --transcode <new>", ("new",), ("videos", "table")),
    "synth": Command("synth <new> --subjects 1 --actions 2 --cameras 1 --size 32", ("new",), ("videos",)),
    "extract": Command(f"extract {STAGE1} --output <new>", ("new",), ("videos", "stage1", "run1", "llava")),
    "fit stage 1": Command(
        f"fit {STAGE1} {SHORT} --data.features <features> --trainer.default_root_dir <new>",
        ("new",),
        ("videos", "features", "stage1", "run2"),
    ),
    "tokenize": Command(
        f"tokenize {STAGE1} --data.features <features> --ckpt_path <best1> --output <new>",
        ("new",),
        ("videos", "features", "best1", "run1"),
    ),
    "fit stage 2": Command(
        f"fit {STAGE2} {SHORT} --trainer.default_root_dir <new>", ("new",), ("videos", "events", "run1", "llava", "stage2")
    ),
    "test": Command(
        f"test {STAGE2} --trainer.default_root_dir <new> --ckpt_path <best2>", ("new",), ("videos", "events", "best2", "run1", "llava")
    ),
    "export": Command("export <run2> <new>", ("new",), ("run2", "best2", "llava", "events")),
    "export --vtem": Command("export <best2> <new> --vtem <best1>", ("new",), ("best1", "best2")),
    "consolidate": Command("consolidate <best2> <new>", ("new",), ("best2", "llava")),
    "compose": Command("compose <new>", ("new",), ("llava", "videos")),
    "probe": Command("probe <videos> --features <features> --output <new>", ("new",), ("videos", "features", "best1", "index")),
    "probe --export": Command("probe <videos> --features <features> --export <new>", ("new",), ("videos", "features", "index")),
    "report": Command("report <new>", ("new",), ("videos", "run2")),
    "study make": Command(f"study make {STUDY} --clips 2 --raters 2 {NO_MORE}", ("new",), ("videos", "events", "features", "run2")),
    "study auto": Command(f"study auto {STUDY} --clips 1 --steps 2 --order-clips 1", ("new",), ("videos", "events", "features", "run2")),
}
RELATIONS: dict[str, Callable[[Path, Path], Path]] = {
    "equal": lambda other, tmp: other,
    "linked": lambda other, tmp: linked(tmp / "link", other),
    "spelt differently": lambda other, tmp: other.parent / "x" / ".." / other.name,
    "inside": lambda other, tmp: other / "inside",
    "around": lambda other, tmp: other.parent,
}
# Written again into a folder by its own command: indexes, measurements, TensorBoard, locks.
OWN = ("metrics", "versions.json", "predictions", "confusion", "events.out", "report.", ".lock", "hparams")


def linked(link: Path, other: Path) -> Path:
    link.symlink_to(other)
    return link


def contents(folder: Path) -> dict[str, str]:
    """Every file with a hash of its bytes, but those that belong to no source."""
    return {
        str(path.relative_to(folder)): blake2b(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and ".vtlvlm" not in path.parts and not path.name.startswith(OWN)
    }


@pytest.fixture(scope="module")
def laid_out(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands read, in one folder."""
    folder = tmp_path_factory.mktemp("sources") / "a"
    shutil.copytree(chain.folder, folder, symlinks=True)
    for name in ("stage1.yaml", "stage2.yaml"):
        file = folder / name
        file.write_text(file.read_text().replace(str(chain.folder), str(folder)))
    (folder / "x").mkdir()
    videos = sorted((folder / "videos").glob("*.avi"))
    (folder / "clips.csv").write_text("path,label,group\n" + "".join(f"{v.name},{v.name[16:20]},{v.name[8:12]}\n" for v in videos))
    return folder


def places(folder: Path) -> dict[str, Path]:
    run1, run2 = folder / "run1", folder / "run2"
    return {
        "videos": folder / "videos", "table": folder / "clips.csv", "stage1": folder / "stage1.yaml", "stage2": folder / "stage2.yaml",
        "features": folder / "features", "events": folder / "events", "run1": run1, "run2": run2, "llava": folder / "llava",
        "best1": run1 / "checkpoints" / "best.ckpt", "best2": run2 / "checkpoints" / "best.ckpt",
        "index": folder / "videos" / ".vtlvlm" / "index.parquet",
    }  # fmt: skip


LONG = ("fit stage 1", "fit stage 2", "test", "extract", "tokenize", "compose")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in COMMANDS])
def test_no_source_changes(name: str, laid_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, known = COMMANDS[name], places(laid_out)
    before, wrong = contents(laid_out), []
    for other in command.inputs:
        for relation, place in RELATIONS.items():
            if relation == "inside" and known[other].is_file() and other != "table":
                continue
            work = tmp_path / f"{other}-{relation}"
            work.mkdir()
            filled = {**known, "new": place(known[other], work)}
            line = [filled[part[1:-1]].as_posix() if part.startswith("<") else part for part in command.line.split()]
            code = main(line)
            said = capsys.readouterr().err
            after = contents(laid_out)
            lost = [path for path, digest in before.items() if after.get(path) != digest]
            if lost or "Traceback" in said or (code and len(said.strip().splitlines()) != 1):
                wrong.append(f"{' '.join(line)}: exit {code}, {said.strip()[-200:]!r}; changed {lost[:3]}")
            for path in set(after) - set(before):  # what it was allowed to write must not stand in the next one's way
                (laid_out / path).unlink()
    assert not wrong, "\n".join(wrong)
