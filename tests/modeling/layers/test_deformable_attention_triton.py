"""The Triton form of deformable attention: its cases in a separate process, its machine code, and when it is used."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from uniperceiver_v2.modeling.layers import (
    deformable_attention,
    deformable_attention_triton,
    multi_scale_deformable_attention,
)
from uniperceiver_v2.modeling.layers.deformable_attention_triton import THREADS, block_sizes

from ..triton_cases import ON_GPU, interpreted_and_compiled, run_cases

CASES = Path(__file__).with_name("deformable_attention_triton_cases.py")
SHAPES = [(3, 4), (1, 2)]


@interpreted_and_compiled
def test_cases(interpret):
    code, output = run_cases(CASES, interpret)
    assert code == 0 and re.search(r"\b\d+ passed", output), output


def assembly(kernel, value_type, itemsize):
    """A kernel's PTX for an H100, with 8 heads of 32 channels and 4 scales of 4 points. No GPU is needed."""
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget

    block_q, block_d = block_sizes(32, itemsize)
    constants = {"H": 8, "D": 32, "LEVELS": 4, "POINTS": 4, "BLOCK_Q": block_q, "BLOCK_D": block_d, "BLOCK_P": 4}
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    constants["COMPUTE"] = triton.language.float32
    types = {
        "value": value_type,
        "output": value_type,
        "grad_output": value_type,
        "scales": "*i32",
        "S": "i32",
        "Q": "i32",
    }
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(kernel.arg_names)
            if signature[name].startswith("*")
        },
    )
    return triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": THREADS // 32}).asm["ptx"]


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return deformable_attention_triton._kernels()


@pytest.mark.parametrize("value_type, itemsize", [("*fp32", 4), ("*bf16", 2)])
def test_forward_loads_sixteen_bytes_at_once(kernels, value_type, itemsize):
    code = assembly(kernels.forward_kernel, value_type, itemsize)
    # Four corners of four points; the scales are a loop.
    assert len(re.findall(r"ld\.global\.v4\.b32", code)) == 16
    assert len(re.findall(r"bar\.sync", code)) == 0


@pytest.mark.parametrize("value_type, load", [("*fp32", r"ld\.global\.v4\.b32"), ("*bf16", r"ld\.global\.v2\.b32")])
def test_backward_adds_sixteen_bytes_at_once(kernels, value_type, load):
    code = assembly(kernels.backward_kernel, value_type, 4)
    assert len(re.findall(load, code)) == 17
    assert len(re.findall(r"(?:red|atom)\.global\S*add\.v4\.f32", code)) == 16
    assert len(re.findall(r"bar\.sync", code)) <= 6  # nothing but the gradients of weights and locations is exchanged


@pytest.fixture
def inputs():
    value, locations, attention = torch.randn(2, 14, 2, 3), torch.rand(2, 5, 2, 2, 2, 2), torch.rand(2, 5, 2, 2, 2)
    return value, SHAPES, locations, attention


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Tensors that claim to be on a GPU."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)


@pytest.fixture
def calls(monkeypatch):
    """The calls of the Triton form."""
    calls = []
    original = deformable_attention_triton.sample_by_triton

    def counting(*inputs):
        calls.append(inputs)
        return original(*inputs) if inputs[0].device.type == "cuda" else "sampled by Triton"

    monkeypatch.setattr(deformable_attention, "sample_by_triton", counting)
    return calls


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("grad", [True, False])
def test_used_on_a_gpu(inputs, calls, grad):
    pytest.importorskip("triton")
    expected = multi_scale_deformable_attention(*inputs)
    assert not calls
    value, shapes, *others = inputs
    with torch.set_grad_enabled(grad):
        found = multi_scale_deformable_attention(value.cuda(), shapes, *(x.cuda() for x in others))
    assert len(calls) == 1
    torch.testing.assert_close(found.cpu(), expected)


def test_chosen_by_the_device(inputs, calls, monkeypatch, request):
    pytest.importorskip("triton")
    multi_scale_deformable_attention(*inputs)
    assert not calls
    request.getfixturevalue("as_on_gpu")
    assert multi_scale_deformable_attention(*inputs) == "sampled by Triton"


@pytest.fixture
def without_triton(monkeypatch):
    deformable_attention_triton._kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, deformable_attention_triton.KERNELS, raising=False)
    yield
    deformable_attention_triton._kernels.cache_clear()


def test_plain_pytorch_without_triton(inputs, calls, without_triton, as_on_gpu, monkeypatch):
    found = multi_scale_deformable_attention(*inputs)
    monkeypatch.undo()
    torch.testing.assert_close(found, multi_scale_deformable_attention(*inputs))
    assert not calls


@pytest.mark.parametrize("index", range(3))
def test_plain_pytorch_where_offsets_pass_32_bits_or_numbers_are_integers(inputs, as_on_gpu, index):
    pytest.importorskip("triton")
    tensors = [inputs[0], *inputs[2:]]
    assert deformable_attention_triton.triton_applies(*tensors)
    tensors[index] = tensors[index].int()
    assert not deformable_attention_triton.triton_applies(*tensors)
    # A view that pretends to be large: one number, repeated.
    tensors[index] = torch.zeros(1).expand(2, 2**16, 8, 4, 2**10)
    assert not deformable_attention_triton.triton_applies(*tensors)


def test_plain_pytorch_where_sums_must_not_differ_between_runs(inputs, as_on_gpu):
    torch.use_deterministic_algorithms(True)
    try:
        assert not deformable_attention_triton.triton_applies(inputs[0], *inputs[2:])
    finally:
        torch.use_deterministic_algorithms(False)
