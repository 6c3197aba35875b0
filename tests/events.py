"""Event caches without a stage 1: sentences that tell the action, for tests of what comes behind them."""

from pathlib import Path

import torch
from modules import data_of
from tiny import tiny_llava
from videos import block_clips

from vtlvlm.cli import main
from vtlvlm.data.cache import EventCacheWriter

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
data: {source: {root: ROOT, validation: 0.5}, events: EVENTS, batch_size: 4, micro_batch_size: 2, num_workers: 0}
trainer: {accelerator: cpu, devices: 1, max_epochs: 2, log_every_n_steps: 1, enable_progress_bar: false, num_sanity_val_steps: 0}
"""


class EventRun:
    """A folder with clips of two actions, their event sentences (6 of width 16), a tiny LLaVA, and a configuration of stage 2.

    Args:
        folder: To work in.
        people: Of whom there are two clips each.
        spoilt: Names of clips whose vectors are NaN.
        actions: What the two are called, where it is not as in NTU RGB+D.
        stage1: The hash of the weights that are said to have made the events.
        without: Names of clips that are left out.
    """

    def __init__(
        self,
        folder: Path,
        people: tuple[int, ...] = (1, 2, 4, 5, 3, 6),
        spoilt: tuple[str, ...] = (),
        actions: tuple[str, ...] = (),
        stage1: str = "0" * 32,
        without: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.root, self.events = folder, block_clips(folder / "videos", people), folder / "events"
        for name in without:
            (self.root / f"{name}_rgb.avi").unlink()
        if actions:
            (self.root / "classes.txt").write_text("".join(f"A00{n} {name}\n" for n, name in enumerate(actions, 1)))
        self.llava = tiny_llava(folder / "llava")
        self.config = folder / "stage2.yaml"
        text = STAGE2.replace("ROOT", str(self.root)).replace("LLAVA", str(self.llava)).replace("EVENTS", str(self.events))
        self.config.write_text(text)
        data = data_of(self.root, validation=0.5)
        data.prepare_data()
        data.setup()
        keys = data.predict_keys()
        made = {"vtem": "no.ckpt", "vtem_hash": stage1, "protocol": data.source.protocol, "train_hash": data.train_hash}
        generator = torch.Generator().manual_seed(0)
        action = torch.tensor([float(name.endswith("A002")) for name, _ in keys])[:, None, None]
        vectors = torch.randn(len(keys), 6, 16, generator=generator) + 2 * action - 1
        vectors[[name in spoilt for name, _ in keys]] = torch.nan
        with EventCacheWriter(self.events, made, None) as writer:
            writer.add(keys, torch.full((len(keys), 6), -1), vectors, torch.zeros(len(keys), 1, 2))
            writer.flush()
            writer.finish(keys)

    @staticmethod
    def command(*arguments: object) -> int:
        """Any command."""
        return main([str(a) for a in arguments])

    def __call__(self, command: str, *arguments: object, run: str = "run") -> int:
        """A command of the trainer, in a run folder of that name."""
        return main([str(a) for a in (command, "--config", self.config, "--trainer.default_root_dir", self.folder / run, *arguments)])
