"""The Triton kernel of an optimizer's step. `fused_step` launches it.

A program updates a chunk of one parameter. Where the chunk's numbers lie in memory is a row of a table, so that one
launch serves all parameters, whatever their sizes and groups. Each number is read once and written once.
"""

import triton
import triton.language as tl


@triton.jit
def _floats(address, ALIGNED: tl.constexpr):
    """An address as a pointer; with ALIGNED it is a multiple of 16 bytes, so that four numbers are one access."""
    pointer = address.to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def step_kernel(
    chunks,  # [programs,5+DRAWS] int64: count, group, addresses of parameter, m, n, and of each draw's gradient or 0
    settings,  # [groups,5+2*DRAWS]: beta1, beta2, decay, eps, step; of each draw the factors of its g and g²
    DRAWS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = chunks + tl.program_id(0) * (5 + DRAWS)
    count = tl.load(row)
    own = settings + tl.load(row + 1) * (5 + 2 * DRAWS)
    parameter = _floats(tl.load(row + 2), ALIGNED)
    first = _floats(tl.load(row + 3), ALIGNED)
    second = _floats(tl.load(row + 4), ALIGNED)
    beta1 = tl.load(own)
    beta2 = tl.load(own + 1)
    decay = tl.load(own + 2)
    eps = tl.load(own + 3)
    step = tl.load(own + 4)
    for start in range(0, count, BLOCK):
        places = start + tl.arange(0, BLOCK)
        here = places < count
        m = tl.load(first + places, mask=here, other=0.0) * beta1
        n = tl.load(second + places, mask=here, other=0.0) * beta2
        for draw in tl.static_range(DRAWS):
            address = tl.load(row + 5 + draw)
            g = tl.load(_floats(address, ALIGNED) + places, mask=here & (address != 0), other=0.0)
            m += g * tl.load(own + 5 + 2 * draw)
            n += g * g * tl.load(own + 6 + 2 * draw)
        x = tl.load(parameter + places, mask=here, other=0.0) * decay
        tl.store(first + places, m, mask=here)
        tl.store(second + places, n, mask=here)
        tl.store(parameter + places, x - step * (m / (tl.sqrt(n) + eps)), mask=here)
