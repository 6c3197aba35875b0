"""The projector's closed-form start, against scikit-learn's ridge regression and against what it is for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reasoners import reasoner_of
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_tokenizer
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.lvlm.projector_init import PENALTIES, EventMoments, Votes, align, fit_votes

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


def fitted(vectors: torch.Tensor, labels: torch.Tensor, classes: int = A) -> tuple[Votes, EventMoments]:
    moments = EventMoments(vectors.shape[-1])
    moments.add(vectors)
    return fit_votes(vectors.mean(1), labels, torch.arange(len(labels)) // 4, classes), moments


def test_moments_of_parts_are_those_of_all() -> None:
    vectors, _ = events()
    moments = EventMoments(E)
    for part in range(4):
        moments.add(vectors[part::4])
    assert int(moments.count) == 160
    torch.testing.assert_close(moments.covariance(), torch.cov(vectors.flatten(0, 1).T, correction=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_votes_are_ridge_regression_of_sentence_means_with_the_penalty_that_predicts_held_out_groups_best(spread: float) -> None:
    """Categories of 10, 15 and 35 sentences count alike; the weight is the regression's, raised so that held-out votes are 1 on average,
    but no more than fourfold over those of the smallest error, where held-out groups are hardly predicted."""
    labels = torch.tensor([0] * 10 + [1] * 15 + [2] * 35)
    generator = torch.Generator().manual_seed(3)
    means = (spread * torch.randn(60, E, generator=generator) + torch.eye(A, E)[labels]) * torch.tensor([1, 5, 0.2, 1, 1, 30])
    groups = torch.randint(7, (60,), generator=generator)
    votes = fit_votes(means, labels, groups, A)
    x, y, target = means.double().numpy(), labels.numpy(), np.eye(A)[labels]
    weights = (1 / np.bincount(y))[y]

    def ridge(rows: np.ndarray, penalty: float) -> Ridge:
        mean = np.average(x[rows], axis=0, weights=weights[rows])
        size = np.sqrt(np.average((x[rows] - mean) ** 2, axis=0, weights=weights[rows]))
        model = Ridge(alpha=penalty).fit(x[rows] / size, target[rows], sample_weight=weights[rows] / weights[rows].sum())
        model.coef_ /= size
        return model

    folds = list(GroupKFold(5, shuffle=True, random_state=0).split(x, groups=groups.numpy()))
    errors, guesses = [], []
    for penalty in PENALTIES:
        out = np.zeros((60, A))
        for inner, outer in folds:
            model = ridge(inner, penalty)
            out[outer] = (x[outer] - np.average(x[inner], axis=0, weights=weights[inner])) @ model.coef_.T
        wanted = target - np.average(target, axis=0, weights=weights)
        gain = np.average((wanted * out).sum(1), weights=weights) / np.average((out * out).sum(1), weights=weights)
        errors.append(np.average(((wanted - max(gain, 0) * out) ** 2).sum(1), weights=weights))
        raised = np.average((wanted * wanted).sum(1), weights=weights) / np.average((wanted * out).sum(1), weights=weights)
        guesses.append((min(raised, 4 * gain), raised, (out.argmax(1) == y).mean()))
    best = int(np.argmin(errors))
    assert votes.penalty == PENALTIES[best]
    assert votes.gain == pytest.approx(guesses[best][0], rel=1e-5)
    assert (votes.gain < 0.99 * guesses[best][1]) == (spread == 2.0)
    assert votes.held_out == pytest.approx(guesses[best][2])
    np.testing.assert_allclose(votes.mean, np.average(x, axis=0, weights=weights), atol=1e-5)
    np.testing.assert_allclose(votes.weight, votes.gain * ridge(np.arange(60), PENALTIES[best]).coef_.T, atol=1e-5)


def test_unknown_labels_are_left_out_and_one_group_is_divided_by_sentences() -> None:
    vectors, labels = events()
    known = fit_votes(vectors.mean(1), labels, torch.zeros(40, dtype=torch.int64), A)
    more, unknown = torch.cat([vectors, 9 + vectors[:3]]), torch.cat([labels, torch.full((3,), -1)])
    with_unknown = fit_votes(more.mean(1), unknown, torch.zeros(43, dtype=torch.int64), A)
    torch.testing.assert_close(known.weight, with_unknown.weight)
    assert known.held_out > 0.9


def test_order_of_sentences_does_not_matter() -> None:
    """Several processes hold them in another order than one."""
    vectors, labels = events()
    groups, order = torch.arange(40) // 4, torch.randperm(40, generator=torch.Generator().manual_seed(5))
    one, other = fit_votes(vectors.mean(1), labels, groups, A), fit_votes(vectors.mean(1)[order], labels[order], groups[order], A)
    torch.testing.assert_close(one.weight, other.weight)
    assert (one.penalty, one.held_out) == (other.penalty, other.held_out)


def test_a_category_without_a_clip_gets_no_votes() -> None:
    vectors, labels = events()
    votes, _ = fitted(vectors, labels, classes=A + 1)
    assert votes.weight[:, A].abs().max() == 0


@pytest.mark.parametrize("hidden", [32, 4])
def test_projector_carries_the_map(llava_path: Path, hidden: int) -> None:
    """Exactly linear; its output nearest to the words of the event's category, and moved from their middle by about a word's length."""
    vectors, labels = events()
    words = torch.nn.functional.normalize(torch.randn(A, L, generator=torch.Generator().manual_seed(2)))
    made = projector(llava_path)
    made.linear_1, made.linear_2 = torch.nn.Linear(E, hidden), torch.nn.Linear(hidden, L)
    align(made, *fitted(vectors, labels), words, scale=0.5)
    with torch.no_grad():
        out = made(vectors)
        torch.testing.assert_close(made(2 * vectors) - made(vectors), made(vectors) - made(0 * vectors), atol=1e-4, rtol=1e-4)
    centred = (out - words.mean(0)).mean(1)
    targets = words - words.mean(0)
    assert ((centred @ targets.T).argmax(1) == labels).float().mean() > (0.9 if hidden == 32 else 0.6)
    own = torch.nn.functional.normalize(targets)[labels]
    assert 0.5 < float((centred * own).sum(1).mean()) / (0.5 * L**0.5) < (1.5 if hidden == 32 else 1.6)


def test_every_name_is_said_equally_loud(llava_path: Path) -> None:
    """Four names in two directions, one pair five times as far from their mean as the other: events are moved equally far towards each."""
    words = torch.zeros(4, L)
    words[0, 0], words[1, 0], words[2, 1], words[3, 1] = 5, -5, 1, -1
    made, vectors = projector(llava_path), torch.eye(4, E)[:, None].repeat(5, 1, 1)
    vectors = vectors + 0.01 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    align(made, *fitted(vectors, torch.arange(20) % 4, classes=4), words, scale=0.5)
    with torch.no_grad():
        said = made(vectors[:4])[:, 0, :2]
    torch.testing.assert_close(said.abs().amax(1), said.abs().max().expand(4), atol=0.2 * float(said.abs().max()), rtol=0)
    assert said.abs().argmax(1).tolist() == [0, 0, 1, 1]


def test_refusals(llava_path: Path) -> None:
    vectors, labels = events()
    made = projector(llava_path)
    for few in (vectors[:1].repeat(8, 1, 1), vectors[:0], vectors[:1]):
        with pytest.raises(UsageError, match="events are all equal"):
            fitted(few, labels[: len(few)])
    made.act = torch.nn.Tanh()
    with pytest.raises(UsageError, match="needs a projector with biases and GELU"):
        align(made, *fitted(vectors, labels), torch.randn(A, L), 1.0)
    with pytest.raises(UsageError, match="set train_projector too"):
        reasoner_of(llava_path, DeepPrompts(2), Instruction(), init_projector="probe")


def test_reasoner_aligns_towards_the_words_of_its_categories(llava_path: Path) -> None:
    names = ("drink water", "sit down", "jump")
    reasoner = reasoner_of(
        str(llava_path), DeepPrompts(2), Instruction(list_categories=False), train_projector=True, init_projector="probe"
    )
    reasoner.build(names, 4, 16)
    vectors, labels = events()
    wide = torch.nn.functional.pad(vectors, (0, 10))
    reasoner.align(*fitted(wide, labels))
    tokenizer, table = load_tokenizer(str(llava_path)), reasoner.base.get_input_embeddings().weight
    words = torch.stack([table[tokenizer(f" {name}", add_special_tokens=False).input_ids].mean(0) for name in names]).detach()
    with torch.no_grad():
        seen = reasoner.project(wide).mean(1) - words.mean(0)
    assert ((seen @ (words - words.mean(0)).T).argmax(1) == labels).float().mean() > 0.9
