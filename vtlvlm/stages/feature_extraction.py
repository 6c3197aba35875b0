"""The extractor alone, for ``vtlvlm extract``."""

from __future__ import annotations

from lightning import LightningModule

from vtlvlm.batches import FeatureBatch, VideoBatch
from vtlvlm.vtem.extractors import FeatureExtractor


class FeatureExtraction(LightningModule):
    """Computes features from sampled frames, as the feature cache stores them, for ``trainer.predict``."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def configure_model(self) -> None:
        self.extractor.load_weights()

    def predict_step(self, batch: VideoBatch, index: int) -> FeatureBatch:
        features = self.extractor(batch.frames)
        return FeatureBatch(features, self.extractor.step_times(batch.times), None, batch.labels, batch.clips, batch.views)
