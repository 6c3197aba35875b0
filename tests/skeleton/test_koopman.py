"""Koopman pooling against loops over actions, clips and frames; maps whose eigenvalues are known."""

import math
from pathlib import Path

import lightning
import pytest
import torch
from moves import write_moves
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.datamodule import SkeletonDataModule
from vtlvlm.skeleton.heads import TapShape
from vtlvlm.skeleton.koopman import KoopmanHead, normalised_maps, residuals
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.preparing import BoxedFrames
from vtlvlm.skeleton.source import SkeletonSource
from vtlvlm.skeleton.spatial import RefinedTopology
from vtlvlm.skeleton.temporal import MultiScaleTemporal
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.sgd import SGD


def built(actions: int = 3, width: int = 4, frames: int = 6, **settings: object) -> KoopmanHead:
    torch.manual_seed(0)
    head = KoopmanHead(**settings)
    head.build([TapShape(width, frames, 5)], [f"action {number}" for number in range(actions)], NTU25)
    return head


def turn(angle: float, size: float) -> Tensor:
    """A rotation of the plane, times its size: its eigenvalues are size e^(± i angle)."""
    return size * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def test_scores_equal_the_loops_and_so_do_their_gradients() -> None:
    head = built()
    tap = torch.randn(2, 2, 4, 6, 5, requires_grad=True)
    found = head([tap[:, :1], tap], torch.tensor([0, 2]))
    assert found.losses == {}
    rows = []
    for clip in range(2):
        row = []
        for action in range(3):
            distances = []
            for t in range(5):
                here, there = (
                    [sum(tap[clip, m, c, time, v] for m in range(2) for v in range(5)) / 10 for c in range(4)] for time in (t, t + 1)
                )
                square = torch.zeros(())
                for i in range(4):
                    square = square + (sum(head.maps[action, i, j] * here[j] for j in range(4)) - there[i]) ** 2
                distances.append(square.sqrt())
            row.append(-sum(distances) / 5)
        rows.append(torch.stack(row))
    expected = torch.stack(rows)
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(2, 3)
    ours = torch.autograd.grad((found.logits * weights).sum(), [tap, head.maps])
    for one, other in zip(ours, torch.autograd.grad((expected * weights).sum(), [tap, head.maps]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_movement_by_its_own_map_has_the_score_zero() -> None:
    """Features that turn by a quarter each frame: the right map has residual 0, and a finite gradient there."""
    maps = torch.stack([turn(math.pi / 2, 1.0), torch.eye(2)]).requires_grad_()
    features = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])[None].requires_grad_()
    found = residuals(torch.round(maps.detach()).requires_grad_(), features)
    torch.testing.assert_close(found, torch.tensor([[0.0, math.sqrt(2)]]))
    assert torch.autograd.grad(found.sum(), features)[0].isfinite().all()


@pytest.mark.parametrize(("actions", "official"), [(60, 5_378_832), (120, 9_326_412)])
def test_size_is_the_official_one(actions: int, official: int) -> None:
    """The official module also has a linear layer that it never uses."""
    network, head = SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal(), strides=(1,) * 10), KoopmanHead()
    with torch.device("meta"):
        network.build(NTU25, bodies=2)
        head.build(network.shapes(64), [str(action) for action in range(actions)], NTU25)
        unused = torch.nn.Linear(256, actions)
    assert head.maps.shape == (actions, 256, 256)
    assert sum(weight.numel() for module in (network, head, unused) for weight in module.parameters()) == official
    assert head.only_in_training() == []


def test_autocast_leaves_the_scores_in_float32() -> None:
    head = built()
    tap = torch.randn(2, 1, 4, 6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = head([tap])
    assert torch.equal(found.logits, head([tap.float()]).logits)


def test_eigenvalues_by_hand() -> None:
    """A pair of size 16, -0.81, and 0.5, which is the smallest and stays."""
    blocks = torch.block_diag(turn(0.3, 16.0), torch.tensor([[0.5]]), torch.tensor([[-0.81]]))
    torch.manual_seed(0)
    basis = torch.eye(4) + 0.2 * torch.randn(4, 4)
    expected = torch.block_diag(turn(0.3, 2.0), torch.tensor([[0.5]]), torch.tensor([[-(0.81**0.25)]]))
    inverse = torch.linalg.inv(basis)
    found = normalised_maps((basis @ blocks @ inverse)[None], leading=3)
    torch.testing.assert_close(found, (basis @ expected @ inverse)[None], atol=1e-5, rtol=1e-4)


def test_a_pair_is_changed_whole() -> None:
    """The second largest eigenvalue is half of a pair: the map stays a rotation."""
    maps = torch.block_diag(torch.tensor([[81.0]]), turn(0.7, 16.0))[None]
    expected = torch.block_diag(torch.tensor([[3.0]]), turn(0.7, 2.0))[None]
    torch.testing.assert_close(normalised_maps(maps, leading=2), expected, atol=1e-5, rtol=1e-5)


def test_random_maps_have_the_eigenvalues_asked_for() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 12, 12, dtype=torch.float64)
    before, after = (torch.linalg.eigvals(m).abs().sort(dim=1).values for m in (maps, normalised_maps(maps, leading=5, power=0.0)))
    for old, new in zip(before, after, strict=True):
        on_circle = int(((new - 1).abs() < 1e-6).sum())
        assert on_circle in (5, 6)
        kept = [size.item() for size in old[: 12 - on_circle]]
        rest = sorted(size.item() for size in new if abs(size - 1) >= 1e-6)
        assert rest == pytest.approx(kept, abs=1e-6)


def test_zero_maps_stay_zero() -> None:
    assert torch.equal(normalised_maps(torch.zeros(1, 3, 3)), torch.zeros(1, 3, 3))


def test_a_map_without_eigenvectors_is_refused() -> None:
    with pytest.raises(UsageError, match="no basis of eigenvectors"):
        normalised_maps(torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]))


def test_the_second_training_starts_from_the_changed_maps_of_the_first_once() -> None:
    first = built(leading=2)
    assert first.maps.requires_grad
    assert not first.is_normalised
    second = built(second=True, leading=2)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.maps.detach(), normalised_maps(first.maps.detach(), 2))
    assert not torch.allclose(second.maps, first.maps)
    assert not second.maps.requires_grad
    resumed = built(second=True, leading=2)
    resumed.load_state_dict(second.state_dict())
    assert torch.equal(resumed.maps, second.maps)
    tested = built(leading=2)
    tested.load_state_dict(first.state_dict())
    assert torch.equal(tested.maps, first.maps)


def test_the_second_training_trains_the_trunk() -> None:
    head = built(second=True)
    head.normalise()
    tap = torch.randn(2, 1, 4, 6, 5, requires_grad=True)
    torch.nn.functional.cross_entropy(head([tap]).logits, torch.tensor([0, 1])).backward()
    assert head.maps.grad is None
    assert tap.grad.abs().sum() > 0


def test_a_second_training_of_random_maps_is_refused_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    """Nothing is trained before the refusal. A resumed training has its maps from the checkpoint, and needs no ``init_from``."""
    source = SkeletonSource(str(write_moves(tmp_path / "moves.npz", repetitions=1)), "cameras:1,2", validation=0.25)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}

    def fit(name: str, epochs: int, second: bool, init_from: Path | None = None, resumed: Path | None = None) -> Recognition:
        torch.manual_seed(0)
        network = SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal(), (8, 8), (1, 1))
        start = None if init_from is None else str(init_from)
        made = Recognition(network, KoopmanHead(second=second, leading=2), SGD(0.001), init_from=start)
        trainer = lightning.Trainer(
            accelerator="cpu", default_root_dir=tmp_path / name, max_epochs=epochs, use_distributed_sampler=False, **quiet
        )
        data = SkeletonDataModule(source, BoxedFrames(8), batch_size=6, num_workers=0)
        trainer.fit(made, datamodule=data, ckpt_path=resumed, weights_only=True)
        return made

    with pytest.raises(UsageError, match=r"starts from the weights of the first one; .*init_from FIRST\.ckpt") as refused:
        fit("random", 1, True)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "random").exists()
    first = fit("first", 1, False)
    (start,) = (tmp_path / "first").rglob("best.ckpt")
    begun = fit("second", 1, True, init_from=start)
    torch.testing.assert_close(begun.head.maps.detach(), normalised_maps(first.head.maps.detach(), 2))
    (stopped,) = (tmp_path / "second").rglob("last.ckpt")
    resumed = fit("second", 2, True, resumed=stopped)
    assert torch.equal(resumed.head.maps, begun.head.maps)
    weight = "blocks.0.spatial.values.weight"
    assert not torch.equal(resumed.network.state_dict()[weight], begun.network.state_dict()[weight])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"head\.leading=0"):
        KoopmanHead(leading=0)
    with pytest.raises(UsageError, match="the last block has 1 frame"):
        built(frames=1)
