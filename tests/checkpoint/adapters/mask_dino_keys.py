"""The keys and shapes of Mask DINO's checkpoints, as facts about the original and without its code."""

from itertools import pairwise

from torch import Tensor
from torch.nn import init

DIM, HEADS, POINTS = 256, 8, 4
Shapes = dict[str, tuple[int, ...]]

R50 = {"depths": (3, 4, 6, 3)}
SWIN_LARGE = {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": 12}


def r50(depths: tuple[int, ...] = R50["depths"], width: int = 64) -> Shapes:
    """Detectron2's ResNet with frozen batch normalisation."""
    shapes = {"backbone.stem.conv1.weight": (width, 3, 7, 7), **norm("backbone.stem.conv1.norm", width, 4)}
    channels = width
    for stage, depth in enumerate(depths):
        inner, outer = width * 2**stage, 4 * width * 2**stage
        for block in range(depth):
            key = f"backbone.res{stage + 2}.{block}"
            sizes = {"conv1": (inner, channels, 1, 1), "conv2": (inner, inner, 3, 3), "conv3": (outer, inner, 1, 1)}
            if block == 0:
                sizes["shortcut"] = (outer, channels, 1, 1)
            for name, size in sizes.items():
                shapes |= {f"{key}.{name}.weight": size, **norm(f"{key}.{name}.norm", size[0], 4)}
            channels = outer
    return shapes


def swin(width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int) -> Shapes:
    """Microsoft's Swin with a norm behind each stage."""
    shapes = {**linear("backbone.patch_embed.proj", width, 3, 4, 4), **norm("backbone.patch_embed.norm", width)}
    for stage, depth in enumerate(depths):
        dim = width * 2**stage
        for block in range(depth):
            key = f"backbone.layers.{stage}.blocks.{block}"
            shapes |= norm(f"{key}.norm1", dim) | norm(f"{key}.norm2", dim)
            shapes |= linear(f"{key}.attn.qkv", 3 * dim, dim) | linear(f"{key}.attn.proj", dim, dim)
            shapes |= linear(f"{key}.mlp.fc1", 4 * dim, dim) | linear(f"{key}.mlp.fc2", dim, 4 * dim)
            shapes[f"{key}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[stage])
            shapes[f"{key}.attn.relative_position_index"] = (window**2, window**2)
        if stage + 1 < len(depths):
            merging = f"backbone.layers.{stage}.downsample"
            shapes |= {f"{merging}.reduction.weight": (2 * dim, 4 * dim), **norm(f"{merging}.norm", 4 * dim)}
        shapes |= norm(f"backbone.norm{stage}", dim)
    return shapes


def heads(
    channels: tuple[int, ...],
    scales: int = 3,
    classes: int = 80,
    encoder_layers: int = 6,
    decoder_layers: int = 9,
    ffn_dim: int = 2048,
) -> Shapes:
    """Pixel decoder and Transformer decoder.

    Args:
        channels: of the backbone's maps, finest first.
        scales: the number of the coarsest of them that are scales. One more is added.
    """
    pixels, queries, levels = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor", scales + 1
    shapes: Shapes = {"criterion.empty_weight": (classes + 1,)}
    for level, width in enumerate(channels[-scales:]):
        shapes |= linear(f"{pixels}.input_proj.{level}.0", DIM, width, 1, 1)
    shapes |= linear(f"{pixels}.input_proj.{scales}.0", DIM, channels[-1], 3, 3)
    for level in range(levels):
        shapes |= norm(f"{pixels}.input_proj.{level}.1", DIM)
    shapes[f"{pixels}.transformer.level_embed"] = (levels, DIM)
    for layer in range(encoder_layers):
        key = f"{pixels}.transformer.encoder.layers.{layer}"
        shapes |= deformable_attention(f"{key}.self_attn", levels) | feed_forward(key, ffn_dim, norms=2)
    shapes |= {f"{pixels}.adapter_1.weight": (DIM, channels[0], 1, 1), f"{pixels}.layer_1.weight": (DIM, DIM, 3, 3)}
    shapes |= norm(f"{pixels}.adapter_1.norm", DIM) | norm(f"{pixels}.layer_1.norm", DIM)
    shapes |= linear(f"{pixels}.mask_features", DIM, DIM, 1, 1)

    shapes |= linear(f"{queries}.enc_output", DIM, DIM) | norm(f"{queries}.enc_output_norm", DIM)
    shapes |= linear(f"{queries}.class_embed", classes, DIM) | {f"{queries}.label_enc.weight": (classes, DIM)}
    shapes |= mlp(f"{queries}.mask_embed", DIM, DIM, DIM, DIM) | norm(f"{queries}.decoder_norm", DIM)
    for layer in range(decoder_layers):
        key = f"{queries}.decoder.layers.{layer}"
        shapes |= {f"{key}.self_attn.in_proj_weight": (3 * DIM, DIM), f"{key}.self_attn.in_proj_bias": (3 * DIM,)}
        shapes |= linear(f"{key}.self_attn.out_proj", DIM, DIM)
        shapes |= deformable_attention(f"{key}.cross_attn", levels) | feed_forward(key, ffn_dim, norms=3)
        for part in (queries, f"{queries}.decoder"):
            shapes |= mlp(f"{part}.bbox_embed.{layer}", DIM, DIM, DIM, 4)
    shapes |= mlp(f"{queries}._bbox_embed", DIM, DIM, DIM, 4) | norm(f"{queries}.decoder.norm", DIM)
    return shapes | mlp(f"{queries}.decoder.ref_point_head", 2 * DIM, DIM, DIM)


def norm(key: str, width: int, numbers: int = 2) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")[:numbers]
    return {f"{key}.{name}": (width,) for name in names}


def linear(key: str, *shape: int) -> Shapes:
    return {f"{key}.weight": shape, f"{key}.bias": shape[:1]}


def mlp(key: str, *widths: int) -> Shapes:
    layers = enumerate(pairwise(widths))
    return {k: v for n, (a, b) in layers for k, v in linear(f"{key}.layers.{n}", b, a).items()}


def deformable_attention(key: str, levels: int) -> Shapes:
    samples = HEADS * levels * POINTS
    sizes = {"sampling_offsets": 2 * samples, "attention_weights": samples, "value_proj": DIM, "output_proj": DIM}
    return {k: v for name, rows in sizes.items() for k, v in linear(f"{key}.{name}", rows, DIM).items()}


def feed_forward(key: str, width: int, norms: int) -> Shapes:
    shapes = linear(f"{key}.linear1", width, DIM) | linear(f"{key}.linear2", DIM, width)
    return shapes | {k: v for n in range(norms) for k, v in norm(f"{key}.norm{n + 1}", DIM).items()}


def shared_with(key: str) -> str:
    """The key of the part that the original shares with this one, or the key itself."""
    queries = "sem_seg_head.predictor"
    if key.startswith(f"{queries}.decoder.norm."):
        return key.replace(".decoder.norm.", ".decoder_norm.")
    if ".bbox_embed." in key:
        return f"{queries}._bbox_embed.layers.{key.split('.layers.')[-1]}"
    return key


def random_checkpoint(shapes: Shapes) -> dict[str, Tensor]:
    """Random weights with which every part matters: nothing begins at zero, and no state explodes."""
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        value = Tensor(*shape) if shape else Tensor()
        if key.endswith("running_var"):
            init.uniform_(value, 0.5, 1.5)
        elif key.endswith("weight") and "norm" in key.split(".")[-2]:
            init.normal_(value, mean=1.0, std=0.2)
        elif len(shape) == 1 or key.endswith("bias_table"):
            init.normal_(value, std=0.3)
        else:
            init.normal_(value, std=(1.0 / value[0].numel()) ** 0.5)
        state[key] = value
    return {key: state[shared_with(key)] for key in state}
