"""What features say of a clip by themselves, by hand."""

import pytest
import torch

from vtlvlm.vtem.clip_facts import change_rate, distance


def test_change_rate_by_hand() -> None:
    features = torch.zeros(1, 3, 2, 2)
    features[0, 1, 0] = torch.tensor([3.0, 4.0])  # the first cell changes by 3 and 4, and back
    features[0, 2, 1] = torch.tensor([0.0, 20.0])  # the second by 20
    found = change_rate(features, torch.tensor([[0.0, 0.5, 0.7]]), torch.tensor([1.0, 2.0]))
    assert found.shape == (1, 2, 2)
    assert found[0, :, 0].tolist() == pytest.approx([0.25, 0.6])
    first, second = ((9 + 4) / 2) ** 0.5, (100 / 2) ** 0.5  # root mean squares in deviations; the largest cell counts
    assert found[0, :, 1].tolist() == pytest.approx([first / 0.5, second / 0.2], rel=1e-5)


def test_nothing_is_known_between_steps_of_one_picture() -> None:
    features = torch.tensor([0.0, 0.0, 3.0, 3.0])[None, :, None, None]
    found = change_rate(features, torch.tensor([[0.1, 0.1, 0.4, 0.6]]), torch.ones(1))
    assert found[0, 0, 1].isnan()  # one picture twice
    assert found[0, 1:, 1].tolist() == pytest.approx([10.0, 0.0])  # the last is another picture, and still


def test_distance_by_hand() -> None:
    features = torch.tensor([[[[1.0, 3.0]], [[3.0, 3.0]]], [[[0.0, 1.0]], [[0.0, 1.0]]]])
    found = distance(features, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    assert found.tolist() == pytest.approx([(2**2 + 1**2) / 2, 0.0])
