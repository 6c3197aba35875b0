"""GAP's contrast against loops over clips, its size, and the file of texts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import in_processes
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vtlvlm.commands.texts import names
from vtlvlm.data.ntu import ACTIONS
from vtlvlm.errors import DataError, UsageError
from vtlvlm.skeleton.backbone import NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.heads import TapShape
from vtlvlm.skeleton.layouts import KINECT20, NTU25
from vtlvlm.skeleton.packed import NW_UCLA_ACTIONS
from vtlvlm.skeleton.spatial import RefinedTopology
from vtlvlm.skeleton.temporal import MultiScaleTemporal
from vtlvlm.skeleton.text_parts import TextPartsHead, contrasts
from vtlvlm.skeleton.text_table import PARTS, read_descriptions, read_table, texts_of, write_table

CLASSES = ["wave", "sit", "Jump up"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "texts.safetensors"
    write_table(file, CLASSES, embeddings(), "random numbers")
    return file


def embeddings() -> Tensor:
    return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(3))


def built(table: Path | None, **settings: object) -> TextPartsHead:
    torch.manual_seed(0)
    head = TextPartsHead(None if table is None else str(table), text_width=6, **settings)
    head.build([TapShape(4, 3, 20)], CLASSES, KINECT20)
    return head


def tap(clips: int = 5) -> Tensor:
    return torch.randn(clips, 2, 4, 3, 20, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 2, 0, 1, 2])


@pytest.mark.parametrize(("actions", "training", "inference"), [(60, 2_104_597, 1_446_672), (120, 2_120_017, 1_462_092)])
def test_size_is_the_official_one(actions: int, training: int, inference: int) -> None:
    network, head = SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal()), TextPartsHead(text_width=512)
    with torch.device("meta"):
        network.build(NTU25, bodies=2)
        head.build(network.shapes(64), ACTIONS[:actions], NTU25)
    extra = sum(weight.numel() for module in head.only_in_training() for weight in module.parameters())
    assert extra == 657_925
    total = sum(weight.numel() for module in (network, head) for weight in module.parameters())
    assert (total, total - extra) == (training, inference)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return sum(a * b) / (sum(a * a) * sum(b * b)).sqrt()


def by_loops(features: Tensor, texts: Tensor, labels: list[int], scale: Tensor) -> Tensor:
    """One part: (N, E) and (N, E). The divergence of each row, one pair of clips after the other."""
    clips, total = len(labels), torch.zeros(())
    for one, other in ((features, texts), (texts, features)):
        for i in range(clips):
            same = [math.exp(10.0 * (labels[i] == labels[j])) for j in range(clips)]
            similar = [(scale * cosine(one[i], other[j])).exp() for j in range(clips)]
            for j in range(clips):
                target = same[j] / sum(same)
                total = total + target * (math.log(target) - (similar[j] / sum(similar)).log())
    return total / (2 * clips)


def test_contrasts_equal_the_loops_and_so_do_their_gradients() -> None:
    torch.manual_seed(0)
    features, texts = torch.randn(5, 5, 6, requires_grad=True), torch.randn(5, 3, 6)[:, LABELS]
    scales = torch.rand(5, requires_grad=True)
    found = contrasts(features, texts, LABELS, scales)
    expected = torch.stack([by_loops(features[part], texts[part], LABELS.tolist(), scales[part]) for part in range(5)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(loss.sum(), [features, scales]) for loss in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_two_clips_by_hand() -> None:
    """Different actions, features equal to their texts, which are orthogonal: both ways softmax(s, 0) against softmax(10, 0)."""
    unit = torch.eye(2)[None]
    p, q = 1 / (1 + math.exp(-10)), 1 / (1 + math.exp(-2))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = contrasts(3 * unit, 0.5 * unit, torch.tensor([0, 1]), torch.tensor([2.0]))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_head_pools_each_part_and_compares_it_with_its_text(table: Path) -> None:
    head = built(table, weight=0.5)
    found = head([tap()], LABELS)
    torch.testing.assert_close(found.logits, head.fc(tap().mean((1, 3, 4))))
    losses = []
    for number, part in enumerate(["body", *PARTS]):
        joints = list(KINECT20.parts[part]) if part != "body" else list(range(20))
        pooled = torch.stack([sum(tap()[:, m, :, t, v] for m in range(2) for t in range(3) for v in joints) / (6 * len(joints))])[0]
        features = head.contrast.maps[number](pooled)
        losses.append(by_loops(features, embeddings()[LABELS, number], LABELS.tolist(), torch.tensor(math.log(1 / 0.07))))
    assert list(found.losses) == ["texts"]
    torch.testing.assert_close(found.losses["texts"], 0.5 * sum(losses) / 5, atol=1e-5, rtol=1e-4)


def test_the_texts_are_read_where_weights_are_made_on_a_gpu(table: Path) -> None:
    """Lightning makes weights within the device's context; a memory-mapped file is on the CPU all the same."""
    with torch.device("meta"):
        head = built(table)
    assert head.contrast.texts.device.type == "cpu"
    assert head.contrast.texts.isfinite().all()


def test_parts_can_be_given(table: Path) -> None:
    head = built(table, parts=[[2, 3], [4, 5], [0, 1], [19]])
    assert head.contrast.joints == [(2, 3), (4, 5), (0, 1), (19,)]
    with pytest.raises(UsageError, match="joints 0 to 19"):
        built(table, parts=[[2], [4], [0], [20]])
    with pytest.raises(UsageError, match=r"head\.parts has 2 lists"):
        built(table, parts=[[2], [4]])


def test_evaluation_has_no_loss(table: Path) -> None:
    assert built(table)([tap()]).losses == {}
    assert built(table).eval()([tap()], LABELS).losses == {}


def test_a_trained_head_needs_no_file_but_training_does(table: Path) -> None:
    trained, bare = built(table), built(None)
    with pytest.raises(UsageError, match=r"head\.texts names no table of texts; make one with `vtlvlm texts"):
        bare([tap()], LABELS)
    bare.load_state_dict(trained.state_dict())
    assert torch.equal(bare([tap()], LABELS).losses["texts"], trained([tap()], LABELS).losses["texts"])
    absent = built(table.with_name("absent.safetensors"))
    assert absent.eval()([tap()], LABELS).losses == {}
    with pytest.raises(UsageError, match=r"absent\.safetensors: no such table of texts; make it with `vtlvlm texts"):
        absent.train()([tap()], LABELS)


def test_texts_of_another_width_are_refused(table: Path) -> None:
    head = TextPartsHead(str(table), text_width=512)
    with pytest.raises(UsageError, match=r"head\.text_width=512: the embeddings of .* have the width 6"):
        head.build([TapShape(4, 3, 20)], CLASSES, KINECT20)


def step(rank: int, ranks: int, table: str) -> dict[str, Tensor]:
    head = built(Path(table))
    labels = torch.tensor([0, 2, 0, 1, 2, 1])
    model = DistributedDataParallel(head, find_unused_parameters=True) if ranks > 1 else head
    loss = model([tap(6)[rank::ranks]], labels[rank::ranks]).losses["texts"]
    loss.backward()
    mean = loss.detach().clone()
    if ranks > 1:
        torch.distributed.all_reduce(mean)
    return {"loss": mean / ranks, **{name: weight.grad for name, weight in head.named_parameters() if weight.grad is not None}}


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path, table: Path) -> None:
    alone = step(0, 1, str(table))
    assert sum("maps" in name for name in alone) == 10
    for found in in_processes(step, tmp_path, 2, str(table), ranks=2):
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


# -- texts and their file --------------------------------------------------------------------------------------------------------------


def test_every_action_of_both_sets_is_described() -> None:
    classes = [*ACTIONS, *NW_UCLA_ACTIONS]
    found = texts_of(classes)
    assert found.undescribed == []
    assert len({tuple(lines) for lines in found.lines}) == len(set(classes))
    waving = found.lines[classes.index("hand waving")]
    assert waving[0] == "hand waving"
    assert waving[2] == "hand waving; arms: one hand is raised above the shoulder and swings from side to side"


def test_an_undescribed_action_is_named_and_gets_the_template() -> None:
    found = texts_of(["juggle knives", "Hand  Waving"])
    assert found.undescribed == ["juggle knives"]
    assert found.lines[0] == ["juggle knives", *(f"juggle knives; movement of the {part}" for part in ("head", "arms", "hips", "legs"))]
    assert found.lines[1][1] == "Hand  Waving; head: is turned to the other one"


def test_texts_of_the_user_go_before_our_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.tsv"
    file.write_text("action\thead\tarms\thips\tlegs\nhand waving\ta\tb\tc\td\n")
    found = texts_of(["hand waving", "clapping"], file)
    assert found.lines[0][1:] == [f"hand waving; {part}: {text}" for part, text in zip(PARTS, "abcd", strict=True)]
    assert found.undescribed == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "its first line must be action, head, arms, hips, legs"),
        ("action\thead\n", "its first line must be"),
        ("action\thead\tarms\thips\tlegs\nwave\ta\tb\n", "'wave' has not five texts"),
        ("action\thead\tarms\thips\tlegs\nwave\ta\tb\t \td\n", "'wave' has not five texts"),
        ("action\thead\tarms\thips\tlegs\nwave\ta\tb\tc\td\nWave\ta\tb\tc\td\n", "'Wave' occurs twice"),
    ],
)
def test_a_table_with_a_mistake_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.tsv"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_descriptions(file)


def test_rows_are_found_by_the_name(table: Path) -> None:
    assert torch.equal(read_table(table, ["jump up", "wave"]), embeddings()[[2, 0]])
    with pytest.raises(UsageError, match="has no texts of 'swim' and 1 other actions"):
        read_table(table, ["swim", "wave", "fly"])


def test_a_damaged_file_is_refused_in_one_line(table: Path) -> None:
    content = table.read_bytes()
    table.write_bytes(content[:-3])
    with pytest.raises(DataError, match="damaged"):
        read_table(table, CLASSES)
    array = embeddings().numpy()
    for tensors, metadata in (
        ({"texts": array}, {}),
        ({"texts": array}, {"classes": "["}),
        ({"texts": array}, {"classes": "[1, 2, 3]"}),
        ({"texts": array[:2]}, {"classes": json.dumps(CLASSES)}),
        ({"texts": array[:, :4]}, {"classes": json.dumps(CLASSES)}),
        ({"texts": np.where(array > 0, array, np.nan).astype(np.float32)}, {"classes": json.dumps(CLASSES)}),
        ({"other": array}, {"classes": json.dumps(CLASSES)}),
    ):
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, table, metadata=metadata)
        with pytest.raises(DataError) as error:
            read_table(table, CLASSES)
        assert "\n" not in str(error.value)


def test_classes_of_the_command(tmp_path: Path) -> None:
    assert names("ntu60") == list(ACTIONS[:60])
    assert names("nw_ucla") == list(NW_UCLA_ACTIONS)
    (tmp_path / "classes.txt").write_text("A008 sitting down\nA023 hand waving\n")
    assert names(str(tmp_path / "classes.txt")) == ["sitting down", "hand waving"]
    with pytest.raises(UsageError, match="--classes ucla: no such file; name one, or choose ntu60, ntu120, nw_ucla"):
        names("ucla")
