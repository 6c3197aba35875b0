"""The lower layers of stage 2 alone, for ``vtlvlm extract-hidden``."""

from __future__ import annotations

from typing import NamedTuple

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


class HiddenExtraction(PromptTuningModule):
    """Runs event sentences through the layers below the prompts, for ``trainer.predict``. It trains nothing and reads no checkpoint.

    Args:
        module: A stage 2 that is not built yet.
    """

    def __init__(self, module: PromptTuningModule) -> None:
        super().__init__(module.reasoner)

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise UsageError("ModelParallelStrategy: extract-hidden runs the whole model on each process; use strategy ddp")
        super().configure_model()

    def on_predict_start(self) -> None:
        """Log nothing: no parameter is used that was trained."""

    def predict_step(self, batch: EventBatch, index: int) -> HiddenStates:  # type: ignore[override]
        return HiddenStates(self.reasoner.states(self.vectors(batch)), batch.spans)
