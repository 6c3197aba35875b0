"""The configurations of the baselines, made small for tests."""

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from shipped import FOLDER, holders, put

from vtlvlm.skeleton.packed import NW_UCLA_ACTIONS
from vtlvlm.skeleton.text_table import write_table

OVERLAYS = {"koopman_second", "nw_ucla"}
ALL = sorted(path.stem for path in (FOLDER / "baselines").glob("*.yaml") if path.stem not in OVERLAYS)
VIDEO = [name for name in ALL if name.startswith(("r3d_18", "swin3d_t"))]
NAMES = [name for name in ALL if name not in VIDEO]
"""Of skeleton networks"""
SMALL = [name for name in NAMES if name.endswith("_small")]
STEPS = 2


def shrunk(config: dict[str, Any], file: Path, folder: Path, protocol: str = "cameras:1,2") -> Path:
    """A configuration for two steps on the small recordings or videos, each of two clips; it records its losses beside it."""
    small = copy.deepcopy(config)
    put(small, root=str(file), protocol=protocol, validation=0.25, batch_size=2, micro_batch_size=None, num_workers=0)
    put(small, default_root_dir=str(folder / "run"))
    for holder in [small["model"]["init_args"]["network"]["init_args"].get("spatial") or {}]:
        if "root" in (holder.get("init_args") or {}):
            holder["init_args"]["root"] = "spine"
    if any(holders(small, "texts")):
        write_table(folder / "texts.safetensors", NW_UCLA_ACTIONS, torch.randn(10, 5, 576), "random numbers")
        put(small, texts=str(folder / "texts.safetensors"))
    if any(holders(small, "metres")):
        put(small, metres=True, coordinates="metres")
    record = {"class_path": "golden.Record", "init_args": {"path": str(folder / "losses.jsonl")}}
    small["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "callbacks": [record], "enable_model_summary": False}
    small["trainer"] |= {"max_epochs": None, "max_steps": STEPS, "limit_val_batches": 1, "enable_progress_bar": False, "strategy": "ddp"}
    small["trainer"] |= {"val_check_interval": STEPS, "check_val_every_n_epoch": None}
    (folder / "losses.jsonl").write_text("")
    (folder / "config.yaml").write_text(yaml.safe_dump(small))
    return folder / "config.yaml"
