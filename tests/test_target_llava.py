"""Stage 1 towards what a LLaVA's own tower sees, through the command line: two caches in, an event cache out, no tower any more."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from modules import data_of
from pipeline import STAGE2, launch_pair
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import DUMP, TWO
from tiny import tiny_llava
from videos import encode, moving_block

from vtlvlm.cli import main
from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.probes.stage1 import step_tokens
from vtlvlm.stages.checkpoints import read_record
from vtlvlm.stages.vtem import VTEMModule

CODES = ["--model.init_args.quantizer.init_args.codes"]

STAGE1 = """
seed_everything: 3
model:
  class_path: VTEMModule
  init_args:
    extractor: {class_path: ClipExtractor, init_args: {model: OTHER, grid: 2}}
    pooler: {class_path: EqualSaliencePooler, init_args: {windows: 4}}
    quantizer: {class_path: EMAQuantizer, init_args: {codes: 32}}
    contrast: {class_path: InfoNCE}
    event_dim: 16
    optimizer: {learning_rate: 0.001}
data:
  source: {root: ROOT, validation: 0.3}
  sampling: {frames: 8, size: 64, views: 2}
  batch_size: 4
  micro_batch_size: 2
  num_workers: 0
trainer: {accelerator: cpu, devices: 1, max_epochs: 4, log_every_n_steps: 1, enable_progress_bar: false, num_sanity_val_steps: 0}
"""


def clips(root: Path) -> Path:
    """A falling and a sliding block for each of fourteen people, ten of them to train (X-Sub), over grounds that differ little."""
    for person in range(1, 17):
        for action in (1, 2):
            pictures = moving_block(12 + person, falls=action == 1, shade=60 + person)
            encode(root / f"S001C001P{person:03}R001A{action:03}_rgb.avi", pictures)
    (root / "classes.txt").write_text("A001 fall down\nA002 slide right\n")
    return root


class Towards:
    """The files of one run, and the arguments that made them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = clips(folder / "videos")
        self.llava = tiny_llava(folder / "llava")
        self.stage1 = self.write(
            "stage1", STAGE1.replace("ROOT", str(self.root)).replace("OTHER", str(tiny_llava(folder / "other", 32, seed=1)))
        )
        self.tower = self.write(
            "tower", f"model: {{init_args: {{extractor: {{init_args: {{model: {self.llava}}}}}}}}}\ndata: {{sampling: {{size: 28}}}}"
        )
        self.aim = self.write("aim", "model: {init_args: {target: llava}}")
        self.features, self.targets = folder / "features", folder / "targets"
        self.on_features = ["--config", self.stage1, "--config", self.aim, "--data.features", self.features]
        self.on_both = [*self.on_features, "--data.target_features", self.targets]

    def write(self, name: str, text: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(text)
        return path

    def __call__(self, *arguments: object) -> int:
        return main([str(a) for a in arguments])

    def fit(self, name: str, *arguments: object) -> Path:
        """Train into a folder of this name; the last checkpoint."""
        assert self("fit", *self.on_both, "--trainer.default_root_dir", self.folder / name, *arguments) == 0
        return self.last(name)

    def last(self, name: str) -> Path:
        return self.folder / name / "checkpoints" / "last.ckpt"

    def validation(self, name: str) -> list[float]:
        """The reconstruction error on validation people, epoch by epoch."""
        log = EventAccumulator(str(self.folder / name / "tensorboard")).Reload()
        return [event.value for event in log.Scalars("stage1/val/reconstruction")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Towards:
    run = Towards(tmp_path_factory.mktemp("towards"))
    assert run("extract", "--config", run.stage1, "--output", run.features) == 0
    assert run("extract", "--config", run.stage1, "--config", run.tower, "--output", run.targets) == 0
    run.fit("codes")
    run.fit("few", *CODES, 2)
    return run


@pytest.fixture(scope="module")
def identity(run: Towards) -> Path:
    return run.fit("identity", "--model.init_args.quantizer", "IdentityQuantizer")


def test_events_come_closer_to_the_tower_on_new_people_the_more_codes(run: Towards, identity: Path) -> None:
    """1.0 is what predicting the training mean costs."""
    found = [run.validation(identity.parents[1].name), run.validation("codes"), run.validation("few")]
    assert found[0][-1] < 0.25
    assert found[0][-1] < 0.95 * found[1][-1] < 0.5 * found[2][-1] < 0.5
    assert found[2][-1] < found[2][0]  # training goes on where the closed-form start ends


@pytest.mark.parametrize("arm", ["codes", "identity"])
def test_cached_events_are_in_the_towers_own_units_and_need_no_tower(run: Towards, identity: Path, tmp_path: Path, arm: str) -> None:
    """Of test people, from files alone: the tower's features, averaged over each window, against the event vectors."""
    checkpoint = identity if arm == "identity" else run.last("codes")
    events = tmp_path / "events"
    quantizer = ["--model.init_args.quantizer", "IdentityQuantizer"] if arm == "identity" else []
    assert run("tokenize", *run.on_features, *quantizer, "--ckpt_path", checkpoint, "--output", events) == 0
    cache, targets = EventCache.open(events), FeatureCache.open(run.targets)
    names = [name for name in cache.names if "P003" in name or "P006" in name]
    assert len(names) == 4
    rows = cache.rows(names)
    vectors = cache.vectors(rows) if arm == "identity" else torch.nn.functional.embedding(cache.ids(rows), cache.table)
    seen = targets.features(targets.rows(names)).float().unflatten(1, (4, 2)).mean(dim=2)  # the salience is still close to uniform
    error = (vectors.float().view(4, 4, 4, 16) - seen).square().mean() / seen.flatten(0, 2).var(dim=0).mean()
    assert error < 0.2
    with_targets = tmp_path / "again"
    assert run("tokenize", *run.on_both, *quantizer, "--ckpt_path", checkpoint, "--output", with_targets) == 0
    again = EventCache.open(with_targets)
    assert torch.equal(again.ids(rows), cache.ids(rows))
    assert arm == "codes" or torch.equal(again.vectors(rows), cache.vectors(rows))


def test_the_checkpoint_names_its_targets_and_goes_on_with_no_others(
    run: Towards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(run.last("codes"))
    assert record["settings"]["init_args"]["target"] == "llava"
    assert record["provenance"]["targets"] == FeatureCache.open(run.targets).hash
    to = ["--ckpt_path", run.last("codes"), "--trainer.max_epochs", 5, "--trainer.default_root_dir"]
    assert run("fit", *run.on_both, *to, tmp_path / "more") == 0
    more, before = (VTEMModule.load_from_checkpoint(path) for path in (tmp_path / "more" / "checkpoints" / "last.ckpt", run.last("codes")))
    assert torch.equal(more.vtem.target_scale, before.vtem.target_scale)
    assert not torch.equal(more.vtem.projection.weight, before.vtem.projection.weight)
    other = tmp_path / "other"
    assert run("extract", "--config", run.stage1, "--config", run.tower, "--data.sampling.size", 32, "--output", other) == 0
    elsewhere = [*run.on_features, "--data.target_features", other]
    for command in ("fit", "validate"):
        assert run(command, *elsewhere, *to, tmp_path / command) == 2
        assert f"{other} is not the target of the checkpoint's training" in capsys.readouterr().err
    assert run("validate", *run.on_both, *to, tmp_path / "validated") == 0
    assert run("validate", *run.on_features, *to, tmp_path / "validated") == 2
    assert "give it as data.target_features" in capsys.readouterr().err


def test_refused_before_anything_is_built(run: Towards, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert run("fit", *arguments, "--trainer.default_root_dir", tmp_path / "run") == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("vtlvlm: ")
        return message

    assert "give it as data.target_features" in refused(*run.on_features)
    assert "give it as data.target_features" in refused("--config", run.stage1, "--config", run.aim)  # from videos
    plain = ["--config", run.stage1, "--data.features", run.features, "--data.target_features", run.targets]
    assert "target 'features' uses no targets: leave data.target_features out" in refused(*plain)
    assert "targets are 16 wide, event_dim=8" in refused(*run.on_both, "--model.init_args.event_dim", 8)
    assert "set subtract_clip_mean to 0" in refused(*run.on_both, "--model.init_args.inputs.subtract_clip_mean", 0.5)
    assert "extractor.grid=0: must be at least 1" in refused(*run.on_both, "--model.init_args.extractor.init_args.grid", 0)
    coarse, foreign = tmp_path / "coarse", tmp_path / "foreign"
    grid = ["--model.init_args.extractor.init_args.grid", 1]
    assert run("extract", "--config", run.stage1, "--config", run.tower, *grid, "--output", coarse) == 0
    assert "targets of 1 x 1 cells for features of 2 x 2" in refused(*run.on_features, "--data.target_features", coarse)
    shutil.copytree(run.targets, foreign)
    (foreign / "meta.json").write_text((run.targets / "meta.json").read_text().replace("ClipExtractor", "VideoExtractor"))
    message = refused(*run.on_features, "--data.target_features", foreign)
    assert f"{foreign} was made by VideoExtractor: target 'llava' needs features of a ClipExtractor" in message
    stage2 = run.write("stage2", STAGE2.replace("ROOT", str(run.root)).replace("LLAVA", str(run.llava)))
    read = ["--data.features", run.features, "--data.target_features", run.targets, "--model.init_args.vtem", run.last("codes")]
    assert "targets are for stage 1: leave data.target_features out" in refused("--config", stage2, *read)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_probe_needs_no_targets(run: Towards) -> None:
    data = data_of(run.root, features=str(run.features), validation=0.0)
    data.setup("test")
    steps = step_tokens(data, run.last("codes"), data.split.test, np.zeros_like(data.split.test))
    assert steps["continuous events"][0].shape == steps["codes"][0].shape == (len(data.split.test), 16, 16)


def test_two_processes_start_from_the_targets_of_both(run: Towards, tmp_path: Path) -> None:
    launch_pair(["fit", *run.on_both, "--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", 1, *TWO, *DUMP])
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = VTEMModule.load_from_checkpoint(run.last("codes")).vtem.target_scale
    for name in ("vtem.target_scale", "vtem.projection.weight", "vtem.quantizer.vq._codebook.embed"):
        assert torch.equal(first[name], second[name]), name
    torch.testing.assert_close(first["vtem.target_scale"], alone, atol=0, rtol=1e-4)  # of the same clips and views
