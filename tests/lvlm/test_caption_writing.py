"""The loss of captions against transformers' own, and greedy captions against its forward pass token by token."""

from pathlib import Path

import pytest
import torch
from reasoners import placed, reasoner_of

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.captions import CaptionLoss, write_captions
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_tokenizer
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner

TEXTS = ("a person waves the left hand", "two people", "somebody sits down, seen from the front")


def make(path: Path, tokens: int = 4, listed: bool = False) -> EventReasoner:
    reasoner = reasoner_of(path, DeepPrompts(tokens), Instruction("Describe it.", list_categories=listed)).eval()
    reasoner.build(("wave", "jump"), 6, 16)
    with torch.no_grad():
        reasoner.adapter.key.normal_()
        reasoner.adapter.value.normal_()
    return reasoner


@pytest.mark.parametrize("listed", [False, True])
def test_it_is_the_loss_of_transformers(llava_path: Path, listed: bool) -> None:
    reasoner = make(llava_path, listed=listed)
    vectors, places = torch.randn(4, 6, 16), torch.tensor([1, 0, 2, 1])
    ours = CaptionLoss(reasoner, TEXTS)(vectors, places)
    tokenizer = load_tokenizer(str(llava_path))
    context, answers = reasoner.context.tolist(), Instruction("x", list_categories=False).labels(tokenizer, TEXTS)
    rows = [context + answers[place] for place in places.tolist()]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    targets = ids.masked_fill(mask == 0, -100)
    targets[:, : len(context)] = -100
    embedded = placed(reasoner.base, ids, reasoner.project(vectors))
    theirs = reasoner.base(inputs_embeds=embedded, attention_mask=mask, labels=targets, use_cache=False).loss
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    gradients = torch.autograd.grad(ours, [reasoner.adapter.key, reasoner.adapter.value])
    assert all(one.abs().max() > 1e-5 for one in gradients)


@pytest.mark.parametrize("tokens", [0, 4])
def test_captions_are_the_likeliest_tokens_one_by_one(llava_path: Path, tokens: int) -> None:
    if tokens:
        reasoner = make(llava_path, tokens)
    else:
        reasoner = reasoner_of(llava_path, DeepPrompts(0), Instruction("Describe it.", list_categories=False)).eval()
        reasoner.build(("wave", "jump"), 6, 16)
    vectors = torch.randn(3, 6, 16) * 3
    found = write_captions(reasoner, vectors, longest=9)
    tokenizer = load_tokenizer(str(llava_path))
    for row, written in enumerate(found):
        sequence, ids, nats = reasoner.embed(vectors[row : row + 1]), [], 0.0
        with torch.no_grad():
            for _ in range(9):
                positions = torch.arange(sequence.shape[1])[None]
                hidden = reasoner.base.model.language_model(
                    inputs_embeds=sequence, position_ids=positions, use_cache=False
                ).last_hidden_state
                best, token = reasoner.base.lm_head(hidden[0, -1]).log_softmax(-1).max(-1)
                ids.append(int(token))
                nats += float(best)
                if ids[-1] == tokenizer.eos_token_id:
                    break
                sequence = torch.cat([sequence, reasoner.base.get_input_embeddings()(token[None, None])], 1)
        assert written.text == " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
        assert written.log_probability == pytest.approx(nats, abs=1e-3)


def test_a_caption_ends_with_the_end_token(llava_path: Path) -> None:
    """A head that always prefers it says nothing; other rows go on."""
    reasoner = make(llava_path)
    end = load_tokenizer(str(llava_path)).eos_token_id
    with torch.no_grad():
        reasoner.base.lm_head.weight.zero_()
        reasoner.base.lm_head.weight[end] = 0.0
    assert write_captions(reasoner, torch.randn(2, 6, 16), longest=3)[0].log_probability < 0
    with pytest.raises(UsageError, match="no language model yet"):
        write_captions(reasoner_of(llava_path, DeepPrompts(2), Instruction()), torch.randn(1, 6, 16))


def test_refused(llava_path: Path) -> None:
    reasoner = make(llava_path)
    with pytest.raises(UsageError, match="holds <image>"):
        CaptionLoss(reasoner, ["a <image>"])
    with pytest.raises(UsageError, match="do not fit"):
        CaptionLoss(reasoner, ["wave", "wave " * 1000])
