import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from reasoners import reasoner_of
from tiny import tiny_llava
from transformers import LlavaForConditionalGeneration

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.adapters import LoRA
from vtlvlm.lvlm.base_identity import base_identity, require_same_base
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_config, load_llava, projector_origin, projector_width, quantization_config
from vtlvlm.lvlm.prefix import DeepPrompts


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
    assert_refused("nobody/no-such-llava", "nobody/no-such-llava: no such folder, and the download from the Hugging Face hub failed")
    with pytest.raises(UsageError, match="hub failed at revision v2 ") as caught:
        reasoner_of("nobody/no-such-llava", DeepPrompts(), Instruction(), revision="v2").build(("drink",), 4, 1024)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_hub_weights_that_are_not_here_yet_are_no_other_llava(
    llava_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """A hub cache as huggingface_hub lays it out, at first without weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder, whole = tmp_path / "models--some--llava" / "snapshots" / ("c" * 40), tmp_path / "whole"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("c" * 40)
    LlavaForConditionalGeneration.from_pretrained(llava_path).save_pretrained(whole, max_shard_size="150KB" if shards > 1 else "1GB")
    weights = sorted(whole.glob("*.safetensors"))
    assert (len(weights) > 1) is (shards > 1)
    for file in whole.glob("*.json"):
        shutil.copy(file, folder)
    made = base_identity(str(whole))
    for file in weights:
        with pytest.raises(UsageError, match="some/llava: its weights are incomplete"):
            require_same_base(made, "some/llava", None, "the checkpoint")
        shutil.copy(file, folder)
    (folder / "consolidated.safetensors").write_bytes(b"which nobody reads")
    found = base_identity("some/llava")
    assert (found["weights"], found["config"], found["revision"]) == (made["weights"], made["config"], "c" * 40)


def test_a_full_gpu_is_not_a_broken_file(llava_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_llava(str(llava_path))


def test_folders_that_are_no_llava(tmp_path: Path):
    assert_refused(str(tmp_path), "holds no config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert_refused(str(tmp_path), "is a llama model, not a LLaVA")
    (tmp_path / "config.json").write_text("{")
    assert_refused(str(tmp_path), "its config.json is not a model's")


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


def test_identity_sees_a_part_that_was_trained(llava_path: Path, tmp_path: Path):
    """Of a gigabyte, of which nothing but zeros is written: 40 MB in its middle, as of a projector, its ends as they were."""
    first, second = (Path(shutil.copytree(llava_path, tmp_path / name)) for name in ("first", "second"))
    for folder in (first, second):
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(2**30)
            if folder == second:
                file.seek(5 * 10**8)
                file.write(b"1" * 40_000_000)
    one, two = (base_identity(str(folder))["weights"] for folder in (first, second))
    assert one != two


def test_another_llava_than_the_one_trained_on_is_refused(llava_path: Path, tmp_path: Path):
    made = base_identity(str(llava_path))
    require_same_base(made, str(shutil.copytree(llava_path, tmp_path / "moved")), None, "a.ckpt")
    other = tiny_llava(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match=r"a\.ckpt was trained on .*other is another LLaVA") as caught:
        require_same_base(made, str(other), None, "a.ckpt")
    assert "\n" not in str(caught.value)


def test_where_the_projector_comes_from(llava_path: Path, tmp_path: Path):
    assert projector_origin(str(llava_path)) == projector_origin("llava-hf/llava-1.5-7b-hf") == "pretrained"
    (tmp_path / "composed.json").write_text(json.dumps({"projector": "untrained"}))
    assert projector_origin(str(tmp_path)) == "untrained"


def test_attention_kernel(llava_path: Path):
    assert load_llava(str(llava_path), attention="eager")[0].model.language_model.config._attn_implementation == "eager"
    if find_spec("flash_attn") is None:
        with pytest.raises(UsageError, match=r"attention 'flash_attention_2': .*; install it, or use sdpa") as caught:
            load_llava(str(llava_path), attention="flash_attention_2")
        assert "\n" not in str(caught.value)


def test_quantisation_without_bitsandbytes(llava_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vtlvlm.lvlm.llava.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"quantization 4bit: needs bitsandbytes; run: pip install 'vtlvlm\[quantized\]'") as caught:
        load_llava(str(llava_path), quantization="4bit")
    assert "\n" not in str(caught.value)


def test_quantisation_where_bitsandbytes_cannot_work(llava_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A distribution that is there by name and does not load, as without its libraries."""
    monkeypatch.setattr("vtlvlm.lvlm.llava.find_spec", lambda _: object())
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UsageError, match=r"quantization 8bit: bitsandbytes does not work here .*; use a GPU, or leave it out") as caught:
        load_llava(str(llava_path), quantization="8bit")
    assert "\n" not in str(caught.value)


def test_quantisation_settings():
    """What reaches transformers."""
    pytest.importorskip("bitsandbytes", reason="pip install 'vtlvlm[quantized]'")
    four, eight = (quantization_config(bits, torch.bfloat16) for bits in ("4bit", "8bit"))
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
    assert eight.llm_int8_skip_modules == four.llm_int8_skip_modules == ["lm_head", "model.multi_modal_projector", "model.vision_tower"]


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("adapter", [lambda: DeepPrompts(4), lambda: LoRA(2, 4.0)], ids=["prefix", "lora"])
def test_a_quantised_model_learns(llava_path: Path, classes: tuple[str, ...], quantization: str, adapter: type):
    bnb = pytest.importorskip("bitsandbytes", reason="pip install 'vtlvlm[quantized]'")
    reasoner = reasoner_of(llava_path, adapter(), Instruction(list_categories=False), quantization=quantization, train_projector=True)
    reasoner.build(classes, 6, 16)
    layer = reasoner.base.model.language_model.layers[0].mlp.down_proj
    assert isinstance(getattr(layer, "base_layer", layer), {"8bit": bnb.nn.Linear8bitLt, "4bit": bnb.nn.Linear4bit}[quantization])
    for whole in (reasoner.base.lm_head, reasoner.projector.linear_1):
        assert type(whole) is torch.nn.Linear
    plain = reasoner_of(llava_path, adapter(), Instruction(list_categories=False), train_projector=True)
    plain.build(classes, 6, 16)
    assert reasoner.trainable_parameters() == plain.trainable_parameters()
    vectors, labels = torch.randn(8, 6, 16), torch.arange(8)
    optimizer = torch.optim.AdamW([p for p in reasoner.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(reasoner.train()(vectors).score, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weights_go_to_the_device_of_the_context_at_once(llava_path: Path) -> None:
    """As Lightning builds models on a GPU: the same weights, through the library that transformers asks for then."""
    plain = load_llava(str(llava_path), dtype="bfloat16")[0].state_dict()
    with torch.device("cpu"):
        found = load_llava(str(llava_path), dtype="bfloat16")[0].state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in found.items())
