"""Functions are written into the graph before the proof: it answers the same, within bounds."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from serving.model.onnx_runtime import new_session
from serving.proof import Mixes, prove, walk
from serving.proof.inline import inlined
from serving.proof.onnx_file import parse_model
from tests.proof.models import RULES, graph, verdict

HEAD = '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>\n'
ONE = '<domain: "own", opset_import: ["" : 18]> '
TWICE = ONE + "twice (a, b) => (c, d) { e = Add(a, a) c = Neg(e) d = Identity(b) }\n"
NESTED = (
    TWICE + '<domain: "own", opset_import: ["" : 18, "own" : 1]> outer <by: float = 3.0> (a) => (c)'
    " { f = Constant<value_float: float = @by>() g = Mul(a, f) c, h = own.twice(g, f) }\n"
)
CALLS = {
    "two outputs, of which one is used": ("y, z = own.twice(x, x)", TWICE),
    "two calls of one function": ("u, v = own.twice(x, x); w, y = own.twice(u, v)", TWICE),
    "a function in a function, by its default": ("y = own.outer(x)", NESTED),
    "an attribute of the call": ("y = own.outer<by = 2.0>(x)", NESTED),
    "an input that is left out": (
        "y = own.clipped(x)",
        ONE + "clipped (a, low) => (b) { b = Clip(a, low) }\n",
    ),
    "a name that the graph has": (
        "e = Neg(x); u, v = own.twice(e, x); y = Add(u, e)", TWICE,
    ),
    "an input that a function leaves out": (
        "y = own.upper(x)",
        ONE + "upper (a) => (b) { h = Constant<value_float=2.0>() b = Clip(a, , h) }\n",
    ),
    "a name that begins as ours do": ("inlined1 = Neg(x); y, v = own.twice(inlined1, x)", TWICE),
}  # fmt: skip


def model_of(body, functions):
    lines = body.replace("; ", "\n")
    return parser.parse_model(
        f"{HEAD}g (float[N,4] x) => (float[A,B] y) {{\n{lines}\n}}\n{functions}"
    )


@pytest.mark.parametrize("name", CALLS)
def test_graph_without_its_functions_answers_the_same(name):
    data = model_of(*CALLS[name]).SerializeToString()
    model = parse_model(data)
    found = inlined(model)
    assert not found.functions
    assert model.SerializeToString() == parse_model(data).SerializeToString()
    rows = {"x": np.arange(12, dtype=np.float32).reshape(3, 4) - 5}
    (wanted,) = new_session(data).run(["y"], rows)
    (answer,) = new_session(found.SerializeToString()).run(["y"], rows)
    np.testing.assert_array_equal(answer, wanted)
    assert prove(model, RULES).model.SerializeToString() == found.SerializeToString()


def test_graph_that_calls_no_function_stays_itself():
    model = parse_model(model_of("y = Neg(x)", TWICE).SerializeToString())
    assert inlined(model) is model
    assert prove(model, RULES).model is model


@pytest.mark.parametrize(
    ("body", "functions", "reason"),
    [
        ("y = own.f(x)", ONE + "f (a) => (b) { b = own.f(a) }", "nested too deeply"),
        ("y = own.f(x)", ONE + "f (a) => (b) { b = Neg(x) }", "function f reads x, unknown"),
        ("y = own.f(x)", ONE + "f (a) => (a) { b = Neg(a) }", "passes an input on"),
        ("y = own.f(x)", ONE + "f (a) => (b) { a = Neg(b) }", "passes an input on"),
        ("y, z = own.f(x)", ONE + "f (a) => (b) { b = Neg(a) }", "fewer inputs or outputs"),
        ("y = own.f(x, x)", ONE + "f (a) => (b) { b = Neg(a) }", "fewer inputs or outputs"),
    ],
)
def test_function_that_is_no_list_of_nodes_ends_the_proof(body, functions, reason):
    body = body if "z" not in body else body.replace("y, z", "w, z") + "; y = Neg(z)"
    assert reason in (verdict(model_of(body, functions)) or "")


def test_functions_that_call_each_other_often_are_too_large():
    """Ten functions of ten calls each are 10^10 nodes."""
    calls = " ".join(f"b{n} = own.fLESS({'a' if not n else f'b{n - 1}'})" for n in range(10))
    functions = [
        f'<domain: "own", opset_import: ["" : 18, "own" : 1]> f{depth} (a) => (b9)'
        f" {{ {calls.replace('LESS', str(depth - 1))} }}\n"
        for depth in range(1, 10)
    ]
    leaf = ONE + "f0 (a) => (b) { b = Neg(a) }\n"
    model = model_of("y = own.f9(x)", leaf + "".join(functions))
    assert verdict(model) == "its functions are too large to prove"


def test_function_of_many_bytes_is_written_a_few_times():
    weights = numpy_helper.from_array(np.zeros(1 << 20, np.float32))
    node = helper.make_node("Constant", [], ["k"], value=weights)
    nodes = [node, helper.make_node("ReduceMax", ["k"], ["m"], keepdims=0),
             helper.make_node("Add", ["a", "m"], ["b"])]  # fmt: skip
    sets = [helper.make_opsetid("", 18)]
    calls = "; ".join(f"a{number} = own.f(a{number - 1})" for number in range(1, 9))
    model = model_of(f"a0 = Neg(x); {calls}; y = Neg(a8)", "")
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], nodes, sets))
    assert verdict(model) == "its functions are too large to prove"


WITHIN_1_GB = """
import resource, sys
from pathlib import Path
from serving.proof import Mixes, parse_model, prove
model = parse_model(Path(sys.argv[1]).read_bytes())
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    prove(model)
except Mixes as err:
    print(err)
"""


def test_attribute_of_a_call_is_not_copied_more_often_than_there_is_room(tmp_path):
    """Of 4 MB for each of 500 nodes 2 GB would be written."""
    names = [f"k{number}" for number in range(500)]
    nodes = [helper.make_node("Constant", [], [name]) for name in names]
    for node in nodes:
        node.attribute.add(name="value", ref_attr_name="t", type=onnx.AttributeProto.TENSOR)
    nodes.append(helper.make_node("Neg", ["a"], ["b"]))
    model = model_of("y = own.f(x)", "")
    value = numpy_helper.from_array(np.zeros(1 << 20, np.float32))
    model.graph.node[0].attribute.append(helper.make_attribute("t", value))
    sets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], nodes, sets, ["t"]))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_1_GB, path], capture_output=True, text=True, check=False
    )
    assert done.stdout == "its functions are too large to prove\n", done.stderr


def test_function_of_many_inputs_is_called_a_few_times():
    inputs = [f"a{number}" for number in range(20_000)]
    calls = "; ".join(f"b{number + 1} = own.f(b{number})" for number in range(30))
    model = model_of(f"b0 = Neg(x); {calls}; y = Neg(b30)", "")
    node, sets = helper.make_node("Neg", ["a0"], ["b"]), [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "f", inputs, ["b"], [node], sets))
    assert verdict(model) == "its functions are too large to prove"


LARGE = {
    "a sum of many": lambda: graph("y = Sum(" + ", ".join(["x"] * 500_000) + ")"),
    "many constants": lambda: with_more(
        graph("y = Neg(x)"),
        [onnx.TensorProto(name=f"k{number}", data_type=1) for number in range(500_000)],
    ),
    "a long chain": lambda: graph(
        "a0 = Neg(x); " + "; ".join(f"a{n + 1} = Neg(a{n})" for n in range(150_000))
        + "; y = Neg(a150000)"),
    "a constant of many axes": lambda: with_more(
        graph("y = Neg(x)"), [onnx.TensorProto(name="k", data_type=1, dims=[1] * 500_000)]
    ),
    "batch axes that are joined one by one": lambda: graph(
        "a0 = Neg(x); " + "; ".join(f"a{n + 1} = Add(a{n}, x{n})" for n in range(1_000))
        + "; y = Neg(a1000)",
        ", ".join(["float[N,4] x", *(f"float[N{n},4] x{n}" for n in range(1_000))])),
}  # fmt: skip


def with_more(model, constants):
    model.graph.initializer.extend(constants)
    return model


@pytest.mark.parametrize("name", LARGE)
def test_model_of_many_parts_is_too_large_to_prove(name):
    with pytest.raises(Mixes, match="the model is too large to prove"):
        prove(parse_model(LARGE[name]().SerializeToString()), RULES)


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape<start=1>(x); a = Mul(s, big_number); b = Squeeze(a, first)"
        "; r = Range(zero, b, unit); c = Cast<to=1>(r); m = ReduceMax<keepdims=0>(c)"
        "; y = Add(x, m)",
        "c = ConstantOfShape(large_shape); m = ReduceMax<keepdims=0>(c); y = Add(x, m)",
    ],
)
def test_tensor_of_many_elements_is_too_large_to_prove(body):
    model = graph(body)
    for name, array in {
        "big_number": np.array([2**27]), "large_shape": np.array([2**15, 2**15])
    }.items():  # fmt: skip
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    assert "its output is too large to prove" in (verdict(model) or "")


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_elements_of_many_vectors_beside_each_other_are_not_followed(op):
    """Of nine there would be 2^54."""
    names = [f"v{axis}" for axis in range(9)]
    model = graph(f"v = {op}({', '.join(names)}); y = Gather(x, v)")
    for axis, name in enumerate(names):
        array = np.arange(64).reshape([64 if at == axis else 1 for at in range(9)])
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    assert verdict(model) == f"v ({op}): its output is too large to prove"


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        ("a = Add(x, z); b = Add(u, v); y = Add(a, b)", True),
        ("a = Add(u, v); b = Add(x, z); c = Add(z, u); y = Add(b, v)", False),
        ("a = Add(x, z); y = Add(a, u)", False),
    ],
)
def test_batch_axes_are_one_where_nodes_join_all(body, is_one):
    infos = ", ".join(f"float[N{name},4] {name}" for name in "xzuv")
    text = verdict(graph(body, infos))
    assert text is None if is_one else "are batch axes of their own" in text


def test_tensor_of_many_axes_ends_the_proof():
    model = graph("y = Reshape(x, axes)")
    axes = np.array([0, 4, *[1] * 12], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(axes, "axes"))
    assert verdict(model) == "y (Reshape): it has more than 12 axes"


@pytest.mark.parametrize(
    ("domain", "is_free"),
    [
        ("ai.onnx", False), ("ai.onnx.own", False), ("com.microsoft", False),
        ("com.microsoft.own", False), ("com.ms.own", False), ("org.pytorch.own", False),
        ("com.mine", True), ("org.pytorc", True),
    ],
)  # fmt: skip
def test_function_has_no_domain_of_onnx_runtimes_own(domain, is_free):
    """It would run an operator in its place."""
    model = model_of(f"y = {domain}.f(x)", f'<domain: "{domain}", opset_import: ["" : 18]> '
                     "f (a) => (b) { b = Neg(a) }")  # fmt: skip
    model.opset_import.add(domain=domain, version=18)
    expected = None if is_free else "function f has the name of an operator"
    assert verdict(model) == expected


@pytest.mark.parametrize(("steps", "is_enough"), [(10, True), (9, False)])
def test_parts_of_a_model_are_counted_before_they_are_looked_at(steps, is_enough, monkeypatch):
    """An input and an output of two axes each, a node with one of each, and its batch axis."""
    monkeypatch.setattr(walk, "_MAX_STEPS", steps)
    expected = None if is_enough else "the model is too large to prove"
    assert verdict(graph("y = Neg(x)")) == expected


@pytest.mark.parametrize(
    ("operator", "is_moved"),
    [("Transpose", True), ("QuantizeLinear", True), ("DequantizeLinear", True), ("Conv", True),
     ("ConvTranspose", True), ("Relu", False)],
)  # fmt: skip
def test_wrong_shape_of_an_output_counts_beside_what_onnx_runtime_moves(operator, is_moved):
    body = f"d = {operator}(x); y = Neg(x); z = Neg(x)"
    found = verdict(graph(body, y="float[1,4] y, float[N,4] z"))
    text = "axis 0 of y is declared with 1, not proved, beside another Neg"
    assert found == (text if is_moved else None)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        *((f"d = {each}(v)", None)
          for each in ("Abs", "Identity", "ReduceMax", "ReduceSum", "ReduceSumSquare")),
        *((f"d = {each}(s, v)", None) for each in ("Mul", "Pow", "Sub")),
        ("d = Constant<value_float = 1.0>()", None),
        ("d = Add(s, v)", "Add in its body has no rule"),
        ("d = Neg(v)", "Neg in its body has no rule"),
    ],
)  # fmt: skip
def test_turn_of_a_scan_has_operators_of_distances_alone(turn, reason):
    body = graph(f"k = Identity(s); {turn}", "float[A,4] s, float[4] v", "float[A,4] k, float[4] d")
    if reason is None:
        walk._require_distances(body.graph)
    else:
        with pytest.raises(Mixes, match=reason):
            walk._require_distances(body.graph)
