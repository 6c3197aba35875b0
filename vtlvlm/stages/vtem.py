"""Stage 1: trains the Video-to-Event Mapper (Sec. III-A), and computes event sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vtlvlm.batches import EventTokens, FeatureBatch, VideoBatch, split_clips
from vtlvlm.data.cache_format import made_of
from vtlvlm.errors import UsageError
from vtlvlm.metrics.codebook import CodebookHealth, SeenEvents
from vtlvlm.report.provenance import global_seed
from vtlvlm.stages.checkpoints import RECORD
from vtlvlm.stages.compatibility import require_same_extractor, require_same_split, require_unseen_validation
from vtlvlm.stages.feature_origin import feature_origin, require_extractor_of, require_same_features, sampling_of
from vtlvlm.stages.parts import flat, settings_of, with_defaults
from vtlvlm.stages.stage import AdamW, Stage
from vtlvlm.vtem.clip_extractor import ClipExtractor
from vtlvlm.vtem.extractors import FeatureExtractor, VideoExtractor
from vtlvlm.vtem.group import gather_clips
from vtlvlm.vtem.losses import InfoNCE, reconstruction
from vtlvlm.vtem.model import VTEM, Target
from vtlvlm.vtem.poolers import TemporalPooler, TokenInputs, at_steps
from vtlvlm.vtem.quantizers import Quantizer

COUNTS = "train_codes"
"""In checkpoints: the counts of the epoch so far, for its curves"""


class StepEvents(NamedTuple):
    """Event sentences of a batch with its losses."""

    tokens: EventTokens
    continuous: Tensor
    """(B, M, E) float32, the event vectors before quantisation"""
    edges: Tensor
    """(B, W+1) feature steps"""
    cumulative: Tensor
    """(B, T'+1) in [0, 1], share of salience before each step"""
    reconstruction: Tensor
    """scalar, mean over the clips; likewise ``commitment``"""
    commitment: Tensor

    @classmethod
    def join(cls, parts: Sequence[StepEvents], clips: Sequence[int]) -> StepEvents:
        """Join parts into one batch. ``clips`` holds the number of clips of each part."""
        share = [count / sum(clips) for count in clips]
        tokens, *columns, rebuilt, commitment = zip(*parts, strict=True)
        means = (sum(weight * value for weight, value in zip(share, values, strict=True)) for values in (rebuilt, commitment))
        return cls(EventTokens(*map(torch.cat, zip(*tokens, strict=True))), *map(torch.cat, columns), *means)


STATISTICS_CLIPS = 2048
"""Number of training clips and views, of all ranks together, that standardisation, principal components and k-means start from"""


class VTEMModule(Stage):
    """Trains VTEM on cached features or straight from video: ``L = alpha·L_rec + beta·L_cont + commitment`` (eq. 4).

    The clips of all processes are one batch: losses, codebook and the restart of rare codes are the same for any number of processes and
    any ``data.micro_batch_size``. The best checkpoint has the smallest ``val/reconstruction``, a mean over clips. ``val/coherence`` takes
    its negatives from each clip alone.

    Args:
        extractor: frozen backbone, frames to features (eq. 1).
        pooler: temporal windows (eq. 2).
        quantizer: codebook (eq. 3), or the identity for the continuous arm.
        contrast: the event coherence bias, InfoNCE between temporal neighbours.
        event_dim: E, width of an event vector; must equal the input width of LLaVA's projector.
        inputs: further inputs of a token, beside its window's mean; the paper has none.
        target: ``features`` is the paper's: a decoder rebuilds the standardised features. With ``llava``, the events themselves have to
            equal the features of LLaVA's CLIP tower for the same frames, so that LLaVA's frozen projector can read them. The tower's
            features are in ``data.target_features``, filled by ``extract`` with ClipExtractor. ``event_dim`` must then be the tower's
            width. After stage 1, the tower is no longer needed.
        alpha: weight of the reconstruction loss.
        beta: weight of the contrastive term; 0 is the "w/o event coherence bias" arm.
        optimizer: AdamW and its schedule.
    """

    stage = "vtem"
    monitor = "val/reconstruction"
    whole_batch = True

    def __init__(
        self,
        extractor: FeatureExtractor,
        pooler: TemporalPooler,
        quantizer: Quantizer,
        contrast: InfoNCE,
        event_dim: int = 1024,
        inputs: TokenInputs = TokenInputs(),  # noqa: B008 - frozen
        target: Target = "features",
        alpha: float = 1.0,
        beta: float = 0.1,
        optimizer: AdamW = AdamW(),  # noqa: B008 - a plain value, never changed
    ) -> None:
        super().__init__()
        self.vtem = VTEM(extractor, pooler, quantizer, event_dim, inputs, target)
        self.contrast = contrast
        self.event_dim, self.inputs, self.target = event_dim, inputs, target
        self.alpha, self.beta = alpha, beta
        self.optimizer = optimizer
        self.train_codes: CodebookHealth | None = None
        self.val_codes: CodebookHealth | None = None
        self.seen: SeenEvents | None = None
        self._moving: tuple[Tensor, Tensor] | None = None  # event vectors and codes of the step, for the codebook
        self._provenance: dict[str, Any] = {}

    @property
    def extractor(self) -> FeatureExtractor:
        return self.vtem.extractor

    @property
    def pooler(self) -> TemporalPooler:
        return self.vtem.pooler

    @property
    def quantizer(self) -> Quantizer:
        return self.vtem.quantizer

    # -- building ----------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = self.data
        if data.events_cache is not None:
            raise UsageError("stage 1 reads videos or features: leave data.events out")
        self._require_targets_cache(data.targets_cache, needed=stage != "predict")
        if self.extractor.trainable and data.features_cache is not None:
            raise UsageError("extractor.trainable trains the backbone, which needs videos: leave data.features out")
        if stage == "fit" and data.features_cache is not None:
            require_extractor_of(data.features_cache, self.extractor)
        if codes := self.quantizer.num_codes:
            classes, windows = data.num_classes, self.pooler.windows
            self.train_codes, self.val_codes = CodebookHealth(codes, classes, windows), CodebookHealth(codes, classes, windows)
        if stage == "fit":
            sampling_of(data)
            self._provenance = {
                "protocol": data.source.protocol,
                "train_hash": data.train_hash,
                "split": data.split_description,
                **feature_origin(data, self.extractor),
                "targets": data.targets_cache.hash if data.targets_cache is not None else None,
            }

    def _require_targets_cache(self, cache: Any, needed: bool) -> None:
        if cache is None and not needed:
            return
        self.vtem.require_targets_that_fit(None if cache is None else (cache.cells, cache.dim))
        if cache is not None and (name := made_of(cache, "extractor", dict).get("extractor")) != ClipExtractor.__name__:
            raise UsageError(f"{cache.folder} was made by {name}: target 'llava' needs features of a ClipExtractor")

    def require_same_data(self, data: Any) -> None:
        """Refuse data that differ from the training's in split, extractor or sampling.

        Raises:
            UsageError: names both.
        """
        require_same_split(self._provenance, data.source.protocol, data.train_hash)
        require_same_features(self._provenance, data, self.extractor, "stage 1")

    compared_elsewhere = ("extractor.weights", "extractor.compiled", "extractor.clips")

    def _may_differ(self, name: str, training: bool) -> bool:
        """Also ``chunk`` if the extractor reads each frame by itself, and the location of the tower's LLaVA."""
        free = [] if isinstance(self.extractor, VideoExtractor) else ["extractor.chunk"]
        if isinstance(self.extractor, ClipExtractor):
            free += ["extractor.model", "extractor.revision"]
        return name in free or super()._may_differ(name, training)

    def require_same_settings(self, record: dict[str, Any], path: str, training: bool) -> None:
        super().require_same_settings(record, path, training)
        old, new = dict(flat(with_defaults(record["settings"]))), dict(flat(settings_of(self)))
        if any(old.get(name) != new.get(name) for name in ("extractor.weights", "extractor.model", "extractor.revision")):
            require_same_extractor(self.extractor, record["provenance"]["extractor"], path)

    def configure_model(self) -> None:
        if self.vtem.projection is not None:
            return
        self.vtem.build()
        if self.beta:  # DDP refuses parameters that no loss reaches
            self.contrast.build(self.event_dim)

    def require_fit(self, shapes: dict[str, torch.Size], path: str | Path) -> None:
        own = {name.removeprefix("vtem."): shape for name, shape in shapes.items() if name.startswith("vtem.")}
        self.vtem.require_fit(own, path)
        head = (self.contrast.head_dim, self.event_dim)
        if shapes.get("contrast.head.weight", head) != head:
            raise UsageError(f"{path}: its weights do not fit its settings (contrast.head); get the file again, or make it again")

    def restore(self, provenance: dict[str, Any]) -> None:
        self._provenance = provenance
        self.configure_model()

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        made, cache = checkpoint[RECORD]["provenance"], None
        if self._trainer is not None:
            cache = self.data.targets_cache
            require_same_split(made, self.data.source.protocol, self.data.train_hash, "the checkpoint")
            if self.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING):
                require_unseen_validation(made["split"], self.data.split_description, "the checkpoint")
        if cache is not None and cache.hash != made.get("targets"):
            raise UsageError(f"{cache.folder} is not the target of the checkpoint's training: give that one as data.target_features")
        if not self._provenance:
            self._provenance = made
        if self.train_codes is not None and self.global_rank == 0:  # one process has the counts of all
            self.train_codes.go_on(checkpoint.get(COUNTS))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.train_codes is not None:
            checkpoint[COUNTS] = dict(self.train_codes.tally()._asdict())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All trained or measured values. A frozen extractor is left out; its fingerprint identifies it."""
        state = super().state_dict(*args, **kwargs)
        return state if self.extractor.trainable else {k: v for k, v in state.items() if "vtem.extractor." not in k}

    def on_fit_start(self) -> None:
        if not bool(self.vtem.fitted):
            self.fit_statistics()

    @torch.no_grad()
    def fit_statistics(self) -> None:
        """Standardisation, principal components and k-means start from training clips of all ranks; the result is the same on every
        rank."""
        wanted = -(-STATISTICS_CLIPS // self.trainer.world_size)
        parts: list[Tensor] = []
        aims: list[Tensor] = []
        actions: list[Tensor] = []
        for batch in self.training_batches():
            parts.append(self.features(batch)[0].half())
            actions.append(batch.labels)
            if (targets := self.targets(batch)) is not None:
                aims.append(at_steps(targets, parts[-1].shape[1], self.extractor.frame_stride).half())
            if sum(map(len, parts)) >= wanted:
                break
        features, targets = self._joined(parts, wanted), self._joined(aims, wanted) if aims else None
        rank_zero_info(f"codebook and standardisation start from {len(features)} training clips")
        self.vtem.fit_statistics(features, targets, seed=global_seed() or 0, labels=self._joined(actions, wanted))
        for name, tensor in self.vtem.state_dict().items():
            if self.trainer.world_size > 1 and not name.startswith("extractor."):
                torch.distributed.broadcast(tensor, src=0)

    def _joined(self, parts: list[Tensor], limit: int) -> Tensor:
        """The first ``limit`` rows of each rank's parts, joined in the order of the epoch. Empties the list, so that memory holds the rows
        only once."""
        joined = torch.cat(parts)[:limit]
        parts.clear()
        return gather_clips(joined)[:STATISTICS_CLIPS] if self.trainer.world_size > 1 else joined

    # -- steps -------------------------------------------------------------------------------------------------------------------

    def features(self, batch: FeatureBatch | VideoBatch) -> tuple[Tensor, Tensor]:
        """Features (B, T', S, D) and times (B, T') of a batch; extracts them from frames if necessary."""
        if isinstance(batch, VideoBatch):
            return self.extractor(batch.frames), self.extractor.step_times(batch.times)
        return batch.features, batch.times

    def targets(self, batch: FeatureBatch | VideoBatch) -> Tensor | None:
        """Targets (B, T'', S, E) of a batch, or None if the target is the features."""
        return batch.targets if isinstance(batch, FeatureBatch) else None

    def _encode(self, batch: FeatureBatch | VideoBatch) -> StepEvents:
        """Event sentences and losses of a batch."""
        encoding = self.vtem.encode(*self.features(batch), targets=self.targets(batch))
        rebuilt = reconstruction(encoding.reconstruction, encoding.target)
        return StepEvents(
            encoding.tokens, encoding.continuous, encoding.pooled.edges, encoding.pooled.cumulative, rebuilt, encoding.commitment
        )

    def _encode_in_parts(self, batch: FeatureBatch | VideoBatch) -> StepEvents:
        """As :meth:`_encode`, in parts of ``data.micro_batch_size`` clips. The backward pass computes each part again, so that memory holds
        one part at a time."""
        parts = split_clips(batch, self.data.micro_batch_size)
        if len(parts) == 1:
            return self._encode(batch)
        if isinstance(batch, VideoBatch) and not self.extractor.trainable:  # a frozen backbone runs once
            parts = [FeatureBatch(*self.features(part), None, part.labels, part.clips, part.views) for part in parts]
        found = [checkpoint(self._encode, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return StepEvents.join(found, [len(part.clips) for part in parts])

    def step(self, batch: FeatureBatch | VideoBatch, split: str) -> Tensor:
        """The loss of eq. 4. In training, ``batch`` is this process's whole share of an optimiser step."""
        training = split == "train"
        events = self._encode_in_parts(batch) if training else self._encode(batch)
        ids, vectors = events.tokens.ids, events.tokens.vectors
        terms = {"reconstruction": events.reconstruction, "commitment": events.commitment}
        loss = self.alpha * events.reconstruction + events.commitment
        if self.beta:
            seed = self.step_seed if training else 0
            terms["coherence"] = self.contrast(vectors, ids, windows=self.pooler.windows, seed=seed)
            loss = loss + self.beta * terms["coherence"]
        codes = self.train_codes if training else self.val_codes
        if codes is not None:
            codes.update(ids, batch.labels)
            self.seen = SeenEvents(ids, events.tokens.spans, events.edges, events.cumulative.detach())
        if training:
            self._moving = events.continuous.detach(), ids
            terms["event_norm"] = vectors.detach().norm(dim=-1).mean()
        self.log_terms(split, {"loss": loss, **terms}, len(batch.labels))
        return loss

    @property
    def step_seed(self) -> int:
        """Seed of the draws of an optimiser step: the same on every process, and in a resumed training."""
        return int(np.random.SeedSequence((global_seed() or 0, self.trainer.global_step)).generate_state(1)[0])

    def training_step(self, batch: FeatureBatch | VideoBatch, index: int) -> Tensor:
        return self.step(batch, "train")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Moves the codebook once for each step, after the backward pass, which may compute parts again."""
        super().on_before_optimizer_step(optimizer)
        if self._moving is not None:
            self.quantizer.update(*self._moving, seed=self.step_seed)
            self._moving = None

    def validation_step(self, batch: FeatureBatch | VideoBatch, index: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: FeatureBatch | VideoBatch, index: int) -> None:
        self.step(batch, "test")

    def predict_step(self, batch: FeatureBatch | VideoBatch, index: int) -> EventTokens:
        """The clips' event sentences."""
        return self.vtem.tokens(*self.features(batch))

    def on_train_epoch_end(self) -> None:
        self._log_codes("train", self.train_codes)

    def on_validation_epoch_end(self) -> None:
        self._log_codes("val", self.val_codes)

    def on_test_epoch_end(self) -> None:
        self._log_codes("test", self.val_codes)

    def _log_codes(self, split: str, codes: CodebookHealth | None) -> None:
        if codes is not None:
            self.log_dict({f"codebook/{split}_{name}": value for name, value in codes.compute().items()})
            codes.reset()

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return self.adamw([{"params": trained}], self.optimizer)
