"""ONNX files: traced from a part, in half precision, and with weights of eight bits."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import UserError
from .parts import Part, Shape

OPSET = 18  # from 17 on, layer normalisation is one operation; many runtimes do not know the newest opsets
PRECISIONS = ("fp32", "fp16", "int8")
LARGEST_FILE = 2**31 - 2**20  # bytes of a protobuf; weights of a larger part go into a file beside it
PRODUCTS = ("MatMul", "Gemm", "Conv")


def require(name: str) -> ModuleType:
    """A package of the extra "export".

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(f'the export needs the package {package}: pip install "uniperceiver-v2[export]"') from error


def trace(part: Part, path: Path) -> None:
    """Write a part as an ONNX file of float32.

    Raises:
        UserError: onnx, onnxscript or onnxruntime are not installed, or PyTorch is too old.
    """
    onnx = require("onnx")
    require("onnxscript")
    if "custom_translation_table" not in inspect.signature(torch.onnx.export).parameters:
        raise UserError(f"the export needs PyTorch 2.6 or newer, and this is {torch.__version__}")
    axes = [
        {place: torch.export.Dim.DYNAMIC for place, x in enumerate(s) if isinstance(x, str)}
        for s in part.inputs.values()
    ]
    with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(part.module.eval(), part.example, dynamic_shapes=tuple(axes), strict=False)
        program: Any = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            verbose=False,
            optimize=False,  # onnxruntime folds constants below, in a fraction of the time
            custom_translation_table={torch.ops.aten.split_with_sizes.default: _split},
        )
        traced = os.path.join(folder, "traced.onnx")
        program.save(traced, external_data=True)
        model = _folded(onnx, traced, os.path.join(folder, "folded.onnx"))
    for kind, values in ((part.inputs, model.graph.input), (part.outputs, model.graph.output)):
        for value in values:
            _name_axes(value, kind[value.name])
    save(model, path)


def _split(x: Any, sizes: Sequence[Any], dim: int = 0) -> list[Any]:
    """torch.split as slices. The exporter's own form, a sequence of tensors, is not understood by quantisation."""
    op = require("onnxscript").opset18
    axis, end, parts = op.Constant(value_ints=[dim]), op.Constant(value_ints=[0]), []
    for size in sizes:
        is_number = isinstance(size, int)
        length = op.Constant(value_ints=[size]) if is_number else op.Reshape(size, op.Constant(value_ints=[-1]))
        start, end = end, op.Add(end, length)
        parts.append(op.Slice(x, start, end, axis))
    return parts


def save(model: Any, path: Path) -> None:
    """Write a model as one file, or with a second one of weights where protobuf's limit asks for it."""
    onnx = require("onnx")
    del model.graph.value_info[:]  # shapes in the symbols of tracing, which say nothing to a reader
    large = model.ByteSize() > LARGEST_FILE
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def to_half(source: Path, target: Path) -> None:
    """Write a float32 file with its products in float16, and everything else in float32, as autocast does: boxes,
    normalisations, likelihoods. Inputs and outputs keep their types. The file has half the size.
    """
    onnx, numpy_helper = require("onnx"), require("onnx.numpy_helper")
    model = onnx.load(source)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    casts: dict[str, str] = {}
    nodes: list[Any] = []
    kept = {name for node in model.graph.node if not _in_half(node, weights) for name in node.input}

    def halved(name: str) -> str:
        """The name of a value in float16."""
        if name not in casts:
            casts[name] = f"{name}/half"
            if name in weights:
                array = numpy_helper.to_array(weights[name]).astype("float16")
                model.graph.initializer.append(numpy_helper.from_array(array, casts[name]))
            else:
                nodes.append(onnx.helper.make_node("Cast", [name], [casts[name]], to=half))
        return casts[name]

    for node in model.graph.node:
        if not _in_half(node, weights):
            nodes.append(node)
            continue
        inputs = [
            halved(x) if x and (place == 0 or node.op_type != "Gather") else x for place, x in enumerate(node.input)
        ]
        outputs = list(node.output)
        casts.update({name: f"{name}/half" for name in outputs})  # a product of a product takes it as it is
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(casts[name] for name in outputs)
        nodes.append(node)
        nodes += [onnx.helper.make_node("Cast", [casts[name]], [name], to=single) for name in outputs]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    left = [x for x in model.graph.initializer if x.name not in casts or x.name in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    onnx.checker.check_model(model)
    save(model, target)


def _in_half(node: Any, weights: dict[str, Any]) -> bool:
    """Whether a node is a product, or reads a row of a table of weights."""
    if node.op_type != "Gather":
        return node.op_type in PRODUCTS
    table = weights.get(node.input[0])
    return table is not None and table.data_type == table.FLOAT and len(table.dims) == 2


def to_int8(source: Path, target: Path) -> None:
    """Write a float32 file whose linear maps have weights of eight bits, a scale for each column; their inputs are
    rounded to eight bits as they come (dynamic quantisation). Convolutions and attention stay in float32.

    Weights get seven bits of the eight: sums of products of eight would overflow on processors without VNNI.
    """
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        quantized = os.path.join(folder, "quantized.onnx")
        quantization.quantize_dynamic(
            source,
            quantized,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        save(onnx.load(quantized), target)


def _folded(onnx: ModuleType, source: str, target: str) -> Any:
    """A model whose constants are folded, by onnxruntime, in operations of the standard alone."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = target
    options.log_severity_level = 3
    runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    assert not domains, f"operations of {domains} are no standard"
    used = [x for x in model.opset_import if x.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(used)
    return model


def _name_axes(value: Any, shape: Shape) -> None:
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    for axis in shape:
        dim = dims.dim.add()
        if isinstance(axis, str):
            dim.dim_param = axis
        else:
            dim.dim_value = axis


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
