"""
Models as text: ONNX's own text format (`onnx.parser`), with tensors declared where they are first read.

    a = Conv<pads=[1,1,1,1]>(x[N,3,6,6], w1[8,3,3,3])
    b = Reshape(a, s{0,-1})
    y = Gemm<transB=1>(b, w2[5,288])

A declaration is `[type] name[sizes]`, `float` unless it says otherwise, or `[type] name[sizes]{numbers}` with the
numbers spelled out: `int64` unless one has a point, and one-dimensional unless there are sizes. The name tells the
role: x... is an input of the model, y... is an output, v... is positive (a variance), and anything else is a weight.
Numbers that are not spelled out all differ, and follow from the name. Every node is named after its first output.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.reading.observing import session_for

OPSETS = (9, 11, 13, 17, 21, 25)
"""Those that tests run at unless one operator's definitions matter; the last is the newest that ONNX Runtime knows."""


def since(first: int) -> tuple[int, ...]:
    """The usual opsets from `first` on."""
    return tuple(opset for opset in OPSETS if opset >= first)


def definitions(*op_types: str) -> tuple[int, ...]:
    """The opsets from 9 on at which the definition of one of these operators changed, and the newest."""
    history = [schema for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""]
    changed = {schema.since_version for schema in history if schema.name in op_types}
    return tuple(sorted({max(version, OPSETS[0]) for version in changed if version <= OPSETS[-1]} | {OPSETS[-1]}))


TYPES = {
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "double": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "int16": TensorProto.INT16,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "bfloat16": TensorProto.BFLOAT16,
    "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
}
RANGES = {"int8": (-127, 127), "uint8": (0, 255), "int16": (-9999, 9999), "int4": (-8, 7), "uint4": (0, 15)}
"""Numbers of quantised weights."""

DECLARATION = re.compile(
    rf"(?:\b(?P<type>{'|'.join(TYPES)})\s+)?\b(?!(?:{'|'.join(TYPES)})\b)(?P<name>[A-Za-z_]\w*)"
    r"(?=[\[{])(?:\[(?P<sizes>[^\]]*)\])?(?:\{(?P<numbers>[^}]*)\})?"
)


def build(text: str, *, opset: int = 18) -> ModelProto:
    """The model that the text describes."""
    inputs: list[str] = []
    weights: dict[str, np.ndarray] = {}

    def declare(found: re.Match[str]) -> str:
        name = found["name"]
        if name.startswith("x"):
            inputs.append(f"{found['type'] or 'float'}[{found['sizes']}] {name}")
        else:
            weights[name] = numbers_of(found)
        return name

    nodes = DECLARATION.sub(declare, text)
    version = max(4, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    imports = f'<ir_version: {version}, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{imports} test ({', '.join(inputs)}) => () {{ {nodes} }}")
    for node in model.graph.node:
        node.name = node.output[0]
        model.graph.output.extend(ValueInfoProto(name=name) for name in node.output if name.startswith("y"))
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return with_output_types(model)


def numbers_of(found: re.Match[str]) -> np.ndarray:
    """The numbers of a declared weight."""
    said = found["numbers"]
    sizes = None if found["sizes"] is None else [int(size) for size in found["sizes"].split(",") if size.strip()]
    kind = found["type"] or ("int64" if said is not None and "." not in said else "float")
    dtype = helper.tensor_dtype_to_np_dtype(TYPES[kind])
    if said is None and kind in RANGES:
        return in_range(found["name"], tuple(sizes or ()), *RANGES[kind]).astype(dtype)
    if said is None:
        return distinct(found["name"], tuple(sizes or ())).astype(dtype)
    numbers = [float(number) if "." in number else int(number) for number in said.split(",") if number.strip()]
    return np.resize(np.array(numbers, dtype), (len(numbers),) if sizes is None else sizes)


def in_range(name: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """Whole numbers all over the range."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    size = int(np.prod(shape))
    return np.round(low + (random.permutation(size) + 0.5) / size * (high - low)).reshape(shape)


def distinct(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that all differ and none of which is zero, small where many are added up; positive for a name in v."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    size = int(np.prod(shape))
    spaced = (random.permutation(size) + 0.75) / size
    if name.startswith("v"):
        return (0.5 + spaced).reshape(shape)
    added = size / shape[0] if len(shape) > 1 else 1
    return ((2 * spaced - 1) * np.sqrt(3 / added if added > 1 else 1)).reshape(shape)


def with_output_types(model: ModelProto) -> ModelProto:
    """The model with the types of its outputs filled in, by ONNX Runtime where ONNX cannot infer them."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for output, found in zip(model.graph.output, inferred.output, strict=True):
        output.CopyFrom(found if found.type.tensor_type.elem_type else observed(model, output.name))
    return model


def observed(model: ModelProto, name: str) -> ValueInfoProto:
    """The type of a float output as ONNX Runtime sees it."""
    session = session_for(model)
    return next(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, output.shape)
        for output in session.get_outputs()
        if output.name == name
    )
