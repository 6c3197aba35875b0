import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_llava
from transformers import LlavaForConditionalGeneration

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import base_identity, load_config, load_llava, projector_width


def test_loads_frozen_without_the_vision_tower_and_speaks_as_before(llava_path: Path):
    model, tokenizer = load_llava(str(llava_path))
    assert model.model.vision_tower is None
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    ids = torch.arange(20, 30)[None]
    assert torch.equal(model(input_ids=ids).logits, LlavaForConditionalGeneration.from_pretrained(llava_path)(input_ids=ids).logits)
    assert load_llava(str(llava_path), vision=True)[0].model.vision_tower is not None


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_dtype(llava_path: Path, dtype: str, expected: torch.dtype):
    assert load_llava(str(llava_path), dtype=dtype)[0].lm_head.weight.dtype == expected


def test_projector_width(llava_path: Path):
    config = load_config(str(llava_path))
    assert projector_width(config) == 16
    config.vision_feature_layer = [-2, -1]
    assert projector_width(config) == 32


def test_loading_says_nothing(llava_path: Path, capfd: pytest.CaptureFixture[str]):
    load_llava(str(llava_path))
    assert capfd.readouterr() == ("", "")


def assert_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_llava(name)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path: Path):
    assert_refused(str(tmp_path / "nothing"), "no such folder")


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused("nobody/no-such-llava", "nobody/no-such-llava: no such folder, and the Hugging Face hub did not give it")


def test_folders_that_are_no_llava(tmp_path: Path):
    assert_refused(str(tmp_path), "holds no config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert_refused(str(tmp_path), "is a llama model, not a LLaVA")
    (tmp_path / "config.json").write_text("{")
    assert_refused(str(tmp_path), "its config.json is no model's")


def test_incomplete_folders(llava_path: Path, tmp_path: Path):
    folder = tmp_path / "llava"
    shutil.copytree(llava_path, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused(str(folder), "weights cannot be read")
    weights.unlink()
    assert_refused(str(folder), "weights cannot be read")
    for file in folder.glob("*token*"):
        file.unlink()
    assert_refused(str(folder), "no readable tokenizer")


def test_identity_follows_the_weights_and_not_the_place(llava_path: Path, tmp_path: Path):
    first = base_identity(str(llava_path))
    copy = Path(shutil.copytree(llava_path, tmp_path / "copy"))
    other = tiny_llava(tmp_path / "other", seed=1)
    assert {**base_identity(str(copy)), "llava": ""} == {**first, "llava": ""}
    assert base_identity(str(other))["weights"] != first["weights"]
    assert base_identity(str(other))["config"] == first["config"]
