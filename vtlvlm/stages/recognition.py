"""Recognition networks of the paper's Table I: a network, a head, and the cross-entropy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton import curves, hierarchical, koopman, refining, slowonly, text_parts  # noqa: F401 - so that configurations find their parts
from vtlvlm.skeleton.backbone import ClipNetwork
from vtlvlm.skeleton.heads import Head, Scores
from vtlvlm.skeleton.video_networks import FrozenFeatures
from vtlvlm.stages.calibrated import CalibratedStage
from vtlvlm.stages.checkpoints import RECORD, load_checkpoint
from vtlvlm.stages.compatibility import require_entries, require_same_classes, require_same_split, require_unseen_validation
from vtlvlm.stages.network_inputs import input_of
from vtlvlm.stages.optimizers import AdamW, Optimizer
from vtlvlm.stages.sgd import SGD
from vtlvlm.stages.stage import Start
from vtlvlm.vtem.extractors import FeatureExtractor

EXTRACTOR = "network.extractor."
"""First words of the names of a frozen extractor's weights"""


class Recognition(CalibratedStage):
    """Trains a network that recognises actions from skeletons or videos, with the cross-entropy and the losses of its head.

    Args:
        network: Joints, frames or features of a frozen extractor to the features that the head reads.
        head: Features to logits of the actions, and the losses that its method adds.
        optimizer: SGD or AdamW, with its schedule; None for SGD's defaults. Plain settings, without ``class_path``, are SGD's.
        label_smoothing: Share of each label that the cross-entropy spreads evenly over all actions, in [0, 1).
        calibrate: Fit the temperature on the validation people. The best checkpoint is then the one with the lowest NLL at its temperature.
        init_from: Checkpoint of a training on the same clips, whose weights a new training starts from: the first of Koopman pooling's two.

    Raises:
        UsageError: ``label_smoothing`` is out of range.
    """

    stage = "recognition"
    training_only = ("optimizer", "label_smoothing", "calibrate", "init_from")
    compared_elsewhere = (
        "head.texts", "init_from", "network.weights", "network.extractor.weights", "network.extractor.compiled", "network.extractor.clips",
    )  # fmt: skip

    def __init__(
        self,
        network: ClipNetwork,
        head: Head,
        optimizer: SGD | AdamW | None = None,  # with a default of SGD, the parser would hand SGD's rate to AdamW
        label_smoothing: float = 0.0,
        calibrate: bool = True,
        init_from: str | None = None,
    ) -> None:
        super().__init__(calibrate)
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"label_smoothing={label_smoothing}: use a number from 0 up to 1")
        self.network, self.head = network, head
        self.input = input_of(network)
        self.optimizer: Optimizer = optimizer or SGD()
        self.label_smoothing = label_smoothing
        self.init_from = init_from
        self._provenance: dict[str, Any] = {}
        self.register_buffer("temperature", torch.ones(()))

    @property
    def extractor(self) -> FeatureExtractor | None:
        """The frozen extractor of a linear head; None for a network that is trained."""
        return self.network.extractor if isinstance(self.network, FrozenFeatures) else None

    # -- building ----------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = self.data
        if len(data.classes) < 2:
            raise UsageError(f"only one category ({data.classes[0]}): give clips of two or more")
        self.classes = tuple(data.classes)
        origin = {
            "classes": list(self.classes),
            "protocol": data.source.protocol,
            "train_hash": data.train_hash,
            "split": data.split_description,
            **self.input.origin(self.network, data, training=stage == "fit"),
        }
        if self.pending_record is not None:
            self._require(self.pending_record["provenance"], origin, "the checkpoint")
        elif self._provenance:
            self._require(self._provenance, origin, "this module")
        self._provenance = origin

    def _require(self, made: dict[str, Any], now: dict[str, Any], what: str) -> None:
        """Refuse weights of another input, actions or training clips, and validation clips that the weights were trained on."""
        require_entries(made, self.input.needed, what)
        self.input.require_same(made, self.network, self.data, what)
        require_same_classes(made["classes"], now["classes"], what)
        require_same_split(made, now["protocol"], now["train_hash"], what)
        if self.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            require_unseen_validation(made["split"], now["split"], what)

    def configure_model(self) -> None:
        if self.confusion is not None:
            return
        self.input.build(self.network, self.head, self._provenance)
        self.make_metrics()
        if self.start is not Start.FRESH or self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        if self.init_from is None:
            self.network.begin()
            return
        checkpoint = load_checkpoint(self.init_from)
        if checkpoint[RECORD]["stage"] != self.stage:
            raise UsageError(f"{self.init_from} is a checkpoint of stage {checkpoint[RECORD]['stage']!r}, not {self.stage!r}")
        self._require(checkpoint[RECORD]["provenance"], self._provenance, self.init_from)
        self.take(checkpoint["state_dict"], self.init_from)
        self.temperature.fill_(1)

    def restore(self, provenance: dict[str, Any]) -> None:
        self._provenance = dict(provenance)
        self.classes = tuple(provenance["classes"])
        self.configure_model()

    def adopt(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Compares shapes before memory is taken for the weights. Files that the checkpoint's settings name are not opened."""
        for part in (self.network, self.head):
            for name in part.files:
                setattr(part, name, None)
        if self.confusion is None:
            origin = checkpoint[RECORD]["provenance"]
            require_entries(origin, self.input.needed, path)
            with torch.device("meta"):
                sketch = Recognition(copy.deepcopy(self.network), copy.deepcopy(self.head))
                sketch.input.build(sketch.network, sketch.head, origin)
            held = checkpoint["state_dict"]
            for name, tensor in sketch.state_dict().items():
                if name not in held or held[name].shape != tensor.shape:
                    raise UsageError(f"{path}: its weights do not fit its settings ({name}); get the file again, or make it again")
        super().adopt(checkpoint, path)

    def require_same_settings(self, record: dict[str, Any], path: str, training: bool) -> None:
        super().require_same_settings(record, path, training)
        if self._provenance:  # set up already
            self._require(record["provenance"], self._provenance, path)

    def provenance(self) -> dict[str, Any]:
        """The origin of the weights, with the numbers of parameters in training and after it."""
        if self.confusion is None:
            return self._provenance
        dropped = [p for module in self.head.only_in_training() for p in module.parameters()]
        frozen = self.network.frozen_parameters if isinstance(self.network, FrozenFeatures) else 0
        trained = sum(p.numel() for name, p in self.named_parameters() if not name.startswith(EXTRACTOR))
        inference = None if frozen is None else trained + frozen - sum(p.numel() for p in dropped)
        return {**self._provenance, "parameters": {"training": trained, "inference": inference}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All trained values. A frozen extractor is left out; its fingerprint identifies it."""
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if not name.startswith(EXTRACTOR)}

    def on_fit_start(self) -> None:
        """Log the numbers of parameters. A second training without the weights of a first one is refused."""
        if self.start is not Start.RESUMED:  # else a sharding strategy loads the weights later
            self.head.require_start()
        counts = self.provenance()["parameters"]
        inference = "an unknown number" if counts["inference"] is None else f"{counts['inference']:,}"
        rank_zero_info(f"{counts['training']:,} parameters are trained, {inference} are needed for inference")

    # -- steps -------------------------------------------------------------------------------------------------------------------

    def scores(self, batch: Any, labels: Tensor | None = None) -> Scores:
        """A batch of N clips -> logits (N, A), and the head's losses if labels are given."""
        found: Scores = self.head(self.network(self.input.of(batch)), labels)
        return found

    def training_step(self, batch: Any, index: int) -> Tensor:
        scores = self.scores(batch, batch.labels)
        entropy = F.cross_entropy(scores.logits, batch.labels, label_smoothing=self.label_smoothing)
        loss = entropy + sum(scores.losses.values())
        top1 = (scores.logits.argmax(-1) == batch.labels).float().mean()
        self.log_terms("train", {"loss": loss, "cross_entropy": entropy, **scores.losses, "top1": top1}, len(batch.labels))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.evaluate(self.scores(batch).logits, batch, "val")

    def test_step(self, batch: Any, index: int) -> dict[str, Tensor]:
        """Row in the index, label and calibrated probabilities of each clip, averaged over its views."""
        return self.evaluate(self.scores(batch).logits, batch, "test")

    def predict_step(self, batch: Any, index: int) -> Tensor:
        """Calibrated probabilities (B, A) of each view."""
        return self.probabilities(self.scores(batch).logits)

    def configure_optimizers(self) -> Any:
        settings = self.optimizer
        optimizer = settings.make({name: weight for name, weight in self.named_parameters() if weight.requires_grad})
        trainer: Any = self.trainer
        trainer.fit_loop.setup_data()  # with max_steps alone, Lightning would count an epoch's batches later
        total = int(trainer.estimated_stepping_batches)
        epoch = max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.factor(step, epoch, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
