"""The types of elements are those of ONNX's own schemas."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from serving.proof.census import table_rows
from serving.proof.dtypes import NAMES, dtypes_of
from serving.proof.sizes import Unknowns
from serving.proof.table import TABLE
from serving.proof.values import Node, Value
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


def made(operator, dtypes, attributes, num_outputs):
    """A node whose inputs have these types."""
    inputs = [Value((), dtype=dtype) for dtype in dtypes]
    written = {name: helper.make_attribute(name, each) for name, each in attributes.items()}
    return Node(operator, 18, inputs, [True] * num_outputs, written, Unknowns(), False)


def tensor(kind):
    return helper.make_tensor("t", kind, [1], [1])


UINT8, INT8, INT64 = onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT64
TRUTH = ("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual",
         "Not", "Or", "RegexFullMatch", "Xor")  # fmt: skip
SCORES = ("FeatureVectorizer", "LinearRegressor", "Normalizer", "OneHotEncoder", "SVMRegressor",
          "Scaler", "TreeEnsembleRegressor")  # fmt: skip
CLASSIFIERS = "LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"
EIGHT = [*"abcdefgh"]
"""Names of eight types, to tell inputs apart."""


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "expected"),
    [
        *((each, ["float16"], {}, ["bool"]) for each in TRUTH),
        *((each, ["float16"], {}, ["int64"]) for each in ("ArgMax", "ArgMin", "Shape", "Size")),
        *((f"ai.onnx.ml.{each}", ["int64"], {}, ["float32"]) for each in SCORES),
        *((f"ai.onnx.ml.{each}", ["float64"], {}, ["int64", "float32"]) for each in CLASSIFIERS),
        *((f"ai.onnx.ml.{each}", ["float64"], {"classlabels_strings": ["a"]},
           ["string", "float32"]) for each in CLASSIFIERS),
        ("MatMulInteger", ["uint8", "int8"], {}, ["int32"]),
        ("com.microsoft.EmbedLayerNormalization", ["int32", "int64", "float16"], {},
         ["float16", "int32", "float16"]),
        ("TopK", ["float16", "int64"], {}, ["float16", "int64"]),
        ("MaxPool", ["uint8"], {}, ["uint8", "int64"]),
        ("QLinearConv", EIGHT, {}, ["h"]), ("QLinearMatMul", EIGHT, {}, ["h"]),
        ("DequantizeLinear", ["uint8", "float16"], {}, ["float16"]),
        ("DequantizeLinear", ["uint8"], {}, [""]),
        ("Where", ["bool", "float64", "float64"], {}, ["float64"]),
        ("OneHot", ["int64", "int64", "uint8"], {}, ["uint8"]),
        ("Cast", ["float32"], {"to": 10}, ["float16"]), ("Cast", ["float32"], {"to": 99}, [""]),
        ("Constant", [], {"value": tensor(UINT8)}, ["uint8"]),
        ("Constant", [], {"value_int": 1}, ["int64"]),
        ("Constant", [], {"value_ints": [1, 2]}, ["int64"]),
        ("Constant", [], {"value_float": 0.5}, ["float32"]),
        ("Constant", [], {"value_floats": [0.5]}, ["float32"]),
        ("Constant", [], {"value_string": "a"}, ["string"]),
        ("Constant", [], {"value_strings": ["a"]}, ["string"]),
        ("ConstantOfShape", ["int64"], {}, ["float32"]),
        ("ConstantOfShape", ["int64"], {"value": tensor(INT8)}, ["int8"]),
        ("EyeLike", ["float64"], {"dtype": 7}, ["int64"]),
        ("EyeLike", ["float64"], {}, ["float64"]),
        ("EyeLike", ["float64"], {"dtype": 99}, [""]),
        ("QuantizeLinear", ["float32", "float32", "int8"], {}, ["int8"]),
        ("QuantizeLinear", ["float32", "float32"], {"output_dtype": 3}, ["int8"]),
        ("QuantizeLinear", ["float32", "float32"], {}, ["uint8"]),
        ("ai.onnx.ml.LabelEncoder", ["string"], {"values_int64s": [1]}, ["int64"]),
        ("ai.onnx.ml.LabelEncoder", ["int64"], {"keys_int64s": [1], "values_floats": [0.5]},
         ["float32"]),
        ("ai.onnx.ml.LabelEncoder", ["int64"], {"values_strings": ["a"]}, ["string"]),
        ("ai.onnx.ml.LabelEncoder", ["int64"], {"values_tensor": tensor(INT64)}, ["int64"]),
        ("ai.onnx.ml.LabelEncoder", ["string"], {"classes_strings": ["a"]}, ["int64"]),
        ("ai.onnx.ml.LabelEncoder", ["int64"], {"classes_strings": ["a"]}, ["string"]),
        ("Neg", ["float16"], {}, ["float16"]), ("Split", ["float16"], {}, ["float16"] * 3),
    ],
)  # fmt: skip
def test_outputs_of_a_node_have_these_types(operator, inputs, attributes, expected):
    assert dtypes_of(made(operator, inputs, attributes, len(expected))) == expected
