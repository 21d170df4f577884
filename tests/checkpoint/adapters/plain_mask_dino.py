"""Mask DINO's forward pass written once more, plainly, from its checkpoint's tensors; for images without padding."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask_dino_keys import HEADS, POINTS

State = dict[str, Tensor]
PIXELS, QUERIES = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"


def resnet(state: State, images: Tensor, stride_in_first: bool = False) -> list[Tensor]:
    """Maps of strides 4 to 32. A stage's stride is in the first or the second convolution of its first block."""

    def convolve(x: Tensor, key: str, stride: int = 1) -> Tensor:
        weight = state[f"{key}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, scale, shift = (
            state[f"{key}.norm.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = F.max_pool2d(convolve(images, "backbone.stem.conv1", 2).relu(), 3, stride=2, padding=1)
    maps = []
    for stage in range(2, 6):
        block = 0
        while f"backbone.res{stage}.{block}.conv1.weight" in state:
            key = f"backbone.res{stage}.{block}"
            stride = 2 if block == 0 and stage > 2 else 1
            shortcut = convolve(x, f"{key}.shortcut", stride) if block == 0 else x
            first, second = (stride, 1) if stride_in_first else (1, stride)
            inner = convolve(convolve(x, f"{key}.conv1", first).relu(), f"{key}.conv2", second).relu()
            x, block = (convolve(inner, f"{key}.conv3") + shortcut).relu(), block + 1
        maps.append(x)
    return maps


def swin(state: State, images: Tensor, heads: tuple[int, ...], window: int) -> list[Tensor]:
    """Maps of strides 4 to 32, of images whose maps are whole windows."""
    x = F.conv2d(images, state["backbone.patch_embed.proj.weight"], state["backbone.patch_embed.proj.bias"], stride=4)
    x = _norm(state, "backbone.patch_embed.norm", x.permute(0, 2, 3, 1))
    maps = []
    for stage, number in enumerate(heads):
        block = 0
        while f"backbone.layers.{stage}.blocks.{block}.norm1.weight" in state:
            key, shift = f"backbone.layers.{stage}.blocks.{block}", block % 2 * (window // 2)
            x = x + _window_attention(state, f"{key}.attn", _norm(state, f"{key}.norm1", x), number, window, shift)
            inner = F.gelu(_linear(state, f"{key}.mlp.fc1", _norm(state, f"{key}.norm2", x)))
            x, block = x + _linear(state, f"{key}.mlp.fc2", inner), block + 1
        maps.append(_norm(state, f"backbone.norm{stage}", x).permute(0, 3, 1, 2))
        if stage + 1 < len(heads):
            quarters = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
            key = f"backbone.layers.{stage}.downsample"
            x = F.linear(_norm(state, f"{key}.norm", quarters), state[f"{key}.reduction.weight"])
    return maps


def _window_attention(state: State, key: str, x: Tensor, heads: int, window: int, shift: int) -> Tensor:
    """Every pair of pixels of a window by itself: slow, and without the tricks of rolled maps."""
    B, H, W, C = x.shape
    q, k, v = _linear(state, f"{key}.qkv", x).unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5)  # [B,h,H,W,D]
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    # A shifted grid of windows begins `shift` pixels from the border, and its windows end at the image's borders.
    cells = (rows + window - shift) // window * 10**4 + (columns + window - shift) // window
    together = cells[:, None] == cells[None]
    down, right = rows[:, None] - rows[None], columns[:, None] - columns[None]
    index = (down + window - 1) * (2 * window - 1) + right + window - 1
    table = state[f"{key}.relative_position_bias_table"]
    bias = table[index.clamp(0, len(table) - 1)].permute(2, 0, 1)  # [h,S,S]
    q, k, v = (part.flatten(2, 3) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    out = scores.masked_fill(~together, -math.inf).softmax(-1) @ v
    return _linear(state, f"{key}.proj", out.transpose(1, 2).reshape(B, H, W, C))


def region_network(state: State, maps: list[Tensor], count: int, mask_boxes: str) -> dict[str, Tensor]:
    """The predictions of the last layer for the `count` best queries.

    Args:
        maps: of the backbone, finest first.
        mask_boxes: INITIALIZE_BOX_TYPE, "no", "bitmask" or "mask2box".
    Returns:
        class logits [B,O,K], boxes [B,O,4] and mask logits [B,O,h,w].
    """
    levels = len(state[f"{PIXELS}.transformer.level_embed"])
    scales = [
        F.group_norm(_conv(state, f"{PIXELS}.input_proj.{n}.0", x), 32, *_affine(state, f"{PIXELS}.input_proj.{n}.1"))
        for n, x in enumerate(maps[-levels + 1 :])
    ]
    last = F.conv2d(maps[-1], *_affine(state, f"{PIXELS}.input_proj.{levels - 1}.0"), stride=2, padding=1)
    scales.append(F.group_norm(last, 32, *_affine(state, f"{PIXELS}.input_proj.{levels - 1}.1")))
    scales = _encode(state, scales)
    lateral = F.conv2d(maps[0], state[f"{PIXELS}.adapter_1.weight"])
    lateral = F.group_norm(lateral, 32, *_affine(state, f"{PIXELS}.adapter_1.norm"))
    finest = lateral + F.interpolate(scales[0], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
    smooth = F.conv2d(finest, state[f"{PIXELS}.layer_1.weight"], padding=1)
    smooth = F.group_norm(smooth, 32, *_affine(state, f"{PIXELS}.layer_1.norm")).relu()
    return _decode(state, scales[::-1], _conv(state, f"{PIXELS}.mask_features", smooth), count, mask_boxes)


def _encode(state: State, scales: list[Tensor]) -> list[Tensor]:
    shapes = [x.shape[-2:] for x in scales]
    positions = []
    for (height, width), embedding in zip(shapes, state[f"{PIXELS}.transformer.level_embed"], strict=True):
        y, x = (torch.arange(1, size + 1) / size for size in (height, width))
        encoded = (_sines(y)[:, None].expand(-1, width, -1), _sines(x)[None].expand(height, -1, -1))
        positions.append(torch.cat(encoded, -1).flatten(0, 1) + embedding)
    centres = torch.cat([_centres(*shape) for shape in shapes])
    tokens, position = torch.cat([x.flatten(2).transpose(1, 2) for x in scales], 1), torch.cat(positions)
    layer = 0
    while f"{(key := f'{PIXELS}.transformer.encoder.layers.{layer}')}.norm1.weight" in state:
        attended = _deformable(
            state, f"{key}.self_attn", tokens + position, centres.expand(len(tokens), -1, -1), tokens, shapes
        )
        tokens = _norm(state, f"{key}.norm1", tokens + attended)
        tokens, layer = _feed_forward(state, key, tokens, "norm2"), layer + 1
    split = tokens.split([h * w for h, w in shapes], dim=1)
    return [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(split, shapes, strict=True)]


def _decode(state: State, scales: list[Tensor], pixels: Tensor, count: int, mask_boxes: str) -> dict[str, Tensor]:
    """Args: scales, from the coarsest on; pixels, the pixel embeddings."""
    shapes = [x.shape[-2:] for x in scales]
    memory = torch.cat([x.flatten(2).transpose(1, 2) for x in scales], 1)
    centres = torch.cat([_centres(*shape) for shape in shapes])
    sides = torch.cat([torch.full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(shapes)])
    anchors = torch.cat((centres, sides), -1)
    inside = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
    start = torch.where(inside, torch.log(anchors / (1 - anchors)), math.inf)
    tokens = _norm(state, f"{QUERIES}.enc_output_norm", _linear(state, f"{QUERIES}.enc_output", memory * inside))
    best = _linear(state, f"{QUERIES}.class_embed", tokens).amax(-1).topk(count, dim=1).indices[..., None]
    boxes = (_mlp(state, f"{QUERIES}._bbox_embed", tokens) + start).gather(1, best.expand(-1, -1, 4)).sigmoid()
    states = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
    if mask_boxes != "no":
        boxes = _boxes_of(_masks(state, states, pixels) > 0, mask_boxes)
        boxes = _logits(boxes).sigmoid()
    reference = boxes
    layer = 0
    while f"{(key := f'{QUERIES}.decoder.layers.{layer}')}.norm1.weight" in state:
        x, y, w, h = (_sines(coordinate) for coordinate in reference.unbind(-1))
        position = _mlp(state, f"{QUERIES}.decoder.ref_point_head", torch.cat((y, x, w, h), -1))
        placed = (states + position).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            placed,
            placed,
            states.transpose(0, 1),
            states.shape[-1],
            HEADS,
            state[f"{key}.self_attn.in_proj_weight"],
            state[f"{key}.self_attn.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            *_affine(state, f"{key}.self_attn.out_proj"),
            training=False,
        )
        states = _norm(state, f"{key}.norm2", states + attended.transpose(0, 1))
        attended = _deformable(state, f"{key}.cross_attn", states + position, reference, memory, shapes)
        states = _feed_forward(state, key, _norm(state, f"{key}.norm1", states + attended), "norm3")
        normed = _norm(state, f"{QUERIES}.decoder_norm", states)
        boxes = (_mlp(state, f"{QUERIES}._bbox_embed", normed) + _logits(reference)).sigmoid()
        reference = (_mlp(state, f"{QUERIES}._bbox_embed", states) + _logits(reference)).sigmoid()
        layer += 1
    # The decoder has normalised its states, and these two heads do so once more.
    twice = _norm(state, f"{QUERIES}.decoder_norm", normed)
    return {
        "classes": _linear(state, f"{QUERIES}.class_embed", twice),
        "boxes": boxes,
        "masks": _masks(state, normed, pixels),
    }


def _masks(state: State, states: Tensor, pixels: Tensor) -> Tensor:
    embeddings = _mlp(state, f"{QUERIES}.mask_embed", _norm(state, f"{QUERIES}.decoder_norm", states))
    return torch.einsum("bqd,bdhw->bqhw", embeddings, pixels)


def _boxes_of(inside: Tensor, mask_boxes: str) -> Tensor:
    boxes = torch.zeros(*inside.shape[:2], 4)
    height, width = inside.shape[-2:]
    for image, query in torch.cartesian_prod(*(torch.arange(size) for size in inside.shape[:2])):
        rows, columns = inside[image, query].nonzero(as_tuple=True)
        if len(rows) == 0:
            boxes[image, query] = Tensor([0, 0, 0, 0] if mask_boxes == "bitmask" else [1, 1, 0, 0])
            continue
        behind = 1 if mask_boxes == "bitmask" else 0
        x0, x1, y0, y1 = columns.min(), columns.max() + behind, rows.min(), rows.max() + behind
        box = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))
        boxes[image, query] = box / torch.tensor([width, height, width, height])
    return boxes


def _deformable(state: State, key: str, queries: Tensor, reference: Tensor, memory: Tensor, shapes: list) -> Tensor:
    """Args: reference [B,Q,2] or [B,Q,4], the same in all scales."""
    B, Q, C = queries.shape
    value = _linear(state, f"{key}.value_proj", memory).unflatten(-1, (HEADS, -1))
    offsets = _linear(state, f"{key}.sampling_offsets", queries).view(B, Q, HEADS, len(shapes), POINTS, 2)
    weights = _linear(state, f"{key}.attention_weights", queries).view(B, Q, HEADS, -1).softmax(-1)
    weights = weights.view(B, Q, HEADS, len(shapes), POINTS)
    output, first = torch.zeros(B, Q, HEADS, C // HEADS), 0
    for level, (height, width) in enumerate(shapes):
        unit = 1 / torch.tensor([width, height])
        if reference.shape[-1] == 4:
            unit = reference[:, :, None, None, 2:] / POINTS / 2
        places = reference[:, :, None, None, :2] + offsets[:, :, :, level] * unit  # [B,Q,HEADS,POINTS,2]
        here = value[:, first : first + height * width].permute(0, 2, 3, 1).unflatten(3, (height, width))
        first += height * width
        for head in range(HEADS):
            samples = F.grid_sample(here[:, head], 2 * places[:, :, head] - 1, align_corners=False)  # [B,D,Q,POINTS]
            output[:, :, head] += (samples * weights[:, None, :, head, level]).sum(-1).transpose(1, 2)
    return _linear(state, f"{key}.output_proj", output.flatten(2))


def _centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1)


def _sines(coordinates: Tensor, width: int = 128) -> Tensor:
    angles = [coordinates * 2 * math.pi / 10000 ** (2 * n / width) for n in range(width // 2)]
    return torch.stack([f(angle) for angle in angles for f in (torch.sin, torch.cos)], -1)


def _logits(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


def _feed_forward(state: State, key: str, x: Tensor, norm: str) -> Tensor:
    return _norm(
        state, f"{key}.{norm}", x + _linear(state, f"{key}.linear2", _linear(state, f"{key}.linear1", x).relu())
    )


def _mlp(state: State, key: str, x: Tensor) -> Tensor:
    layer = 0
    while f"{key}.layers.{layer}.weight" in state:
        x = _linear(state, f"{key}.layers.{layer}", x.relu() if layer else x)
        layer += 1
    return x


def _affine(state: State, key: str) -> tuple[Tensor, Tensor]:
    return state[f"{key}.weight"], state[f"{key}.bias"]


def _linear(state: State, key: str, x: Tensor) -> Tensor:
    return F.linear(x, *_affine(state, key))


def _conv(state: State, key: str, x: Tensor) -> Tensor:
    return F.conv2d(x, *_affine(state, key))


def _norm(state: State, key: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *_affine(state, key))
