"""The Video-to-Event Mapper, in plain torch: extractors, poolers, quantisers, losses, and the model that joins them."""

from vtlvlm.vtem.encoding import Encoding
from vtlvlm.vtem.extractors import FeatureExtractor, TimmExtractor
from vtlvlm.vtem.learned_quantizers import LearnedQuantizer, SimVQQuantizer
from vtlvlm.vtem.losses import InfoNCE, reconstruction
from vtlvlm.vtem.model import VTEM
from vtlvlm.vtem.poolers import EqualSaliencePooler, PooledSegments, TemporalPooler, UniformPooler
from vtlvlm.vtem.quantizers import EMAQuantizer, FactorisedQuantizer, FSQQuantizer, IdentityQuantizer, Quantized, Quantizer

__all__ = [
    "VTEM",
    "EMAQuantizer",
    "Encoding",
    "EqualSaliencePooler",
    "FSQQuantizer",
    "FactorisedQuantizer",
    "FeatureExtractor",
    "IdentityQuantizer",
    "InfoNCE",
    "LearnedQuantizer",
    "PooledSegments",
    "Quantized",
    "Quantizer",
    "SimVQQuantizer",
    "TemporalPooler",
    "TimmExtractor",
    "UniformPooler",
    "reconstruction",
]
