"""The vocabulary head word by word, against the plain formula."""

import pytest
import torch
from torch import Tensor

from vtlvlm.lvlm import vocabulary
from vtlvlm.lvlm.vocabulary import HALF, WORDS, LogMass, token_log_probabilities


def test_word_by_word_log_probabilities():
    """More words than are held at a time; values and gradients of both sides against the plain formula in float64."""
    hidden, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2 * WORDS + 5, 8, requires_grad=True)
    slots, targets = torch.tensor([0, 0, 2]), torch.tensor([3, 2 * WORDS + 4, 7])
    ours = token_log_probabilities(hidden, weight, slots, targets)
    plain = (hidden.double() @ weight.double().T).log_softmax(-1)[:, slots, targets]
    torch.testing.assert_close(ours, plain.float(), atol=1e-5, rtol=1e-5)
    direction = torch.randn(2, 3)
    for one, two in zip(*(torch.autograd.grad((x * direction).sum(), (hidden, weight)) for x in (ours, plain)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_log_probabilities_stay_in_float32():
    hidden, weight = torch.randn(2, 3, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    slots, targets = torch.tensor([0, 2]), torch.tensor([3, 7])
    expected = (hidden.float() @ weight.float().T).log_softmax(-1)[:, slots, targets]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(token_log_probabilities(hidden, weight, slots, targets), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trained", [(True, False), (False, True), (True, True)], ids=["hidden", "head", "both"])
def test_gradients_in_float64(trained: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numerical gradients, and those of a plain log_softmax; the last block is shorter than the others."""
    monkeypatch.setattr(vocabulary, "WORDS", 5)
    hidden, weight = (torch.randn(rows, 4, dtype=torch.float64, requires_grad=asked) for rows, asked in zip((3, 17), trained, strict=True))
    assert torch.autograd.gradcheck(lambda h, w: LogMass.apply(h, w, False), (hidden, weight))
    inputs = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    direction = torch.randn(3, dtype=torch.float64)
    ours, plain = LogMass.apply(hidden, weight, False), (hidden @ weight.T).logsumexp(-1)
    torch.testing.assert_close(ours, plain)
    for one, two in zip(*(torch.autograd.grad((x * direction).sum(), inputs) for x in (ours, plain)), strict=True):
        torch.testing.assert_close(one, two)


def exact(hidden: Tensor, weight: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
    """Value and gradients in float64."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    value = (hidden @ weight.T).logsumexp(-1)
    return value.detach(), *torch.autograd.grad((value * direction).sum(), (hidden, weight))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_products_in_halves_lose_nothing(dtype: torch.dtype, size: float) -> None:
    """As a GPU computes them (here with float32 products): the value is that of float32, gradients have twice the precision of 16 bits,
    also where the incoming gradient is below float16's smallest number."""
    hidden = torch.randn(6, 32).to(dtype).float().requires_grad_()
    weight = torch.randn(3 * WORDS + 7, 32).to(dtype).requires_grad_()
    direction = torch.randn(6) * size
    value, to_hidden, to_weight = exact(hidden, weight, direction)
    found = LogMass.apply(hidden, weight, True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), value, atol=1e-5, rtol=1e-6)
    to_both = torch.autograd.grad((found * direction).sum(), (hidden, weight))
    assert (to_both[0].double() - to_hidden).abs().max() < 2**-14 * to_hidden.abs().max()
    smallest = float(to_weight.abs().max()) * 2**-14
    torch.testing.assert_close(to_both[1], to_weight.to(dtype), atol=smallest, rtol=2 * torch.finfo(dtype).eps)  # the head's own type


@pytest.mark.parametrize("size", [0.0, 1e-36])
def test_gradients_of_a_loss_that_has_vanished(size: float) -> None:
    hidden, weight = torch.randn(3, 8).bfloat16().float().requires_grad_(), torch.randn(9, 8).bfloat16()
    (found,) = torch.autograd.grad(LogMass.apply(hidden, weight, True).sum() * size, hidden)
    assert torch.isfinite(found).all()
    assert found.abs().max() <= 10 * size


def test_the_logits_of_all_words_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are blocks of them kept for the backward pass."""
    hidden, weight = torch.randn(1, 4, 8, requires_grad=True), torch.randn(4 * WORDS, 8)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        token_log_probabilities(hidden, weight, torch.tensor([1]), torch.tensor([2])).sum()
    assert kept
    assert max(kept) == weight.numel()
