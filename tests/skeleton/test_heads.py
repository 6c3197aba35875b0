"""The linear head, InfoGCN's and what all heads share, by hand."""

import math

import pytest
import torch

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import BottleneckHead, LinearHead, TapShape, pooled
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


def bottleneck(classes: int = 4, width: int = 6) -> BottleneckHead:
    torch.manual_seed(0)
    head = BottleneckHead(prior_weight=0.1, norm_weight=1e-4, gain=3.0)
    head.build([TapShape(width, 2, 20)], [str(i) for i in range(classes)], KINECT20)
    return head


def test_a_bottleneck_of_endless_variance_has_gradients() -> None:
    """exp(0.5 x 1000) is infinite in float32; the deviation is 100 all the same, and the weights get finite gradients."""
    head = bottleneck().train()
    with torch.no_grad():
        head.log_variance.bias.fill_(1000)
    head([torch.randn(3, 1, 6, 2, 20)], torch.tensor([0, 1, 2])).logits.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in head.parameters() if weight.grad is not None)
    assert head.mean.weight.grad is not None


@torch.no_grad()
def test_bottleneck_losses_by_loops_over_classes() -> None:
    head = bottleneck().eval()
    taps, labels = [torch.randn(7, 2, 6, 2, 20)], torch.tensor([0, 2, 2, 0, 3, 2, 0])  # class 1 is absent
    scores = head(taps, labels)
    z = head.mean(torch.relu(head.hidden(taps[-1].mean((1, 3, 4)))))
    assert torch.allclose(scores.logits, z @ head.decoder.weight.T + head.decoder.bias, atol=1e-5)
    errors = []
    for action in (0, 2, 3):
        rows = [row for row, label in zip(z, labels, strict=True) if label == action]
        errors += [(entry - wanted) ** 2 for entry, wanted in zip(sum(rows) / len(rows), head.prior[action], strict=True)]
    assert scores.losses["prior"].item() == pytest.approx(0.1 * float(sum(errors)) / len(errors), abs=1e-6)
    assert scores.losses["norm"].item() == pytest.approx(1e-4 * float(z.mean(0).square().sum().sqrt()), rel=1e-5)
    assert head(taps).losses == {}


def test_bottleneck_draws_in_training_only() -> None:
    head = bottleneck()
    with torch.no_grad():
        for layer in (head.log_variance, head.mean):
            layer.weight.zero_()
        head.log_variance.bias.copy_(torch.tensor([0.0, 2, 4, -2, 20, 1]))
        head.mean.bias.copy_(torch.arange(6.0))
        head.decoder.weight.copy_(torch.eye(4, 6))
        head.decoder.bias.zero_()
    tap = torch.zeros(20000, 1, 6, 1, 1)
    drawn = head.train()([tap]).logits
    assert drawn.mean(0).tolist() == pytest.approx([0, 1, 2, 3], abs=0.3)
    assert drawn.std(0).tolist() == pytest.approx([1, math.e, math.e**2, 1 / math.e], rel=0.05)  # exp(half the log-variance)
    assert torch.equal(head.eval()([tap[:1]]).logits, torch.tensor([[0.0, 1, 2, 3]]))


def test_class_vectors_are_orthogonal_kept_and_never_trained() -> None:
    head = bottleneck()
    assert torch.allclose(head.prior @ head.prior.T, 9 * torch.eye(4), atol=1e-5)
    assert "prior" in head.state_dict()
    assert "prior" not in dict(head.named_parameters())
