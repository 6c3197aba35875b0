"""FR-Head's contrast against loops over actions and clips, and its prototypes by hand."""

import math
from pathlib import Path

import pytest
import torch
from gloo import in_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.heads import TapShape
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.refining import Branch, Guesses, RefiningHead
from vtlvlm.skeleton.spatial import RefinedTopology
from vtlvlm.skeleton.temporal import MultiScaleTemporal

SMALL = [TapShape(3, 4, 5), TapShape(6, 2, 5)]


def names(actions: int) -> list[str]:
    return [f"action {number}" for number in range(actions)]


def small(**settings: object) -> RefiningHead:
    torch.manual_seed(0)
    head = RefiningHead(blocks=(1, 2), block_weights=(0.5, 1.0), width=12, **settings)
    head.build(SMALL, names(4), NTU25)
    return head


def taps(clips: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(clips, 2, *shape, generator=generator) for shape in SMALL]


@pytest.mark.parametrize(("actions", "training", "inference"), [(60, 1_983_628, 1_446_672), (120, 1_999_048, 1_462_092)])
def test_size_is_the_official_one(actions: int, training: int, inference: int) -> None:
    network, head = SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal()), RefiningHead()
    with torch.device("meta"):
        network.build(NTU25, bodies=2)
        head.build(network.shapes(64), names(actions), NTU25)
    extra = sum(weight.numel() for module in head.only_in_training() for weight in module.parameters())
    assert extra == 536_956
    total = sum(weight.numel() for module in (network, head) for weight in module.parameters())
    assert (total, total - extra) == (training, inference)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum((x * y for x, y in zip(a, b, strict=True)), torch.zeros(()))


def unit(a: Tensor) -> Tensor:
    return a / dot(a, a).sqrt()


def by_loops(
    features: Tensor, labels: list[int], logits: Tensor, old: Tensor, temperature: float, penalty: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """The definition, clip by clip: the loss, and the prototypes after the batch."""
    clips, actions = logits.shape
    taken = [max(range(actions), key=lambda action: logits[clip, action].item()) for clip in range(clips)]

    def mean(chosen: list[int]) -> Tensor:
        return sum((features[clip] for clip in chosen), torch.zeros(features.shape[1])) / len(chosen)

    right = {k: [i for i in range(clips) if labels[i] == k and taken[i] == k] for k in range(actions)}
    missed = {k: [i for i in range(clips) if labels[i] == k and taken[i] != k] for k in range(actions)}
    intruders = {k: [i for i in range(clips) if labels[i] != k and taken[i] == k] for k in range(actions)}
    new = [momentum * old[k] + (1 - momentum) * mean(right[k]) if right[k] else old[k] for k in range(actions)]
    total = torch.zeros(())
    for i in range(clips):
        k, f = labels[i], unit(features[i])
        weights = [math.exp(value) for value in logits[i].tolist()]
        doubt = 1 - weights[k] / sum(weights)
        terms = [
            dot(unit(mean(missed[k])), f) - 1 if missed[k] else torch.zeros(()),
            -dot(unit(mean(intruders[k])), f) - 1 if intruders[k] else torch.zeros(()),
        ]
        for term in terms:
            scores = [dot(unit(new[j]), f) + (penalty * doubt * term if j == k else 0) for j in range(actions)]
            exponentials = torch.stack([(score / temperature).exp() for score in scores])
            total = total - (exponentials[k] / exponentials.sum()).log()
    return total / clips, torch.stack(new).detach()


def guessed(logits: Tensor, labels: Tensor) -> Guesses:
    probabilities = logits.softmax(1)
    return Guesses(labels, probabilities.argmax(1), 1 - probabilities.gather(1, labels[:, None])[:, 0])


def test_a_branch_equals_the_loops_and_so_do_its_gradients() -> None:
    """Nine clips of four actions, one of which is absent; some are recognised, missed and taken for others; two steps."""
    torch.manual_seed(0)
    branch = Branch(3, 5, 4, 12)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    kinds = set()
    for step in range(2):
        line = torch.randn(9, 3, 5)
        logits = 2 * torch.randn(9, 4) + 2 * torch.eye(4)[labels]
        taken = logits.argmax(1)
        wrong = taken != labels
        kinds |= {"recognised" for hit in ~wrong if hit} | {"missed" for miss in wrong if miss}
        kinds |= {"intruder" for action in taken[wrong] if action in labels} | {
            "no intruder" for action in taken[wrong] if action not in labels
        }
        old = branch.prototypes.clone()
        loss = branch(line, guessed(logits, labels), 0.2, 0.3, 0.8)
        ours = torch.autograd.grad(loss, list(branch.parameters()))
        features = branch.map(branch.squeeze(line).flatten(1))
        expected, prototypes = by_loops(features, labels.tolist(), logits, old, 0.2, 0.3, 0.8)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(branch.prototypes, prototypes)
        assert not torch.equal(branch.prototypes, old), step
        for one, other in zip(ours, torch.autograd.grad(expected, list(branch.parameters())), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert kinds == {"recognised", "missed", "intruder", "no intruder"}


def test_one_recognised_clip_moves_only_its_prototype() -> None:
    torch.manual_seed(0)
    branch = Branch(2, 3, 3, 6)
    old = branch.prototypes.clone()
    line = torch.randn(2, 2, 3)
    right = guessed(torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]), torch.tensor([0, 1]))  # the second clip is missed
    branch(line, right, 0.125, 0.125, 0.9)
    torch.manual_seed(0)
    again = Branch(2, 3, 3, 6)
    feature = again.map(again.squeeze(line).flatten(1))[0]
    torch.testing.assert_close(branch.prototypes[0], 0.9 * old[0] + 0.1 * feature)
    assert torch.equal(branch.prototypes[1:], old[1:])


def test_the_head_adds_weighted_branches_over_joints_and_frames() -> None:
    head, again = small(weight=0.3), small(weight=0.3)
    found, labels = taps(6), torch.tensor([0, 1, 2, 3, 0, 1])
    scores = head(found, labels)
    torch.testing.assert_close(scores.logits, again.fc(found[-1].mean((1, 3, 4))))
    own, total = guessed(scores.logits.detach(), labels), 0.0
    for number, weight in enumerate((0.5, 1.0)):
        clips = found[number].mean(1)
        total += weight * again.over_joints[number](clips.mean(2), own, 0.125, 0.125, 0.9).item()
        total += weight * again.over_frames[number](clips.mean(3), own, 0.125, 0.125, 0.9).item()
    assert list(scores.losses) == ["refining"]
    assert scores.losses["refining"].item() == pytest.approx(0.3 * total, rel=1e-5)


def test_the_classifier_gets_no_gradient_from_the_contrast() -> None:
    head = small()
    head(taps(6), torch.tensor([0, 1, 2, 3, 0, 1])).losses["refining"].backward()
    assert head.fc.weight.grad is None
    assert all(weight.grad is not None for module in head.only_in_training() for weight in module.parameters())


def test_evaluation_has_no_loss_and_moves_no_prototype() -> None:
    head = small()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert sum(name.endswith("prototypes") for name in before) == 4
    assert head(taps(3)).losses == {}
    assert head.eval()(taps(3), torch.tensor([0, 1, 2])).losses == {}
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())


def test_sixteen_bits_change_nothing_in_the_contrast() -> None:
    head, again = small(), small()
    found, labels = [tap.bfloat16() for tap in taps(6)], torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(found, labels)
    assert scores.losses["refining"].dtype == torch.float32
    plain = again([tap.float() for tap in found], labels)
    assert torch.equal(scores.logits.argmax(1), plain.logits.argmax(1)), "the same clips must be confused for the losses to be the same"
    torch.testing.assert_close(scores.losses["refining"], plain.losses["refining"], rtol=1e-2, atol=0)


def step(rank: int, ranks: int) -> dict[str, Tensor]:
    """One training step on this process's share of eight clips: loss, gradients and prototypes."""
    head = small()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()  # batch norms belong to their process
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])[rank::ranks]
    model = DistributedDataParallel(head, find_unused_parameters=True) if ranks > 1 else head
    loss = model([tap[rank::ranks] for tap in taps(8)], labels).losses["refining"]
    loss.backward()
    mean = loss.detach().clone()
    if ranks > 1:
        torch.distributed.all_reduce(mean)
    gradients = {name: weight.grad for name, weight in head.named_parameters() if weight.grad is not None}
    return {"loss": mean / ranks, **gradients, **{name: value for name, value in head.named_buffers() if "prototypes" in name}}


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    alone = step(0, 1)
    first, second = in_processes(step, tmp_path, 2, ranks=2)
    assert sum("prototypes" in name for name in alone) == 4
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
        if "prototypes" in name:
            assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": (1, 2)}, "names 2 blocks, head.block_weights has 4 numbers"),
        ({"blocks": (0, 1, 2, 3)}, "at least 1"),
        ({"temperature": 0.0}, "head.temperature=0.0"),
        ({"momentum": 1.0}, "head.momentum=1.0"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        RefiningHead(**settings)


def test_a_network_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="the network has 2 blocks"):
        RefiningHead().build(SMALL, names(4), NTU25)
    with pytest.raises(UsageError, match="use at least 5"):
        RefiningHead(blocks=(1,), block_weights=(1.0,), width=4).build(SMALL, names(4), NTU25)
    with pytest.raises(UsageError, match="built for 4"):
        small()([taps(2)[0][:, :, :, :3], taps(2)[1]], torch.tensor([0, 1]))
