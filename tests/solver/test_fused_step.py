"""The fused step: its cases in a separate process, its machine code, and when it is used."""

import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from uniperceiver_v2.solver import build_optimizer, fused_step

from ..modeling.triton_cases import interpreted_and_compiled, run_cases

CASES = Path(__file__).with_name("fused_step_cases.py")


@interpreted_and_compiled
def test_cases(interpret):
    code, output = run_cases(CASES, interpret)
    assert code == 0 and re.search(r"\b\d+ passed", output), output


@pytest.mark.parametrize("aligned", [True, False])
def test_reads_and_writes_sixteen_bytes_at_once_where_all_is_aligned(monkeypatch, tmp_path, aligned):
    """The kernel's PTX for an H100. No GPU is needed."""
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = fused_step._kernels().step_kernel
    constants = {"DRAWS": 1, "ALIGNED": aligned, "BLOCK": fused_step.BLOCK}
    signature = {name: "constexpr" if name in constants else "*fp32" for name in kernel.arg_names} | {"chunks": "*i64"}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    code = triton.compile(source, GPUTarget("cuda", 90, 32), options={"num_warps": fused_step.WARPS}).asm["ptx"]
    wide = len(re.findall(r"ld\.global\.v4", code)), len(re.findall(r"st\.global\.v4", code))
    assert wide == ((4, 3) if aligned else (0, 0))


def test_not_used_on_a_cpu_nor_without_the_setting(tiny_config, monkeypatch):
    tiny_config.MODEL.DEVICE = "cpu"
    model = build_model(tiny_config)
    assert not build_optimizer(tiny_config, model).fused
    tiny_config.SOLVER.FUSED_STEP = True
    optimizer = build_optimizer(tiny_config, model)
    assert optimizer.fused
    monkeypatch.setattr(fused_step, "_kernels", lambda: pytest.fail("asked for a kernel"))
    before = next(model.parameters()).detach().clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(task="scenes")
    assert not torch.equal(next(model.parameters()), before)
