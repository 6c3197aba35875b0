"""The linear head and what all heads share, by hand."""

import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import LinearHead, TapShape, pooled
from vtlvlm.skeleton.layouts import KINECT20


def test_the_mean_over_frames_joints_and_bodies_counts_absent_bodies() -> None:
    tap = torch.zeros(1, 2, 1, 2, 3)  # one clip, two bodies, one channel, two frames, three joints
    tap[0, 0, 0] = torch.tensor([[1.0, 2, 3], [4, 5, 9]])  # mean 4; the second body is absent
    assert pooled(tap).tolist() == [[2.0]]


def test_linear_head_reads_the_last_block() -> None:
    head = LinearHead()
    head.build([TapShape(7, 4, 20), TapShape(2, 4, 20)], ["walk", "sit", "wave"], KINECT20)
    with torch.no_grad():
        head.fc.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        head.fc.bias.copy_(torch.tensor([0.0, 0, 10]))
    last = torch.tensor([2.0, 3.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 4, 20)
    scores = head([torch.full((1, 1, 7, 4, 20), 100.0), last], torch.tensor([0]))
    assert scores.logits.tolist() == [[2.0, 3.0, 15.0]]
    assert scores.losses == {}


def test_dropout_is_of_training_only_and_less_than_one() -> None:
    head = LinearHead(dropout=0.5)
    head.build([TapShape(1000, 1, 1)], ["walk", "sit"], KINECT20)
    with torch.no_grad():
        head.fc.weight.copy_(torch.ones(2, 1000))
        head.fc.bias.zero_()
    tap = torch.ones(1, 1, 1000, 1, 1)
    torch.manual_seed(0)
    drawn = head.train()([tap.expand(100, 1, 1000, 1, 1)]).logits[:, 0]
    assert drawn.std().item() == pytest.approx(1000**0.5, rel=0.3)  # each entry is 0 or 2
    assert head.eval()([tap]).logits[0, 0] == 1000.0
    with pytest.raises(UsageError, match=r"head\.dropout=1"):
        LinearHead(dropout=1)


def test_weights_start_with_the_variance_of_the_official_code() -> None:
    torch.manual_seed(0)
    head = LinearHead()
    head.build([TapShape(5000, 1, 1)], [str(i) for i in range(50)], KINECT20)
    assert head.fc.weight.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.02)
