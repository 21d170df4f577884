from .activation_checkpointing import checkpoint_blocks
from .attention import MultiHeadAttention
from .deformable_attention import DeformableAttention, SpatialShapes, multi_scale_deformable_attention
from .mlp import MLP
from .normalization import FrozenBatchNorm2d, group_norm, replace_batch_norm
from .position_encoding import box_position_encoding, map_position_encoding, sine_encoding

__all__ = [
    "MLP",
    "DeformableAttention",
    "FrozenBatchNorm2d",
    "MultiHeadAttention",
    "SpatialShapes",
    "box_position_encoding",
    "checkpoint_blocks",
    "group_norm",
    "map_position_encoding",
    "multi_scale_deformable_attention",
    "replace_batch_norm",
    "sine_encoding",
]
