"""Stage 2: a frozen LLaVA learns to read event sentences through soft prompts (Sec. III-B)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vtlvlm.batches import EventBatch, FeatureBatch, VideoBatch
from vtlvlm.calibration import FittedTemperature, calibration_metrics
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.alignment import AlignmentSums
from vtlvlm.lvlm.llava import base_identity
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.metrics import action_metrics, confusion, mean_over_views
from vtlvlm.stages.stage import AdamW, Stage, content_hash, require_same_split
from vtlvlm.stages.vtem import VTEMModule

START_CLIPS = 4096
"""Training clips and views that the projector's closed-form start looks at"""
PRIOR_CLIPS = 64
"""... and those whose mean scores are the prior of ``pmi``"""


class PromptTuningModule(Stage):
    """Trains the soft prompts with the cross-entropy of P(A = a) over the categories (eq. 7).

    Validation also fits the temperature of the probabilities (``calibration.py``), which goes into the checkpoint of those weights; what
    was trained on since its last validation has 1. ``nll``, ``ece`` and ``brier`` are measured without it, what has ``_calibrated`` in its
    name with it; ``predict`` and ``classify`` use it.

    Args:
        reasoner: the frozen LLaVA with its prompts and its instruction (eq. 5, 6).
        optimizer: AdamW for the prompts, and its schedule.
        projector_learning_rate: peak learning rate of LLaVA's projector, where ``reasoner.train_projector`` is on.
        vtem: stage-1 checkpoint, only needed to read features or videos; event caches name their own.
        objective: ``listwise``, that cross-entropy; or ``generative``, next-token prediction of the clip's own category, as language
            models are trained, which does not know of the other categories. Both are evaluated alike.
        calibrate: fit the temperature on the validation people.

    Raises:
        UsageError: another objective.
    """

    stage = "prompt_tuning"
    monitor = "val/nll"
    training_only = ("optimizer", "projector_learning_rate", "vtem", "objective", "calibrate")

    def __init__(
        self,
        reasoner: EventReasoner,
        optimizer: AdamW = AdamW(learning_rate=2e-3),  # noqa: B008 - a plain value, never changed
        projector_learning_rate: float = 1e-3,
        vtem: str | None = None,
        objective: Literal["listwise", "generative"] = "listwise",
        calibrate: bool = True,
    ) -> None:
        super().__init__()
        if objective not in ("listwise", "generative"):
            raise UsageError(f"objective {objective!r}: use listwise or generative")
        self.reasoner = reasoner
        self.optimizer = optimizer
        self.projector_learning_rate = projector_learning_rate
        self.vtem = vtem
        self.objective, self.calibrate = objective, calibrate
        self.classes: tuple[str, ...] = ()
        self.confusion: Any = None
        self._origin: dict[str, Any] = {}
        self.table: Tensor | None
        self.register_buffer("table", None, persistent=False)

    # -- building ----------------------------------------------------------------------------------------------------------------

    @property
    def needs_checkpoint(self) -> bool:
        """Whether testing without a checkpoint is a mistake; without prompt tokens it is the untuned arm, or peft has trained them."""
        return self.reasoner.prompts.tokens > 0 and self.reasoner.prompts.init_from is None

    def setup(self, stage: str) -> None:
        data = self.data
        if data.targets_cache is not None:
            raise UsageError("targets are for stage 1: leave data.target_features out")
        if self._origin.get("classes") and list(data.classes) != self._origin["classes"]:
            raise UsageError(f"the checkpoint knows {len(self._origin['classes'])} classes, the data has {len(data.classes)} others")
        if data.events_cache is not None:
            cache = data.events_cache
            made = cache.provenance
            width, tokens = cache.event_dim, cache.num_tokens
            self.table = None if cache.table is None else cache.table.float()
            stage1 = {"checkpoint": made["vtem"], "hash": made["vtem_hash"], "events": cache.hash}
            require_same_split(made, data)
        else:
            if self.vtem is None:
                raise UsageError(
                    "stage 2 reads an event cache (--data.events DIR) or needs a stage-1 checkpoint (--model.init_args.vtem FILE)"
                )
            mapper = VTEMModule.load_from_checkpoint(self.vtem)
            require_same_split(mapper.provenance(), data)
            self.mapper = mapper.requires_grad_(False)
            width, tokens = mapper.event_dim, mapper.vtem.num_tokens
            stage1 = {"checkpoint": self.vtem, "hash": content_hash(mapper), "events": None}
        self.classes = tuple(data.classes)
        self._origin = {
            "classes": list(self.classes),
            "protocol": data.protocol,
            "train_hash": data.train_hash,
            "split": data.split_description,
            "stage1": stage1,
            "event_dim": width,
            "num_tokens": tokens,
        }

    def configure_model(self) -> None:
        if self.reasoner.base is not None:
            return
        fresh = self._trainer is not None and self.trainer.ckpt_path is None
        self.reasoner.build(self.classes, self._origin["num_tokens"], self._origin["event_dim"], fresh)
        self._origin["llava"] = base_identity(self.reasoner.llava, self.reasoner.revision)
        self.val_metrics = action_metrics(len(self.classes)).clone(prefix="val/")
        self.test_metrics = action_metrics(len(self.classes)).clone(prefix="test/")
        self.val_calibrated = calibration_metrics().clone(prefix="val/", postfix="_calibrated")
        self.test_calibrated = calibration_metrics().clone(prefix="test/", postfix="_calibrated")
        self.confusion = confusion(len(self.classes))
        self.fitted = FittedTemperature()

    def restore(self, provenance: dict[str, Any]) -> None:
        self._origin = dict(provenance)
        self.classes = tuple(provenance["classes"])
        self.configure_model()

    def provenance(self) -> dict[str, Any]:
        return self._origin

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What training made (see ``EventReasoner.trainable_state``). The provenance names the base model."""
        kept = {f"reasoner.{name}" for name in self.reasoner.trainable_state()}
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in kept}

    def on_fit_start(self) -> None:
        """Align the projector and level the scores, where the reasoner asks for it and no checkpoint has them; the same on every rank."""
        if self.trained:
            return
        if self.reasoner.align_projector:
            self._align()
        if self.reasoner.pmi:
            self._level()

    def _training_vectors(self, clips: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Event vectors (b, M, E) and labels (b,), batch by batch, until this rank has its share of that many clips and views."""
        left = -(-clips // self.trainer.world_size)
        for batch in self.training_batches():
            yield self.vectors(batch)[:left], batch.labels[:left]
            left -= len(batch.labels)
            if left <= 0:
                return

    def _align(self) -> None:
        sums = AlignmentSums(self._origin["event_dim"], len(self.classes)).to(self.device)
        for vectors, labels in self._training_vectors(START_CLIPS):
            sums.add(vectors, labels)
        if self.trainer.world_size > 1:
            for buffer in sums.buffers():
                torch.distributed.all_reduce(buffer)
        self.reasoner.align(sums)
        if self.trainer.world_size > 1:
            for parameter in self.reasoner.projector.parameters():
                torch.distributed.broadcast(parameter.detach(), src=0)

    def _level(self) -> None:
        self.reasoner.level(torch.cat([vectors for vectors, _ in self._training_vectors(PRIOR_CLIPS)]))
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self.reasoner.prior)
            self.reasoner.prior /= self.trainer.world_size

    # -- steps -------------------------------------------------------------------------------------------------------------------

    def vectors(self, batch: EventBatch | FeatureBatch | VideoBatch) -> Tensor:
        """(B, M, E) event vectors of a batch, whatever it holds."""
        if isinstance(batch, EventBatch):
            if batch.vectors is not None:
                return batch.vectors.float()
            assert self.table is not None  # an event cache holds vectors or a table
            return F.embedding(batch.ids, self.table)
        with torch.no_grad():
            return self.mapper.predict_step(batch, 0).vectors

    def scores(self, batch: EventBatch | FeatureBatch | VideoBatch) -> Tensor:
        """(B, A) log-likelihoods of the categories' names."""
        return self.reasoner(self.vectors(batch))

    def training_step(self, batch: EventBatch | FeatureBatch | VideoBatch, index: int) -> Tensor:
        if self.objective == "generative":
            loss = self.reasoner.generative_loss(self.vectors(batch), batch.labels)
            self.log_terms("train", {"loss": loss}, len(batch.labels))
            return loss
        scores = self.scores(batch)
        loss = F.cross_entropy(scores, batch.labels)
        top1 = (scores.argmax(-1) == batch.labels).float().mean()
        mass = self.reasoner.in_list_mass(scores.detach()).mean()
        self.log_terms("train", {"loss": loss, "top1": top1, "in_list_mass": mass}, len(batch.labels))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """A temperature belongs to the weights it was fitted for."""
        self.reasoner.temperature.fill_(1)

    def _evaluate(self, batch: EventBatch | FeatureBatch | VideoBatch, split: str) -> None:
        scores = self.scores(batch)
        log_probs, first = mean_over_views(scores.log_softmax(-1), batch.clips)
        labels = batch.labels[first]
        metrics, calibrated = (self.val_metrics, self.val_calibrated) if split == "val" else (self.test_metrics, self.test_calibrated)
        metrics.update(log_probs, labels)
        self.confusion.update(log_probs.argmax(-1), labels)
        mass = self.reasoner.in_list_mass(scores).mean()
        self.log_terms(split, {"in_list_mass": mass}, len(batch.labels))
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(labels))
        if self._fits_temperature:
            self.fitted.update(log_probs, labels)
        else:
            calibrated.update(log_probs / self.reasoner.temperature, labels)
            self.log_dict(calibrated, on_step=False, on_epoch=True, batch_size=len(labels))

    @property
    def _fits_temperature(self) -> bool:
        return self.calibrate and self.trainer.state.fn == TrainerFn.FITTING

    def on_validation_epoch_end(self) -> None:
        """Fit the temperature, before the checkpoint is written; the same on every rank."""
        if self._fits_temperature and not self.trainer.sanity_checking:
            found = self.fitted.compute()
            self.reasoner.temperature.copy_(found["temperature"])
            self.log("val/nll_calibrated", found["nll_calibrated"], sync_dist=True)
        self.fitted.reset()
        self.log("val/temperature", self.reasoner.temperature.clone(), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self.log("test/temperature", self.reasoner.temperature.clone(), sync_dist=True)

    def validation_step(self, batch: EventBatch | FeatureBatch | VideoBatch, index: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: EventBatch | FeatureBatch | VideoBatch, index: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: EventBatch | FeatureBatch | VideoBatch, index: int) -> Tensor:
        """(B, A) calibrated probabilities, each view by itself."""
        return self.reasoner.probabilities(self.scores(batch))

    def configure_optimizers(self) -> Any:
        groups = [{"params": list(self.reasoner.prompts.parameters()), "weight_decay": 0.0}]
        if self.reasoner.train_projector:
            groups.append({"params": list(self.reasoner.projector.parameters()), "lr": self.projector_learning_rate})
        groups = [g for g in groups if g["params"]]
        if not groups:
            raise UsageError("nothing to train: give reasoner.prompts some tokens, or set reasoner.train_projector")
        return self.adamw(groups, self.optimizer)
