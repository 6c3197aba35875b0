from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner


def one_forward_per_label(reasoner: EventReasoner, vectors: Tensor, labels: list[list[int]]) -> Tensor:
    """(B, A), the plain way: every label behind the context in a causal forward of its own."""
    base, sums = reasoner.base, []
    assert base is not None
    for label in labels:
        ids = torch.cat([reasoner.context, torch.tensor(label)])
        seen = {"image": BaseModelOutputWithPooling(pooler_output=list(reasoner.project(vectors)))}
        logits = base(input_ids=ids.expand(len(vectors), -1), mm_encoder_outputs=seen, use_cache=False).logits
        predicted = logits[:, len(reasoner.context) - 1 : -1].log_softmax(-1)
        sums.append(predicted.gather(2, torch.tensor(label).expand(len(vectors), -1)[..., None]).sum((1, 2)))
    return torch.stack(sums, 1)


def build(path: Path, classes: tuple[str, ...], event_dim: int, events: int, **prompts: object) -> tuple[EventReasoner, list[list[int]]]:
    from vtlvlm.lvlm.llava import load_tokenizer

    reasoner = EventReasoner(str(path), DeepPrompts(**prompts), Instruction()).eval()
    reasoner.build(classes, events, event_dim)
    return reasoner, Instruction().labels(load_tokenizer(str(path)), classes)


@pytest.mark.parametrize("prompts", [{"tokens": 0}, {"tokens": 4, "std": 1.0}, {"tokens": 4, "layers": [1], "std": 1.0}])
@pytest.mark.parametrize("form", ["llava_path", "vicuna_path"])
def test_one_packed_forward_equals_one_forward_per_label(
    form: str, prompts: dict, classes: tuple[str, ...], request: pytest.FixtureRequest
):
    reasoner, labels = build(request.getfixturevalue(form), classes, 16, 6, **prompts)
    vectors = torch.randn(3, 6, 16)
    with torch.no_grad():
        packed, apart = reasoner(vectors), one_forward_per_label(reasoner, vectors, labels)
    assert packed.shape == (3, len(classes))
    assert packed.std(0).min() > 1e-2  # the events matter
    torch.testing.assert_close(packed, apart, atol=1e-3, rtol=0)


def test_gradients_of_both_ways_are_equal(llava_path: Path, classes: tuple[str, ...]):
    reasoner, labels = build(llava_path, classes, 16, 6, tokens=4, std=1.0)
    vectors, key = torch.randn(2, 6, 16), reasoner.adapter.key
    gradients = []
    for scores in (reasoner(vectors), one_forward_per_label(reasoner, vectors, labels)):
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 5]))
        gradients.append(torch.autograd.grad(loss, key)[0])
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_the_list_never_weighs_more_than_everything(llava_path: Path, classes: tuple[str, ...]):
    reasoner, _ = build(llava_path, classes, 16, 6, tokens=4)
    mass = reasoner(torch.randn(4, 6, 16)).logsumexp(1).exp()
    assert ((mass > 0) & (mass < 1)).all()


@pytest.mark.slow
def test_packed_scores_of_the_small_language_model(composed_path: Path, classes: tuple[str, ...]):
    reasoner, labels = build(composed_path, classes, 1024, 32, tokens=16, layers=[20, 22, 24, 26, 28])
    vectors = torch.randn(2, 32, 1024)
    with torch.no_grad():
        packed, apart = reasoner(vectors), one_forward_per_label(reasoner, vectors, labels)
    torch.testing.assert_close(packed, apart, atol=1e-3, rtol=0)
    assert torch.equal(packed.argsort(1), apart.argsort(1))
