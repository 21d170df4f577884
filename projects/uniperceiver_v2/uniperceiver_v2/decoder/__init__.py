from .feed_forward import DenseFeedForward
from .segments import Attributes, Segment
from .unified_decoder import Representations, UnifiedDecoder

__all__ = ["Attributes", "DenseFeedForward", "Representations", "Segment", "UnifiedDecoder"]
