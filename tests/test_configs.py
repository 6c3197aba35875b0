"""Every shipped configuration trains: each stage file, and each overlay on one of them, three steps on a tiny cache."""

import copy
import json
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from pipeline import launch_pair
from shipped import FOLDER, data_of, holders, put, resolved, write_events, write_features
from tiny import tiny_llava
from torch import Tensor
from videos import block_clips

from vtlvlm.cli import main
from vtlvlm.configs import config as shipped
from vtlvlm.configs import resolved as located
from vtlvlm.data.ntu import PROTOCOLS
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.fused import has_liger
from vtlvlm.stages.prompt_tuning import PromptTuningModule

STAGES = sorted(path.name for path in FOLDER.glob("*.yaml"))
OVERLAYS = sorted(path.stem for path in (FOLDER / "ablations").glob("*.yaml"))
BACKBONES = {"TimmExtractor": ("test_resnet", 96), "VideoExtractor": ("r3d_18", 512)}
"""Small ones of each family, and the width of their features"""
STEPS, EVENT_DIM = 3, 32
Place = tuple[str, ...]


class Small:
    """Clips, caches and a language model of a size for tests, and the stage files with these in place of what they name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, block_clips(folder / "videos", (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 3))
        self.llava = tiny_llava(folder / "llava", event_dim=EVENT_DIM, layers=9)
        config = copy.deepcopy(stage_file("stage1_vtem.yaml"))
        put(config, root=str(self.root))
        self.data = data_of(config)
        self.events = folder / "events"
        write_events(self.events, self.data, self.random(6, EVENT_DIM))

    def random(self, *shape: int) -> Tensor:
        """Random numbers for each clip and view."""
        return torch.randn(len(self.data.predict_keys()), *shape, generator=torch.Generator().manual_seed(0))

    def features(self, extractor: str, steps: int, cells: int, dim: int, precision: str = "float32") -> Path:
        """A feature cache that says an extractor made it."""
        place = self.folder / f"features-{extractor}-{steps}-{cells}"
        if not place.exists():
            write_features(place, self.data, self.random(steps, cells, dim), {"extractor": extractor, "precision": precision})
        return place

    def shrink(self, config: dict[str, Any], overlay: str) -> None:
        """Give a stage's configuration our data, parts and trainer of a small size; all else stays as it is."""
        put(config, root=str(self.root), num_workers=0, batch_size=2, micro_batch_size=2, fast_dev_run=STEPS)
        config["trainer"] |= {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
        if isinstance(config["trainer"]["strategy"], str):
            config["trainer"]["strategy"] = "ddp"  # also in one process, DDP refuses parameters that the loss does not use
        if any(holders(config, "reasoner")):
            put(next(holders(config, "llava"))["llava"], path=str(self.llava))
            put(config, events=str(self.events))
            return
        kind, backbone = next(
            (h["class_path"].split(".")[-1], h["init_args"]) for h in holders(config, "init_args") if "grid" in h["init_args"]
        )
        backbone["model"], dim = BACKBONES.get(kind, (str(self.llava), EVENT_DIM))
        steps, cells = 64, backbone["grid"] ** 2
        put(config, event_dim=EVENT_DIM, features=str(self.features(kind, steps, cells, dim, backbone["precision"])))
        if overlay == "target_llava":
            put(config, target_features=str(self.features("ClipExtractor", steps, cells, EVENT_DIM)))
        if not overlay.startswith("codes_"):
            for holder in holders(config, "codes"):
                holder["codes"] = 16

    def run(self, config: dict[str, Any], overlay: str = "", command: str = "fit") -> list[float]:
        """Make a configuration small and run it; returns the loss of each step of a training."""
        file = self.written(config, overlay)
        assert main([command, "--config", str(file)]) == 0
        return losses_of(file)

    def written(self, config: dict[str, Any], overlay: str = "", name: str = "config") -> Path:
        """The file of a small configuration, which records its losses beside it."""
        small, file = copy.deepcopy(config), self.folder / f"{name}.yaml"
        self.shrink(small, overlay)
        record = {"class_path": "golden.Record", "init_args": {"path": str(file.with_suffix(".jsonl"))}}
        small["trainer"]["callbacks"] = [*(small["trainer"]["callbacks"] or []), record]
        file.write_text(yaml.safe_dump(small))
        file.with_suffix(".jsonl").write_text("")
        return file


def losses_of(file: Path) -> list[float]:
    """The losses that a small configuration has recorded, of all its processes."""
    lines = map(json.loads, file.with_suffix(".jsonl").read_text().splitlines())
    return [float.fromhex(values[0]) for label, values in lines if label.startswith("loss")]


@cache
def stage_file(base: str) -> dict[str, Any]:
    return resolved(base)


def leaves(config: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Where each setting stands, and its value."""
    if isinstance(config, dict) and config:
        for name, value in config.items():
            yield from leaves(value, (*place, name))
    else:
        yield place, config


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """Trainings under DDP leave a process group and its environment, which end here."""
    before = dict(os.environ)
    yield Small(tmp_path_factory.mktemp("configs"))
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@cache
def written(base: str) -> set[Place]:
    """The settings of the model that a stage file gives itself, in what it includes."""
    text = (FOLDER / yaml.safe_load((FOLDER / base).read_text())["model"]).read_text()
    return {("model", *place) for place, _ in leaves(yaml.safe_load(text))}


def differences(plain: dict[str, Any], arm: dict[str, Any]) -> set[Place]:
    """Where two configurations do not say the same."""
    one, two = dict(leaves(plain)), dict(leaves(arm))
    return {place for place in one.keys() | two.keys() if place not in one or place not in two or one[place] != two[place]}


def require_said(config: dict[str, Any], said: dict[str, Any]) -> None:
    """A configuration has every setting that a file gives; classes are compared by their bare names."""
    found = dict(leaves(config))
    for place, value in leaves(said):
        assert (found[place].split(".")[-1] if place[-1] == "class_path" else found[place]) == value, place


def bases(overlay: dict[str, Any]) -> list[str]:
    """The stage files whose model has the settings that an overlay changes; of one that changes none, the small stage 2."""
    if "model" not in overlay:
        return ["stage2_small.yaml"]
    own = overlay["model"]["init_args"].keys()
    return [base for base in STAGES if own <= stage_file(base)["model"]["init_args"].keys()]


@pytest.mark.parametrize("base", STAGES)
def test_a_stage_file_trains(base: str, small: Small) -> None:
    text = (FOLDER / base).read_text()
    assert text.startswith("# Stage")
    assert "# Hardware" in text
    included = yaml.safe_load((FOLDER / yaml.safe_load(text)["trainer"]).read_text())
    found = stage_file(base)
    asked = [callback["class_path"] for callback in included.pop("callbacks", [])]
    assert [callback["class_path"].split(".")[-1] for callback in found["trainer"]["callbacks"] or []] == asked
    require_said(found["trainer"], included)  # a dotted key beside an include would undo the include
    assert found["data"]["batch_size"] % (found["data"]["micro_batch_size"] or 1) == 0
    losses = small.run(found)
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_changes_what_it_says_and_trains(overlay: str, small: Small) -> None:
    text = (FOLDER / "ablations" / f"{overlay}.yaml").read_text()
    assert text.startswith(("# Table ", "# Beyond the paper", "# The paper's own"))
    assert len(text.splitlines()) <= 6
    said = dict(leaves(yaml.safe_load(text)))
    parts = [place[:-1] for place in said if place[-1] == "class_path"]
    changed = {}
    for base in bases(yaml.safe_load(text)):
        plain, arm = stage_file(base), resolved(base, f"ablations/{overlay}.yaml")
        found = dict(leaves(arm))
        require_said(arm, yaml.safe_load(text))
        for place in differences(plain, arm) - said.keys():  # another class has settings of its own
            assert any(place[: len(part)] == part for part in parts), f"{place} changes"
            assert place not in found or place not in written(base), f"{place}: what {base} says is lost"
        if differences(plain, arm):
            changed[base] = arm
    assert changed
    require_training(small, changed[max(changed)] if overlay.startswith("codes_") else changed[min(changed)], overlay)


@pytest.mark.parametrize("overlay", sorted(path.stem for path in (FOLDER / "hardware").glob("*.yaml")))
def test_an_overlay_for_a_machine_changes_only_how_it_computes(overlay: str, small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """Given after the stage file of the paper; a checkpoint of one is taken by the other."""
    plain, other = stage_file("stage2_prompt.yaml"), resolved("stage2_prompt.yaml", f"hardware/{overlay}.yaml")
    assert (FOLDER / "hardware" / f"{overlay}.yaml").read_text().startswith("# Given after stage2_prompt.yaml")
    changed = {".".join(place).removeprefix("model.init_args.").replace("init_args.", "") for place in differences(plain, other)}
    assert changed
    assert changed <= set(PromptTuningModule.machine_only)
    if overlay == "liger" and not (torch.cuda.is_available() and has_liger()):
        assert main(["fit", "--config", str(small.written(other, overlay))]) == 2
        assert "kernels liger: " in capsys.readouterr().err
        return
    require_training(small, other, overlay)


def test_the_paper_recomputes_layers_only_where_memory_is_short() -> None:
    assert setting(stage_file("stage2_prompt.yaml"), "gradient_checkpointing") is False
    assert setting(resolved("stage2_prompt.yaml", "hardware/gpu_24gb.yaml"), "gradient_checkpointing") is True


def require_training(small: Small, config: dict[str, Any], overlay: str) -> None:
    """Three steps with finite losses. Without an adapter there is nothing to train: `fit` is refused, and `test` runs."""
    if overlay == "adapter_none":
        assert small.run(config, overlay, "test") == []
        return
    losses = small.run(config, overlay)
    assert len(losses) == STEPS, losses
    assert all(map(math.isfinite, losses)), losses


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("base", STAGES)
def test_all_overlays_of_a_stage_file_train_on_two_processes(base: str, small: Small) -> None:
    """One after the other in the same two, each with the stage's own strategy."""
    files = {}
    for overlay in OVERLAYS:
        path = FOLDER / "ablations" / f"{overlay}.yaml"
        fits = base in bases(yaml.safe_load(path.read_text())) and overlay != "adapter_none"  # which trains nothing
        if fits and (base, overlay) != ("stage1_small.yaml", "codes_4096"):  # our clips have 1,024 tokens there
            files[overlay] = small.written(resolved(base, path), overlay, f"{base}-{overlay}")
    assert files
    launch_pair(*(["fit", "--config", file, "--trainer.devices", 2] for file in files.values()))
    for overlay, file in files.items():
        losses = losses_of(file)
        assert len(losses) == 2 * STEPS, overlay
        assert all(map(math.isfinite, losses)), overlay


def setting(config: dict[str, Any], name: str) -> Any:
    """The value of the only setting of this name."""
    (holder,) = holders(config, name)
    return holder[name]


TRAINERS = {
    "gpu_stage1": ("stage1_vtem.yaml", 1, 100),
    "gpu_stage1_8gpus": ("stage1_vtem.yaml", 8, 100),
    "gpu_stage2": ("stage2_prompt.yaml", 8, 50),
    "gpu_24gb": ("stage2_prompt.yaml", 1, 50),
    "gpu_4nodes": ("stage2_prompt.yaml", 32, 50),
    "gpu_full": ("stage2_prompt.yaml", 8, None),
}
"""Trainer for GPUs -> the stage file that it is given after, processes, validations in steps"""


def on_trainer(name: str) -> dict[str, Any]:
    """A stage file at the paper's size with one of the trainers: given as --trainer, it wins over the stage's own."""
    return resolved(TRAINERS[name][0], more=("--trainer", str(FOLDER / "trainer" / f"{name}.yaml")))


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "trainer").glob("gpu_*.yaml")))
def test_a_trainer_for_gpus_keeps_what_it_does_not_say(name: str) -> None:
    base, processes, validations = TRAINERS[name]
    found = on_trainer(name)["trainer"]
    text = (FOLDER / "trainer" / f"{name}.yaml").read_text()
    require_said(found, yaml.safe_load(text))
    assert text.startswith("# ")
    assert found["accelerator"] == "gpu"
    assert found["devices"] * found["num_nodes"] == processes
    assert (found["max_steps"], found["gradient_clip_val"]) == (stage_file(base)["trainer"]["max_steps"], 1.0)
    if validations is None:
        assert (found["val_check_interval"], found["check_val_every_n_epoch"]) == (1.0, 20)
        return
    assert (found["check_val_every_n_epoch"], found["precision"]) == (None, "bf16-mixed")
    assert found["max_steps"] == validations * found["val_check_interval"]
    assert setting(stage_file(base), "batch_size") % processes == 0
    several = processes > 1 and found["strategy"]["init_args"]["broadcast_buffers"] is False
    assert several or (processes == 1 and found["strategy"] == "auto")


def test_trainer_for_full_fine_tuning() -> None:
    found = resolved("stage2_prompt.yaml", "ablations/adapter_full.yaml", more=("--trainer", str(FOLDER / "trainer" / "gpu_full.yaml")))
    strategy = found["trainer"]["strategy"]
    assert strategy["class_path"].endswith("ModelParallelStrategy")
    assert strategy["init_args"]["data_parallel_size"] * strategy["init_args"]["tensor_parallel_size"] == found["trainer"]["devices"]
    assert (found["trainer"]["precision"], found["trainer"]["max_steps"]) == ("32-true", 50_000)
    assert setting(found, "dtype") == "bfloat16"


@pytest.mark.parametrize("base", ["stage1_vtem.yaml", "stage1_small.yaml"])
def test_tables_v_and_vi_are_what_their_names_say(base: str) -> None:
    """M is windows times cells (with the paper's cells), K the number of codes."""
    cells = setting(stage_file("stage1_vtem.yaml"), "grid") ** 2
    for tokens in (64, 128, 512):
        assert setting(resolved(base, f"ablations/tokens_{tokens}.yaml"), "windows") * cells == tokens
    for codes in (512, 1024, 4096):
        assert setting(resolved(base, f"ablations/codes_{codes}.yaml"), "codes") == codes


def test_adapters_have_the_sizes_and_rates_of_their_papers() -> None:
    """LLaVA-1.5's fine-tuning rates; LoRA with alpha of twice the rank, as there."""
    lora, full = (resolved("stage2_prompt.yaml", f"ablations/adapter_{name}.yaml") for name in ("lora", "full"))
    assert [setting(lora, name) for name in ("rank", "alpha")] == [16, 32]
    assert [found["model"]["init_args"]["optimizer"]["learning_rate"] for found in (lora, full)] == [2e-4, 2e-5]


def test_paper_size() -> None:
    """Sec. IV-A: 256 tokens of width 1024, 2048 codes, batch 128, AdamW 1e-4, 200,000 steps; then 16 prompts, 2e-3, 50,000 steps."""
    first, second = stage_file("stage1_vtem.yaml"), stage_file("stage2_prompt.yaml")
    assert setting(first, "windows") * setting(first, "grid") ** 2 == 256
    assert [setting(first, name) for name in ("event_dim", "codes", "batch_size", "max_steps")] == [1024, 2048, 128, 200_000]
    assert first["model"]["init_args"]["optimizer"]["learning_rate"] == 1e-4
    assert [setting(second, name) for name in ("tokens", "batch_size", "micro_batch_size", "max_steps")] == [16, 128, 8, 50_000]
    assert second["model"]["init_args"]["optimizer"]["learning_rate"] == 2e-3


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_has_a_data_section_for_each_stage(protocol: str) -> None:
    """They differ in the protocol alone. Stage 1 sees its whole share of a batch; stage 2 needs no videos."""
    split = protocol.rstrip("0123456789")
    name = f"ntu{protocol.removeprefix(split)}_{split}"
    one, two = (
        resolved(base, more=("--data", str(FOLDER / "data" / f"{name}{kind}.yaml")))["data"]
        for base, kind in (("stage1_vtem.yaml", ""), ("stage2_prompt.yaml", "_events"))
    )
    assert one["source"] == {**stage_file("stage1_vtem.yaml")["data"]["source"], "protocol": protocol}
    assert two["source"] == {**one["source"], "root": None}
    assert (one["batch_size"], one["micro_batch_size"], two["batch_size"], two["micro_batch_size"]) == (128, None, 128, 8)


def test_config_finds_shipped_files_and_names_missing_ones() -> None:
    assert Path(shipped("stage1_small.yaml")) == FOLDER / "stage1_small.yaml"
    with pytest.raises(UsageError, match=r"nothing\.yaml"):
        shipped("nothing.yaml")


@pytest.mark.parametrize("name", ["stage1_small.yaml", "lightning_configs/stage1_small.yaml", "./lightning_configs/stage1_small.yaml"])
def test_shipped_configurations_are_found_from_everywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their includes too: the model is one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--config", name, "--config", "ablations/codes_512.yaml", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert (setting(found, "codes"), setting(found, "image_size")) == (512, 128)


def test_a_file_of_that_name_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located(["--config", "stage1_small.yaml", "--data.source.root", "x"])[1] == str(FOLDER / "stage1_small.yaml")
    assert located(["--model=model/vtem_small.yaml", "--model", "VTEMModule"]) == [
        f"--model={FOLDER / 'model' / 'vtem_small.yaml'}", "--model", "VTEMModule",
    ]  # fmt: skip
    (tmp_path / "stage1_small.yaml").write_text("seed_everything: 1\n")
    assert located(["-c", "stage1_small.yaml"]) == ["-c", "stage1_small.yaml"]
    assert located(["--config", "seed_everything: 1"]) == ["--config", "seed_everything: 1"]


@pytest.mark.parametrize("name", ["nothing.yaml", "lightning_configs/nothing.yaml", "../pyproject.toml", "/nowhere/stage1_small.yaml", "."])
def test_configurations_that_are_none_are_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff")
    monkeypatch.chdir(tmp_path)
    for given in (name, "picture.yaml"):
        assert main(["fit", "--config", given]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"vtlvlm: {given}: ")
        assert said.count("\n") == 1


def test_configurations_are_listed_and_copied_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len([*FOLDER.rglob("*.yaml")])
    assert lines[0].startswith("stage1_small.yaml        ")
    assert any(line.startswith("ablations/fsq.yaml") and "rounded" in line for line in lines)
    there = tmp_path / "deep" / "mine"
    assert main(["configs", "--copy", str(there)]) == 0
    assert {p.relative_to(there) for p in there.rglob("*")} == {p.relative_to(FOLDER) for p in FOLDER.rglob("*")}
    assert resolved(there / "stage1_small.yaml") == stage_file("stage1_small.yaml")
    (there / "stage1_small.yaml").write_text("mine")
    assert main(["configs", "--copy", str(there)]) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert (there / "stage1_small.yaml").read_text() == "mine"
