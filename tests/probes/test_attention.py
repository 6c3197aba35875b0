import numpy as np
import pytest
import torch

from vtlvlm.errors import DataError
from vtlvlm.probes.attention import AttentionReader, attention_probe
from vtlvlm.probes.linear import linear_probe


def rising_or_falling(people: int, clips: int = 12, windows: int = 6, cells: int = 2) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Sequences that rise or fall: their means are alike, so that only the order of time tells them apart."""
    generator = torch.Generator().manual_seed(people)
    slope = torch.linspace(-1, 1, windows)[:, None, None] * torch.ones(1, cells, 8)
    labels = torch.arange(people * clips) % 2
    tokens = slope * (2.0 * labels - 1)[:, None, None, None] + 0.3 * torch.randn(people * clips, windows, cells, 8, generator=generator)
    return tokens.flatten(1, 2), labels.numpy(), np.repeat(np.arange(people), clips)


def test_it_reads_the_order_of_time_and_the_mean_does_not() -> None:
    (x, y, groups), (test_x, test_y, _) = rising_or_falling(6), rising_or_falling(4)
    found = attention_probe(x, y, test_x, test_y, train_groups=groups, windows=6, num_classes=2)
    assert found.top1 > 0.95
    assert (found.num_train, found.num_test, found.dims) == (72, 48, 6 * 2 * 8)
    mean = linear_probe(x.mean(1).numpy(), y, test_x.mean(1).numpy(), test_y, train_groups=groups, num_classes=2)
    assert mean.top1 < 0.75
    assert attention_probe(x, y, test_x, test_y, train_groups=groups, windows=6, num_classes=2) == found


def test_it_starts_as_the_standardised_mean_of_each_cell() -> None:
    tokens = torch.randn(9, 4, 3, 8)  # clips, cells, windows, width
    mean = tokens.mean(2)
    expected = (mean - mean.mean(0)) / mean.std(0)
    for heads in (1, 4):
        reader = AttentionReader(tokens, num_classes=5, heads=heads)
        assert torch.equal(reader(tokens), torch.zeros(9, 5))
        with torch.no_grad():
            reader.head.weight.view(5, 4, heads, 8)[:, :, 0] = 1.0  # the first head, which looks everywhere alike
        torch.testing.assert_close(reader(tokens)[:, 0], expected.flatten(1).sum(1), atol=1e-4, rtol=1e-4)


def test_empty_sides() -> None:
    x, y, groups = rising_or_falling(2)
    with pytest.raises(DataError, match="no clips on one side"):
        attention_probe(x, y, x[:0], y[:0], train_groups=groups, windows=6, num_classes=2)
