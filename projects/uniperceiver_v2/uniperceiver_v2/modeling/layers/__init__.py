from .activation_checkpointing import checkpoint_blocks
from .attention import MultiHeadAttention
from .compilation import can_compile, compile_modules
from .deformable_attention import DeformableAttention, SpatialShapes, multi_scale_deformable_attention
from .incremental import CausalLayer, KeyValueBuffer, autocast_dtype, causal_mask, normalisation
from .mlp import MLP
from .normalization import FrozenBatchNorm2d, group_norm, replace_batch_norm
from .position_encoding import box_position_encoding, map_position_encoding, sine_encoding
from .repeated import repeated_parts
from .weight_cache import WeightCache

__all__ = [
    "MLP",
    "CausalLayer",
    "DeformableAttention",
    "FrozenBatchNorm2d",
    "KeyValueBuffer",
    "MultiHeadAttention",
    "SpatialShapes",
    "WeightCache",
    "autocast_dtype",
    "box_position_encoding",
    "can_compile",
    "causal_mask",
    "checkpoint_blocks",
    "compile_modules",
    "group_norm",
    "map_position_encoding",
    "multi_scale_deformable_attention",
    "normalisation",
    "repeated_parts",
    "replace_batch_norm",
    "sine_encoding",
]
