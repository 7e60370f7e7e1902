"""The census of real exports: it is whole, rules made from half of them prove the other half."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from serving.proof import Mixes, prove
from serving.proof.census import (
    Census,
    _attribute,
    census,
    table_rows,
    traits_of,
    types_of,
)
from serving.proof.onnx_file import parse_model
from serving.proof.sizes import ONE, ROWS, Size, Unknowns
from serving.proof.table import TABLE
from serving.proof.values import Node, Value, computed, constant, sizes_of
from tests.proof.models import graph, verdict

EXPORTS = Path(__file__).parent / "exports.tsv"
LEAST_SHARE = 0.95
WALKED = {"Scan"}
"""Operators of the walk itself."""


def exports():
    """Each export's exporter and name, whether it is proved, and the kinds of its nodes."""
    kinds = [row[:3] for row in table_rows()]
    for line in EXPORTS.read_text("utf-8").splitlines():
        exporter, name, reason, numbers = line.split("\t")
        yield exporter, name, reason, [kinds[int(each)] for each in numbers.split()]


def reason_of(body, **options):
    """Why a graph is not proved where the census decides, without the names of its node."""
    reason = verdict(graph(body, **options), census())
    return reason and reason.rpartition(" (")[2].replace("):", ":", 1)


def test_census_is_of_at_least_300_exports():
    found = Counter(exporter for exporter, *_ in exports())
    assert found.total() >= 300
    assert len(found) >= 10


def test_operators_of_the_census_and_of_the_table_are_the_same():
    """A rule that no export needs goes, and one that an export needs is there."""
    operators = {operator for operator, *_ in table_rows()}
    assert operators - WALKED == TABLE.keys() - REFUSING


REFUSING = {
    "Bernoulli", "DynamicQuantizeLinear", "Multinomial", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike", "com.microsoft.DynamicQuantizeMatMul",
}  # fmt: skip
"""Operators whose rule says why they are refused."""


def share_of(others, exports_):
    """Which share of exports is proved by the kinds of others alone."""
    known = Census(kind for *_, kinds in others for kind in kinds)
    proved = [kinds for _, _, reason, kinds in exports_ if reason == "proved"]
    return sum(all(known.unknown(*kind) is None for kind in kinds) for kinds in proved) / len(
        proved
    )


def test_kinds_of_half_of_the_exports_prove_the_other_half():
    """On average of drawn halves."""
    found, shares = list(exports()), []
    choose = random.Random(0)
    for _ in range(30):
        choose.shuffle(found)
        shares.append(share_of(found[: len(found) // 2], found[len(found) // 2 :]))
    assert sum(shares) / len(shares) >= LEAST_SHARE


UNKNOWN: dict[str, tuple[str, dict[str, str]]] = {
    # Attributes, alone and two of them.
    "MaxPool: `ceil_mode=1` with unequal pads: no rule": (
        "y = MaxPool<kernel_shape=[3], ceil_mode=1, pads=[0,1]>(x)", {"x": "float[N,1,L] x"}),
    "MaxPool: `storage_order=1`: no rule": (
        "y = MaxPool<kernel_shape=[3], storage_order=1>(x)", {"x": "float[N,1,L] x"}),
    "Conv: `auto_pad=SAME_LOWER`: no rule": (
        'y = Conv<auto_pad="SAME_LOWER">(x, kernel_3)', {"x": "float[N,1,H,W] x"}),
    # Parameters.
    "Expand: 0 in shape: no rule": ("k = Expand(row, two_zeros); y = Add(x, k)", {}),
    "Squeeze: empty axes: no rule": ("k = Squeeze(row, nought); y = Add(x, k)", {}),
    "ReduceMax: empty axes: no rule": ("k = ReduceMax(row, nought); y = Add(x, k)", {}),
    # Types.
    "Mul: input uint16: no rule": (
        "y = Mul(x, x)", {"x": "uint16[N,4] x", "y": "uint16[N,4] y"}),
    "Cast: `to=uint16`: no rule": ("y = Cast<to=4>(x)", {"y": "uint16[N,4] y"}),
    "Add: a constant of more axes than rows: no rule": (
        "y = Add(x, one_of_3_axes)", {"y": "float[A,N,4] y"}),
    # Operators.
    "Det: this operator has no rule": ("y = Det(x)", {"x": "float[N,2,2] x", "y": "float[N] y"}),
}  # fmt: skip
CONSTANTS = {
    "two_zeros": np.zeros(2, np.int64), "nought": np.zeros(0, np.int64),
    "one_of_3_axes": np.ones((1, 1, 4), np.float32),
}  # fmt: skip


@pytest.mark.parametrize("reason", UNKNOWN)
def test_kind_that_no_export_has_is_refused_by_name(reason):
    body, options = UNKNOWN[reason]
    model = graph(body, **options)
    for name, array in CONSTANTS.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    found = verdict(model, census()) or ""
    assert found.rpartition(" (")[2].replace("):", ":", 1) == reason


def test_row_of_the_census_is_the_way_to_widen_a_rule():
    """Each two traits must stand in one row together."""
    rows = [
        ("MaxPool", frozenset({"a", "b"}), frozenset({"input 0 float32"})),
        ("MaxPool", frozenset({"b", "c"}), frozenset({"input 0 float32"})),
    ]
    known = Census(rows)
    types = frozenset({"input 0 float32"})
    assert known.unknown("MaxPool", {"a", "b"}, types) is None
    assert known.unknown("MaxPool", {"c"}, types) is None
    assert known.unknown("MaxPool", {"a", "c"}, types) == "a with c: no rule"
    assert known.unknown("MaxPool", {"d"}, types) == "d: no rule"
    assert known.unknown("MaxPool", set(), frozenset({"input 0 int8"})) == "input 0 int8: no rule"
    assert known.unknown("Relu", set(), types) == "this operator has no rule"
    third = ("MaxPool", frozenset({"a", "c"}), types)
    assert Census([*rows, third]).unknown("MaxPool", {"a", "b", "c"}, types) is None


def test_elements_by_themselves_know_the_types_of_each_other():
    types = frozenset({"input float16", "input rows"})
    assert Census([("Exp", frozenset(), types)]).unknown("Relu", (), types) is not None
    both = [("Exp", frozenset(), types), ("Relu", frozenset(), frozenset({"input rows"}))]
    assert Census(both).unknown("Relu", (), types) is None


def test_proof_asks_the_census():
    model = parse_model(graph("y = Neg(x)", "int8[N,4] x", "int8[N,4] y").SerializeToString())
    with pytest.raises(Mixes, match="input int8: no rule"):
        prove(model)


NAMING_A_TYPE = {
    "to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision",
}  # fmt: skip
DEFAULTS_WITH_A_TRAIT = {
    "activations", "aggregate_function", "approximate", "axis", "batch_axis", "case_change_action",
    "coordinate_transformation_mode", "detect_negative", "detect_positive", "kernel_type",
    "left_window_size", "mode", "nearest_mode", "norm", "onesided", "p", "padding_mode",
    "reduction", "right_window_size", "round_mode", "zeros",
}  # fmt: skip
"""Attributes whose default, written out, makes another kind of node of one operator or more."""


def attributes_of_operators():
    """Each attribute of the table's operators that ONNX itself defines, by their names."""
    for operator in sorted(TABLE.keys() - REFUSING):
        domain, _, name = operator.rpartition(".")
        if domain in ("", "ai.onnx.ml") and onnx.defs.has(name, domain):
            for attribute in onnx.defs.get_schema(name, domain).attributes.values():
                yield operator, attribute


def traits_with(name, value):
    """The traits of an attribute of a value."""
    made = value if isinstance(value, onnx.AttributeProto) else helper.make_attribute(name, value)
    one = helper.make_node("Any", [], ["y"])
    one.attribute.append(made)
    model = helper.make_model(helper.make_graph([one], "g", [], []))
    (read,) = parse_model(model.SerializeToString()).graph.node[0].attribute
    return {*_attribute(name, read)}


def test_default_that_is_written_out_is_as_one_that_is_left_out():
    """Exporters differ in it: a kind of node would be unknown for what means the same."""
    written = {
        each.name for _, each in attributes_of_operators()
        if each.default_value.type and traits_with(each.name, each.default_value)
    }  # fmt: skip
    assert written - NAMING_A_TYPE == DEFAULTS_WITH_A_TRAIT


def test_factors_and_tables_of_values_are_free():
    """They say what an element is, never on which others it depends."""
    kinds = onnx.defs.OpSchema.AttrType
    values = {
        kinds.FLOAT: 0.375, kinds.FLOATS: [0.375, 2.0], kinds.STRINGS: ["a", "b"],
        kinds.TENSOR: helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [0.375]),
    }  # fmt: skip
    bound = {
        each.name for _, each in attributes_of_operators()
        if each.type in values and traits_with(each.name, values[each.type])
    }  # fmt: skip
    assert bound == {"activations", "clip", "extrapolation_value", "softcap", "stopwords"}


def test_attribute_that_names_a_type_has_a_trait_with_its_name():
    for name in NAMING_A_TYPE:
        assert traits_with(name, onnx.TensorProto.DOUBLE) == {f"`{name}=float64`"}


FREE = """
    K N accuracy_level activation_alpha activation_beta alpha attention_scale beta bias bits
    block_size blocksize cats_int64s cats_strings classlabels_int64s classlabels_ints
    classlabels_strings coefficients cubic_coeff_a end epsilon equation gamma group hidden_size
    imputed_value_floats imputed_value_int64s intercepts keepdims kernel_params kernel_shape lambd
    momentum n_supports n_targets noop_with_empty_axes num_groups num_heads num_outputs offset
    output_shape perm prob_a prob_b ratio replaced_value_float replaced_value_int64 rho scale size
    start support_vectors targets threshold value value_float value_floats value_int value_ints
    value_string value_strings vectors_per_class
    base_values class_ids default_float keys_strings nodes_modes target_ids values_int64s
"""


def test_attribute_that_is_free_has_no_trait_whatever_it_says():
    values = (3, -1, 0.375, [1, 2], [0.375, 2.0], "text", ["a", "b"])
    bound = {name for name in FREE.split() for each in values if traits_with(name, each)}
    assert not bound
    assert all(traits_with("another", each) for each in values)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, 11, {f"`{name}=float64`"}) for name in sorted(NAMING_A_TYPE)),
        ("to", 99, {"`to=another`"}),
        ("axis", 2, set()), ("axis", -1, {"axis from the back"}),
        ("axes", [0, 3], set()), ("axes", [-1], {"axes from the back"}),
        ("axes", [-1, 0], {"axes from the back", "axes from both ends"}),
        ("split", [1, 2], set()),
        ("split", [0, -1, -2], {"0 in split", "-1 in split", "split below -1"}),
        ("starts", [1], set()), ("starts", [-1], {"starts from the back"}),
        ("ends", [-1, 5], {"ends from the back"}),
        ("pads", [1, 2, 1, 2], set()), ("pads", [0, 1], {"unequal pads"}),
        ("pads", [-1, -1], {"pads below 0"}),
        ("strides", [1, 1], set()), ("strides", [1, 2], {"strides of more than 1"}),
        ("strides", [0], {"strides below 1"}),
        ("dilations", [2, 1], {"dilations of more than 1"}),
        ("auto_pad", "NOTSET", set()), ("auto_pad", "VALID", {"`auto_pad=VALID`"}),
        ("direction", "forward", set()), ("post_transform", "NONE", set()),
        ("keep_aspect_ratio_policy", "stretch", set()),
        ("largest", 1, set()), ("largest", 0, {"`largest=0`"}), ("sorted", 1, set()),
        ("upper", 1, set()), ("saturate", 1, set()), ("saturate", 0, {"`saturate=0`"}),
        ("mode", "x" * 41, {f"`mode={'x' * 40}`"}),
        ("some", 0, set()), ("some", 1, {"`some=1`"}), ("some", 2, {"`some=more`"}),
        ("some", -2, {"`some=-1`"}), ("some", 0.0, set()), ("some", 0.5, {"`some`"}),
        ("some", [1, 2], {"`some`"}), ("some", ["a"], {"`some`"}),
    ],
)  # fmt: skip
def test_attribute_is_of_this_kind(name, value, expected):
    assert traits_with(name, value) == expected


ROW = Value((ROWS, Size.of(4)), 0, ONE, dtype="float32")


def whole(*numbers):
    """A constant of int64."""
    return constant(np.array(numbers, np.int64), ())


def node_of(operator, *inputs):
    return Node(operator, 18, inputs, [True], {}, Unknowns(), False)


@pytest.mark.parametrize(
    ("operator", "inputs", "expected"),
    [
        ("ConstantOfShape", [whole(0, -1)], {"0 in shape", "-1 in shape"}),
        ("CumSum", [ROW, whole(-1)], {"axes from the back"}),
        ("Expand", [ROW, whole(0, -2)], {"0 in shape", "shape below -1"}),
        ("Pad", [ROW, whole(0, 1)], {"unequal pads"}),
        ("Pad", [ROW, None, None, whole(-1)], {"axes from the back"}),
        ("ReduceMax", [ROW, whole(-1)], {"axes from the back"}),
        ("ReduceMax", [ROW], {"no axes"}),
        ("Reshape", [ROW, whole(-1, 0)], {"0 in shape", "-1 in shape"}),
        ("Slice", [ROW, whole(-1)], {"starts from the back"}),
        ("Slice", [ROW, None, whole(-1)], {"ends from the back"}),
        ("Slice", [ROW, None, None, whole(-1)], {"axes from the back"}),
        ("Slice", [ROW, None, None, None, whole(2)], {"steps of more than 1"}),
        ("Split", [ROW, whole(0, 4)], {"0 in split"}),
        ("Squeeze", [ROW, whole(-1)], {"axes from the back"}),
        ("Tile", [ROW, whole(0, 1)], {"0 in repeats"}),
        ("Unsqueeze", [ROW, whole(-1)], {"axes from the back"}),
        ("Reshape", [ROW, Value((Size.of(2),))], {"unknown shape"}),
        ("Reshape", [ROW, whole()], {"empty shape", "input 1 empty"}),
        ("Squeeze", [ROW, whole()], {"empty axes", "input 1 empty"}),
        ("Pad", [ROW, whole()], {"empty pads", "input 1 empty"}),
        ("Slice", [ROW, whole()], {"empty starts", "input 1 empty"}),
        ("Neg", [whole(1)], set()), ("Gather", [ROW, whole(-1)], set()),
        ("Add", [ROW, Value((ONE, ONE, ONE))], {"more axes than rows"}),
    ],
)  # fmt: skip
def test_parameters_of_a_node_are_of_this_kind(operator, inputs, expected):
    assert traits_of(node_of(operator, *inputs)) == expected


MOVING = ("Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze",
          "Tile", "Transpose", "Unsqueeze")  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        *((each, {"input 0 rows", "elements float32", "input 1 int64"}) for each in MOVING),
        ("Concat", {"input rows", "elements float32", "elements int64"}),
        ("Identity", {"input rows", "elements float32", "input int64"}),
        *((each, {"input rows", "input float32", "input int64"})
          for each in ("Einsum", "ai.onnx.ml.FeatureVectorizer", "Add")),
        ("MatMul", {"input 0 rows", "input 0 float32", "input 1 int64"}),
    ],
)  # fmt: skip
def test_types_of_a_node_are_those_of_its_inputs_and_of_what_it_moves(operator, expected):
    assert types_of(node_of(operator, ROW, replace(whole(3), dtype="int64"))) == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (replace(ROW, axis=1), "moved rows"), (computed(sizes_of([ROWS])), "number of rows"),
        (computed(sizes_of([Size.unknown("+1")])), "sizes"),
    ],
)  # fmt: skip
def test_input_says_what_it_depends_on(value, kind):
    found = types_of(node_of("MatMul", value))
    assert found == {f"input 0 {kind}", f"input 0 {value.dtype or 'other'}"}


def test_attribute_is_named_before_a_parameter():
    known = Census([("Slice", frozenset(), frozenset())])
    assert known.unknown("Slice", {"0 in shape", "`mode=x`"}, frozenset()) == "`mode=x`: no rule"
