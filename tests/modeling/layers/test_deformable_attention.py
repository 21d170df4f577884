"""Deformable attention compared with Hugging Face's, in both of its forms: sparse products (CPU) and grid_sample."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
    MultiScaleDeformableAttention,
)

from uniperceiver_v2.modeling.layers import (
    DeformableAttention,
    deformable_attention,
    deformable_attention_cpu,
    multi_scale_deformable_attention,
)

# Edges, pixel centres and places outside of the image, which random numbers rarely hit.
SPECIAL_PLACES = torch.tensor([0.0, 1.0, 0.5, -0.25, 1.25, -3.0, 100.0], dtype=torch.float64)


def random_inputs(batch, queries, heads, width, shapes, points, seed=0, dtype=torch.float64):
    """Random value, locations and attention. A third of the locations are special."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    tokens = sum(h * w for h, w in shapes)
    location_shape = (batch, queries, heads, len(shapes), points, 2)
    locations = random(*location_shape) * 2 - 0.5
    special = SPECIAL_PLACES[torch.randint(len(SPECIAL_PLACES), location_shape, generator=generator)]
    locations = torch.where(random(*location_shape) < 1 / 3, special, locations)
    attention = random(batch, queries, heads, len(shapes) * points).softmax(-1)
    value = random(batch, tokens, heads, width) - 0.5
    return [x.to(dtype) for x in (value, locations, attention.unflatten(-1, (len(shapes), points)))]


def hugging_face(value, shapes, locations, attention):
    return MultiScaleDeformableAttention()(value, torch.tensor(shapes), shapes, None, locations, attention, 64)


def by_hand(value, shapes, locations, attention):
    """Deformable DETR's equation 3, sample by sample."""
    output = torch.zeros(*locations.shape[:3], value.shape[-1], dtype=value.dtype)
    for b, q, h, level, p in torch.cartesian_prod(*map(torch.arange, locations.shape[:5])).tolist():
        height, width = shapes[level]
        start = sum(a * b for a, b in shapes[:level])
        grid = value[b, start : start + height * width, h].view(height, width, -1)
        x, y = (locations[b, q, h, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in range(height):
            for column in range(width):
                weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                output[b, q, h] += attention[b, q, h, level, p] * weight * grid[row, column]
    return output.flatten(2)


sizes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)
dimensions = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 5))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(dimensions, sizes, st.integers(1, 3), st.integers(0, 1000))
def test_values_and_gradients_equal_hugging_faces(dims, shapes, points, seed):
    inputs = random_inputs(*dims, shapes, points, seed)
    with torch.no_grad():
        gathered = multi_scale_deformable_attention(inputs[0], shapes, *inputs[1:])
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.clone().requires_grad_() for x in inputs]
    output = multi_scale_deformable_attention(ours[0], shapes, *ours[1:])
    expected = hugging_face(theirs[0], shapes, *theirs[1:])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gathered, expected.detach())

    weight = torch.rand_like(expected)
    gradients = torch.autograd.grad((output * weight).sum(), ours)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), theirs)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("grad", [True, False])
def test_values_equal_the_plain_formula(grad):
    shapes = [(3, 4), (1, 2)]
    value, locations, attention = random_inputs(2, 3, 2, 3, shapes, 2)
    with torch.set_grad_enabled(grad):
        output = multi_scale_deformable_attention(value, shapes, locations, attention)
    torch.testing.assert_close(output, by_hand(value, shapes, locations, attention))


def test_gradients_by_finite_differences():
    shapes = [(2, 3), (1, 2)]
    value, _, attention = random_inputs(1, 2, 2, 2, shapes, 2)
    locations = torch.rand(1, 2, 2, 2, 2, 2, dtype=torch.float64) * 1.4 - 0.2  # clear of the kinks at pixel centres
    inputs = [x.clone().requires_grad_() for x in (value, locations, attention)]
    assert torch.autograd.gradcheck(
        lambda value, places, weights: multi_scale_deformable_attention(value, shapes, places, weights), inputs
    )


@pytest.mark.parametrize("grad", [True, False])
def test_single_precision_and_noncontiguous_values(grad):
    shapes = [(5, 3), (2, 2)]
    value, locations, attention = random_inputs(2, 4, 3, 4, shapes, 2, dtype=torch.float32)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3)
    with torch.set_grad_enabled(grad):
        output = multi_scale_deformable_attention(strided, shapes, locations, attention)
    torch.testing.assert_close(output, hugging_face(value, shapes, locations, attention))


@pytest.mark.parametrize("queries", [3, 200])  # fewer samples than rows, and more: two ways to the value's gradient
def test_many_small_parts_give_the_same(monkeypatch, queries):
    shapes = [(6, 5), (3, 1), (1, 4), (1, 1)]
    inputs = random_inputs(3, queries, 2, 3, shapes, 2)
    monkeypatch.setattr(deformable_attention_cpu, "SAMPLES_AT_ONCE", 50)
    monkeypatch.setattr(deformable_attention_cpu, "SAMPLES_SORTED_AT_ONCE", queries * 40)

    def outcome(call):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = call(leaves[0], shapes, *leaves[1:])
        return output.detach(), torch.autograd.grad(output.square().sum(), leaves)

    torch.testing.assert_close(outcome(multi_scale_deformable_attention), outcome(hugging_face))


def test_grid_sample_gives_the_same_where_there_is_no_sparse_product():
    shapes = [(4, 3), (2, 2)]
    value, locations, attention = random_inputs(2, 5, 3, 4, shapes, 2)
    torch.testing.assert_close(
        deformable_attention._sample_by_grid(value, shapes, locations, attention),
        multi_scale_deformable_attention(value, shapes, locations, attention),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_single_precision(dtype):
    """Under autocast only the value has half precision. Its rounding is the only error."""
    shapes = [(5, 3), (2, 2)]
    value, locations, attention = random_inputs(2, 6, 2, 4, shapes, 2, dtype=torch.float32)
    rough = value.to(dtype)

    def outcome(value):
        leaves = [x.clone().requires_grad_() for x in (value, locations, attention)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = multi_scale_deformable_attention(leaves[0], shapes, *leaves[1:])
        return output, torch.autograd.grad(output.sum(), leaves)

    output, gradients = outcome(rough)
    expected, expected_gradients = outcome(rough.float())
    assert output.dtype == gradients[0].dtype == dtype
    torch.testing.assert_close(output, expected.to(dtype))
    torch.testing.assert_close(gradients[0], expected_gradients[0].to(dtype))
    torch.testing.assert_close(gradients[1:], expected_gradients[1:])


def test_a_location_that_is_not_a_number_shows_and_breaks_nothing():
    shapes = [(3, 4), (1, 2), (2, 1)]
    value, locations, attention = random_inputs(2, 3, 2, 3, shapes, 2)
    expected = multi_scale_deformable_attention(value, shapes, locations, attention)
    locations[1, 2, 0] = torch.nan
    locations[0, 1, 1] = torch.inf
    value.requires_grad_()
    output = multi_scale_deformable_attention(value, shapes, locations, attention)
    output.sum().backward()
    assert output[1, 2, :3].isnan().all()
    assert (output[0, 1, 3:] == 0).all()
    torch.testing.assert_close(output[0, 0], expected[0, 0])


def test_a_second_derivative_is_refused():
    value, locations, attention = random_inputs(1, 2, 1, 2, [(2, 3)], 1)
    value.requires_grad_()
    output = multi_scale_deformable_attention(value, [(2, 3)], locations, attention)
    (gradient,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_shapes_that_do_not_cover_the_tokens_are_refused():
    value, locations, attention = random_inputs(1, 1, 1, 2, [(2, 3)], 1)
    with pytest.raises(ValueError, match="6 tokens"):
        multi_scale_deformable_attention(value, [(2, 2)], locations, attention)


@pytest.fixture
def modules():
    """Ours and Hugging Face's with the same random weights, at 3 scales."""
    config = DeformableDetrConfig(d_model=16, num_feature_levels=3)
    theirs = DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=2).double()
    ours = DeformableAttention(dim=16, heads=4, levels=3, points=2).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_module_equals_hugging_faces(modules, coordinates, masked):
    ours, theirs = modules
    shapes = [(5, 4), (3, 2), (1, 1)]
    queries, memory = torch.randn(2, 6, 16, dtype=torch.float64), torch.randn(2, 27, 16, dtype=torch.float64)
    references = torch.rand(2, 6, 3, coordinates, dtype=torch.float64)
    valid = torch.rand(2, 27) < 0.7 if masked else None

    def outcome(module, call):
        inputs = [x.clone().requires_grad_() for x in (queries, references, memory)]
        module.zero_grad()
        output = call(*inputs)
        output.square().sum().backward()
        parameters = {name: p.grad.clone() for name, p in module.named_parameters()}
        return output.detach(), [x.grad for x in inputs], parameters

    found = outcome(ours, lambda q, r, m: ours(q, r, m, shapes, valid))
    expected = outcome(
        theirs,
        lambda q, r, m: theirs(
            hidden_states=q,
            attention_mask=valid,
            encoder_hidden_states=m,
            reference_points=r,
            spatial_shapes=torch.tensor(shapes),
            spatial_shapes_list=shapes,
        )[0],
    )
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(queries, references, memory, shapes, valid), expected[0])


def test_padding_counts_as_zero_whatever_it_holds(modules):
    ours, _ = modules
    shapes = [(3, 3), (2, 2), (1, 1)]
    queries, memory = torch.randn(1, 4, 16, dtype=torch.float64), torch.randn(1, 14, 16, dtype=torch.float64)
    references = torch.rand(1, 4, 3, 2, dtype=torch.float64)
    valid = torch.ones(1, 14, dtype=torch.bool)
    valid[0, 6:9] = False
    other = torch.where(valid.unsqueeze(-1), memory, torch.full_like(memory, 1e3))
    torch.testing.assert_close(
        ours(queries, references, memory, shapes, valid), ours(queries, references, other, shapes, valid)
    )


def test_a_model_first_used_in_inference_mode_can_be_trained():
    module = DeformableAttention(dim=8, heads=2, levels=1, points=1)
    shapes = [(2, 7)]  # of no other test: what is kept of shapes is made in inference mode
    tokens, references = torch.randn(1, 14, 8), torch.rand(1, 14, 1, 2)
    with torch.inference_mode():
        expected = module(tokens, references, tokens, shapes)
    output = module(tokens, references, tokens, shapes)
    torch.testing.assert_close(output.detach(), expected.clone())
    output.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_at_the_start_each_head_looks_in_its_own_direction():
    module = DeformableAttention(dim=8, heads=4, levels=2, points=3)
    offsets = module.sampling_offsets(torch.randn(8)).view(4, 2, 3, 2)
    right, down, left, up = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for head, direction in enumerate((right, down, left, up)):
        for point in range(3):
            torch.testing.assert_close(
                offsets[head, :, point], (direction * (point + 1)).expand(2, 2), atol=1e-6, rtol=0
            )
    torch.testing.assert_close(module.attention_weights(torch.randn(8)), torch.zeros(24))


def test_width_must_be_a_multiple_of_the_heads():
    with pytest.raises(ValueError, match="10 is not a multiple"):
        DeformableAttention(dim=10, heads=4, levels=1, points=1)
