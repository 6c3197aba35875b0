"""Prefixes to and from peft: its own library is the other side."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from reasoners import placed, reasoner_of
from tiny import tiny_llava
from torch import Tensor
from transformers import LlamaConfig, LlavaForConditionalGeneration, MistralConfig, PretrainedConfig, Qwen2Config

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_llava
from vtlvlm.lvlm.peft_format import read_prefix, write_prefix
from vtlvlm.lvlm.prefix import DeepPrompts


def load(path: Path) -> LlavaForConditionalGeneration:
    return load_llava(str(path))[0]


def logits(model: torch.nn.Module, base: LlavaForConditionalGeneration) -> Tensor:
    """After five words, three events and two words."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(20, 300, (2, 10), generator=generator)
    ids[:, 5:8] = base.config.image_token_id
    projected = base.model.multi_modal_projector(torch.randn(2, 3, 16, generator=generator))
    with torch.no_grad():
        return model(inputs_embeds=placed(base, ids, projected), attention_mask=torch.ones_like(ids)).logits


def prompted(path: Path, **settings: object) -> tuple[LlavaForConditionalGeneration, DeepPrompts]:
    model, prompts = load(path), DeepPrompts(**settings)
    prompts.build(model.config.text_config)
    prompts.attach(model)
    return model, prompts.eval()


def by_peft(path: Path, folder: Path, tokens: int = 5, **settings: object) -> PeftModel:
    """A prefix that peft made and saved; its values are large enough to be seen."""
    model = get_peft_model(load(path), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, **settings)).eval()
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("language", [LlamaConfig, MistralConfig, Qwen2Config])
def test_peft_reads_what_is_written(tmp_path: Path, language: type[PretrainedConfig]) -> None:
    llava_path = tiny_llava(tmp_path / "llava", language=language)
    model, prompts = prompted(llava_path, tokens=5, std=1.0)
    write_prefix(tmp_path, prompts.key.detach(), prompts.value.detach(), str(llava_path))
    base = load(llava_path)
    theirs = PeftModel.from_pretrained(base, tmp_path)
    assert theirs.peft_config["default"].base_model_name_or_path == str(llava_path)
    torch.testing.assert_close(logits(theirs, base), logits(model, model), atol=1e-5, rtol=0)
    assert (logits(model, model) - logits(load(llava_path), base)).abs().max() > 0.01


def test_the_files_are_as_peft_writes_them(llava_path: Path, tmp_path: Path) -> None:
    """The same settings and tensor as after loading and saving with peft."""
    _, prompts = prompted(llava_path, tokens=5)
    (ours, theirs) = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    write_prefix(ours, prompts.key.detach(), prompts.value.detach(), str(llava_path))
    PeftModel.from_pretrained(load(llava_path), ours).save_pretrained(theirs)
    one, two = (json.loads((folder / "adapter_config.json").read_text()) for folder in (ours, theirs))
    assert one == {name: two[name] for name in one}
    assert all(torch.equal(*pair) for pair in zip(*(read_prefix(folder, (3, 2, 5, 8)) for folder in (ours, theirs)), strict=True))


@pytest.mark.parametrize("settings", [{}, {"prefix_projection": True, "encoder_hidden_size": 12}])
@pytest.mark.parametrize("width", [None, 6])
def test_prompts_start_from_what_peft_trained(llava_path: Path, tmp_path: Path, settings: dict, width: int | None) -> None:
    theirs = by_peft(llava_path, tmp_path, **settings)
    model, prompts = prompted(llava_path, tokens=5, reparam_hidden_dim=width)
    prompts.read(tmp_path, 3)
    torch.testing.assert_close(logits(model, model), logits(theirs, theirs.get_base_model()), atol=1e-5, rtol=0)


def test_a_reasoner_starts_from_a_prefix_unless_trained_weights_follow(llava_path: Path, tmp_path: Path) -> None:
    by_peft(llava_path, tmp_path)
    wanted = read_prefix(tmp_path, (3, 2, 5, 8))
    for fresh in (True, False):
        prompts = DeepPrompts(5, init_from=str(tmp_path))
        reasoner_of(llava_path, prompts, Instruction()).build(["walk", "run"], 4, 16, fresh=fresh)
        assert torch.equal(prompts.key, wanted[0]) is torch.equal(prompts.value, wanted[1]) is fresh


def test_prefixes_that_do_not_fit_are_refused(llava_path: Path, tmp_path: Path) -> None:
    def refused(words: str, folder: Path, path: Path = llava_path, **settings: object) -> None:
        reasoner = reasoner_of(path, DeepPrompts(**{"tokens": 5, "init_from": str(folder), **settings}), Instruction())
        with pytest.raises(UsageError, match=words) as caught:
            reasoner.build(["walk", "run"], 4, 16)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)

    prefix = tmp_path / "prefix"
    by_peft(llava_path, prefix)
    refused("has 5 prompt tokens, the settings ask for 4; set tokens to 5", prefix, tokens=4)
    refused("covers all layers, not last:2; set layers to all", prefix, layers="last:2")
    refused("a model of 3 layers with 2 KV heads 8 wide .*, this one has 4 with 2, 8 wide", prefix, tiny_llava(tmp_path / "deep", layers=4))
    refused("holds no readable adapter_config.json", tmp_path / "nothing")
    (prefix / "adapter_model.safetensors").write_bytes(b"no tensors")
    refused("holds no readable adapter_config.json and adapter_model.safetensors", prefix)
    lora = get_peft_model(load(llava_path), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    refused("an adapter of type LORA, not PREFIX_TUNING", tmp_path / "lora")
