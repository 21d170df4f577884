"""The Triton kernels of deformable attention compared with the plain formula in float64.

``test_deformable_attention_triton`` runs this file in a separate process, as Triton's interpreter has to be chosen
before Triton is imported. With a GPU it also runs the compiled kernels. Memory that PyTorch allocates without
initialisation contains NaN here, and so does the memory around the inputs.
"""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from uniperceiver_v2.modeling.layers import multi_scale_deformable_attention
from uniperceiver_v2.modeling.layers.deformable_attention_triton import sample_by_triton

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

# Far outside, where nothing is sampled and no gradient flows; infinities and NaN are to do no harm either.
FAR = torch.tensor([1e6, -1e6, 1e30, -3.0, 2.5, math.inf, -math.inf, math.nan], dtype=torch.float64)
# Corners and centres of pixels, where a bilinear sample has kinks.
KINKS = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, -0.125, 1.125], dtype=torch.float64)


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def amid_nan(tensor, margin=64):
    """The same numbers on the device, with NaN in the memory before and after them."""
    buffer = torch.full((tensor.numel() + 2 * margin,), math.nan, dtype=tensor.dtype, device=DEVICE)
    buffer[margin : margin + tensor.numel()] = tensor.flatten().to(DEVICE)
    return buffer[margin : margin + tensor.numel()].view(tensor.shape)


def draw(batch, queries, heads, width, shapes, points, seed=0, special=FAR, dtypes=(torch.float64,) * 3):
    """Random value, locations and attention. A sixth of the coordinates have special values."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    location_shape = (batch, queries, heads, len(shapes), points, 2)
    places = special[torch.randint(len(special), location_shape, generator=generator)]
    locations = torch.where(random(*location_shape) < 1 / 6, places, random(*location_shape) * 1.6 - 0.3)
    value = random(batch, sum(h * w for h, w in shapes), heads, width) - 0.5
    attention = random(batch, queries, heads, len(shapes), points) - 0.3
    return [x.to(dtype) for x, dtype in zip((value, locations, attention), dtypes, strict=True)]


def formula(value, shapes, locations, attention):
    """Deformable DETR's equation 3: every pixel with its bilinear weight, (1 - |x - column|)+ · (1 - |y - row|)+."""
    output = 0.0
    for level, (height, width) in enumerate(shapes):
        start = sum(h * w for h, w in shapes[:level])
        grid = value[:, start : start + height * width].unflatten(1, (height, width))
        x, y = (locations[:, :, :, level] * locations.new_tensor([width, height]) - 0.5).unbind(-1)
        # Without arithmetic on infinities: none of their differences has a gradient.
        x, y = (torch.where(place.abs() < 1e5, place, torch.full_like(place, -1e5)) for place in (x, y))
        columns = (1 - (x.unsqueeze(-1) - torch.arange(width)).abs()).clamp(min=0)
        rows = (1 - (y.unsqueeze(-1) - torch.arange(height)).abs()).clamp(min=0)
        output = output + torch.einsum("bqhp,bqhpr,bqhpc,brchd->bqhd", attention[:, :, :, level], rows, columns, grid)
    return output.flatten(2)


def results(sample, shapes, inputs, seed=0):
    """Output and the three gradients, on the CPU."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = sample(inputs[0], shapes, *inputs[1:])
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(output.shape, generator=generator).to(output)
    return [x.detach().cpu() for x in (output, *torch.autograd.grad(output, inputs, weight))]


def assert_near(found, expected, tolerance):
    """Checks that errors are within a tolerance, relative to the largest expected number."""
    for name, ours, wanted in zip(("output", "value", "locations", "attention"), found, expected, strict=True):
        assert ours.shape == wanted.shape and ours.isfinite().all(), name
        scale = wanted.abs().max().clamp(min=1e-3) if wanted.numel() else 1.0
        error = ((ours.double() - wanted.double()).abs() / scale).max().item() if wanted.numel() else 0.0
        assert error < tolerance, f"{name}: error {error:.1e} of the largest"


def check(tolerance, *sizes, **options):
    shapes = sizes[4]
    inputs = draw(*sizes, **options)
    found = results(sample_by_triton, shapes, [amid_nan(x) for x in inputs])
    assert [x.dtype for x in found] == [inputs[0].dtype, *(x.dtype for x in inputs)]
    assert_near(found, results(formula, shapes, [x.double() for x in inputs]), tolerance)


sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)
dimensions = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 2), st.integers(1, 9))


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(dimensions, sizes, st.integers(1, 2), st.integers(0, 1000))
def test_random_sizes(dims, shapes, points, seed):
    check(1e-10, *dims, shapes, points, seed=seed)


@pytest.mark.parametrize("width", [1, 3, 24, 32, 33])
def test_widths_of_a_head(width):
    check(1e-10, 1, 5, 2, width, [(3, 5), (2, 2)], 1)


def test_more_queries_than_a_block_holds():
    check(1e-10, 1, 67, 2, 32, [(4, 5)], 1)


def test_maps_of_one_pixel():
    check(1e-10, 1, 7, 2, 4, [(1, 1), (1, 1), (1, 4), (3, 1)], 2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("place", [math.inf, -math.inf, math.nan])
def test_one_coordinate_that_is_no_place(place, axis):
    """The other coordinate is in the middle of the map, so that each is checked by itself. Nothing is sampled, and
    gradients are zero."""
    value, locations, attention = draw(2, 3, 2, 4, [(3, 4)], 2, special=KINKS)
    locations[:] = 0.5
    locations[..., axis] = place
    for found in results(sample_by_triton, [(3, 4)], [amid_nan(x) for x in (value, locations, attention)]):
        assert (found == 0).all()


SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    "dtypes, tolerance",
    [
        ((SINGLE,) * 3, 1e-5),
        ((HALF,) * 3, 1e-3),
        ((BRAIN,) * 3, 8e-3),
        ((BRAIN, SINGLE, SINGLE), 8e-3),  # the dtypes of the module under autocast
        ((SINGLE, BRAIN, HALF), 8e-3),
    ],
)
def test_types(dtypes, tolerance):
    check(tolerance, 1, 9, 2, 24, [(5, 6), (3, 2)], 2, dtypes=dtypes)


def test_gradients_of_half_precision_values_add_up_in_single_precision():
    """A thousand queries sample one pixel. In bfloat16 the sum would stop at 256."""
    value = torch.ones(1, 1, 1, 4, dtype=BRAIN, device=DEVICE, requires_grad=True)
    locations = torch.full((1, 1000, 1, 1, 1, 2), 0.5, device=DEVICE)
    sample_by_triton(value, [(1, 1)], locations, torch.ones(1, 1000, 1, 1, 1, device=DEVICE)).sum().backward()
    torch.testing.assert_close(value.grad.float(), torch.full_like(value, 1000.0).float(), rtol=4e-3, atol=0)


def test_kinks_as_in_the_pytorch_form():
    shapes = [(4, 8), (1, 2)]
    inputs = draw(1, 9, 2, 4, shapes, 3, special=KINKS)
    found = results(sample_by_triton, shapes, [amid_nan(x) for x in inputs])
    assert_near(found, results(multi_scale_deformable_attention, shapes, inputs), 1e-10)


def test_strided_inputs_and_gradients():
    shapes = [(3, 4)]
    inputs = draw(2, 4, 2, 5, shapes, 2)
    strided = [x.to(DEVICE).transpose(0, 2).contiguous().transpose(0, 2) for x in inputs]
    assert not any(x.is_contiguous() for x in strided)

    def last_first(sample):
        return lambda *inputs: sample(*inputs).transpose(1, 2)

    found = results(last_first(sample_by_triton), shapes, strided)
    assert_near(found, results(last_first(formula), shapes, inputs), 1e-10)
    summed = [x.requires_grad_() for x in inputs]
    sample_by_triton(*(summed[0].to(DEVICE), shapes, *(x.to(DEVICE) for x in summed[1:]))).sum().backward()  # stride 0
    expected = torch.autograd.grad(formula(inputs[0], shapes, *inputs[1:]).sum(), inputs)
    assert_near([expected[0]] + [x.grad for x in summed], [expected[0], *expected], 1e-10)


@pytest.mark.parametrize("batch, queries, points", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_do(batch, queries, points):
    check(1e-10, batch, queries, 2, 4, [(2, 3)], points)


def test_under_autocast_and_checkpointing():
    shapes = [(4, 3)]
    inputs = draw(1, 6, 2, 8, shapes, 2, dtypes=(BRAIN, SINGLE, SINGLE))
    plain = results(sample_by_triton, shapes, [amid_nan(x) for x in inputs])

    def checkpointed(*inputs):
        with torch.autocast(DEVICE, dtype=BRAIN):
            return checkpoint(sample_by_triton, *inputs, use_reentrant=False)

    assert_near(results(checkpointed, shapes, [amid_nan(x) for x in inputs]), plain, 1e-5)


def test_no_second_derivative():
    inputs = [x.to(DEVICE).requires_grad_() for x in draw(1, 2, 1, 2, [(2, 2)], 1)]
    output = sample_by_triton(inputs[0], [(2, 2)], *inputs[1:])
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
