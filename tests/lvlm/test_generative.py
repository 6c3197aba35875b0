"""The generative objective against transformers' own loss."""

from pathlib import Path

import pytest
import torch
from reasoners import placed, reasoner_of

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.generative import answer_table
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_tokenizer
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner


def make(path: Path, classes: tuple[str, ...], **settings: object) -> EventReasoner:
    reasoner = reasoner_of(path, DeepPrompts(4, **settings), Instruction(list_categories=False)).eval()
    reasoner.build(classes, 6, 16)
    with torch.no_grad():
        reasoner.adapter.key.normal_()
        reasoner.adapter.value.normal_()
    return reasoner


def test_answers_side_by_side() -> None:
    assert answer_table([[5, 6], [7], [8, 9, 1]]).tolist() == [[5, 6, -100], [7, -100, -100], [8, 9, 1]]


@pytest.mark.parametrize("layers", ["all", [1]])
def test_it_is_the_loss_of_transformers(llava_path: Path, classes: tuple[str, ...], layers: str | list[int]) -> None:
    """Answers of different lengths, padded with the tokenizer's own token and masked, with all logits; with its gradients."""
    reasoner = make(llava_path, classes, layers=layers)
    vectors, labels = torch.randn(5, 6, 16), torch.tensor([1, 0, 3, 1, 7])
    ours = reasoner.generative_loss(vectors, labels)
    tokenizer = load_tokenizer(str(llava_path))
    context, answers = reasoner.context.tolist(), Instruction(list_categories=False).labels(tokenizer, classes)
    rows = [context + answers[label] for label in labels.tolist()]
    longest = max(map(len, rows))
    assert len({len(row) for row in rows}) > 1
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    targets = ids.masked_fill(mask == 0, -100)
    targets[:, : len(context)] = -100
    embedded = placed(reasoner.base, ids, reasoner.project(vectors))
    theirs = reasoner.base(inputs_embeds=embedded, attention_mask=mask, labels=targets, use_cache=False).loss
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    prompts = list(reasoner.adapter.parameters())
    for one, two in zip(torch.autograd.grad(ours, prompts), torch.autograd.grad(theirs, prompts), strict=True):
        assert one.abs().max() > 1e-4
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-4)


def test_it_is_the_label_score_spread_over_its_tokens(llava_path: Path, classes: tuple[str, ...]) -> None:
    """The same log-likelihoods as in label scoring: sums over all labels, divided by the number of all their tokens."""
    reasoner = make(llava_path, classes)
    vectors = torch.randn(1, 6, 16).expand(len(classes), -1, -1)
    labels = torch.arange(len(classes))
    with torch.no_grad():
        expected = -reasoner(vectors).score.diagonal().sum() / (reasoner.answers >= 0).sum()
        torch.testing.assert_close(reasoner.generative_loss(vectors, labels), expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_an_answer(llava_path: Path, classes: tuple[str, ...]) -> None:
    reasoner = make(llava_path, classes)
    with pytest.raises(UsageError, match="5 events, the context has room for 6"):
        reasoner.generative_loss(torch.randn(1, 5, 16), torch.tensor([0]))
    with pytest.raises(IndexError):
        reasoner.generative_loss(torch.randn(1, 6, 16), torch.tensor([-1]))  # an unknown label is not the last one
