"""Every adaptation arm: what it trains, that it starts as the untouched model, and that it can be switched off and stored."""

from pathlib import Path

import pytest
import torch
from reasoners import reasoner_of
from sizes import LANGUAGE_PARAMETERS, llava_without_weights
from test_scoring import one_forward_per_label
from tiny import tiny_llava
from transformers import LlavaForConditionalGeneration

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.adapters import Adapter, FullFineTuning, LoRA, NoAdapter
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_llava, load_tokenizer
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner

ALL = [NoAdapter, lambda: DeepPrompts(4), lambda: LoRA(2, 4.0), FullFineTuning]
NAMES = ["none", "prefix", "lora", "full"]
TRAINED = ALL[1:]


def make(path: Path, classes: tuple[str, ...], adapter: Adapter, **settings: object) -> EventReasoner:
    torch.manual_seed(7)
    reasoner = reasoner_of(path, adapter, Instruction(list_categories=False), **settings)
    reasoner.build(classes, 6, 16)
    return reasoner.eval()


def disturb(reasoner: EventReasoner) -> None:
    """Move everything that is trained."""
    with torch.no_grad():
        for parameter in reasoner.adapter.trained(reasoner.base):
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("adapter", ALL, ids=NAMES)
@pytest.mark.parametrize("projector", [False, True])
def test_what_is_trained_and_stored_is_the_same(llava_path: Path, classes: tuple[str, ...], adapter: type, projector: bool):
    reasoner = make(llava_path, classes, adapter(), train_projector=projector)
    listed = {id(p) for group in reasoner.adapter.groups(reasoner.base) for p in group["params"]}
    listed |= {id(p) for p in reasoner.projector.parameters() if projector}
    named = {name: p for name, p in reasoner.named_parameters() if p.requires_grad}
    assert {id(p) for p in named.values()} == listed
    assert set(reasoner.trainable_state()) == {*named, "temperature"}
    assert all(p.dtype == torch.float32 for p in named.values())
    both = reasoner.trainable_parameters()
    assert sum(share.trained for share in both) == sum(p.numel() for p in named.values())
    assert both[0].total == both[1].total == sum(p.numel() for p in reasoner.parameters())
    assert reasoner.adapter.needs_checkpoint is (both[0].trained > 0)


@pytest.mark.parametrize("adapter", [NoAdapter, lambda: LoRA(2, 4.0), FullFineTuning], ids=["none", "lora", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_starts_as_the_untouched_model(llava_path: Path, classes: tuple[str, ...], adapter: type, attention: str):
    plain = make(llava_path, classes, DeepPrompts(0))
    vectors = torch.randn(2, 6, 16)
    with torch.no_grad():
        scores = make(llava_path, classes, adapter(), attention=attention)(vectors).score
    torch.testing.assert_close(scores, plain(vectors).score, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", [lambda: DeepPrompts(4, std=1.0), lambda: LoRA(2, 4.0)], ids=["prefix", "lora"])
def test_switched_off_it_is_the_untouched_model(llava_path: Path, classes: tuple[str, ...], adapter: type):
    reasoner = make(llava_path, classes, adapter())
    disturb(reasoner)
    ids = torch.randint(20, 60, (2, 9))
    plain = load_llava(str(llava_path))[0](input_ids=ids).logits
    kept = {name for name, p in reasoner.named_parameters() if p.requires_grad}
    with torch.no_grad():
        on = reasoner.base(input_ids=ids).logits
        with reasoner.adapter.off(reasoner.base):
            torch.testing.assert_close(reasoner.base(input_ids=ids).logits, plain, atol=1e-5, rtol=1e-5)
        assert torch.equal(reasoner.base(input_ids=ids).logits, on)
    assert (on - plain).abs().max() > 0.05
    assert {name for name, p in reasoner.named_parameters() if p.requires_grad} == kept


@pytest.mark.parametrize("adapter", TRAINED, ids=NAMES[1:])
def test_packed_scores_are_those_of_one_forward_per_label(llava_path: Path, classes: tuple[str, ...], adapter: type):
    reasoner = make(llava_path, classes, adapter())
    disturb(reasoner)
    vectors = torch.randn(2, 6, 16)
    labels = reasoner.instruction.labels(load_tokenizer(str(llava_path)), classes)
    with torch.no_grad():
        torch.testing.assert_close(reasoner(vectors).score, one_forward_per_label(reasoner, vectors, labels), atol=1e-3, rtol=0)


def test_lora_is_the_product_of_two_matrices_added_to_the_weight(llava_path: Path, classes: tuple[str, ...]):
    """By hand: the same scores from plain weights W + alpha / rank * B A."""
    reasoner = make(llava_path, classes, LoRA(2, 6.0, targets=["q_proj", "down_proj"]))
    disturb(reasoner)
    plain = make(llava_path, classes, NoAdapter())
    adapted = {name for name, _ in reasoner.base.named_modules() if name.endswith(("q_proj", "down_proj"))}
    assert len(adapted) == 2 * 3
    with torch.no_grad():
        for name in adapted:
            layer = reasoner.base.get_submodule(name)
            plain.base.get_submodule(name).weight += 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    vectors = torch.randn(2, 6, 16)
    torch.testing.assert_close(reasoner(vectors).score, plain(vectors).score, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adapter", TRAINED, ids=NAMES[1:])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_survive_checkpointing(llava_path: Path, classes: tuple[str, ...], adapter: type, dtype: str):
    vectors, gradients = torch.randn(2, 6, 16), []
    for checkpointing in (False, True):
        reasoner = make(llava_path, classes, adapter(), dtype=dtype, gradient_checkpointing=checkpointing)
        disturb(reasoner)
        reasoner.train()
        torch.manual_seed(3)  # of the dropout
        reasoner(vectors).score.logsumexp(1).sum().backward()
        gradients.append({name: p.grad for name, p in reasoner.named_parameters() if p.requires_grad})
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_dropout_of_lora_only_while_training(llava_path: Path, classes: tuple[str, ...]):
    reasoner = make(llava_path, classes, LoRA(2, 4.0, dropout=0.5))
    disturb(reasoner)
    vectors = torch.randn(2, 6, 16)
    assert torch.equal(reasoner(vectors).score, reasoner(vectors).score)
    reasoner.train()
    assert not torch.equal(reasoner(vectors).score, reasoner(vectors).score)


@pytest.mark.parametrize("adapter", TRAINED, ids=NAMES[1:])
def test_state_goes_from_one_to_another(llava_path: Path, classes: tuple[str, ...], adapter: type):
    first, second = make(llava_path, classes, adapter()), make(llava_path, classes, adapter())
    disturb(first)
    vectors = torch.randn(2, 6, 16)
    assert not torch.equal(first(vectors).score, second(vectors).score)
    second.load_trainable_state({name: tensor.clone() for name, tensor in first.trainable_state().items()})
    assert torch.equal(first(vectors).score, second(vectors).score)


@pytest.mark.parametrize(
    ("here", "there"),
    [(lambda: LoRA(2, 4.0), lambda: DeepPrompts(4)), (lambda: DeepPrompts(4), FullFineTuning), (lambda: LoRA(2), lambda: LoRA(3))],
)
def test_weights_of_another_adapter_are_refused(llava_path: Path, classes: tuple[str, ...], here: type, there: type):
    with pytest.raises(UsageError, match="trained weights do not fit") as caught:
        make(llava_path, classes, here()).load_trainable_state(make(llava_path, classes, there()).trainable_state())
    assert "\n" not in str(caught.value)


def test_all_weights_learn_where_embeddings_and_head_are_one(tmp_path: Path, classes: tuple[str, ...]):
    """As SmolLM2: the shared matrix is trained, counted and stored once, and comes back for both."""
    path = tiny_llava(tmp_path / "llava")
    model = LlavaForConditionalGeneration.from_pretrained(path)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(path)
    reasoner = make(path, classes, FullFineTuning()).train()
    assert reasoner.base.lm_head.weight is reasoner.base.get_input_embeddings().weight
    assert len([name for name in reasoner.trainable_state() if "embed_tokens" in name or "lm_head" in name]) == 1
    before = reasoner.base.lm_head.weight.detach().clone()
    vectors, labels = torch.randn(4, 6, 16), torch.arange(4)
    optimizer = torch.optim.AdamW(reasoner.adapter.groups(reasoner.base), 3e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(reasoner(vectors).score, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(reasoner.base.lm_head.weight, before)
    again = make(path, classes, FullFineTuning())
    again.load_trainable_state(reasoner.trainable_state())
    torch.testing.assert_close(again(vectors), reasoner.eval()(vectors))


def test_full_fine_tuning_decays_matrices_only(llava_path: Path, classes: tuple[str, ...]):
    reasoner = make(llava_path, classes, FullFineTuning())
    matrices, vectors = reasoner.adapter.groups(reasoner.base)
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0
    assert len(vectors["params"]) == 2 * 3 + 1  # two norms a layer and the last one


@pytest.mark.parametrize(
    ("size", "adapter", "expected"),
    [
        ("7b", lambda: DeepPrompts(16, "last:9"), 1_179_648),
        ("7b", lambda: DeepPrompts(16, "all"), 4_194_304),
        ("13b", lambda: DeepPrompts(16, "all"), 16 * 2 * 5120 * 40),
        ("7b", lambda: LoRA(16, 32.0), 16 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))),
        ("7b", lambda: LoRA(8, targets=["q_proj", "v_proj"]), 8 * 32 * 2 * (4096 + 4096)),
        ("7b", FullFineTuning, LANGUAGE_PARAMETERS["7b"]),
        ("7b", NoAdapter, 0),
    ],
    ids=["prefix 9", "prefix 32", "prefix 13b", "lora", "lora q v", "full", "none"],
)
def test_trainable_parameters_of_llava_1_5(size: str, adapter: type, expected: int):
    """At the real size on the meta device, through the reasoner; the paper's 1.2 million are nine layers."""
    reasoner = reasoner_of(f"llava-hf/llava-1.5-{size}-hf", adapter(), Instruction())
    base = llava_without_weights(size)
    reasoner.adapter.build(base.config.text_config)
    reasoner.take(base)
    share, projector = reasoner.trainable_parameters()
    width = base.config.text_config.hidden_size
    assert share.trained == expected
    assert projector.trained == 0
    added = 0 if isinstance(reasoner.adapter, FullFineTuning) else expected
    assert share.total == LANGUAGE_PARAMETERS[size] + (1024 + 1) * width + (width + 1) * width + added
    if expected == 1_179_648:
        assert str(share) == "adapter (DeepPrompts): 1,179,648 of 6,761,099,264 parameters trained (0.0174%)"


def test_bad_settings_are_named(llava_path: Path, classes: tuple[str, ...]):
    def refused(words: str, *arguments: object, **settings: object) -> None:
        with pytest.raises(UsageError, match=words) as caught:
            LoRA(*arguments, **settings)
        assert "\n" not in str(caught.value)

    refused("LoRA rank 0", 0)
    refused(r"LoRA dropout 1\.0", dropout=1.0)
    refused("LoRA targets 'q_proj'", targets="q_proj")
    with pytest.raises(UsageError, match=r"LoRA targets \['qproj'\]: the language model has no such layers; it has down_proj, gate_proj"):
        make(llava_path, classes, LoRA(targets=["q_proj", "qproj"]))
    for adapter, attention, words in [
        (NoAdapter(), "flex_attention", "NoAdapter works with sdpa or eager or flash_attention_2"),
        (DeepPrompts(4), "flash_attention_2", "DeepPrompts works with sdpa"),
        (DeepPrompts(4), "eager", "DeepPrompts works with sdpa"),
    ]:
        with pytest.raises(UsageError, match=words):
            reasoner_of(llava_path, adapter, Instruction(), attention=attention)
    with pytest.raises(UsageError, match="over a cache, which gradient checkpointing forbids"):
        reasoner_of(llava_path, NoAdapter(), Instruction(), attention="flash_attention_2", gradient_checkpointing=True)
    with pytest.raises(UsageError, match="FullFineTuning cannot train quantised weights"):
        reasoner_of(llava_path, FullFineTuning(), Instruction(), quantization="4bit")
