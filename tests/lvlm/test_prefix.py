import copy
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from reasoners import placed
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import load_llava
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.prompt_encoder import chosen_layers, plain_state


def load(path: Path) -> LlavaForConditionalGeneration:
    return load_llava(str(path))[0]


def prompted(path: Path, **settings: object) -> tuple[LlavaForConditionalGeneration, DeepPrompts]:
    model, prompts = load(path), DeepPrompts(**settings)
    prompts.build(model.config.text_config)
    prompts.attach(model)
    return model, prompts.eval()


def words(model: LlavaForConditionalGeneration, batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(20, model.config.text_config.vocab_size - 20, (batch, length))


def scatter(prompts: DeepPrompts) -> None:
    """An MLP, if the prompts have one, that has learned something."""
    if prompts.encoder is not None:
        with torch.no_grad():
            for parameter in prompts.encoder.outer.parameters():
                parameter.normal_()


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
        embedded = placed(model, ids, model.model.multi_modal_projector(vectors))
        ours = model(inputs_embeds=embedded).logits
        theirs = reference(inputs_embeds=embedded, attention_mask=torch.ones_like(ids)).logits
        plain = load(llava_path)(inputs_embeds=embedded).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (ours - plain).abs().max() > 0.01  # the prompt does something


def test_shared_key_value_heads_are_those_of_a_model_with_one_for_each_head(llava_path: Path):
    """4 heads share 2 KV heads; a model in which each of these is there twice gives the same logits, and its two gradients add up."""
    model, prompts = prompted(llava_path, tokens=4, std=1.0)
    config = load(llava_path).config
    assert (config.text_config.num_attention_heads, config.text_config.num_key_value_heads) == (4, 2)
    config.text_config.num_key_value_heads = 4
    wide, wide_prompts = LlavaForConditionalGeneration(config).eval(), DeepPrompts(4)
    wide.model.vision_tower = None
    state = {
        name: tensor.view(2, 8, -1).repeat_interleave(2, 0).flatten(0, 1) if name.endswith(("k_proj.weight", "v_proj.weight")) else tensor
        for name, tensor in model.state_dict().items()
    }
    wide.load_state_dict(state)
    wide_prompts.build(config.text_config)
    wide_prompts.attach(wide)
    with torch.no_grad():
        wide_prompts.key.copy_(prompts.key.repeat_interleave(2, 1))
        wide_prompts.value.copy_(prompts.value.repeat_interleave(2, 1))
    ids = words(model)
    ours, theirs = model(input_ids=ids, labels=ids), wide(input_ids=ids, labels=ids)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    (ours.loss + theirs.loss).backward()
    for one, two in ((prompts.key, wide_prompts.key), (prompts.value, wide_prompts.value)):
        torch.testing.assert_close(one.grad, two.grad.unflatten(1, (2, 2)).sum(2), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("layers", "width"), [("all", None), ([1], None), ("last:2", 6)])
def test_gradients_survive_checkpointing(llava_path: Path, layers: str | list[int], width: int | None):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model, prompts = prompted(llava_path, tokens=4, layers=layers, std=1.0, dropout=0.3, reparam_hidden_dim=width)
        prompts.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        ids = words(model)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        trained = [prompts.key, prompts.value] if width is None else [layer.weight for layer in prompts.encoder.outer]
        gradients.append([tensor.grad for tensor in trained])
    for without, with_checkpointing in zip(*gradients, strict=True):
        assert without.flatten(1).abs().amax(1).min() > 0  # in every layer
        torch.testing.assert_close(with_checkpointing, without, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("layers", "width"), [("all", None), ("last:1", None), ("last:2", 6)])
def test_generate_equals_recomputing(llava_path: Path, layers: str, width: int | None):
    model, prompts = prompted(llava_path, tokens=4, layers=layers, std=1.0, reparam_hidden_dim=width)
    scatter(prompts)
    ids = words(model)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for _ in range(6):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, ids)


def test_generate_from_texts_padded_on_the_left(llava_path: Path):
    model, _ = prompted(llava_path, tokens=4, std=1.0)
    texts, more = [words(model, 1, 9), words(model, 1, 6)], {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    alone = [model.generate(ids, attention_mask=torch.ones_like(ids), **more)[0, ids.shape[1] :] for ids in texts]
    ids, mask = torch.full((2, 12), 2), torch.zeros(2, 12, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, -text.shape[1] :], mask[row, -text.shape[1] :] = text[0], 1
    assert torch.equal(model.generate(ids, attention_mask=mask, **more)[:, 12:], torch.stack(alone))


def test_cached_steps_give_the_same_logits(llava_path: Path):
    model, _ = prompted(llava_path, tokens=4, std=1.0)
    ids = words(model)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :5], use_cache=True)
        block = model(input_ids=ids[:, 5:8], past_key_values=first.past_key_values, use_cache=True)
        last = model(input_ids=ids[:, 8:], past_key_values=block.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, block.logits, last.logits], 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", ["all", [1]])
def test_left_and_right_padding_change_nothing(llava_path: Path, layers: str | list[int]):
    """Two texts of 9 and 6 words in one batch, padded to 12 on either side, against each alone; in gradients too."""
    model, prompts = prompted(llava_path, tokens=4, layers=layers, std=1.0)
    texts = [words(model, 1, 9), words(model, 1, 6)]
    found, gradients = {}, {}
    for side in ("alone", "left", "right"):
        if side == "alone":
            logits = [model(input_ids=ids).logits[0] for ids in texts]
        else:
            ids, mask = torch.full((2, 12), 2), torch.zeros(2, 12, dtype=torch.long)
            for row, text in enumerate(texts):
                place = slice(12 - text.shape[1], None) if side == "left" else slice(text.shape[1])
                ids[row, place], mask[row, place] = text[0], 1
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            logits = [row[seen.bool()] for row, seen in zip(out, mask, strict=True)]
        found[side] = torch.cat(logits)
        gradients[side] = torch.autograd.grad(found[side].square().mean(), [prompts.key, prompts.value])
    for side in ("left", "right"):
        torch.testing.assert_close(found[side], found["alone"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients[side], gradients["alone"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [None, 6])
def test_starting_from_a_text_is_reading_it_first(llava_path: Path, width: int | None):
    plain, (model, prompts) = load(llava_path), prompted(llava_path, tokens=4, reparam_hidden_dim=width)
    text, ids = words(plain, 1, 4), words(plain)
    prompts.fill(plain, text[0].tolist())
    with torch.no_grad():
        read = plain(input_ids=torch.cat([text.expand(2, -1), ids], 1)).logits[:, 4:]
        torch.testing.assert_close(model(input_ids=ids).logits, read, atol=1e-5, rtol=1e-5)
        prompts.fill(plain, text[0, :2].tolist())  # repeated to P
        read = plain(input_ids=torch.cat([text[:, [0, 1, 0, 1]].expand(2, -1), ids], 1)).logits[:, 4:]
        torch.testing.assert_close(model(input_ids=ids).logits, read, atol=1e-5, rtol=1e-5)


def test_an_mlp_starts_where_the_prompts_start_and_ends_as_plain_prompts(llava_path: Path):
    """Before training as without it; after training the keys and values alone, without the MLP, give the same logits."""
    torch.manual_seed(5)
    plain, start = prompted(llava_path, tokens=4, layers="last:2", std=1.0)
    torch.manual_seed(5)
    model, prompts = prompted(llava_path, tokens=4, layers="last:2", std=1.0, reparam_hidden_dim=6)
    ids = words(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    layer = 6 * 32 + 32  # 2 KV heads · 8 numbers, keys and values
    assert sum(p.numel() for p in prompts.parameters()) == 4 * 6 + 6 * 6 + 6 + 2 * layer
    assert not {"key", "value"} & {name for name, _ in prompts.named_parameters()}
    before = prompts.key.clone()
    optimizer = torch.optim.AdamW(prompts.parameters(), 1e-2)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(prompts.key, before)
    with torch.no_grad():
        trained = model(input_ids=ids).logits
        assert (trained - plain(input_ids=ids).logits).abs().max() > 1e-3
        start.load_state_dict(plain_state(prompts.state_dict()))
        torch.testing.assert_close(plain(input_ids=ids).logits, trained, atol=1e-6, rtol=0)
    assert plain_state(start.state_dict()).keys() == {"key", "value"}


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


@pytest.mark.parametrize("width", [None, 6])
def test_a_copy_owns_its_prompts(llava_path: Path, width: int | None):
    holder = torch.nn.Module()
    holder.model, holder.prompts = prompted(llava_path, tokens=4, std=1.0, reparam_hidden_dim=width)
    twin = copy.deepcopy(holder)
    ids = words(holder.model)
    before = holder.model(input_ids=ids).logits
    with torch.no_grad():
        twin.prompts.value.mul_(-3)
    assert torch.equal(holder.model(input_ids=ids).logits, before)
    assert (twin.model(input_ids=ids).logits - before).abs().max() > 1e-2


@pytest.mark.parametrize("width", [None, 6])
def test_float32_prompts_on_a_bfloat16_model(llava_path: Path, width: int | None):
    model, prompts = load_llava(str(llava_path), dtype="bfloat16")[0], DeepPrompts(4, reparam_hidden_dim=width)
    prompts.build(model.config.text_config)
    prompts.attach(model)
    ids = words(model)
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert prompts.key.dtype == torch.float32
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in prompts.parameters())


def test_bad_settings_are_named(llava_path: Path):
    with pytest.raises(UsageError, match="prompt tokens -1"):
        DeepPrompts(-1)
    with pytest.raises(UsageError, match=r"dropout 1\.0"):
        DeepPrompts(dropout=1.0)
    with pytest.raises(UsageError, match="reparam_hidden_dim -1"):
        DeepPrompts(reparam_hidden_dim=-1)
    with pytest.raises(UsageError, match="init_text and init_from"):
        DeepPrompts(init_text="a", init_from="b")
    model, prompts = prompted(llava_path, tokens=4)
    with pytest.raises(UsageError, match="has deep prompts already"):
        prompts.attach(model)
    with pytest.raises(UsageError, match="init_text"):
        prompts.fill(model, [])
