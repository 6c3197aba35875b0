from pathlib import Path
from typing import Any

import pytest
import torch
from reasoners import placed, reasoner_of
from tiny import tiny_llava
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import MistralConfig, PretrainedConfig, Qwen2Config

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_tokenizer
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelTrie, score


def one_forward_per_label(reasoner: EventReasoner, vectors: Tensor, labels: list[list[int]]) -> Tensor:
    """(B, A), the plain way: every label behind the context in a causal forward of its own."""
    base, sums = reasoner.base, []
    assert base is not None
    for label in labels:
        ids = torch.cat([reasoner.context, torch.tensor(label)])
        embedded = placed(base, ids.expand(len(vectors), -1), reasoner.project(vectors))
        logits = base(inputs_embeds=embedded, use_cache=False).logits
        predicted = logits[:, len(reasoner.context) - 1 : -1].log_softmax(-1)
        sums.append(predicted.gather(2, torch.tensor(label).expand(len(vectors), -1)[..., None]).sum((1, 2)))
    return torch.stack(sums, 1)


def build(path: Path, classes: tuple[str, ...], event_dim: int, events: int, **prompts: object) -> tuple[EventReasoner, list[list[int]]]:
    reasoner = reasoner_of(path, DeepPrompts(**prompts), Instruction()).eval()
    reasoner.build(classes, events, event_dim)
    return reasoner, Instruction().labels(load_tokenizer(str(path)), classes)


FORMS = [("packed", None), ("two_pass", None), ("two_pass", 3), (None, 5), ("batched", None), ("batched", 5)]
PROMPTS = [{"tokens": 0}, {"tokens": 4, "std": 1.0}, {"tokens": 4, "layers": [1], "std": 1.0}]


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("form", ["llava_path", "vicuna_path"])
def test_every_form_equals_one_forward_per_label(form: str, prompts: dict, classes: tuple[str, ...], request: pytest.FixtureRequest):
    """Whole and in parts; three layers, four heads that share two; one of the names begins another."""
    reasoner, labels = build(request.getfixturevalue(form), classes, 16, 6, **prompts)
    vectors = torch.randn(3, 6, 16)
    with torch.no_grad():
        apart = one_forward_per_label(reasoner, vectors, labels)
        assert apart.std(0).min() > 1e-2  # the events matter
        torch.testing.assert_close(reasoner(vectors).score, apart, atol=1e-3, rtol=0)
        for kind, positions in FORMS:
            trie = LabelTrie(labels, positions)
            assert len(trie.parts) == 1 if positions is None else len(trie.parts) > 2
            scores = score(reasoner.base, reasoner.embed(vectors), trie, kind)
            torch.testing.assert_close(scores, apart, atol=1e-4, rtol=1e-5, msg=f"{kind} {positions}")


class Keys(TorchFunctionMode):
    """Keeps the numbers of queries, keys and columns of the mask of each masked attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, int, int]] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention and len(args) > 3:  # causal attention takes no mask
            self.seen.add((args[0].shape[2], args[1].shape[2], args[3].shape[3]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("prompts", PROMPTS)
def test_a_tree_aligned_for_kernels_of_gpus_gives_the_same_scores(prompts: dict, llava_path: Path, classes: tuple[str, ...]):
    """Whole and in parts; the last part has one node, which becomes many."""
    reasoner, labels = build(llava_path, classes, 16, 6, **prompts)
    embedded, before = reasoner.embed(torch.randn(3, 6, 16)).detach(), reasoner.adapter.tokens + len(reasoner.context)
    with torch.no_grad():
        for kind, positions in FORMS:
            plain, aligned = LabelTrie(labels, positions), LabelTrie(labels, positions).align(before, 16).align(before, 16)
            assert [len(part) for part in aligned.parts] == [len(part) for part in plain.parts]
            assert all((before + part.depths.numel()) % 16 == 0 for part in aligned.parts)
            with Keys() as keys:
                scores = score(reasoner.base, embedded, aligned, kind)
            torch.testing.assert_close(scores, score(reasoner.base, embedded, plain, kind), atol=1e-5, rtol=1e-6)
            assert keys.seen
            if kind != "batched" and prompts.get("layers") is None:
                assert all(columns % 16 == 0 and columns == seen for _, seen, columns in keys.seen)


@pytest.mark.parametrize("language", [MistralConfig, Qwen2Config])
def test_other_language_models(language: type[PretrainedConfig], tmp_path: Path, classes: tuple[str, ...]):
    reasoner, labels = build(tiny_llava(tmp_path, language=language), classes, 16, 6, tokens=4, std=1.0)
    assert type(reasoner.base.model.language_model.config) is language
    vectors = torch.randn(2, 6, 16)
    with torch.no_grad():
        torch.testing.assert_close(reasoner(vectors).score, one_forward_per_label(reasoner, vectors, labels), atol=1e-4, rtol=1e-5)


def test_gradients_of_labels_as_a_batch(llava_path: Path, classes: tuple[str, ...]):
    """Whole and in parts, as kernels without a mask train."""
    reasoner, labels = build(llava_path, classes, 16, 6, tokens=4, std=1.0)
    vectors, gradients = torch.randn(2, 6, 16), []
    for kind, positions in [("packed", None), ("batched", None), ("batched", 3)]:
        scores = score(reasoner.base, reasoner.embed(vectors), LabelTrie(labels, positions), kind)
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 5]))
        gradients.append(torch.autograd.grad(loss, reasoner.adapter.key)[0])
    assert gradients[0].abs().max() > 1e-5
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], atol=1e-5, rtol=1e-3)


def test_labels_of_one_token(llava_path: Path, classes: tuple[str, ...]):
    reasoner, _ = build(llava_path, classes, 16, 6, tokens=4)
    vectors, trie = torch.randn(2, 6, 16), LabelTrie([[30], [40], [50]], 1)
    with torch.no_grad():
        apart = one_forward_per_label(reasoner, vectors, [[30], [40], [50]])
        for kind in ("packed", "two_pass", "batched"):
            scores = score(reasoner.base, reasoner.embed(vectors), trie, kind)
            torch.testing.assert_close(scores, apart, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_kernels_of_transformers_give_the_same_scores(kernel: str, llava_path: Path, classes: tuple[str, ...]):
    reasoner, labels = build(llava_path, classes, 16, 6, tokens=0)
    vectors = torch.randn(2, 6, 16)
    with torch.no_grad():
        expected = reasoner(vectors).score
        reasoner.base.model.language_model.set_attn_implementation(kernel)
        for kind, positions in [(None, None), (None, 5), ("batched", 5)]:
            scores = score(reasoner.base, reasoner.embed(vectors), LabelTrie(labels, positions), kind)
            torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)


def test_forms_that_a_kernel_cannot_do_are_refused(llava_path: Path, classes: tuple[str, ...]):
    reasoner, _ = build(llava_path, classes, 16, 6, tokens=0)
    base, arguments = reasoner.base, (reasoner.embed(torch.randn(1, 6, 16)), reasoner.trie)
    base.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UsageError, match="flash_attention_2: cannot take the mask"):
        score(base, *arguments, "packed")
    with pytest.raises(UsageError, match="flash_attention_2: cannot score in two passes"):
        score(base, *arguments, "two_pass")
    base.gradient_checkpointing_enable()
    with pytest.raises(UsageError, match="gradient checkpointing forbids"):
        score(base.train(), *arguments)


GRADIENTS = [(None, False), (None, True), (3, False), (3, True)]


@pytest.mark.parametrize(("positions", "checkpointing"), GRADIENTS)
def test_gradients_of_all_ways_are_equal(positions: int | None, checkpointing: bool, llava_path: Path, classes: tuple[str, ...]):
    reasoner = reasoner_of(
        str(llava_path),
        DeepPrompts(4, std=1.0),
        Instruction(),
        train_projector=True,
        max_positions=positions,
        gradient_checkpointing=checkpointing,
    )
    reasoner.build(classes, 6, 16)
    labels = Instruction().labels(load_tokenizer(str(llava_path)), classes)
    vectors, trained = torch.randn(2, 6, 16), [p for p in reasoner.parameters() if p.requires_grad]
    gradients = []
    for way in (lambda: reasoner.train()(vectors).score, lambda: one_forward_per_label(reasoner.eval(), vectors, labels)):
        loss = torch.nn.functional.cross_entropy(way(), torch.tensor([0, 5]))
        gradients.append(torch.autograd.grad(loss, trained))
    assert len(trained) == 6
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.abs().max() > 1e-5
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_hidden_prompts_are_hidden_from_all_parts_alike(llava_path: Path, classes: tuple[str, ...]):
    """Dropout of prompt tokens draws once a layer and clip, for the context and every part of the tree."""
    reasoner, labels = build(llava_path, classes, 16, 6, tokens=4, std=1.0, dropout=0.5)
    vectors, found = torch.randn(2, 6, 16), []
    reasoner.train()
    for kind, positions in [("packed", None), ("two_pass", None), ("two_pass", 3)]:
        torch.manual_seed(1)
        scores = score(reasoner.base, reasoner.embed(vectors), LabelTrie(labels, positions), kind)
        found.append((scores, torch.autograd.grad(scores[:, 2].sum(), reasoner.adapter.key)[0]))
    plain = reasoner.eval()(vectors).score
    assert (found[0][0] - plain).abs().max() > 1e-2
    for scores, gradient in found[1:]:
        torch.testing.assert_close(scores, found[0][0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-5, rtol=1e-3)


def test_the_list_never_weighs_more_than_everything(llava_path: Path, classes: tuple[str, ...]):
    reasoner, _ = build(llava_path, classes, 16, 6, tokens=4)
    mass = reasoner(torch.randn(4, 6, 16)).in_list_mass
    assert ((mass > 0) & (mass < 1)).all()


@pytest.mark.slow
def test_packed_scores_of_the_small_language_model(composed_path: Path, classes: tuple[str, ...]):
    reasoner, labels = build(composed_path, classes, 1024, 32, tokens=16, layers=[20, 22, 24, 26, 28])
    vectors = torch.randn(2, 32, 1024)
    with torch.no_grad():
        packed, apart = reasoner(vectors).score, one_forward_per_label(reasoner, vectors, labels)
    torch.testing.assert_close(packed, apart, atol=1e-3, rtol=0)
    assert torch.equal(packed.argsort(1), apart.argsort(1))
