"""The whole chain on a handful of tiny clips: its configurations, files and commands, for tests of what comes out at its ends."""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from gloo import in_processes
from tiny import BACKBONE, tiny_backbone, tiny_llava
from videos import block_clips

from vtlvlm.cli import main

STAGE1 = """
seed_everything: 3
model:
  class_path: VTEMModule
  init_args:
    extractor: {class_path: TimmExtractor, init_args: {model: BACKBONE, weights: WEIGHTS, image_size: 64}}
    pooler: {class_path: EqualSaliencePooler, init_args: {windows: 4}}
    quantizer: {class_path: EMAQuantizer, init_args: {codes: 8}}
    contrast: {class_path: InfoNCE}
    event_dim: 16
    inputs: {delta_weight: 0.6, subtract_clip_mean: 0.5, abs_delta_weight: 1.0, lda_weight: 1.0}
data:
  source: {root: ROOT, validation: 0.5}
  sampling: {frames: 8, size: 64, views: 2}
  batch_size: 2
  micro_batch_size: 2
  num_workers: 0
trainer: {accelerator: cpu, devices: 1, max_epochs: 2, log_every_n_steps: 1, enable_progress_bar: false, num_sanity_val_steps: 0}
"""
STAGE2 = """
seed_everything: 3
model:
  class_path: PromptTuningModule
  init_args:
    reasoner:
      class_path: EventReasoner
      init_args:
        llava: {path: LLAVA}
        adapter: {class_path: DeepPrompts, init_args: {tokens: 2}}
        instruction: {class_path: Instruction, init_args: {list_categories: false}}
        train_projector: true
        init_projector: probe
        sentence_mean_weight: 0.5
        label_score: pmi
data: {source: {root: ROOT, validation: 0.5}, batch_size: 2, micro_batch_size: 1, num_workers: 0}
trainer: {accelerator: cpu, devices: 1, max_epochs: 2, log_every_n_steps: 1, enable_progress_bar: false, num_sanity_val_steps: 0}
"""


class Pipeline:
    """The files of one run through the chain, and the arguments that made them.

    Args:
        folder: To work in.
        people: Of whom there are two clips each.
    """

    def __init__(self, folder: Path, people: tuple[int, ...] = (1, 2, 3)) -> None:
        self.folder = folder
        self.root = block_clips(folder / "videos", people)
        self.llava = tiny_llava(folder / "llava")
        self.weights = tiny_backbone(folder / "weights.pth")
        self.stage1, self.stage2 = folder / "stage1.yaml", folder / "stage2.yaml"
        first = STAGE1.replace("ROOT", str(self.root)).replace("BACKBONE", BACKBONE).replace("WEIGHTS", str(self.weights))
        self.stage1.write_text(first)
        self.stage2.write_text(STAGE2.replace("ROOT", str(self.root)).replace("LLAVA", str(self.llava)))
        self.features, self.events = folder / "features", folder / "events"
        self.run1, self.run2, self.bundle = folder / "run1", folder / "run2", folder / "bundle"
        self.best1, self.best2 = (run / "checkpoints" / "best.ckpt" for run in (self.run1, self.run2))
        self.on_features = ["--config", self.stage1, "--data.features", self.features]
        self.on_events = ["--config", self.stage2, "--data.events", self.events]

    def __call__(self, *arguments: object) -> int:
        return main([str(a) for a in arguments])

    def run(self) -> None:
        """Every step once, each checked to end well."""
        assert self("extract", "--config", self.stage1, "--output", self.features) == 0
        assert self("fit", *self.on_features, "--trainer.default_root_dir", self.run1) == 0
        assert self("tokenize", *self.on_features, "--ckpt_path", self.best1, "--output", self.events) == 0
        assert self("fit", *self.on_events, "--trainer.default_root_dir", self.run2) == 0
        assert self("test", *self.on_events, "--trainer.default_root_dir", self.run2, "--ckpt_path", self.best2) == 0
        assert self("export", self.run2, self.bundle) == 0


def alone(**more: str) -> dict[str, str]:
    """The environment of a process that finds the callbacks in this folder and has one core."""
    return {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1", **more}


def launch_pair(*commands: list[object], ranks: int = 2) -> None:
    """Commands one after the other in the same two (or more) processes, with the environment that ``torchrun`` gives: torch is imported
    once."""
    with TemporaryDirectory() as said:
        lines = [[str(part) for part in command] for command in commands]
        in_processes(_in_turn, Path(said), lines, said, ranks, ranks=ranks, group=False)


def as_rank(rank: int, ranks: int) -> None:
    """Give this process the environment that ``torchrun`` gives to one of several."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "pair"}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}


def _in_turn(rank: int, commands: list[list[str]], folder: str, ranks: int) -> None:
    """Raises where a command fails, so that the other process does not wait for this one."""
    as_rank(rank, ranks)
    said = Path(folder) / f"{rank}.txt"
    with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = next((code for command in commands if (code := main(command))), 0)
    assert code == 0, said.read_text()[-3000:]


def launch(*arguments: object) -> str:
    """A command in processes of its own, as a user starts it; returns what it said."""
    command = [sys.executable, "-m", "vtlvlm", *map(str, arguments)]
    done = subprocess.run(command, env=alone(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def shell(line: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """A command line as a user types it, with ``vtlvlm`` for this checkout's."""
    command = line.replace("vtlvlm", f"{sys.executable} -m vtlvlm")
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], env=alone(**more), capture_output=True, timeout=120, check=False)
