"""Bundles of a video network out of a stranger's hands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from strangers import CLASSES, SPLIT, Bundles, Stranger, bulk, load_file, spring
from test_strange_bundles import CALL, IMPORT, SAVE, marked
from test_strange_checkpoints import REMOVED, put
from torch._dynamo.utils import counters
from videos import block_clips

from vtlvlm.cli import main
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.bundles import digest
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.recognizers.video_networks import NetworkRecognizer
from vtlvlm.skeleton.backbone import ClipNetwork
from vtlvlm.skeleton.heads import LinearHead, TapShape
from vtlvlm.skeleton.video_networks import FrozenFeatures, VideoNetwork
from vtlvlm.stages.parts import settings_of
from vtlvlm.stages.recognition import Recognition
from vtlvlm.vtem.extractors import VideoExtractor

FILE = "network.safetensors"
NETWORK, SAMPLING = "network/init_args", "sampling/init_args"
EXTRACTOR = f"{NETWORK}/extractor/init_args"
WHOLE = {"class_path": "vtlvlm.skeleton.video_networks.VideoNetwork", "init_args": {"model": "mc3_18"}}


class Networks(Bundles):
    """Whole bundles made without any training, and changed copies of them."""

    def __init__(self, folder: Path) -> None:
        from torchvision.models import get_model

        self.folder, self.mark = folder, folder / "mark"
        self.video = block_clips(folder / "videos", people=(1,)) / "S001C001P001R001A001_rgb.avi"
        self.weights = folder / "weights.pth"
        torch.manual_seed(0)
        torch.save(get_model("mc3_18", weights=None).state_dict(), self.weights)
        super().__init__(self.bundle("whole", VideoNetwork("mc3_18", image_size=16), {}))
        self.extractor = VideoExtractor("mc3_18", str(self.weights), grid=1, image_size=16, chunk=4)
        made = {"extractor": self.extractor.fingerprint(), "dim": 512, "features": None}
        self.frozen = self.bundle("frozen", FrozenFeatures(VideoExtractor("mc3_18", str(self.weights), 1, 16, 4)), made)

    def bundle(self, name: str, network: ClipNetwork, more: dict[str, Any]) -> Path:
        torch.manual_seed(0)
        stage = Recognition(network, LinearHead(deviation=0.01))
        of = {"classes": CLASSES, "protocol": "all", "train_hash": "0", "split": SPLIT}
        stage.restore({**of, "sampling": settings_of(FrameSampling(frames=4, size=16)), **more})
        Stranger.save(self.folder / f"{name}.ckpt", stage)
        assert main(["export", str(self.folder / f"{name}.ckpt"), str(self.folder / name)]) == 0
        return self.folder / name


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return Networks(tmp_path_factory.mktemp("networks"))


def test_the_whole_ones_are_read(networks: Networks, capsys: pytest.CaptureFixture[str]) -> None:
    for bundle in (networks.whole, networks.frozen):
        capsys.readouterr()
        assert main(["classify", "--json", "--model", str(bundle), str(networks.video)]) == 0
        assert sum(one["probability"] for one in json.loads(capsys.readouterr().out)["actions"]) == pytest.approx(1, abs=1e-5)


def test_a_network_that_was_trained_whole_reads_no_cache(networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its origin says."""
    other = networks.changed(tmp_path / "b", put("origin/features", "x"))
    assert main(["classify", "--json", "--model", str(other), str(networks.video)]) == 0
    assert json.loads(capsys.readouterr().out)["actions"]


@pytest.mark.parametrize("call", [CALL, SAVE, IMPORT])
@pytest.mark.parametrize("place", ["network", "head", "sampling", f"{NETWORK}/model", f"{SAMPLING}/frames"])
def test_a_bundle_that_names_a_function_calls_nothing(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, call: dict[str, Any]
) -> None:
    hostile = networks.changed(tmp_path / "b", put(place, marked(call, networks.mark)))
    assert str(hostile) in spring(capsys, "classify", "--model", hostile, networks.video)
    assert not networks.mark.exists()


@pytest.mark.parametrize(
    ("place", "value"),
    bulk(
        [
            (f"{NETWORK}/model", "swin3d_b"),
            (f"{NETWORK}/model", "no_such_model"),
            (f"{NETWORK}/model", ["mc3_18"]),
            (f"{NETWORK}/image_size", 0),
            (f"{NETWORK}/image_size", 10**9),
            (f"{NETWORK}/weights", 3),
            (f"{NETWORK}/other", 3),
            ("network", REMOVED),
            ("network", {"class_path": "vtlvlm.skeleton.slowonly.PoseC3D", "init_args": {"maps": {}}}),
            ("network", {"class_path": "vtlvlm.vtem.extractors.VideoExtractor", "init_args": {}}),
            ("head", REMOVED),
            ("head", {"class_path": "vtlvlm.skeleton.koopman.KoopmanHead", "init_args": {}}),
            ("head", {"class_path": "vtlvlm.skeleton.refining.RefiningHead", "init_args": {}}),
            ("head", {"class_path": "vtlvlm.skeleton.text_parts.TextPartsHead", "init_args": {}}),
            ("sampling", REMOVED),
            (f"{SAMPLING}/frames", 0),
            (f"{SAMPLING}/fps", float("inf")),
            (f"{SAMPLING}/test_clips", 2**31 - 1),
            (f"{SAMPLING}/test_clips", 10**7),
            (f"{SAMPLING}/test_crops", 2),
            ("kind", "forest"),
            ("kind", "skeletons"),
            ("kind", "probe"),
            ("kind", ["video network"]),
            ("kind", REMOVED),
            ("format", 3),
            ("clip_seconds", -1),
            ("clip_seconds", float("nan")),
            ("clip_seconds", "3"),
            ("clip_seconds", 10**9),
            ("clip_seconds", 1e-9),
            ("sha256", REMOVED),
            (f"sha256/{FILE}", 3),
            ("origin", []),
            ("origin", REMOVED),
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
    said = spring(capsys, "classify", "--model", networks.changed(tmp_path / "b", put(place, value)), networks.video)
    assert str(tmp_path / "b") in said or "reads the joints" in said or "this model reads" in said


@pytest.mark.parametrize(
    ("place", "value"),
    bulk(
        [
            ("model", "r2plus1d_18"),
            ("grid", 64),
            ("grid", 0),
            ("trainable", True),
            ("image_size", 10**9),
            ("precision", "float8"),
            ("chunk", 0),
            ("clips", -1),
        ],
        3,
    ),
)
def test_an_extractor_that_is_none_is_refused(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any
) -> None:
    """A grid of 64 fits the same weights, with 4,096 times the features."""
    hostile = networks.changed(tmp_path / "b", put(f"{EXTRACTOR}/{place}", value), networks.frozen)
    words = str(hostile)
    if (place, value) == ("grid", 64):
        hostile, words = networks.changed(tmp_path / "c", put(f"{SAMPLING}/frames", 16_384), hostile), "features: more than 4 GiB a clip"
    assert words in spring(capsys, "classify", "--model", hostile, networks.video)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 4, "kind": "video network"}', b"\xff"], ids=lambda text: repr(text[:12]))
def test_a_damaged_description_is_refused(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes
) -> None:
    assert str(tmp_path / "b") in spring(capsys, "classify", "--model", networks.of(tmp_path / "b", text), networks.video)


def test_damaged_weights_are_refused(networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (networks.whole / FILE).read_bytes()
    contents = {"empty": b"", "cut": whole[: len(whole) // 2], "long": (2**62).to_bytes(8, "little") + whole[8:], "junk": b"\0" * 64}
    for kind, content in contents.items():
        hostile = Path(shutil.copytree(networks.whole, tmp_path / kind))
        (hostile / FILE).write_bytes(content)
        assert "is not the file that the bundle was made with" in spring(capsys, "classify", "--model", hostile, networks.video)
        described = json.loads((hostile / "bundle.json").read_text())
        described["sha256"][FILE] = digest(hostile / FILE)
        (hostile / "bundle.json").write_text(json.dumps(described))
        assert f"{FILE}: not a readable weights file" in spring(capsys, "classify", "--model", hostile, networks.video)
    (hostile / FILE).unlink()
    assert "is missing" in spring(capsys, "classify", "--model", hostile, networks.video)


STEM = "network.trunk.backbone.stem.0.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    bulk(
        [
            ("head.fc.weight", torch.zeros(3, 512), "head.fc.weight is (3, 512), expected (2, 512)"),
            ("head.fc.weight", torch.full((2, 512), float("nan")), "its head.fc.weight holds numbers that are not finite"),
            ("head.fc.weight", torch.zeros(2, 512, dtype=torch.int64), "its head.fc.weight holds torch.int64"),
            ("head.fc.bias", None, "head.fc.bias is missing"),
            (STEM, torch.zeros(1), f"{STEM} is (1,)"),
            (STEM, torch.full((64, 3, 3, 7, 7), float("inf")), f"its {STEM} holds numbers that are not finite"),
            ("temperature", torch.tensor(0.0), "a temperature must be above 0"),
            ("temperature", torch.ones(1), "temperature is (1,)"),
            ("temperature", None, "temperature is missing"),
            ("other", torch.zeros(2), "other is (2,), expected missing"),
        ],
        2,
    ),
)
def test_numbers_that_are_no_network(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tensor: torch.Tensor | None, words: str
) -> None:
    hostile = networks.with_weights(tmp_path / "b", FILE, {name: tensor})
    assert words in spring(capsys, "classify", "--model", hostile, networks.video)


def test_probabilities_that_are_none_are_not_printed(networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finite weights whose products are not."""
    loud = {"head.fc.weight": torch.tensor([[3e38] * 512, [-3e38] * 512]), "head.fc.bias": torch.tensor([-3e38, 3e38])}
    hostile = networks.with_weights(tmp_path / "b", FILE, loud)
    capsys.readouterr()
    assert main(["classify", "--json", "--model", str(hostile), str(networks.video)]) == 1
    found = capsys.readouterr()
    assert "gives no probabilities for it (NaN); its weights are damaged" in found.err
    assert "error" in json.loads(found.out, parse_constant=lambda name: pytest.fail(name))


def test_a_clip_takes_no_more_memory_than_a_bundle_may_ask_for(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights fit any number and size of frames. The pictures are small, what the network computes from them is not."""
    larger = {f"{NETWORK}/image_size": 1_024, f"{SAMPLING}/frames": 2_048}
    hostile = networks.changed(tmp_path / "b", lambda described: [put(*one)(described) for one in larger.items()])
    said = spring(capsys, "classify", "--model", hostile, networks.video)
    assert "2048 frames of 1024 pixels, from which mc3_18 computes values of more than 4 GiB a clip" in said
    many = networks.changed(tmp_path / "c", put(f"{SAMPLING}/test_clips", 2**21))
    assert "4 frames of 16 pixels in 2097152 views" in spring(capsys, "classify", "--model", many, networks.video)


def test_no_weights_that_a_bundle_names_are_looked_at_and_nothing_is_compiled(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [(networks.whole, f"{NETWORK}/weights", path) for path in (None, "/etc/passwd", "package:this.x")]
    named += [(networks.frozen, f"{EXTRACTOR}/weights", path) for path in (None, "/etc/passwd", "package:this.x")]
    named += [(networks.frozen, f"{EXTRACTOR}/compiled", True)]
    answers: dict[Path, list[Any]] = {networks.whole: [], networks.frozen: []}
    counters.clear()
    for number, (bundle, place, value) in enumerate(named):
        hostile = networks.changed(tmp_path / str(number), put(place, value), bundle)
        capsys.readouterr()
        assert main(["classify", "--json", "--model", str(hostile), str(networks.video)]) == 0
        answers[bundle].append(json.loads(capsys.readouterr().out)["actions"])
        shutil.rmtree(hostile)
    assert all(found == [found[0]] * len(found) for found in answers.values())
    assert not counters["frames"]


def test_a_checkpoint_whose_clips_take_too_much_memory_is_refused(
    networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a bundle; and an extractor's weights file that is none."""
    checkpoint = torch.load(networks.folder / "whole.ckpt", weights_only=True)
    checkpoint["vtlvlm"]["provenance"]["sampling"]["init_args"]["frames"] = 2_048
    checkpoint["vtlvlm"]["settings"]["init_args"]["network"]["init_args"]["image_size"] = 1_024
    torch.save(checkpoint, tmp_path / "large.ckpt")
    assert "computes values of more than 4 GiB" in spring(capsys, "classify", "--model", tmp_path / "large.ckpt", networks.video)
    checkpoint = torch.load(networks.folder / "frozen.ckpt", weights_only=True)
    place = checkpoint["vtlvlm"]["settings"]["init_args"]["network"]["init_args"]["extractor"]["init_args"]
    (tmp_path / "trap.pth").mkdir()
    for weights in ("/etc/passwd", str(tmp_path / "trap.pth"), "package:this.x"):
        place["weights"] = weights
        torch.save(checkpoint, tmp_path / "named.ckpt")
        said = spring(capsys, "classify", "--model", tmp_path / "named.ckpt", networks.video)
        assert "export a bundle with `vtlvlm export --weights`" in said


def test_parts_that_do_not_fit_together_end_in_one_line(networks: Networks) -> None:
    recognizer = ActionRecognizer.from_checkpoint(networks.whole, device="cpu")
    assert isinstance(recognizer, NetworkRecognizer)
    assert load_file(networks.whole / FILE)["head.fc.weight"].shape == (2, 512)
    recognizer.head = LinearHead()
    recognizer.head.build([TapShape(7, 8, 25)], CLASSES, None)  # of another width than the network
    with pytest.raises(UsageError, match="cannot compute with its settings"):
        recognizer.classify(networks.video)
