"""Checkpoints and folders of shards of a stranger: nothing in them runs, and each is refused in a line."""

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as shards
from strangers import Payload, Stranger, bulk, spring

from vtlvlm.cli import main


def commands(stranger: Stranger, checkpoint: Path, out: Path) -> list[list[object]]:
    """Every command that takes a checkpoint of stage 2 alone."""
    return [
        ["classify", "--model", checkpoint, stranger.video],
        ["export", checkpoint, out / "bundle"],
        ["export", "--format", "peft", checkpoint, out / "prefix"],
        ["consolidate", checkpoint, out / "llava"],
    ]


def test_whole_files_are_taken(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What follows changes these."""
    assert main(["classify", "--model", str(stranger.stage2), str(stranger.video)]) == 0
    assert main(["classify", "--model", str(stranger.bundle), str(stranger.video)]) == 0
    assert main(["export", "--format", "peft", str(stranger.stage2), str(tmp_path / "prefix")]) == 0


def test_pickled_code_is_not_run(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In torch's own form, in the old one, and as a bare pickle."""
    content = {**torch.load(stranger.stage2, weights_only=True), "more": Payload(stranger.mark)}
    files = [tmp_path / name for name in ("new.ckpt", "old.ckpt", "bare.ckpt")]
    torch.save(content, files[0])
    torch.save(content, files[1], _use_new_zipfile_serialization=False)
    files[2].write_bytes(pickle.dumps(content["more"]))
    for file in files:
        for command in commands(stranger, file, tmp_path):
            assert "not a readable checkpoint" in spring(capsys, *command)
    stage1 = stranger.checkpoint(stranger.stage1, lambda c: {**c, "more": Payload(stranger.mark)}, tmp_path / "first.ckpt")
    assert "not a readable checkpoint" in spring(capsys, "export", stranger.stage2, tmp_path / "b", "--vtem", stage1)
    assert not stranger.mark.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare.ckpt", "first.ckpt", "new.ckpt", "old.ckpt"]


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *inner, last = path.split("/")
        for name in inner:
            content = content[name]
        if value is REMOVED:
            del content[last]
        else:
            content[last] = value

    return change


REMOVED = object()
SETTINGS = "vtlvlm/settings/init_args"
REASONER = f"{SETTINGS}/reasoner/init_args"
LOOP: list[Any] = []
LOOP.append(LOOP)
DOUBLED: list[Any] = ["x"]
for _ in range(40):
    DOUBLED = [DOUBLED, DOUBLED]


@pytest.mark.parametrize(
    ("path", "value"),
    bulk(
        [
            (SETTINGS, []),
            (f"{SETTINGS}/reasoner", {"class_path": "vtlvlm.cli.main", "init_args": {"arguments": ["demo"]}}),
            (f"{SETTINGS}/reasoner", {"class_path": "antigravity.x", "init_args": {}}),
            (f"{SETTINGS}/reasoner/class_path", "vtlvlm.vtem.model.VTEM"),
            (f"{REASONER}/adapter/init_args/tokens", 2**40),
            (f"{REASONER}/adapter/init_args/tokens", 60_000),
            (f"{REASONER}/adapter/init_args/tokens", "2"),
            (f"{REASONER}/adapter/init_args/reparam_hidden_dim", 2**20),
            (f"{REASONER}/adapter/init_args/layers", "every:0"),
            (f"{REASONER}/adapter", {"class_path": "vtlvlm.lvlm.adapters.LoRA", "init_args": {"rank": 65_536}}),
            (f"{REASONER}/llava/init_args/quantization", "os.system"),
            (f"{REASONER}/llava/init_args/attention", "kernels-community/evil"),
            (f"{REASONER}/llava/init_args/path", "/etc"),
            (f"{REASONER}/llava/init_args/path", "a" * 70_000),
            (f"{REASONER}/sentence_mean_weight", float("nan")),
            ("vtlvlm", []),
            ("vtlvlm", {"stage": "prompt_tuning"}),
            ("vtlvlm/stage", ["prompt_tuning"]),
            ("vtlvlm/stage", "vtem"),
            ("vtlvlm/provenance", REMOVED),
            ("vtlvlm/provenance", {}),
            ("vtlvlm/provenance/classes", "fall down"),
            ("vtlvlm/provenance/classes", [1, 2]),
            ("vtlvlm/provenance/classes", []),
            ("vtlvlm/provenance/classes", ["a", "a"]),
            ("vtlvlm/provenance/classes", ["a", "b" * 10**6]),
            ("vtlvlm/provenance/classes", [f"action {n}" for n in range(200_000)]),
            ("vtlvlm/provenance/num_tokens", 2**40),
            ("vtlvlm/provenance/num_tokens", True),
            ("vtlvlm/provenance/event_dim", "16"),
            ("vtlvlm/provenance/stage1", {"checkpoint": "/dev/zero", "hash": "0"}),
            ("vtlvlm/provenance/stage1", {"checkpoint": "/etc/passwd", "hash": "0"}),
            ("vtlvlm/provenance/stage1/hash", 3),
            ("vtlvlm/provenance/llava/weights", REMOVED),
            ("vtlvlm/provenance/extra", LOOP),
            ("vtlvlm/provenance/extra", DOUBLED),
            ("vtlvlm/provenance/extra", {3: 4}),
            ("state_dict", []),
            ("state_dict", {}),
            ("state_dict/reasoner.adapter.key", REMOVED),
            ("state_dict/reasoner.adapter.key", "x"),
            ("state_dict/reasoner.adapter.key", torch.zeros(())),
            ("state_dict/reasoner.adapter.key", torch.zeros(3, 2, 2, 4)),
            ("state_dict/reasoner.adapter.key", torch.zeros(1).expand(10**6, 10**6)),
            ("state_dict/reasoner.adapter.key", torch.zeros(3, 2, 2, 8).to_sparse()),
            ("state_dict/reasoner.temperature", torch.tensor(0.0)),
            ("state_dict/reasoner.temperature", torch.tensor(-1.0)),
            ("state_dict/reasoner.temperature", torch.tensor(float("nan"))),
            ("state_dict/reasoner.temperature", torch.tensor(float("inf"))),
            ("state_dict/reasoner.temperature", torch.ones(2)),
        ],
        4,
    ),
)
def test_a_record_that_is_none_is_refused(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, value: Any
) -> None:
    hostile = stranger.checkpoint(stranger.stage2, put(path, value), tmp_path / "x.ckpt")
    assert str(hostile) in spring(capsys, "classify", "--model", hostile, stranger.video)


@pytest.mark.parametrize(
    ("path", "value"),
    bulk(
        [
            (f"{SETTINGS}/extractor", {"class_path": "vtlvlm.recognizers.export.save_file", "init_args": {}}),
            (f"{SETTINGS}/extractor/init_args/model", "hf-hub:a/b"),
            (f"{SETTINGS}/extractor/init_args/model", "tf_efficientnet_lite0.nothing"),
            (f"{SETTINGS}/extractor/init_args/model", "vit_tiny_patch16_224"),
            (f"{SETTINGS}/extractor/init_args/weights", "/etc/passwd"),
            (f"{SETTINGS}/extractor/init_args/weights", "/dev/zero"),
            (f"{SETTINGS}/extractor/init_args/weights", "package:os"),
            (f"{SETTINGS}/extractor/init_args/weights", "package:os.path"),
            (f"{SETTINGS}/extractor/init_args/weights", "package:"),
            (f"{SETTINGS}/extractor/init_args/weights", "package:.."),
            (f"{SETTINGS}/extractor/init_args/weights", "package:encodings"),
            (f"{SETTINGS}/extractor/init_args/grid", 2**20),
            (f"{SETTINGS}/extractor", {"class_path": "vtlvlm.vtem.clip_extractor.ClipExtractor", "init_args": {"model": "/etc"}}),
            (f"{SETTINGS}/quantizer/init_args/codes", 2**20),
            (f"{SETTINGS}/quantizer", {"class_path": "vtlvlm.vtem.quantizers.FSQQuantizer", "init_args": {"levels": [1000] * 30}}),
            (f"{SETTINGS}/event_dim", 2**20),
            (f"{SETTINGS}/contrast/init_args/head_dim", 2**20),
            (f"{SETTINGS}/pooler/init_args/windows", 65_536),
            ("vtlvlm/provenance/sampling", {"class_path": "vtlvlm.cli.main", "init_args": {"arguments": ["demo"]}}),
            ("vtlvlm/provenance/sampling/init_args/frames", 2**30),
            ("vtlvlm/provenance/split", []),
            ("state_dict/vtem.projection.weight", torch.zeros(1, 1280).expand(16, 1280)),
            ("state_dict/vtem.mean", REMOVED),
        ],
        4,
    ),
)
def test_a_hostile_stage_1_is_refused(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, value: Any
) -> None:
    first = stranger.checkpoint(stranger.stage1, put(path, value), tmp_path / "x.ckpt")
    spring(capsys, "export", stranger.stage2, tmp_path / "bundle", "--vtem", first)
    assert not (tmp_path / "bundle").exists()


def test_a_package_that_a_checkpoint_names_is_not_imported(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for a part of a package imports the package."""
    package = tmp_path / "evil"
    package.mkdir()
    (package / "__init__.py").write_text(f"import os\nos.mkdir({str(stranger.mark)!r})\n")
    (package / "inner").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for weights in ("package:evil", "package:evil.inner", "package:evil.inner.more"):
        change = put(f"{SETTINGS}/extractor/init_args/weights", weights)
        first = stranger.checkpoint(stranger.stage1, change, tmp_path / "x.ckpt")
        spring(capsys, "export", stranger.stage2, tmp_path / "bundle", "--vtem", first)
    assert not stranger.mark.exists()


def test_damaged_checkpoints_are_refused(stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, file = stranger.stage2.read_bytes(), tmp_path / "x.ckpt"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 10**7)
    middle = bytearray(content)
    middle[len(content) // 3 : len(content) // 3 + 400] = b"\xff" * 400
    for damaged in (
        b"",
        b"\0" * 100,
        content[: len(content) // 2],
        content[:-30],
        zipped.getvalue(),
        b"\x80\x04.",
        b"PK\x03\x04",
        bytes(middle),
    ):
        file.write_bytes(damaged)
        assert str(file) in spring(capsys, "classify", "--model", file, stranger.video)


# -- shards ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(stranger: Stranger, tmp_path: Path) -> Path:
    """A whole folder of shards, as ModelParallelStrategy leaves them."""
    content = torch.load(stranger.stage2, weights_only=True)
    shards.save(
        {f"state_dict.{name}": tensor for name, tensor in content.pop("state_dict").items()}, checkpoint_id=tmp_path / "s", no_dist=True
    )
    torch.save(content, tmp_path / "s" / "meta.pt")
    return tmp_path / "s"


def description(folder: Path) -> Any:
    return shards.FileSystemReader(folder).read_metadata()


def describe(folder: Path, found: Any) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def test_shards_become_the_checkpoint_they_were(stranger: Stranger, folder: Path, tmp_path: Path) -> None:
    assert main(["consolidate", str(folder), str(tmp_path / "whole.ckpt")]) == 0
    whole, before = (torch.load(file, weights_only=True) for file in (tmp_path / "whole.ckpt", stranger.stage2))
    assert whole["state_dict"].keys() == before["state_dict"].keys()
    assert all(torch.equal(tensor, before["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    assert whole["vtlvlm"] == before["vtlvlm"]


def test_a_hostile_description_of_shards_runs_nothing(
    stranger: Stranger, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = description(folder)
    inside = description(folder)
    inside.planner_data = Payload(stranger.mark)
    for hostile in (Payload(stranger.mark), [sound, Payload(stranger.mark)], inside, {"a": 1}, None, 3):
        describe(folder, hostile)
        assert "shards cannot be read" in spring(capsys, "consolidate", folder, tmp_path / "x.ckpt")
        assert "shards cannot be read" in spring(capsys, "consolidate", folder, tmp_path / "llava")
    assert not stranger.mark.exists()
    assert not (tmp_path / "x.ckpt").exists()


STAGE2 = """
model:
  class_path: PromptTuningModule
  init_args:
    reasoner:
      class_path: EventReasoner
      init_args:
        llava: {{path: {llava}}}
        adapter: {{class_path: DeepPrompts, init_args: {{tokens: 2}}}}
        instruction: {{class_path: Instruction}}
data: {{source: {{root: {root}, protocol: all}}}}
trainer: {{accelerator: cpu, devices: 1, default_root_dir: {run}}}
"""


def test_testing_with_shards_of_a_stranger_runs_nothing(
    stranger: Stranger, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer's commands read the same file through Lightning."""
    describe(folder, Payload(stranger.mark))
    config = tmp_path / "stage2.yaml"
    config.write_text(STAGE2.format(llava=stranger.llava, root=stranger.root, run=tmp_path / "run"))
    for command in ("test", "fit"):
        assert "shards cannot be read" in spring(capsys, command, "--config", config, "--ckpt_path", folder)
    assert not stranger.mark.exists()


def test_shards_outside_the_folder_are_not_read(
    stranger: Stranger, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(folder.glob("*.distcp")).name
    shutil.copy(folder / name, tmp_path / "outside")
    for place in ("../outside", str(tmp_path / "outside"), ".", "", "a/b", "no such"):
        found = description(folder)
        for info in found.storage_data.values():
            info.relative_path = place
        kept = (folder / ".metadata").read_bytes()
        describe(folder, found)
        assert "shards cannot be read" in spring(capsys, "consolidate", folder, tmp_path / "x.ckpt")
        (folder / ".metadata").write_bytes(kept)
    (folder / name).rename(tmp_path / "moved")
    (folder / name).symlink_to(tmp_path / "moved")
    assert "not a regular file" in spring(capsys, "consolidate", folder, tmp_path / "x.ckpt")


def test_shards_that_claim_all_memory_are_refused(
    stranger: Stranger, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in (torch.Size([10**6, 10**6]), torch.Size([2**62]), torch.Size([4096, 4096])):
        found = description(folder)
        found.state_dict_metadata["state_dict.reasoner.adapter.key"].size = size
        describe(folder, found)
        assert "shards cannot be read" in spring(capsys, "consolidate", folder, tmp_path / "x.ckpt")


def test_damaged_shards_are_refused(stranger: Stranger, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, kept = next(folder.glob("*.distcp")), (folder / ".metadata").read_bytes()
    whole = shard.read_bytes()
    for damaged in (b"", whole[:100], b"\0" * len(whole)):
        shard.write_bytes(damaged)
        said = spring(capsys, "consolidate", folder, tmp_path / "x.ckpt")
        assert "shards cannot be read" in said
        assert "(['" not in said
        assert '(["' not in said
    shard.write_bytes(whole)
    for damaged in (b"", kept[: len(kept) // 2], b"\x80\x04K\x01.", b"x" * 50):
        (folder / ".metadata").write_bytes(damaged)
        assert "shards cannot be read" in spring(capsys, "consolidate", folder, tmp_path / "x.ckpt")
    (folder / ".metadata").write_bytes(kept)
    for damaged in (b"", b"junk", pickle.dumps(Payload(stranger.mark))):
        (folder / "meta.pt").write_bytes(damaged)
        spring(capsys, "consolidate", folder, tmp_path / "x.ckpt")
    assert not stranger.mark.exists()
