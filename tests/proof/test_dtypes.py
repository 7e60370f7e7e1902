"""The types of elements are those of ONNX's own schemas."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from serving.proof.census import table_rows
from serving.proof.dtypes import NAMES, dtypes_of
from serving.proof.table import TABLE
from serving.tensors import DTYPES

WORDS = {"float": "float32", "double": "float64"}
"""ONNX's words in schemas, where they differ."""


def named(kind):
    """A type of a schema, such as "tensor(float)", by the proof's name; "" for what it has none."""
    word = kind.removeprefix("tensor(").removesuffix(")")
    name = WORDS.get(word, word)
    return name if name in NAMES.values() else ""


def test_names_of_types_are_those_of_numpy_and_onnx():
    assert {*NAMES} < {*onnx.TensorProto.DataType.values()}
    for number, name in NAMES.items():
        if name == "string":
            assert number == onnx.TensorProto.STRING
        else:
            assert np.dtype(helper.tensor_dtype_to_np_dtype(number)).name == name


def test_types_that_the_census_has_seen_and_that_servers_take_have_names():
    words = {word for _, _, types, _ in table_rows() for word in types}
    seen = {word.rpartition(" ")[2] for word in words} - {"other", "rows", "sizes"}
    known = {*NAMES.values()}
    assert seen <= known
    assert {each.name for each in DTYPES.values() if each.kind != "O"} <= known
    assert {"string", "bfloat16", "int4", "uint4"} <= known


def schemas():
    for operator in sorted(TABLE):
        domain, _, name = operator.rpartition(".")
        if domain in ("", "ai.onnx.ml") and onnx.defs.has(name, domain):
            yield operator, onnx.defs.get_schema(name, domain)


ATTRIBUTED = {"Cast", "Constant", "ConstantOfShape", "EyeLike", "LabelEncoder", "QuantizeLinear",
              "DequantizeLinear", "ai.onnx.ml.LabelEncoder"}  # fmt: skip
"""Operators whose attributes choose a type."""


NAMED_AFTER_THE_FIRST = {"Attention", "BatchNormalization", "RMSNormalization"}
"""Operators whose later inputs may have another type; in exports all have one."""
REFUSED = {"DynamicQuantizeLinear"}


@pytest.mark.parametrize(
    ("operator", "schema"),
    [
        pytest.param(*each, id=each[0])
        for each in schemas()
        if each[0] not in ATTRIBUTED | NAMED_AFTER_THE_FIRST | REFUSED
    ],
)
def test_outputs_have_the_types_that_onnx_says(operator, schema):
    """Where the schema leaves no choice: one type, or that of an input."""
    allowed = {each.type_param_str: [*map(named, each.allowed_type_strs)]
               for each in schema.type_constraints}  # fmt: skip
    chosen: dict[str, str] = {}
    for each in schema.inputs:
        # Of each type variable another one, so that inputs can be told apart.
        free = [name for name in allowed.get(each.type_str, [named(each.type_str)])
                if name and name not in chosen.values()]  # fmt: skip
        free.sort(key=lambda name: name in ("bool", "float32"))  # most outputs' types: last
        chosen.setdefault(each.type_str, (free or [""])[0])
    inputs = [SimpleNamespace(dtype=chosen[each.type_str]) for each in schema.inputs]
    node: Any = SimpleNamespace(
        op=operator, inputs=inputs, attributes={}, is_used=[True] * len(schema.outputs),
        has=lambda index: index < len(inputs), value=lambda index: inputs[index],
        number=lambda name, default: default,
    )  # fmt: skip
    found = dtypes_of(node)
    for output, dtype in zip(schema.outputs, found, strict=True):
        kinds = allowed.get(output.type_str, [named(output.type_str)])
        if output.type_str in chosen:
            assert dtype == chosen[output.type_str]
        elif len(kinds) == 1:
            assert dtype == kinds[0]
