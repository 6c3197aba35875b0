"""The Video-to-Event Mapper, in plain torch: extractors, poolers, quantisers, losses, and the model that joins them."""

from vtlvlm.vtem.encoding import Encoding
from vtlvlm.vtem.extractors import FeatureExtractor, TimmExtractor
from vtlvlm.vtem.losses import InfoNCE, reconstruction
from vtlvlm.vtem.model import VTEM
from vtlvlm.vtem.poolers import EqualSaliencePooler, PooledSegments, TemporalPooler, UniformPooler
from vtlvlm.vtem.quantizers import EMAQuantizer, IdentityQuantizer, Quantized, Quantizer

__all__ = [
    "VTEM",
    "EMAQuantizer",
    "Encoding",
    "EqualSaliencePooler",
    "FeatureExtractor",
    "IdentityQuantizer",
    "InfoNCE",
    "PooledSegments",
    "Quantized",
    "Quantizer",
    "TemporalPooler",
    "TimmExtractor",
    "UniformPooler",
    "reconstruction",
]
