from .activation_checkpointing import checkpoint_blocks
from .attention import MultiHeadAttention
from .causal_steps import CausalLayer, KeyValueBuffer, causal_mask, normalisation, state_of_weights
from .deformable_attention import DeformableAttention, SpatialShapes, multi_scale_deformable_attention
from .mlp import MLP
from .normalization import FrozenBatchNorm2d, group_norm, replace_batch_norm
from .position_encoding import box_position_encoding, map_position_encoding, sine_encoding

__all__ = [
    "MLP",
    "CausalLayer",
    "DeformableAttention",
    "FrozenBatchNorm2d",
    "KeyValueBuffer",
    "MultiHeadAttention",
    "SpatialShapes",
    "box_position_encoding",
    "causal_mask",
    "checkpoint_blocks",
    "group_norm",
    "map_position_encoding",
    "multi_scale_deformable_attention",
    "normalisation",
    "replace_batch_norm",
    "sine_encoding",
    "state_of_weights",
]
