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
def _update(row, own, places, here, DRAWS: tl.constexpr, ALIGNED: tl.constexpr):
    """Updates the numbers at these places of a chunk; ``here`` masks those behind its end, None for none of them."""
    parameter = _floats(tl.load(row + 2), ALIGNED) + places
    first = _floats(tl.load(row + 3), ALIGNED) + places
    second = _floats(tl.load(row + 4), ALIGNED) + places
    m = tl.load(first, mask=here) * tl.load(own)
    n = tl.load(second, mask=here) * tl.load(own + 1)
    for draw in tl.static_range(DRAWS):
        address = tl.load(row + 5 + draw)
        if address != 0:
            g = tl.load(_floats(address, ALIGNED) + places, mask=here)
            m += g * tl.load(own + 5 + 2 * draw)
            n += g * g * tl.load(own + 6 + 2 * draw)
    x = tl.load(parameter, mask=here) * tl.load(own + 2)
    tl.store(first, m, mask=here)
    tl.store(second, n, mask=here)
    tl.store(parameter, x - tl.load(own + 4) * (m / (tl.sqrt(n) + tl.load(own + 3))), mask=here)


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
    whole = count // BLOCK * BLOCK
    # Without a mask an access is 16 bytes wide.
    for start in range(0, whole, BLOCK):
        _update(row, own, start + tl.arange(0, BLOCK), None, DRAWS, ALIGNED)
    if whole < count:
        places = whole + tl.arange(0, BLOCK)
        _update(row, own, places, places < count, DRAWS, ALIGNED)
