"""The projector's closed-form start, against a regression solved by numpy and against what it is for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.alignment import RIDGE, AlignmentSums, align
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_tokenizer
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.reasoner import EventReasoner

E, A, L = 6, 3, 32


def events(clips: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Event sentences (n, 4, E) whose first components tell the label, and the labels."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(clips) % A
    return torch.randn(clips, 4, E, generator=generator) + 2 * torch.eye(A, E)[labels][:, None], labels


def projector(path: Path) -> LlavaMultiModalProjector:
    made = LlavaMultiModalProjector(LlavaConfig.from_pretrained(path))
    made.linear_1 = torch.nn.Linear(E, made.linear_1.out_features)
    return made


def test_sums_of_parts_are_the_sums_of_all_and_unknown_labels_are_left_out() -> None:
    vectors, labels = events()
    whole, parts = AlignmentSums(E, A), AlignmentSums(E, A)
    whole.add(vectors, labels)
    for part in range(4):
        parts.add(vectors[part::4], labels[part::4])
    parts.add(vectors[:3], torch.full((3,), -1))
    for one, two in zip(whole.buffers(), parts.buffers(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-5)
    assert whole.count.tolist() == [56.0, 52.0, 52.0]


def test_map_is_the_ridge_regression_of_events_on_words() -> None:
    vectors, labels = events()
    words = torch.randn(A, L, generator=torch.Generator().manual_seed(2))
    sums = AlignmentSums(E, A)
    sums.add(vectors, labels)
    mean, _, found = sums.solve(words)
    x = vectors.flatten(0, 1).double().numpy()
    y = words[labels].repeat_interleave(4, 0).double().numpy()
    centred = x - x.mean(0)
    level = np.trace(centred.T @ centred) / len(x) / E
    rows = np.concatenate([centred, np.sqrt(RIDGE * level * len(x)) * np.eye(E)])  # the penalty as rows of data
    expected = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((E, L))]), rcond=None)[0]
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("hidden", [32, 4])
def test_projector_carries_the_map(llava_path: Path, hidden: int) -> None:
    """Exactly linear; the fitted part at the scale asked for; its output nearest to the words of the event's category."""
    vectors, labels = events()
    words = torch.nn.functional.normalize(torch.randn(A, L, generator=torch.Generator().manual_seed(2)))
    sums, made = AlignmentSums(E, A), projector(llava_path)
    made.linear_1, made.linear_2 = torch.nn.Linear(E, hidden), torch.nn.Linear(hidden, L)
    sums.add(vectors, labels)
    align(made, sums, words, scale=0.5)
    with torch.no_grad():
        out = made(vectors)
        torch.testing.assert_close(made(2 * vectors) - made(vectors), made(vectors) - made(0 * vectors), atol=1e-4, rtol=1e-4)
    centred = (out - words.mean(0)).mean(1)
    targets = words - words.mean(0)
    assert ((centred @ targets.T).argmax(1) == labels).float().mean() > (0.9 if hidden == 32 else 0.6)
    assert 0.4 < float((out - words.mean(0)).square().mean().sqrt()) < 0.6


def test_every_name_is_said_equally_loud(llava_path: Path) -> None:
    """Four names in two directions, one pair five times as far from their mean as the other: events are moved equally far towards each."""
    words = torch.zeros(4, L)
    words[0, 0], words[1, 0], words[2, 1], words[3, 1] = 5, -5, 1, -1
    sums, made = AlignmentSums(E, 4), projector(llava_path)
    vectors = torch.eye(4, E)[:, None]
    sums.add(vectors, torch.arange(4))
    align(made, sums, words, scale=0.5)
    with torch.no_grad():
        said = made(vectors)[:, 0, :2]
    torch.testing.assert_close(said.abs().amax(1), said.abs().max().expand(4), atol=0.2 * float(said.abs().max()), rtol=0)
    assert said.abs().argmax(1).tolist() == [0, 0, 1, 1]


def test_refusals(llava_path: Path) -> None:
    vectors, labels = events()
    sums, made = AlignmentSums(E, A), projector(llava_path)
    with pytest.raises(UsageError, match="events are all equal"):
        align(made, sums, torch.randn(A, L), 1.0)
    sums.add(vectors, labels)
    made.act = torch.nn.Tanh()
    with pytest.raises(UsageError, match="needs a projector with biases and GELU"):
        align(made, sums, torch.randn(A, L), 1.0)
    with pytest.raises(UsageError, match="set train_projector too"):
        EventReasoner(str(llava_path), DeepPrompts(2), Instruction(), align_projector=True)


def test_reasoner_aligns_towards_the_words_of_its_categories(llava_path: Path) -> None:
    names = ("drink water", "sit down", "jump")
    reasoner = EventReasoner(
        str(llava_path), DeepPrompts(2), Instruction(list_categories=False), train_projector=True, align_projector=True
    )
    reasoner.build(names, 4, 16)
    vectors, labels = events()
    wide = torch.nn.functional.pad(vectors, (0, 10))
    sums = AlignmentSums(16, A)
    sums.add(wide, labels)
    reasoner.align(sums)
    tokenizer, table = load_tokenizer(str(llava_path)), reasoner.base.get_input_embeddings().weight
    words = torch.stack([table[tokenizer(f" {name}", add_special_tokens=False).input_ids].mean(0) for name in names]).detach()
    with torch.no_grad():
        seen = reasoner.project(wide).mean(1) - words.mean(0)
    assert ((seen @ (words - words.mean(0)).T).argmax(1) == labels).float().mean() > 0.9
