import copy
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import load_llava
from vtlvlm.lvlm.prefix import DeepPrompts, chosen_layers


def load(path: Path) -> LlavaForConditionalGeneration:
    return load_llava(str(path))[0]


def prompted(path: Path, **settings: object) -> tuple[LlavaForConditionalGeneration, DeepPrompts]:
    model, prompts = load(path), DeepPrompts(**settings)
    prompts.build(model.config.text_config)
    prompts.attach(model)
    return model, prompts.eval()


def words(model: LlavaForConditionalGeneration, batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(20, model.config.text_config.vocab_size - 20, (batch, length))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", [0, 1, 2, 3, 4, 5, 6, 7]), ("last:3", [5, 6, 7]), ("every:4", [3, 7]), ("every:3", [2, 5]), ([4, 0], [0, 4])],
)
def test_layers_by_hand(layers: str | list[int], expected: list[int]):
    assert chosen_layers(layers, 8) == expected


@pytest.mark.parametrize("layers", ["first:2", "last", "last:0", "last:9", "every:x", [8], [-1], [], [1, 1]])
def test_layers_that_do_not_exist_are_refused(layers: str | list[int]):
    with pytest.raises(UsageError, match="layers "):
        chosen_layers(layers, 8)


@pytest.mark.parametrize(("layers", "count"), [("last:9", 1_179_648), ("all", 4_194_304)])
def test_parameter_counts_of_the_paper(layers: str, count: int):
    from transformers import LlamaConfig

    prompts = DeepPrompts(16, layers)
    prompts.build(LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32))
    assert sum(parameter.numel() for parameter in prompts.parameters()) == count


def test_no_prompt_is_the_untouched_model_bit_for_bit(llava_path: Path):
    plain, (model, prompts) = load(llava_path), prompted(llava_path, tokens=0)
    ids = words(plain)
    assert list(prompts.parameters()) == []
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_attaching_leaves_the_base_models_state_as_it_was(llava_path: Path):
    model, prompts = prompted(llava_path, tokens=4)
    assert model.state_dict().keys() == load(llava_path).state_dict().keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {name: tuple(p.shape) for name, p in prompts.named_parameters()} == {"key": (3, 2, 4, 8), "value": (3, 2, 4, 8)}


def test_all_layers_equal_pefts_prefix_tuning(llava_path: Path):
    model, prompts = prompted(llava_path, tokens=5, std=1.0)
    reference = get_peft_model(load(llava_path), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    both = torch.stack([prompts.key, prompts.value], 1)  # (layers, 2, KV heads, P, width)
    with torch.no_grad():
        weight = reference.prompt_encoder["default"].embedding.weight
        weight.copy_(both.permute(3, 0, 1, 2, 4).reshape(weight.shape))
        ids = words(model)
        vectors = torch.randn(2, 3, 16)
        ids[:, 2:5] = model.config.image_token_id
        projected = list(model.model.multi_modal_projector(vectors))
        seen = [{"image": BaseModelOutputWithPooling(pooler_output=projected)} for _ in range(2)]
        ours = model(input_ids=ids, mm_encoder_outputs=seen[0]).logits
        theirs = reference(input_ids=ids, attention_mask=torch.ones_like(ids), mm_encoder_outputs=seen[1]).logits
        plain = load(llava_path)(input_ids=ids, mm_encoder_outputs=seen[0]).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (ours - plain).abs().max() > 0.01  # the prompt does something


@pytest.mark.parametrize("layers", ["all", [1]])
def test_gradients_survive_checkpointing(llava_path: Path, layers: str | list[int]):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model, prompts = prompted(llava_path, tokens=4, layers=layers, std=1.0, dropout=0.3)
        prompts.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        ids = words(model)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append((prompts.key.grad, prompts.value.grad))
    for without, with_checkpointing in zip(*gradients, strict=True):
        assert without.abs().amax((1, 2, 3)).min() > 0  # in every layer
        torch.testing.assert_close(with_checkpointing, without, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_generate_equals_recomputing(llava_path: Path, layers: str):
    model, _ = prompted(llava_path, tokens=4, layers=layers, std=1.0)
    ids = words(model)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for _ in range(6):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, ids)


def test_cached_steps_give_the_same_logits(llava_path: Path):
    model, _ = prompted(llava_path, tokens=4, std=1.0)
    ids = words(model)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :5], use_cache=True)
        block = model(input_ids=ids[:, 5:8], past_key_values=first.past_key_values, use_cache=True)
        last = model(input_ids=ids[:, 8:], past_key_values=block.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, block.logits, last.logits], 1), whole, atol=1e-5, rtol=1e-5)


def test_left_padding_changes_nothing(llava_path: Path):
    model, _ = prompted(llava_path, tokens=4, std=1.0)
    ids = words(model, batch=1)
    padded = torch.cat([torch.full((1, 3), 2), ids], 1)
    mask = (torch.arange(12) >= 3).long()[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        moved = model(input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, 3:]
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-5)


def test_starting_from_a_text_is_reading_it_first(llava_path: Path):
    plain, (model, prompts) = load(llava_path), prompted(llava_path, tokens=4)
    text, ids = words(plain, 1, 4), words(plain)
    prompts.fill(plain, text[0].tolist())
    with torch.no_grad():
        read = plain(input_ids=torch.cat([text.expand(2, -1), ids], 1)).logits[:, 4:]
        torch.testing.assert_close(model(input_ids=ids).logits, read, atol=1e-5, rtol=1e-5)
        prompts.fill(plain, text[0, :2].tolist())  # repeated to P
        read = plain(input_ids=torch.cat([text[:, [0, 1, 0, 1]].expand(2, -1), ids], 1)).logits[:, 4:]
        torch.testing.assert_close(model(input_ids=ids).logits, read, atol=1e-5, rtol=1e-5)


def test_dropout_hides_prompt_tokens_in_training_only(llava_path: Path):
    model, prompts = prompted(llava_path, tokens=1, layers=[0], std=5.0, dropout=0.5)
    ids = words(model, 1).expand(64, -1)
    with torch.no_grad():
        seen, unseen = model(input_ids=ids).logits[:, -1], None
        assert (seen - seen[0]).abs().max() < 1e-5
        prompts.train()
        some = model(input_ids=ids).logits[:, -1]
        hidden = (some - seen).abs().amax(1) > 1e-3
        unseen = some[hidden]
    assert 16 <= hidden.sum() <= 48
    assert (unseen - unseen[0]).abs().max() < 1e-5  # one token: a clip sees all of it or nothing


def test_a_copy_owns_its_prompts(llava_path: Path):
    holder = torch.nn.Module()
    holder.model, holder.prompts = prompted(llava_path, tokens=4, std=1.0)
    twin = copy.deepcopy(holder)
    ids = words(holder.model)
    before = holder.model(input_ids=ids).logits
    with torch.no_grad():
        twin.prompts.value.mul_(-3)
    assert torch.equal(holder.model(input_ids=ids).logits, before)
    assert (twin.model(input_ids=ids).logits - before).abs().max() > 1e-2


def test_float32_prompts_on_a_bfloat16_model(llava_path: Path):
    model, prompts = load_llava(str(llava_path), dtype="bfloat16")[0], DeepPrompts(4)
    prompts.build(model.config.text_config)
    prompts.attach(model)
    ids = words(model)
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert prompts.key.dtype == prompts.key.grad.dtype == torch.float32


def test_bad_settings_are_named(llava_path: Path):
    with pytest.raises(UsageError, match="prompt tokens -1"):
        DeepPrompts(-1)
    with pytest.raises(UsageError, match=r"dropout 1\.0"):
        DeepPrompts(dropout=1.0)
    model, prompts = prompted(llava_path, tokens=4)
    with pytest.raises(UsageError, match="carries deep prompts already"):
        prompts.attach(model)
    with pytest.raises(UsageError, match="init_text"):
        prompts.fill(model, [])
