"""Triton kernels of multi-scale deformable attention. `deformable_attention_triton` launches them.

A program works on one head of one image, for BLOCK_Q neighbouring queries. Neighbouring queries sample neighbouring
pixels and so share cache lines. Tiles are [BLOCK_Q, BLOCK_D]; numbers of a query are [BLOCK_Q, 1]. The D channels of a
head are contiguous and spread over the lanes of a warp, so that a corner of a pixel cell is one wide load.

Arithmetic is in COMPUTE (float32, or float64 for a float64 input). Offsets within an image have 32 bits;
`triton_applies` checks that this is enough. Offsets of images have 64 bits. The loop over the points of a scale is
unrolled, so that their loads overlap. The loop over scales is not, which keeps the code small.
"""

import triton
import triton.language as tl


@triton.jit
def _cell(place, height, width, here, COMPUTE: tl.constexpr):
    """The pixel cell around a location.

    Returns the cell's first row and column, the location's offset (y, x) in the cell, and four flags: whether the first
    row, second row, first column and second column lie on the map. The flags of the rows are False if the location is
    too far from the map to touch a pixel."""
    x = tl.load(place, mask=here, other=0.0).to(COMPUTE) * width - 0.5
    y = tl.load(place + 1, mask=here, other=0.0).to(COMPUTE) * height - 0.5
    # Locations that are far away, infinite or NaN touch no pixel. Replacing them by zero keeps later numbers finite.
    near = here & (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x = tl.where(near, x, 0.0)
    y = tl.where(near, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    row = top.to(tl.int32)
    column = left.to(tl.int32)
    return row, column, y - top, x - left, near & (row >= 0), near & (row < height - 1), column >= 0, column < width - 1


@triton.jit
def forward_kernel(
    value,  # [B,S,H,D]
    scales,  # [L,3] int32: height, width, first token
    locations,  # [B,Q,H,L,P,2]
    attention,  # [B,Q,H,L,P]
    output,  # [B,Q,H,D]
    S,
    Q,
    H: tl.constexpr,
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    channels = tl.arange(0, BLOCK_D)[None, :]
    here = queries < Q
    wide = channels < D
    samples = image * Q * H * (LEVELS * POINTS) + (queries * H + head) * (LEVELS * POINTS)
    value += (image * S * H + head) * D

    total = tl.zeros((BLOCK_Q, BLOCK_D), COMPUTE)
    for level in range(LEVELS):
        height = tl.load(scales + 3 * level)
        width = tl.load(scales + 3 * level + 1)
        start = tl.load(scales + 3 * level + 2)
        for point in tl.static_range(POINTS):
            sample = samples + level * POINTS + point
            weight = tl.load(attention + sample, mask=here, other=0.0).to(COMPUTE)
            row, column, fy, fx, upper, lower, left, right = _cell(locations + 2 * sample, height, width, here, COMPUTE)
            above = value + (start + row * width + column) * (H * D) + channels
            below = above + width * (H * D)
            v00 = tl.load(above, mask=upper & left & wide, other=0.0).to(COMPUTE)
            v01 = tl.load(above + H * D, mask=upper & right & wide, other=0.0).to(COMPUTE)
            v10 = tl.load(below, mask=lower & left & wide, other=0.0).to(COMPUTE)
            v11 = tl.load(below + H * D, mask=lower & right & wide, other=0.0).to(COMPUTE)
            total += v00 * (weight * (1 - fy) * (1 - fx)) + v01 * (weight * (1 - fy) * fx)
            total += v10 * (weight * fy * (1 - fx)) + v11 * (weight * fy * fx)

    output += image * Q * H * D + (queries * H + head) * D + channels
    tl.store(output, total.to(output.dtype.element_ty), mask=here & wide)


@triton.jit
def _visit(corner, grad_corner, inside, weight, gradient):
    """Adds weight · gradient to the gradient of a corner's value; returns the dot product of gradient and value."""
    tl.atomic_add(grad_corner, (gradient * weight).to(grad_corner.dtype.element_ty), mask=inside, sem="relaxed")
    channels = tl.load(corner, mask=inside, other=0.0).to(gradient.dtype)
    return tl.sum(channels * gradient, axis=1, keep_dims=True)


@triton.jit
def backward_kernel(
    value,  # [B,S,H,D]
    scales,  # [L,3] int32: height, width, first token
    locations,  # [B,Q,H,L,P,2]
    attention,  # [B,Q,H,L,P]
    grad_output,  # [B,Q,H,D]
    grad_value,  # [B,S,H,D], zeros; float32 or float64
    grad_locations,
    grad_attention,
    S,
    Q,
    H: tl.constexpr,
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    channels = tl.arange(0, BLOCK_D)[None, :]
    points = tl.arange(0, BLOCK_P)[None, :]
    here = queries < Q
    wide = channels < D
    samples = image * Q * H * (LEVELS * POINTS) + (queries * H + head) * (LEVELS * POINTS)
    value += (image * S * H + head) * D
    grad_value += (image * S * H + head) * D
    grad_output += image * Q * H * D + (queries * H + head) * D + channels
    gradient = tl.load(grad_output, mask=here & wide, other=0.0).to(COMPUTE)

    for level in range(LEVELS):
        height = tl.load(scales + 3 * level)
        width = tl.load(scales + 3 * level + 1)
        start = tl.load(scales + 3 * level + 2)
        # The gradients of all points of a scale are stored at once. Single stores would each use shared memory.
        grads_weight = tl.zeros((BLOCK_Q, BLOCK_P), COMPUTE)
        grads_x = tl.zeros((BLOCK_Q, BLOCK_P), COMPUTE)
        grads_y = tl.zeros((BLOCK_Q, BLOCK_P), COMPUTE)
        for point in tl.static_range(POINTS):
            sample = samples + level * POINTS + point
            weight = tl.load(attention + sample, mask=here, other=0.0).to(COMPUTE)
            row, column, fy, fx, upper, lower, left, right = _cell(locations + 2 * sample, height, width, here, COMPUTE)
            offset = (start + row * width + column) * (H * D) + channels
            v, g = value + offset, grad_value + offset
            dot00 = _visit(v, g, upper & left & wide, weight * (1 - fy) * (1 - fx), gradient)
            dot01 = _visit(v + H * D, g + H * D, upper & right & wide, weight * (1 - fy) * fx, gradient)
            v, g = v + width * (H * D), g + width * (H * D)
            dot10 = _visit(v, g, lower & left & wide, weight * fy * (1 - fx), gradient)
            dot11 = _visit(v + H * D, g + H * D, lower & right & wide, weight * fy * fx, gradient)

            above = (1 - fx) * dot00 + fx * dot01
            below = (1 - fx) * dot10 + fx * dot11
            grad_x = weight * width * ((1 - fy) * (dot01 - dot00) + fy * (dot11 - dot10))
            grads_weight = tl.where(points == point, (1 - fy) * above + fy * below, grads_weight)
            grads_x = tl.where(points == point, grad_x, grads_x)
            grads_y = tl.where(points == point, weight * height * (below - above), grads_y)

        level_samples = samples + level * POINTS + points
        stored = here & (points < POINTS)
        tl.store(grad_attention + level_samples, grads_weight.to(grad_attention.dtype.element_ty), mask=stored)
        tl.store(grad_locations + 2 * level_samples, grads_x.to(grad_locations.dtype.element_ty), mask=stored)
        tl.store(grad_locations + 2 * level_samples + 1, grads_y.to(grad_locations.dtype.element_ty), mask=stored)
