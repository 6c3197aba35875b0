"""Stage 2: a LLaVA learns to read event sentences, through soft prompts or another adapter (Sec. III-B)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vtlvlm.batches import EventBatch, FeatureBatch, HiddenBatch, VideoBatch
from vtlvlm.data.cache_format import made_of
from vtlvlm.data.captions import Captions
from vtlvlm.data.datasets import Batch
from vtlvlm.data.hidden_cache import HiddenCache
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.base_identity import base_identity, require_same_base
from vtlvlm.lvlm.captions import CaptionLoss
from vtlvlm.lvlm.llava import Llava, projector_origin
from vtlvlm.lvlm.reasoner import EventReasoner, LabelScores
from vtlvlm.stages.announcements import say_few_clips, say_trained
from vtlvlm.stages.calibrated import CalibratedStage
from vtlvlm.stages.compatibility import module_hash, require_same_origin, require_same_split, require_unseen_validation
from vtlvlm.stages.stage import AdamW, Start
from vtlvlm.stages.starting_values import align_projector, measure_prior
from vtlvlm.stages.stored_states import require_stored
from vtlvlm.stages.vtem import VTEMModule


class PromptTuningModule(CalibratedStage):
    """Trains the adapter with the cross-entropy of P(A = a) over the categories (eq. 7).

    Validation also fits the temperature of the probabilities (``metrics.calibration``). The checkpoint holds it with the weights that it
    was fitted for. After further training steps it is 1 until the next validation. ``nll``, ``ece`` and ``brier`` are measured without the
    temperature, metrics named ``_calibrated`` with it; ``predict`` and ``classify`` use it.

    Args:
        reasoner: the LLaVA with its adapter (soft prompts in the paper) and its instruction (eq. 5, 6).
        optimizer: AdamW for the adapter, and its schedule. Weight decay applies to the matrices of full fine-tuning and of the projector,
            not to prompts and LoRA.
        projector_learning_rate: peak learning rate of LLaVA's projector, used with ``reasoner.train_projector``.
        vtem: stage-1 checkpoint, only needed to read features or videos; event caches name theirs.
        objective: ``listwise`` is this cross-entropy. ``generative`` is next-token prediction of the clip's own category, the usual loss of
            language models, without the other categories. Both are evaluated alike. With ``data.source.captions``, it learns the
            clip's captions instead, one drawn at each step; `vtlvlm caption` then writes them.
        calibrate: fit the temperature on the validation people. The best checkpoint is then the one with the lowest NLL at its temperature.

    Raises:
        UsageError: the objective is another word.
    """

    stage = "prompt_tuning"
    training_only = ("optimizer", "projector_learning_rate", "vtem", "objective", "calibrate")
    machine_only = tuple(f"reasoner.llava.{field.name}" for field in fields(Llava) if field.name not in ("path", "revision"))
    compared_elsewhere = ("reasoner.llava.path", "reasoner.llava.revision", "reasoner.adapter.init_from")

    def __init__(
        self,
        reasoner: EventReasoner,
        optimizer: AdamW = AdamW(learning_rate=2e-3),  # noqa: B008 - a plain value, never changed
        projector_learning_rate: float = 1e-3,
        vtem: str | None = None,
        objective: Literal["listwise", "generative"] = "listwise",
        calibrate: bool = True,
    ) -> None:
        super().__init__(calibrate)
        if objective not in ("listwise", "generative"):
            raise UsageError(f"objective {objective!r}: use listwise or generative")
        self.reasoner = reasoner
        self.optimizer = optimizer
        self.projector_learning_rate = projector_learning_rate
        self.vtem = vtem
        self.objective = objective
        self._provenance: dict[str, Any] = {}
        self._batches = self._most_batches = 0
        self._captions: CaptionLoss | None = None
        self.mapper: VTEMModule | None = None  # stage 1, if batches hold features or videos
        self.table: Tensor | None
        self.register_buffer("table", None, persistent=False)

    # -- building ----------------------------------------------------------------------------------------------------------------

    @property
    def needs_checkpoint(self) -> bool:
        """Whether a test needs a checkpoint. It does not in the zero-shot arm, which trains nothing."""
        return self.reasoner.adapter.needs_checkpoint or self.reasoner.train_projector

    def setup(self, stage: str) -> None:
        data = self.data
        if stage == "fit" and not (self.reasoner.adapter.trains or self.reasoner.train_projector):
            raise UsageError(
                "nothing to train: choose an adapter, or set reasoner.train_projector; `vtlvlm test` measures the untuned model"
            )
        if len(data.classes) < 2:
            raise UsageError(f"only one category ({data.classes[0]}): give clips of two or more")
        if data.targets_cache is not None:
            raise UsageError("targets are for stage 1: leave data.target_features out")
        captions = getattr(data, "captions_table", None)
        if captions is not None and self.objective != "generative":
            raise UsageError(f"data.source.captions: objective {self.objective} reads none; set model.init_args.objective to generative")
        if captions is not None and isinstance(data.events_cache, HiddenCache):
            raise UsageError("data.source.captions: hidden states hold the categories' tokens; give the event cache (--data.events DIR)")
        if data.events_cache is not None:
            cache = data.events_cache
            if isinstance(cache, HiddenCache):
                self._require_stored(cache, stage)
            made = {name: made_of(cache, name, str) for name in ("vtem", "vtem_hash", "protocol", "train_hash")}
            width, tokens = cache.event_dim, cache.num_tokens
            self.table = None if cache.table is None else cache.table.float()
            stage1 = {"checkpoint": made["vtem"], "hash": made["vtem_hash"], "events": cache.events}
            require_same_split(made, data.source.protocol, data.train_hash)
        else:
            if self.vtem is None:
                raise UsageError(
                    "stage 2 reads an event cache (--data.events DIR) or needs a stage-1 checkpoint (--model.init_args.vtem FILE)"
                )
            mapper = VTEMModule.load_from_checkpoint(self.vtem)
            mapper.require_same_data(data)
            self.mapper = mapper.requires_grad_(False)
            width, tokens = mapper.event_dim, mapper.vtem.num_tokens
            stage1 = {"checkpoint": self.vtem, "hash": module_hash(mapper), "events": None}
        self.classes = tuple(data.classes)
        origin = {
            "classes": list(self.classes),
            "protocol": data.source.protocol,
            "train_hash": data.train_hash,
            "split": data.split_description,
            "stage1": stage1,
            "event_dim": width,
            "num_tokens": tokens,
        }
        made_before = self._provenance if self.pending_record is None else self.pending_record["provenance"]
        if made_before:
            self._require(made_before, origin, "this module" if self.pending_record is None else "the checkpoint")
        origin["captions"] = made_before.get("captions") if captions is None else captions.identity
        self._provenance = origin

    def _require_stored(self, cache: HiddenCache, stage: str) -> None:
        """Refuse hidden states for a command that reads test clips, and hidden states of other settings than the reasoner's."""
        if stage in ("test", "predict"):
            raise UsageError(
                f"{cache.folder}: hidden states, of training and validation clips only: give the event cache (--data.events DIR)"
            )
        require_stored(self.reasoner, cache, self.data.classes, str(self.trainer.precision))

    def _require(self, made: dict[str, Any], now: dict[str, Any], what: str) -> None:
        """Refuse weights of another training split, events or categories, and validation clips that the weights were trained on."""
        require_same_origin(made, now, what)
        if self.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            require_unseen_validation(made["split"], now["split"], what)

    def configure_model(self) -> None:
        if self.reasoner.base is not None:
            return
        width, tokens = self._provenance["event_dim"], self._provenance["num_tokens"]
        self.reasoner.build(self.classes, tokens, width, self._mesh(), fresh=self.start is Start.FRESH)
        self._provenance["llava"] = base_identity(self.reasoner.llava.path, self.reasoner.llava.revision)
        self.make_metrics()

    def _mesh(self) -> DeviceMesh | None:
        """The processes that share the model, with ModelParallelStrategy; else None."""
        if self._trainer is None or (mesh := self.device_mesh) is None:
            return None
        if isinstance(self.data.events_cache, HiddenCache):
            raise UsageError("ModelParallelStrategy: reads no hidden states; use strategy ddp, or the event cache (--data.events DIR)")
        if mesh["tensor_parallel"].size() > 1:
            raise UsageError(
                f"ModelParallelStrategy: set data_parallel_size to the number of processes ({mesh.size()}) and tensor_parallel_size to 1"
            )
        if self.reasoner.init_projector == "probe":
            raise UsageError("init_projector probe: cannot change a model that is split over processes; use another strategy")
        return mesh["data_parallel"]

    def require_fit(self, shapes: dict[str, torch.Size], path: str | Path) -> None:
        own = {name.removeprefix("reasoner."): shape for name, shape in shapes.items() if name.startswith("reasoner.")}
        self.reasoner.adapter.require_fit(own, path)

    def restore(self, provenance: dict[str, Any]) -> None:
        require_same_base(provenance["llava"], self.reasoner.llava.path, self.reasoner.llava.revision, "the checkpoint")
        self._provenance = dict(provenance)
        self.classes = tuple(provenance["classes"])
        self.configure_model()

    def require_same_settings(self, record: dict[str, Any], path: str, training: bool) -> None:
        super().require_same_settings(record, path, training)
        if self._provenance:  # set up already
            self._require(record["provenance"], self._provenance, path)
        require_same_base(record["provenance"]["llava"], self.reasoner.llava.path, self.reasoner.llava.revision, path)

    @property
    def projector(self) -> str:
        """Training of LLaVA's projector: ``trained`` here, ``pretrained`` in its checkpoint, or ``untrained``."""
        fitted = self._trainer is not None and self.trainer.state.fn == "fit"
        trained = self.reasoner.train_projector and (self.start is Start.LOADED or fitted)
        return "trained" if trained else projector_origin(self.reasoner.llava.path)

    def provenance(self) -> dict[str, Any]:
        """The origin of the weights with ``adapter``, ``projector`` and the trainable parameters of both."""
        if self.reasoner.base is None:
            return self._provenance
        adapter, projector = self.reasoner.trainable_parameters()
        return {
            **self._provenance,
            "adapter": type(self.reasoner.adapter).__name__,
            "projector": self.projector,
            "trainable_parameters": {"adapter": adapter.trained, "projector": projector.trained, "total": adapter.total},
        }

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Trained values (``EventReasoner.trainable_state``). The provenance names the base model."""
        kept = {f"reasoner.{name}" for name in self.reasoner.trainable_state()}
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in kept}

    def on_fit_start(self) -> None:
        """Log the trained parameters. Fit the projector's start and the prior if the settings ask for them and no checkpoint has them."""
        say_trained(self.reasoner, self.projector)
        if self.start is not Start.FRESH:  # ModelParallelStrategy loads the weights after this
            return
        say_few_clips(self.data.index.label[self.data.split.train], len(self.classes))
        if self.reasoner.init_projector == "probe":
            align_projector(self)
        if self.reasoner.label_score == "pmi":
            self.reasoner.prior = measure_prior(self)

    def on_test_start(self) -> None:
        """Log the trained parameters."""
        self._count_batches()
        say_trained(self.reasoner, self.projector)

    on_predict_start = on_test_start

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "validate":
            self.on_test_start()
        else:
            self._count_batches()

    def _count_batches(self) -> None:
        """Count this process's batches and the most of any process: with a sharded model, all must make as many passes."""
        if not self.reasoner.sharded:
            return
        trainer = self.trainer
        counts: Any = trainer.num_val_batches
        if trainer.sanity_checking:
            counts = trainer.num_sanity_val_batches
        elif trainer.testing or trainer.predicting:
            counts = trainer.num_test_batches if trainer.testing else trainer.num_predict_batches
        self._batches = int(sum(counts))
        most = torch.tensor(self._batches, device=self.device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        self._most_batches = int(most)

    def _keep_pace(self, index: int) -> None:
        """After the last batch, pass empty events until every process has made the same number of passes."""
        if self.reasoner.sharded and index + 1 == self._batches:
            for _ in range(self._most_batches - self._batches):
                self.reasoner(torch.zeros(1, self._provenance["num_tokens"], self._provenance["event_dim"], device=self.device))

    def train(self, mode: bool = True) -> PromptTuningModule:
        """Set training mode, but not for stage 1: its statistics and codebook must not change."""
        super().train(mode)
        if self.mapper is not None:
            self.mapper.eval()
        return self

    # -- steps -------------------------------------------------------------------------------------------------------------------

    def vectors(self, batch: EventBatch | FeatureBatch | VideoBatch) -> Tensor:
        """Event vectors (B, M, E) of a batch of events, features or videos."""
        if isinstance(batch, EventBatch):
            if batch.vectors is not None:
                return batch.vectors.float()
            assert self.table is not None  # an event cache holds vectors or a table
            return F.embedding(batch.ids, self.table)
        assert self.mapper is not None
        with torch.no_grad():
            return self.mapper.predict_step(batch, 0).vectors

    def scores(self, batch: Batch) -> LabelScores:
        """The categories' log-likelihoods and scores, each (B, A)."""
        if isinstance(batch, HiddenBatch):
            return self.reasoner.score_states(batch.hidden)
        found: LabelScores = self.reasoner(self.vectors(batch))
        return found

    @property
    def temperature(self) -> Tensor:  # type: ignore[override]
        """The reasoner's, which bundles hold too."""
        return self.reasoner.temperature

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.objective == "generative":
            if (table := getattr(self.data, "captions_table", None)) is not None:
                loss = self._caption_loss(table, batch)
            elif isinstance(batch, HiddenBatch):
                loss = self.reasoner.generative_loss_of_states(batch.hidden, batch.labels)
            else:
                loss = self.reasoner.generative_loss(self.vectors(batch), batch.labels)
            self.log_terms("train", {"loss": loss}, len(batch.labels))
            return loss
        scores = self.scores(batch)
        loss = F.cross_entropy(scores.score, batch.labels)
        top1 = (scores.score.argmax(-1) == batch.labels).float().mean()
        mass = scores.in_list_mass.detach().mean()
        self.log_terms("train", {"loss": loss, "top1": top1, "in_list_mass": mass}, len(batch.labels))
        return loss

    def _caption_loss(self, table: Captions, batch: Batch) -> Tensor:
        """The loss of one drawn caption of each clip."""
        assert not isinstance(batch, HiddenBatch)
        if self._captions is None:
            self._captions = CaptionLoss(self.reasoner, table.texts)
        chosen = table.drawn(batch.clips.cpu().numpy(), torch.rand(len(batch.clips), dtype=torch.float64).numpy())
        return self._captions(self.vectors(batch), torch.from_numpy(chosen))

    def _evaluate(self, batch: Batch, index: int, split: str) -> dict[str, Tensor]:
        scores = self.scores(batch)
        self._keep_pace(index)
        self.log_terms(split, {"in_list_mass": scores.in_list_mass.mean()}, len(batch.labels))
        return self.evaluate(scores.score, batch, split)

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, index, "val")

    def test_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Row in the index, label and calibrated probabilities of each clip, averaged over its views."""
        return self._evaluate(batch, index, "test")

    def predict_step(self, batch: Batch, index: int) -> Tensor:
        """Calibrated probabilities (B, A) of each view."""
        scores = self.scores(batch)
        self._keep_pace(index)
        return self.reasoner.probabilities(scores.score)

    def configure_optimizers(self) -> Any:
        assert self.reasoner.base is not None
        groups = self.reasoner.adapter.groups(self.reasoner.base)
        if self.reasoner.train_projector:
            groups.append({"params": list(self.reasoner.projector.parameters()), "lr": self.projector_learning_rate})
        return self.adamw([g for g in groups if g["params"]], self.optimizer)
