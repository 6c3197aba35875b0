"""The adaptation arms through the command line: trained, tested, bundled, refused where they do not belong, and split over processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pipeline import Pipeline, launch
from reasoners import reasoner_of
from safetensors.torch import load_file
from tiny import tiny_llava

from vtlvlm.cli import main
from vtlvlm.lvlm.adapters import NoAdapter
from vtlvlm.lvlm.llava import load_llava
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.stages.checkpoints import read_record
from vtlvlm.stages.consolidate import BASE_PREFIX
from vtlvlm.stages.prompt_tuning import PromptTuningModule

ADAPTERS = {
    "prefix": "{class_path: DeepPrompts, init_args: {tokens: 2}}",
    "projector": "{class_path: NoAdapter}",
    "lora": "{class_path: LoRA, init_args: {rank: 2, alpha: 4}}",
    "full": "{class_path: FullFineTuning}",
}
TRAINED = {"prefix": 2 * 3 * 2 * 2 * 8, "projector": 0, "lora": 3 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))}
"""Numbers trained in the miniature LLaVA's language model: 3 layers, width 32, 2 of 4 heads with keys of 8, MLP of 48"""
REASONER = "--model.init_args.reasoner.init_args"
TWO_PARTS = """
trainer:
  devices: 2
  strategy: {class_path: ModelParallelStrategy, init_args: {data_parallel_size: 2, tensor_parallel_size: 1}}
  inference_mode: false
  gradient_clip_val: 0.1
model: {init_args: {reasoner: {init_args: {init_projector: keep, llava: {gradient_checkpointing: true}}}}}
"""


class Arms:
    """The chain's event cache, and the arms' files."""

    def __init__(self, chain: Pipeline, folder: Path) -> None:
        self.folder, self.root, self.llava, self.events, self.stage2 = folder, chain.root, chain.llava, chain.events, chain.stage2
        for name, adapter in ADAPTERS.items():
            text = self.stage2.read_text().replace("{class_path: DeepPrompts, init_args: {tokens: 2}}", adapter)
            (folder / f"{name}.yaml").write_text(text)

    def __call__(self, *arguments: object) -> int:
        return main([str(a) for a in arguments])

    def config(self, name: str) -> list[object]:
        return ["--config", self.folder / f"{name}.yaml", "--data.events", self.events]

    def to(self, name: str) -> list[object]:
        return [*self.config(name), "--trainer.default_root_dir", self.folder / name]


@pytest.fixture(scope="module")
def arms(chain: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Arms:
    return Arms(chain, tmp_path_factory.mktemp("arms"))


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "projector")) for name in ADAPTERS])
def test_every_arm_trains_tests_and_classifies(arms: Arms, name: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = arms.folder / name
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        assert arms("fit", *arms.to(name)) == 0
    best, bundle = folder / "checkpoints" / "best.ckpt", arms.folder / f"{name}_bundle"
    module = PromptTuningModule.load_from_checkpoint(best)
    adapter, projector = module.reasoner.trainable_parameters()
    said = [message for message in caplog.messages if "parameters trained" in message]
    assert said == [str(adapter), str(projector)]
    assert adapter.trained == TRAINED.get(name, sum(p.numel() for p in module.reasoner.base.model.language_model.parameters()) + 32 * 400)
    assert projector.trained == 16 * 32 + 32 + 32 * 32 + 32
    assert arms("test", *arms.to(name), "--ckpt_path", best) == 0
    found = metrics(folder)["provenance"]
    assert found["projector"] == "trained"
    assert found["trainable_parameters"] == {"adapter": adapter.trained, "projector": projector.trained, "total": adapter.total}
    assert found["adapter"] == type(module.reasoner.adapter).__name__
    assert arms("export", folder, bundle) == 0
    stored = load_file(bundle / "adapter.safetensors")
    prior_and_temperature = 3  # of two categories
    assert sum(tensor.numel() for tensor in stored.values()) == adapter.trained + projector.trained + prior_and_temperature
    file = arms.root / "S001C001P003R001A001_rgb.avi"
    one, two = (ActionRecognizer.from_checkpoint(path, device="cpu").classify(file) for path in (bundle, folder))
    assert one.actions == two.actions


def test_zero_shot_with_a_composed_projector_is_labelled(arms: Arms, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    composed = Path(shutil.copytree(arms.llava, tmp_path / "llava"))
    (composed / "composed.json").write_text(json.dumps({"projector": "untrained"}))
    frozen = [f"{REASONER}.train_projector", "false", f"{REASONER}.init_projector", "keep"]
    for llava, label in ((composed, "untrained"), (arms.llava, "pretrained")):
        folder = tmp_path / label
        caplog.clear()
        with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
            there = [f"{REASONER}.llava.path", llava, "--trainer.default_root_dir", folder]
            assert arms("test", *arms.config("projector"), *frozen, *there) == 0
        assert metrics(folder)["provenance"]["projector"] == label
        assert any("never trained" in message for message in caplog.messages) is (label == "untrained")
        counts = [message.split(":")[-1].split()[0] for message in caplog.messages if "parameters trained" in message]
        assert counts == ["0", "0"]
    trained = ["--trainer.default_root_dir", tmp_path / "lora", f"{REASONER}.llava.path", composed]
    assert arms("fit", *arms.config("lora"), *trained, *frozen) == 0
    assert read_record(tmp_path / "lora" / "checkpoints" / "best.ckpt")["provenance"]["projector"] == "untrained"
    assert arms("fit", *arms.config("lora"), *trained, "--trainer.default_root_dir", tmp_path / "both") == 0
    assert read_record(tmp_path / "both" / "checkpoints" / "best.ckpt")["provenance"]["projector"] == "trained"


class TestRefusals:
    """Each in one line, before weights are loaded."""

    @pytest.fixture
    def checkpoint(self, arms: Arms) -> Path:
        best = arms.folder / "prefix" / "checkpoints" / "best.ckpt"
        return best if best.is_file() else self.make(arms, best)

    @staticmethod
    def make(arms: Arms, best: Path) -> Path:
        assert arms("fit", *arms.to("prefix")) == 0
        return best

    @staticmethod
    def assert_refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
        captured = capsys.readouterr().err
        assert code == 2, captured
        line = captured.strip().splitlines()[-1]
        assert line.startswith("vtlvlm: ")
        for word in words:
            assert word in line

    def test_another_kind_of_adapter(self, arms: Arms, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = arms("test", *arms.config("lora"), "--trainer.default_root_dir", tmp_path, "--ckpt_path", checkpoint)
        self.assert_refused(capsys, code, "reasoner.adapter.class: 'DeepPrompts' there, 'LoRA' asked for")

    def test_other_layers(self, arms: Arms, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        to = ["--trainer.default_root_dir", tmp_path, "--ckpt_path", checkpoint]
        code = arms("test", *arms.config("prefix"), f"{REASONER}.adapter.init_args.layers", "last:2", *to)
        self.assert_refused(capsys, code, "reasoner.adapter.layers: 'all' there, 'last:2' asked for")

    def test_another_model(self, arms: Arms, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = tiny_llava(tmp_path / "llava", seed=1)
        state = torch.load(checkpoint, weights_only=True)
        state["vtlvlm"]["settings"]["init_args"]["reasoner"]["init_args"]["llava"]["init_args"]["path"] = str(other)
        torch.save(state, tmp_path / "moved.ckpt")
        to = ["--trainer.default_root_dir", tmp_path, "--ckpt_path", tmp_path / "moved.ckpt"]
        self.assert_refused(capsys, arms("test", *arms.config("prefix"), f"{REASONER}.llava.path", other, *to), "is another LLaVA")
        file = arms.root / "S001C001P003R001A001_rgb.avi"
        self.assert_refused(capsys, arms("classify", "--model", checkpoint, "--llava", other, file), "is another LLaVA")
        assert arms("export", checkpoint, tmp_path / "bundle") == 0
        self.assert_refused(capsys, arms("classify", "--model", tmp_path / "bundle", "--llava", other, file), "is another LLaVA")

    def test_another_machine_is_no_other_model(self, arms: Arms, checkpoint: Path, tmp_path: Path) -> None:
        """Tested: the same weights in another place, and other ways to compute them."""
        moved = shutil.copytree(arms.llava, tmp_path / "moved")
        to = ["--trainer.default_root_dir", tmp_path, "--ckpt_path", checkpoint]
        other = [f"{REASONER}.llava.path", moved, f"{REASONER}.llava.gradient_checkpointing", "true", f"{REASONER}.llava.max_positions", 3]
        assert arms("test", *arms.config("prefix"), *other, f"{REASONER}.llava.dtype", "bfloat16", *to) == 0

    def test_a_checkpoint_of_before(self, arms: Arms, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        state = torch.load(checkpoint, weights_only=True)
        reasoner = state["vtlvlm"]["settings"]["init_args"]["reasoner"]["init_args"]
        reasoner["prompts"] = reasoner.pop("adapter")
        torch.save(state, tmp_path / "old.ckpt")
        to = ["--trainer.default_root_dir", tmp_path, "--ckpt_path", tmp_path / "old.ckpt"]
        self.assert_refused(capsys, arms("test", *arms.config("prefix"), *to), "old.ckpt was made by an older version: prompts is called")
        code = arms("classify", "--model", tmp_path / "old.ckpt", arms.root)
        self.assert_refused(capsys, code, "EventReasoner has no setting prompts in this version")

    def test_nothing_to_train(self, arms: Arms, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        frozen = [f"{REASONER}.train_projector", "false", f"{REASONER}.init_projector", "keep"]
        code = arms("fit", *arms.config("projector"), *frozen, "--trainer.default_root_dir", tmp_path)
        self.assert_refused(capsys, code, "nothing to train")

    def test_no_checkpoint_for_an_arm_that_trains(self, arms: Arms, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("projector", "lora", "full"):
            self.assert_refused(capsys, arms("test", *arms.config(name), "--trainer.default_root_dir", tmp_path / name), "--ckpt_path")

    def test_nothing_to_consolidate(self, arms: Arms, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.assert_refused(capsys, arms("consolidate", checkpoint, tmp_path / "x.ckpt"), "is one file already")
        self.assert_refused(capsys, arms("consolidate", checkpoint, tmp_path / "llava"), "did not train the language model")
        self.assert_refused(capsys, arms("consolidate", tmp_path, tmp_path / "x.ckpt"), "holds no sharded checkpoint")
        self.assert_refused(capsys, arms("consolidate", checkpoint, tmp_path), "already exists")
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def sharded(arms: Arms) -> Path:
    """Full fine-tuning split over two processes: the run folder."""
    parts, folder = arms.folder / "two_parts.yaml", arms.folder / "sharded"
    parts.write_text(TWO_PARTS)
    said = launch("fit", *arms.config("full"), "--config", parts, "--trainer.default_root_dir", folder)
    assert said.count("parameters trained") == 2
    return folder


@pytest.mark.slow
def test_two_parts_train_like_one_process(arms: Arms, sharded: Path, tmp_path: Path) -> None:
    same = [f"{REASONER}.init_projector", "keep", "--trainer.gradient_clip_val", 0.1, "--trainer.default_root_dir", tmp_path / "one"]
    assert arms("fit", *arms.config("full"), *same) == 0
    assert arms("consolidate", sharded / "checkpoints" / "last.ckpt", tmp_path / "two.ckpt") == 0
    one, two = (
        torch.load(path, weights_only=True)["state_dict"] for path in (tmp_path / "one/checkpoints/last.ckpt", tmp_path / "two.ckpt")
    )
    assert one.keys() == two.keys()
    start = load_llava(str(arms.llava))[0].state_dict()
    moved = [float((one[name] - start[name.removeprefix(BASE_PREFIX)]).abs().max()) for name in one if name.startswith(BASE_PREFIX)]
    assert min(moved) > 5e-4
    apart = torch.cat([(two[name] - one[name]).abs().flatten() for name in one])
    # Where a gradient is zero but for rounding, AdamW's first steps follow the sign of that rounding.
    assert int((apart > 1e-5).sum()) <= 1e-4 * len(apart)
    assert float(apart.max()) < 5e-4


@pytest.mark.slow
def test_two_parts_compute_in_half_precision_and_keep_whole_numbers(arms: Arms, sharded: Path, tmp_path: Path) -> None:
    parts = [*arms.config("full"), "--config", arms.folder / "two_parts.yaml", f"{REASONER}.llava.dtype", "bfloat16"]
    launch("fit", *parts, "--trainer.default_root_dir", tmp_path / "half")
    weights = []
    for run in (sharded, tmp_path / "half"):
        assert arms("consolidate", run / "checkpoints" / "last.ckpt", tmp_path / f"{run.name}.ckpt") == 0
        weights.append(torch.load(tmp_path / f"{run.name}.ckpt", weights_only=True)["state_dict"])
    whole, half = (torch.cat([tensor.flatten() for tensor in state.values()]) for state in weights)
    assert half.dtype == torch.float32
    assert not torch.equal(half, half.bfloat16().float())
    assert 0 < float((half - whole).abs().mean()) < 1e-2


@pytest.mark.slow
def test_shards_become_a_checkpoint_and_a_llava(arms: Arms, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, whole, folder = sharded / "checkpoints" / "last.ckpt", tmp_path / "whole.ckpt", tmp_path / "llava"
    assert len(list(last.glob("*.distcp"))) == 2
    capsys.readouterr()
    assert arms("classify", "--model", sharded, arms.root / "S001C001P003R001A001_rgb.avi") == 2
    assert "merge them into one file with `vtlvlm consolidate" in capsys.readouterr().err
    assert arms("consolidate", last, whole) == 0
    assert arms("consolidate", last, folder) == 0
    module = PromptTuningModule.load_from_checkpoint(whole)
    trained, vectors = module.reasoner, torch.randn(2, module.reasoner.num_events, 16)
    settings = {"label_score": "pmi", "sentence_mean_weight": trained.sentence_mean_weight}
    plain = reasoner_of(folder, NoAdapter(), trained.instruction, **settings).eval()
    plain.build(module.classes, trained.num_events, 16)
    plain.prior = trained.prior
    torch.testing.assert_close(plain(vectors), trained(vectors), atol=1e-5, rtol=1e-5)
    (broken := Path(shutil.copytree(last, tmp_path / "broken"))).joinpath("__1_0.distcp").unlink()
    assert arms("consolidate", broken, tmp_path / "broken.ckpt") == 2
    assert "its shards cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.glob("*broken.ckpt*"))


@pytest.mark.slow
def test_a_sharded_training_is_tested_and_goes_on(arms: Arms, sharded: Path, tmp_path: Path) -> None:
    last, split = sharded / "checkpoints" / "last.ckpt", [*arms.config("full"), "--config", arms.folder / "two_parts.yaml"]
    launch("test", *split, "--trainer.default_root_dir", sharded, "--ckpt_path", last)
    launch("fit", *split, "--trainer.default_root_dir", tmp_path / "more", "--ckpt_path", last, "--trainer.max_epochs", 3)
    assert json.loads((tmp_path / "more" / "fit.json").read_text())["sessions"][-1]["last_step"] == 3
    assert arms("consolidate", last, tmp_path / "whole.ckpt") == 0
    same = [f"{REASONER}.init_projector", "keep"]
    alone = ["--trainer.default_root_dir", tmp_path, "--ckpt_path", tmp_path / "whole.ckpt"]
    assert arms("test", *arms.config("full"), *same, *alone) == 0
    assert metrics(tmp_path)["metrics"] == pytest.approx(metrics(sharded)["metrics"], abs=1e-5)


@pytest.mark.slow
def test_processes_with_fewer_clips_keep_pace(arms: Arms, sharded: Path, tmp_path: Path) -> None:
    """Nine clips and views over two processes: every forward pass of a split model needs both."""
    root, run = Path(shutil.copytree(arms.root, tmp_path / "videos")), tmp_path / "run"
    (root / "S001C001P003R001A002_rgb.avi").unlink()
    split = [
        *arms.config("full"),
        "--config",
        arms.folder / "two_parts.yaml",
        "--data.source.root",
        root,
        "--trainer.default_root_dir",
        run,
    ]
    launch("predict", *split, "--ckpt_path", sharded / "checkpoints" / "last.ckpt")
    rows = [line.split(",")[:2] for line in (run / "predictions.csv").read_text().splitlines()[1:]]
    assert len(rows) == 9
    assert rows == sorted(rows)


@pytest.mark.slow
def test_a_mesh_that_splits_tensors_is_refused(arms: Arms, tmp_path: Path) -> None:
    parts = tmp_path / "parts.yaml"
    parts.write_text("trainer: {devices: 2, strategy: {class_path: ModelParallelStrategy}}\n")
    with pytest.raises(AssertionError, match="set data_parallel_size to the number of processes"):
        launch("fit", *arms.config("full"), "--config", parts, "--trainer.default_root_dir", tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_lora_to_the_same_bit(arms: Arms, tmp_path: Path) -> None:
    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.callbacks+", "rank_dump.RankDump"]
    launch("fit", *arms.config("lora"), "--trainer.default_root_dir", tmp_path, *two)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in first.items())
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
