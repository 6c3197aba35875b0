"""Golden losses: what both small stages compute, step by step, compared with the numbers recorded in ``golden.json``.

    make golden                       # compare this tree with the recorded numbers, about half a minute
    python tests/golden.py --write    # record them anew, after a change that is meant to change them

Both stages are trained for ten steps as ``stage1_small.yaml`` and ``stage2_small.yaml`` say, on features and events from a fixed generator
and with a random language model of 50,000 parameters. Every loss, the validation figures, the trained weights (as sums) and the outputs of
``predict`` are kept as hexadecimal floats. A change that claims to compute the same has to reproduce every one of them to the bit.

The numbers depend on torch and the processor. With the same version of torch on a processor with the same instructions the comparison is to
the bit. Otherwise losses may differ by 1e-4 of their size (other kernels on one machine made up to 2e-5), and what many numbers enter by
1e-3. The command says which of the two it did.
"""

# ruff: noqa: E402 - some variables of the environment are set before the libraries that read them are imported

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PORTABLE = {  # one thread, and the same products on every processor; read when the libraries are loaded, therefore before their imports
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "OPENBLAS_CORETYPE": "Haswell",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
if __name__ == "__main__":
    os.environ.update(PORTABLE)

import numpy as np
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from shipped import data_of, holders, put, resolved, write_events, write_features
from tiny import tiny_llava
from videos import block_clips

from vtlvlm.cli import main
from vtlvlm.data.datamodule import NTUDataModule

RECORDED = Path(__file__).with_suffix(".json")
STEPS = 10
TOLERANCE = 1e-4
WHOLE = 64
"""Tensors of at most so many numbers are kept whole, larger ones as their sum and sum of squares"""

FRAMES, CELLS, TOKENS = 32, 4, 64
"""As the configurations say"""
BACKBONE, FEATURE_DIM, EVENT_DIM, CODES = "test_resnet", 96, 64, 32
"""Smaller than the configurations say, which takes seconds instead of minutes"""


class Record(Callback):
    """Writes what a trainer computes to a file, a line each: JSON with a label and hexadecimal floats.

    Args:
        path: Of the file; appended to.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def _write(self, label: str, values: list[float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([label, [float(value).hex() for value in values]]) + "\n")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._write(f"loss of step {trainer.global_step}", [float(outputs["loss"])])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = sorted(float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/"))
        self._write(f"validation figures after step {trainer.global_step}, in ascending order", found)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        self._write("sum and sum of squares of the trained weights", list(_sums(trained)))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for number, tensor in enumerate([outputs] if isinstance(outputs, torch.Tensor) else outputs):
            values = tensor.flatten().tolist() if tensor.numel() <= WHOLE else list(_sums([tensor]))
            self._write(f"output {number} of predict, batch {batch_idx}", values)


def _sums(tensors: list[torch.Tensor]) -> Iterator[float]:
    """Exact to the last bit in any order of the tensors."""
    values = [tensor.detach().double().flatten().cpu().numpy() for tensor in tensors]
    yield math.fsum(math.fsum(part) for part in values)
    yield math.fsum(math.fsum(part * part) for part in values)


# -- the two runs ----------------------------------------------------------------------------------------------------------------------


def _keys(config: dict[str, Any]) -> tuple[NTUDataModule, list[tuple[str, int]], torch.Tensor]:
    """The data module of a configuration, its clips and views, and the (n,) number of each one's action."""
    data = data_of(config)
    keys = data.predict_keys()
    return data, keys, torch.tensor([float(name.endswith("A002")) for name, _ in keys])


def _small(config: dict[str, Any], root: Path, folder: Path) -> None:
    put(config, root=str(root), num_workers=0, max_steps=STEPS, val_check_interval=STEPS // 2, default_root_dir=str(folder))
    put(config, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1)
    config["trainer"]["callbacks"] = [
        *(config["trainer"]["callbacks"] or []),
        {"class_path": "golden.Record", "init_args": {"path": str(folder) + ".jsonl"}},
    ]


def _run(config: dict[str, Any], folder: Path) -> list[Any]:
    """Train and predict, and return what was recorded."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    for command in (["fit"], ["predict", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]):
        if code := main([command[0], "--config", str(file), *command[1:]]):
            raise SystemExit(code)
    return [json.loads(line) for line in Path(f"{folder}.jsonl").read_text().splitlines()]


def stage1(root: Path, folder: Path) -> list[Any]:
    """Ten steps of stage 1 on random features, in which the action shows."""
    config = resolved("stage1_small.yaml")
    put(next(holders(config, "image_size")), model=BACKBONE, weights=None)
    _small(config, root, folder / "run1")
    data, keys, action = _keys(config)
    generator = torch.Generator().manual_seed(1)
    cells = torch.randn(len(keys), FRAMES, CELLS, FEATURE_DIM, generator=generator)
    side = torch.randn(2, FEATURE_DIM, generator=generator)
    drift = torch.linspace(-1, 1, FRAMES)[:, None, None]
    cells += (action[:, None] * side[0])[:, None, None] + drift * ((1 - action)[:, None] * side[1])[:, None, None]
    write_features(folder / "features", data, cells, {"extractor": "TimmExtractor"})
    put(config, event_dim=EVENT_DIM, codes=CODES, features=str(folder / "features"))
    return _run(config, folder / "run1")


def stage2(root: Path, folder: Path) -> list[Any]:
    """Ten steps of stage 2 on random events, in which the action shows."""
    config = resolved("stage2_small.yaml")
    _small(config, root, folder / "run2")
    config["model"]["init_args"]["reasoner"]["init_args"]["llava"]["path"] = str(tiny_llava(folder / "llava", event_dim=EVENT_DIM))
    data, keys, action = _keys(config)
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(len(keys), TOKENS, EVENT_DIM, generator=generator)
    vectors += (action[:, None] * torch.randn(EVENT_DIM, generator=generator))[:, None]
    write_events(folder / "events", data, vectors, windows=TOKENS // CELLS)
    put(config, events=str(folder / "events"))
    return _run(config, folder / "run2")


def measure(folder: Path) -> dict[str, Any]:
    """Run both stages and return all they computed, with what the numbers depend on."""
    torch.set_num_threads(1)
    root = block_clips(folder / "videos", (1, 2, 4, 5, 8, 9, 3, 6))
    runs = {"stage 1": stage1(root, folder), "stage 2": stage2(root, folder)}
    return {"made with": surroundings(), **runs}


def surroundings() -> dict[str, str]:
    """What the bits depend on, besides the code."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    instructions = [name for name in ("avx2", "avx512f") if name in flags]
    return {"torch": torch.__version__, "numpy": np.__version__, "processor": " ".join([platform.machine(), *instructions])}


# -- comparing -------------------------------------------------------------------------------------------------------------------------


def differences(recorded: dict[str, Any], now: dict[str, Any], tolerance: float) -> list[str]:
    """The places where two records differ by more than a share of their size, in the order in which they were computed."""
    found = []
    for stage in ("stage 1", "stage 2"):
        before, after = recorded[stage], now[stage]
        if [label for label, _ in before] != [label for label, _ in after]:
            found.append(f"{stage}: other steps were made: {[label for label, _ in after]}, recorded are {[label for label, _ in before]}")
            continue
        for (label, old), (_, new) in zip(before, after, strict=True):
            one, two = ([float.fromhex(value) for value in values] for values in (old, new))
            near = tolerance * max(map(abs, one)) * (1 if label.startswith("loss") else 10)
            off = [pair for pair in zip(one, two, strict=False) if not _same(*pair, near)]
            if off or len(old) != len(new):
                first = "{!r} recorded, {!r} now".format(*off[0]) if off else "other numbers of values"
                found.append(f"{stage}, {label}: {first} ({len(off)} of {len(old)} values)")
    return found


def _same(one: float, two: float, near: float) -> bool:
    return one == two or (math.isnan(one) and math.isnan(two)) or abs(one - two) <= near


def check(recorded: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], str]:
    """The differences, and how the comparison was made."""
    if recorded["made with"] == now["made with"]:
        return differences(recorded, now, 0.0), "to the bit"
    was, here = (", ".join(f"{name} {value}" for name, value in record["made with"].items()) for record in (recorded, now))
    return differences(recorded, now, TOLERANCE), f"within {TOLERANCE} of each loss (recorded with {was}; here {here})"


def command() -> int:
    parser = argparse.ArgumentParser(prog="golden.py", description="Compare what both small stages compute with the recorded numbers.")
    parser.add_argument("--write", action="store_true", help="record the numbers of this tree instead of comparing")
    write = parser.parse_args().write
    with TemporaryDirectory() as folder:
        now = measure(Path(folder))
    count = sum(len(values) for stage in ("stage 1", "stage 2") for _, values in now[stage])
    if write:
        lines = ",\n".join(f"{json.dumps(name)}: {_listed(record)}" for name, record in now.items())
        RECORDED.write_text(f"{{\n{lines}\n}}\n")
        print(f"golden: {count} numbers written to {RECORDED.name}")
        return 0
    found, how = check(json.loads(RECORDED.read_text()), now)
    print("\n".join(found[:20] + [f"and {len(found) - 20} more"] * (len(found) > 20)))
    print(f"golden: compared {count} numbers {how}: {f'{len(found)} places differ' if found else 'all the same'}")
    return int(bool(found))


def _listed(record: Any) -> str:
    """JSON with one entry a line, so that a changed number is one line of the diff."""
    return json.dumps(record) if isinstance(record, dict) else "[\n  " + ",\n  ".join(map(json.dumps, record)) + "\n]"


if __name__ == "__main__":
    sys.exit(command())
