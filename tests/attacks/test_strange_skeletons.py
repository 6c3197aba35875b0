"""Bundles of a skeleton network out of a stranger's hands."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skeletons import moving_body, of_bodies
from strangers import CLASSES, SPLIT, Bundles, Stranger, bulk, spring
from test_strange_bundles import CALL, IMPORT, SAVE, marked
from test_strange_checkpoints import REMOVED, put

from vtlvlm.cli import main
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.bundles import digest
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.recognizers.skeletons import SkeletonRecognizer
from vtlvlm.skeleton.backbone import Network, NormalisedJoints, SkeletonNet
from vtlvlm.skeleton.heads import Head, LinearHead, TapShape
from vtlvlm.skeleton.heatmaps import HeatMaps
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.preparing import CropAndResize
from vtlvlm.skeleton.slowonly import PoseC3D
from vtlvlm.skeleton.spatial import RefinedTopology
from vtlvlm.skeleton.temporal import MultiScaleTemporal
from vtlvlm.skeleton.text_parts import TextPartsHead
from vtlvlm.skeleton.text_table import write_table
from vtlvlm.stages.parts import settings_of
from vtlvlm.stages.recognition import Recognition

FILE = "network.safetensors"
NETWORK, PREPARATION = "network/init_args", "preparation/init_args"


class Networks(Bundles):
    """Whole bundles made without any training, and changed copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, folder / "mark"
        super().__init__(self.bundle("whole", LinearHead()))
        self.recording = folder / "S001C001P001R001A001.skeleton"
        self.recording.write_text(of_bodies({"1": (0, moving_body(np.random.default_rng(0), 12))}, 12))

    def bundle(self, name: str, head: Head, network: Network | None = None) -> Path:
        torch.manual_seed(0)
        stage = Recognition(network or SkeletonNet(NormalisedJoints(), RefinedTopology(), MultiScaleTemporal(), (16, 16), (1, 2)), head)
        sampling = {**settings_of(CropAndResize(8)), "stream": "joint", "coordinates": "metres"}
        of = {"classes": CLASSES, "protocol": "all", "train_hash": "0", "split": SPLIT, "layout": "ntu25", "bodies": 1, "window": 8}
        stage.restore({**of, "sampling": sampling})
        Stranger.save(self.folder / f"{name}.ckpt", stage)
        assert main(["export", str(self.folder / f"{name}.ckpt"), str(self.folder / name)]) == 0
        return self.folder / name


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(tmp_path_factory.mktemp("networks"))


def test_the_whole_one_is_read(networks: Networks, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--json", "--model", str(networks.whole), str(networks.recording)]) == 0
    assert sum(one["probability"] for one in json.loads(capsys.readouterr().out)["actions"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("call", [CALL, SAVE, IMPORT])
@pytest.mark.parametrize("place", ["network", "head", "preparation", f"{NETWORK}/spatial", f"{PREPARATION}/window"])
def test_a_bundle_that_names_a_function_calls_nothing(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, call: dict[str, Any]
) -> None:
    hostile = networks.changed(tmp_path / "b", put(place, marked(call, networks.mark)))
    assert str(hostile) in spring(capsys, "classify", "--model", hostile, networks.recording)
    assert not networks.mark.exists()


@pytest.mark.parametrize(
    ("place", "value"),
    bulk(
        [
            (f"{PREPARATION}/window", 2**31),
            (f"{PREPARATION}/window", 0),
            (f"{PREPARATION}/middle", 0.0),
            (f"{NETWORK}/widths", [2**16, 2**16]),
            (f"{NETWORK}/widths", [16, 17]),
            (f"{NETWORK}/widths", []),
            (f"{NETWORK}/strides", [1]),
            (f"{NETWORK}/strides", [0, 1]),
            (f"{NETWORK}/spatial/init_args", {"x": 1}),
            (f"{NETWORK}/temporal/init_args/kernel", 4_001),
            (f"{NETWORK}/temporal/init_args/dilations", [2**31 - 1] * 2),
            (f"{NETWORK}/temporal/init_args/dilations", []),
            ("kind", "forest"),
            ("kind", ["skeletons"]),
            ("kind", REMOVED),
            ("format", 3),
            ("layout", "kinect20"),
            ("layout", ["ntu25"]),
            ("layout", REMOVED),
            ("bodies", 2),
            ("bodies", 2**40),
            ("bodies", True),
            ("bodies", "1"),
            ("stream", "x" * 10**6),
            ("stream", "ancestor:99999"),
            ("stream", "\n"),
            ("stream", 3),
            ("coordinates", "miles"),
            ("coordinates", "pixels"),
            ("coordinates", []),
            ("seed", "0"),
            ("seed", REMOVED),
            ("preparation", REMOVED),
            ("network", REMOVED),
            ("head", 3),
            ("head", {"class_path": "vtlvlm.skeleton.refining.RefiningHead", "init_args": {}}),
            ("head", {"class_path": "vtlvlm.skeleton.text_parts.TextPartsHead", "init_args": {"parts": [[99]] * 4}}),
            ("head", {"class_path": "vtlvlm.skeleton.koopman.KoopmanHead", "init_args": {}}),
            ("sha256", REMOVED),
            (f"sha256/{FILE}", 3),
            ("origin", []),
            ("origin/classes", ["other", "names"]),
            ("classes", "ab"),
            ("classes", []),
            ("classes", [1, 2]),
            ("classes", ["fall down"] * 200_000),
            ("classes", ["\ud800x", "wave"]),
        ],
        3,
    ),
)
def test_a_description_that_is_none_is_refused(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any
) -> None:
    spring(capsys, "classify", "--model", networks.changed(tmp_path / "b", put(place, value)), networks.recording)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 4, "kind": "skeletons"}', '{"format": 4, "kind": null}', b"\xff"], ids=lambda text: repr(text[:12])
)
def test_a_damaged_description_is_refused(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes
) -> None:
    said = spring(capsys, "classify", "--model", networks.of(tmp_path / "b", text), networks.recording)
    assert str(tmp_path / "b") in said or "this model reads videos" in said


def test_damaged_weights_are_refused(networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (networks.whole / FILE).read_bytes()
    contents = {"empty": b"", "cut": whole[: len(whole) // 2], "long": (2**62).to_bytes(8, "little") + whole[8:], "junk": b"\0" * 64}
    for kind, content in contents.items():
        hostile = Path(shutil.copytree(networks.whole, tmp_path / kind))
        (hostile / FILE).write_bytes(content)
        assert "is not the file that the bundle was made with" in spring(capsys, "classify", "--model", hostile, networks.recording)
        described = json.loads((hostile / "bundle.json").read_text())
        described["sha256"][FILE] = digest(hostile / FILE)
        (hostile / "bundle.json").write_text(json.dumps(described))
        assert f"{FILE}: not a readable weights file" in spring(capsys, "classify", "--model", hostile, networks.recording)
    (hostile / FILE).unlink()
    assert "is missing" in spring(capsys, "classify", "--model", hostile, networks.recording)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("head.fc.weight", torch.zeros(3, 16), "head.fc.weight is (3, 16), expected (2, 16)"),
        ("head.fc.weight", torch.full((2, 16), float("nan")), "its head.fc.weight holds numbers that are not finite"),
        ("head.fc.weight", torch.zeros(2, 16, dtype=torch.int64), "its head.fc.weight holds torch.int64"),
        ("head.fc.bias", None, "head.fc.bias is missing"),
        ("network.embed.norm.running_var", torch.full((75,), float("inf")), "its network.embed.norm.running_var holds numbers"),
        ("temperature", torch.tensor(0.0), "a temperature must be above 0"),
        ("temperature", torch.ones(1), "temperature is (1,)"),
        ("temperature", None, "temperature is missing"),
        ("other", torch.zeros(2), "other is (2,), expected missing"),
    ],
)
def test_numbers_that_are_no_network(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tensor: torch.Tensor | None, words: str
) -> None:
    hostile = networks.with_weights(tmp_path / "b", FILE, {name: tensor})
    assert words in spring(capsys, "classify", "--model", hostile, networks.recording)


def test_probabilities_that_are_none_are_not_printed(networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finite weights whose products are not."""
    loud = {"network.embed.norm.weight": torch.full((75,), 3e38), "head.fc.weight": torch.tensor([[3e38] * 16, [-3e38] * 16])}
    hostile = networks.with_weights(tmp_path / "b", FILE, loud)
    capsys.readouterr()
    assert main(["classify", "--json", "--model", str(hostile), str(networks.recording)]) == 1
    found = capsys.readouterr()
    assert "gives no probabilities for it (NaN); its weights are damaged" in found.err
    assert "error" in json.loads(found.out, parse_constant=lambda name: pytest.fail(name))


def test_a_clip_takes_no_more_memory_than_a_bundle_may_ask_for(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small weights of PoseC3D; thousands of frames of large maps are not."""
    bundle = networks.bundle("maps", LinearHead(), PoseC3D(HeatMaps(size=8, eval_size=8, metres=True), 4, [1, 1, 1]))
    assert main(["classify", "--model", str(bundle), str(networks.recording)]) == 0
    larger = {"network/init_args/maps/init_args/eval_size": 1_024, f"{PREPARATION}/window": 16_384}
    hostile = networks.changed(tmp_path / "b", lambda described: [put(*one)(described) for one in larger.items()], bundle)
    said = spring(capsys, "classify", "--model", hostile, networks.recording)
    assert "16384 frames, whose features take more than 4 GiB a clip" in said


def test_no_file_that_a_bundle_names_is_opened_and_no_memory_taken_for_training(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GAP's texts: a file that is none, and a table of a size that no machine has."""
    write_table(tmp_path / "texts.safetensors", CLASSES, torch.randn(2, 5, 6), "random numbers")
    bundle = networks.bundle("texts", TextPartsHead(str(tmp_path / "texts.safetensors"), 6))
    trap = tmp_path / "trap"
    trap.mkdir()
    answers = []
    for number, (name, value) in enumerate([("texts", None), ("texts", str(trap)), ("texts", "/etc/passwd"), ("text_width", 2**20)]):
        named = networks.changed(tmp_path / str(number), put(f"head/init_args/{name}", value), bundle)
        capsys.readouterr()
        assert main(["classify", "--json", "--model", str(named), str(networks.recording)]) == 0
        answers.append(json.loads(capsys.readouterr().out)["actions"])
    assert answers == [answers[0]] * 4


def test_parts_that_do_not_fit_together_end_in_one_line(networks: Networks) -> None:
    recognizer = ActionRecognizer.from_checkpoint(networks.whole, device="cpu")
    assert isinstance(recognizer, SkeletonRecognizer)
    recognizer.head = LinearHead()
    recognizer.head.build([TapShape(7, 8, 25)], CLASSES, NTU25)  # of another width than the network
    with pytest.raises(UsageError, match="cannot compute with its settings"):
        recognizer.classify(networks.recording)
