"""The lower layers of stage 2 alone, for ``vtlvlm extract-hidden``."""

from __future__ import annotations

from typing import NamedTuple

from lightning import LightningModule
from torch import Tensor

from vtlvlm.batches import EventBatch
from vtlvlm.errors import UsageError
from vtlvlm.stages.prompt_tuning import PromptTuningModule


class HiddenStates(NamedTuple):
    """Hidden states of a batch."""

    states: Tensor
    """(B, C + N, L) the input of the first layer with prompts"""
    spans: Tensor
    """(B, W, 2) float32 seconds, of the events"""


class HiddenExtraction(LightningModule):
    """Runs event sentences through the layers below the prompts, for ``trainer.predict``. It trains nothing and reads no checkpoint.

    Args:
        whole: A stage 2 that is not built yet.
    """

    def __init__(self, whole: PromptTuningModule) -> None:
        super().__init__()
        self.whole = whole

    def setup(self, stage: str) -> None:
        self.whole.setup(stage)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise UsageError("ModelParallelStrategy: extract-hidden runs the whole model on each process; use strategy ddp")
        self.whole.configure_model()

    def predict_step(self, batch: EventBatch, index: int) -> HiddenStates:
        return HiddenStates(self.whole.reasoner.states(self.whole.vectors(batch)), batch.spans)
