"""Passes as CUDA graphs, with recordings of the CPU in place of a GPU's; `tests/test_gpu.py` has real ones."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import nn
from torch.func import functional_call

from uniperceiver_v2.config.checks import check_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.image_encoder import RegionTargets
from uniperceiver_v2.modeling.image_encoder.captured import MOST, SEEN, CapturedPasses, gradients_of, unchanged_buffers


class Rewriting:
    """A recording whose replays compute again and write into the same places, as a graph does."""

    made = 0

    def __init__(self, network, images):
        type(self).made += 1
        self.network, self.images = network, images.clone()
        self.leaves = {name: p.detach().requires_grad_() for name, p in network.named_parameters() if p.requires_grad}
        with unchanged_buffers(network):
            self._run()
            self.outputs = tuple(x.detach().clone() for x in self._alive)
            self.output_gradients = [torch.zeros_like(x) if x.requires_grad else None for x in self._alive]
            found = gradients_of(self._alive, self.leaves, self.output_gradients)
        self.gradients = tuple(None if g is None else g.clone() for g in found)
        self.forward, self.backward = (SimpleNamespace(replay=f) for f in (self._forward, self._backward))

    def _run(self):
        with torch.enable_grad():
            self._alive = functional_call(self.network, self.leaves, self.images)

    def _forward(self):
        self._run()
        for place, x in zip(self.outputs, self._alive, strict=True):
            place.copy_(x.detach())

    def _backward(self):
        found = gradients_of(self._alive, self.leaves, self.output_gradients)
        for place, g in zip(self.gradients, found, strict=True):
            if place is not None:
                place.copy_(g)


class _Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return (images * self.factor,)


class _Tuple(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return (self.network(images),)


@pytest.fixture
def passes():
    Rewriting.made = 0
    return CapturedPasses(Rewriting)


@pytest.fixture
def encoder(tiny_config, passes):
    encoder = build_model(tiny_config).image_encoder.train()
    with torch.no_grad():
        for p in encoder.parameters():  # zero-initialised layers would hide a gradient
            p += 0.01 * torch.randn_like(p)
    encoder._captured = passes
    return encoder


def batch(seed: int = 0, size: int = 64) -> ImageList:
    generator = torch.Generator().manual_seed(seed)
    return ImageList(torch.randn(2, 3, size, size, generator=generator), [(size, size)] * 2)


def loss(encoding) -> torch.Tensor:
    return (encoding.proposal_tokens**2).mean() + (encoding.global_tokens[:, 0] ** 3).mean()


def gradients(encoder, encoding) -> dict[str, torch.Tensor | None]:
    encoder.zero_grad()
    loss(encoding).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in encoder.named_parameters()}


def test_outputs_and_gradients_are_those_of_the_plain_pass(encoder, passes):
    for step in range(SEEN + 2):
        images = batch(step)
        encoder._captured = None
        plain, _ = encoder(images)
        expected = gradients(encoder, plain)
        encoder._captured = passes
        encoding, supervision = encoder(images)
        assert supervision is None
        torch.testing.assert_close(vars(encoding.proposals), vars(plain.proposals))
        torch.testing.assert_close(encoding.global_valid, plain.global_valid)
        torch.testing.assert_close(encoding.mean_global_token(), plain.mean_global_token())
        torch.testing.assert_close(gradients(encoder, encoding), expected)
        assert any(g is None for g in expected.values())  # the one-to-many head has none, with and without
    assert Rewriting.made == 1


def test_gradients_add_up_over_passes(encoder, passes):
    """As with SOLVER.ACCUMULATION_STEPS: a replay must not write over the gradient of the pass before."""
    for _ in range(SEEN):
        encoder(batch())
    encoder.zero_grad()
    for seed in (1, 2):
        loss(encoder(batch(seed))[0]).backward()
    found = [None if p.grad is None else p.grad.clone() for p in encoder.parameters()]
    encoder._captured = None
    encoder.zero_grad()
    for seed in (1, 2):
        loss(encoder(batch(seed))[0]).backward()
    torch.testing.assert_close(found, [p.grad for p in encoder.parameters()])


def test_a_pass_that_waits_for_its_gradients_is_not_written_over(encoder):
    for _ in range(SEEN):
        encoder(batch())
    first, _ = encoder(batch(1))
    before = first.proposal_tokens.detach().clone()
    second, _ = encoder(batch(2))  # a plain pass
    assert torch.equal(first.proposal_tokens, before)
    (first.proposal_tokens.sum() + second.proposal_tokens.sum()).backward()
    third, _ = encoder(batch(3))
    assert third.proposal_tokens.data_ptr() == first.proposal_tokens.data_ptr()


def test_a_pass_without_a_step_does_not_block_the_recording(encoder):
    """A step that is skipped asks for no gradients."""
    for _ in range(SEEN):
        encoder(batch())
    first = encoder(batch(1))[0].proposal_tokens
    place = first.data_ptr()
    del first
    assert encoder(batch(2))[0].proposal_tokens.data_ptr() == place


def test_a_loss_of_one_output_leaves_the_others_without_gradient(encoder, passes):
    """Parameters behind the other outputs get zeros where the plain pass gives them none."""
    for _ in range(SEEN):
        encoder(batch())
    images, found = batch(1), []
    for captured in (passes, None):
        encoder._captured = captured
        encoder.zero_grad()
        encoder(images)[0].global_tokens.square().mean().backward()
        found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in encoder.parameters()])
    torch.testing.assert_close(*found)


def test_shapes_and_precisions_have_recordings_of_their_own(encoder, passes):
    for step in range(SEEN + 1):
        for size, bf16 in ((64, False), (96, False), (64, True)):
            images = batch(step, size)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                encoder._captured = passes
                found, _ = encoder(images)
                encoder._captured = None
                plain, _ = encoder(images)
            assert found.proposal_tokens.dtype == plain.proposal_tokens.dtype
            torch.testing.assert_close(found.proposal_tokens, plain.proposal_tokens)
            loss(found).backward()
    assert Rewriting.made == len(passes._recordings) == 3


def test_a_recording_leaves_running_statistics_alone(passes):
    plain, captured = (nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)) for _ in range(2))
    captured.load_state_dict(plain.state_dict())
    as_tuple = [_Tuple(plain), _Tuple(captured)]
    for _ in range(SEEN + 2):
        images = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(passes(as_tuple[1], images), as_tuple[0](images))
        torch.testing.assert_close(dict(captured.named_buffers()), dict(plain.named_buffers()))


def test_only_training_passes_without_targets_and_padding_are_recorded(encoder):
    objects = RegionTargets(
        torch.full((2, 1, 4), 0.5),
        torch.ones(2, 1, 64, 64, dtype=torch.bool),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.ones(2, 1, dtype=torch.bool),
    )
    padded = ImageList(batch().tensor, [(64, 64), (64, 48)])
    for _ in range(2 * SEEN):
        encoder(batch(), objects)
        encoder(padded)
        with torch.no_grad():
            encoder(batch())
        encoder.eval()(batch())
        encoder.train()
    assert Rewriting.made == 0


def test_rare_shapes_are_not_recorded_nor_too_many(passes):
    network = _Scale()
    for size in range(1, MOST + 4):
        for times in range(SEEN):
            assert Rewriting.made == min(size - 1, MOST), (size, times)
            passes(network, torch.zeros(1, 3, size, size))
    assert Rewriting.made == MOST


def test_what_cannot_be_recorded_is_said():
    def record(network, images):
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    passes = CapturedPasses(record)
    with pytest.raises(UserError, match=r"CUDA_GRAPHS: .*\(1, 3, 4, 4\).*not permitted when stream is capturing"):
        for _ in range(SEEN):
            passes(_Scale(), torch.zeros(1, 3, 4, 4))


def test_copies_have_no_recordings(encoder):
    for _ in range(SEEN):
        encoder(batch())
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert not other._captured._recordings
        torch.testing.assert_close(other(batch(1))[0].proposal_tokens, encoder(batch(1))[0].proposal_tokens)


@pytest.mark.parametrize(
    ("key", "value"),
    [("COMPILE", ["backbone"]), ("ACTIVATION_CHECKPOINTING", ["decoder", "region_network"]), ("SHARDING", "full")],
)
def test_settings_that_exclude_graphs(tiny_config, key, value):
    node = tiny_config.MODEL.UNIPERCEIVER_V2
    node.CUDA_GRAPHS = True
    check_config(tiny_config, training=True, datasets=False)
    (tiny_config.SOLVER if key == "SHARDING" else node)[key] = value
    with pytest.raises(UserError, match=f"CUDA_GRAPHS needs .*{key}"):
        check_config(tiny_config, training=True, datasets=False)


def test_a_cpu_records_nothing(tiny_config):
    tiny_config.MODEL.UNIPERCEIVER_V2.CUDA_GRAPHS = True
    assert build_model(tiny_config).image_encoder._captured is None
