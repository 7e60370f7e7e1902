"""Graphs drawn to deceive the proof of batching: each mixes rows, and is refused by name.

ONNX Runtime shows that they mix: rows answer otherwise in a batch than alone, or not at all.
"""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tests.proof.drawing import session_of
from tests.proof.models import CONSTANTS, graph, verdict

CONSTANTS |= {
    "none": np.zeros(0, np.int64), "boxed": np.ones((1, 3, 4), np.float32),
    "empty": np.ones((3, 0), np.float32), "signal": np.ones((1, 5, 1), np.float32),
    "spectrum": np.ones((1, 5, 2), np.float32), "line": np.ones((1, 1, 9), np.float32),
    "five": np.array([5], np.int64), "half": np.float32(0.5),
    "int_1100": np.array([1100], np.int32), "int_200000": np.array([200_000], np.int32),
    "scale_of_rows": np.array([0.1, 0.2, 0.3], np.float32), "ids": np.array([[0, 0]], np.int64),
    "lengths": np.array([2, 2, 2, 2], np.int64),
    "gru_w": np.ones((1, 6, 1), np.float32),
    "gru_r": np.ones((1, 6, 2), np.float32),
    "half_sizes": np.array([1, 2], np.int64),
    "batch": np.array([3, 4], np.int64),
}  # fmt: skip
IF = "from_ = Where(c, first, second); y = Slice(x, from_, end, first)"
"""All rows if a condition is settled, else those behind the first."""
TAKEN = "y (Slice): it takes some of the rows"
OVER = "m (ReduceMax): over rows"
BODY = "<body = b (int64 i, bool c, float[A,B] v) => (bool d, float[A,B] w) { d = Identity(c) "
MIXING: dict[str, Any] = {
    # Without rows among its inputs an operator is no constant.
    "a body maps a sequence": (
        "q = SequenceConstruct(row); s = SequenceMap(q) <body = b (float[A,B] i) => (float[A,B] o)"
        " { m = ReduceMax<keepdims=1>(x) o = Add(i, m) }>; a = SequenceAt(s, zero); y = Add(x, a)",
        "q (SequenceConstruct): this operator has no rule",
    ),
    "dropout in training, of a constant": (
        "d = Dropout(row, half, truth); y = Add(x, d)", "d (Dropout): this operator has no rule",
    ),
    "random numbers, of a constant": (
        "r = RandomNormalLike(row); y = Add(x, r)", "r (RandomNormalLike): it draws random numbers",
    ),
    "random bits, of a constant": (
        "h = Mul(row, zeroed); b = Add(h, half); r = Bernoulli(b); y = Add(x, r)",
        "r (Bernoulli): it draws random numbers",
    ),
    "batch normalization in training, of a constant": (
        "a, b, e = BatchNormalization<training_mode=1>(x, vector, vector, vector, vector)"
        "; y = Add(a, b)",
        "a, b, e (BatchNormalization): in training it normalizes over rows",
    ),
    "optional": (
        "m = ReduceMax<keepdims=1>(x); o = Optional(m); g = OptionalGetElement(o); y = Add(x, g)",
        OVER,
    ),
    # A graph as attribute reads what is around it.
    "loop of one turn": (
        f"y = Loop(one_turn, , x) {BODY} m = ReduceMax<keepdims=1>(x) w = Add(v, m) }}>",
        "y (Loop): this operator has no rule",
    ),
    "condition on a constant, captured rows": (
        "c = Less(half, one); y = If (c) <then_branch = t () => (float[A,B] t_y)"
        " { m = ReduceMax<keepdims=1>(x) t_y = Add(x, m) }, else_branch = e () =>"
        " (float[A,B] e_y) { e_y = Neg(x) }>",
        "y (If): this operator has no rule",
    ),
    "scan over rows that sees their number": (
        "k = Identity(row); z, y = Scan(k, x) <num_scan_inputs=1, body = b (float[A,B] h,"
        " float[C] v) => (float[A,B] g, float[C] p) { g = Identity(h)"
        " s = Shape<start=0, end=1>(x) f = Cast<to=1>(s) p = Add(v, f) }>",
        "z, y (Scan): Shape in its body has no rule",
    ),
    # Sizes and ranks as ONNX Runtime computes them.
    "squeezed by an empty list": (
        "k = Squeeze(boxed, none); s = Shape(k); r = Shape(s); q = Equal(r, three)"
        "; c = Squeeze(q, first); " + IF,
        TAKEN,
    ),
    "squeezed by an empty list, of old": (
        "k = Squeeze<axes: ints = []>(boxed); s = Shape(k); z = Size(s); c = Equal(z, three_0); "
        + IF,
        TAKEN, {"opset": 11},
    ),
    "rows squeezed by an empty list": (
        "u = Unsqueeze(x, second); y = Squeeze(u, none)",
        "y (Squeeze): it would drop the batch axis of one row",
    ),
    "unsqueezed by an empty list": (
        "k = Unsqueeze(boxed, none); s = Shape(k); z = Size(s); c = Less(z, three_0); " + IF, TAKEN,
    ),
    "reduced by an empty list": (
        "m = ReduceMax(x, none); y = Sub(x, m)", "m (ReduceMax): over rows",
    ),
    "reduced by an empty list, of old": (
        "m = ReduceMax<axes: ints = []>(x); y = Sub(x, m)", OVER, {"opset": 11},
    ),
    "keepdims is 2": (
        "k = ReduceMax<keepdims=2>(boxed, second); s = Shape(k); z = Size(s)"
        "; c = Equal(z, three_0); " + IF,
        "k (ReduceMax): attribute keepdims is neither 0 nor 1",
    ),
    "saturate is 2": (
        "y = Cast<to=7, saturate=2>(x)", "y (Cast): attribute saturate is neither 0 nor 1",
        {"opset": 21, "y": "int64[N,4] y"},
    ),
    "pool with dilated windows and SAME padding": (
        'p = MaxPool<kernel_shape=[3], dilations=[2], strides=[2], auto_pad="SAME_UPPER">(line)'
        "; s = Shape<start=2>(p); q = Equal(s, five); c = Squeeze(q, first); " + IF,
        TAKEN,
    ),
    "pool of a window that is too large": (
        "p = MaxPool<kernel_shape=[11], strides=[3]>(line); s = Shape<start=2>(p)"
        "; q = Equal(s, first); c = Squeeze(q, first); " + IF,
        TAKEN,
    ),
    "pool with ceil_mode": (
        "p = AveragePool<kernel_shape=[2], strides=[2], ceil_mode=1, pads=[0, 1]>(line)"
        "; s = Shape<start=2>(p); q = Equal(s, six); c = Squeeze(q, first); " + IF,
        "p (AveragePool): `ceil_mode=1` with unequal pads: no rule",
    ),
    "half a spectrum": (
        "p = DFT<axis=1, onesided=1>(signal); s = Shape<start=1, end=2>(p); q = Equal(s, five)"
        "; c = Squeeze(q, first); " + IF,
        "p (DFT): this operator has no rule",
    ),
    "inverse of half a spectrum": (
        "p = DFT<inverse=1, onesided=1>(spectrum); s = Shape<start=2>(p)"
        "; q = Equal(s, two); c = Squeeze(q, first); " + IF,
        "p (DFT): this operator has no rule", {"opset": 20},
    ),
    "flattened at an empty axis": (
        "p = Flatten<axis=1>(empty); s = Shape<start=1>(p); q = Equal(s, first)"
        "; g = Not(q); c = Squeeze(g, first); " + IF,
        TAKEN,
    ),
    "flattened, all but an empty axis": (
        "p = Flatten<axis=2>(empty); s = Shape<start=0, end=1>(p); q = Equal(s, three)"
        "; c = Squeeze(q, first); " + IF,
        TAKEN,
    ),
    "joined with nothing": (
        "p = Concat<axis=0>(empty, w); s = Shape<start=1>(p); q = Equal(s, first)"
        "; c = Squeeze(q, first); " + IF,
        "p (Concat): a size may be 0",
    ),
    "reshaped to a size that does not fit": (
        "s = Shape(x); n = Slice(s, first, second, first); q = Concat<axis=0>(n, eight)"
        "; r = Reshape(x, q); o = Shape(x); p = Softmax(r); y = Reshape(p, o)",
        "r (Reshape): its sizes are not proved to fit",
    ),
    "a constant reshaped to a size that does not fit": (
        "s = Shape<start=1>(x); q = Concat<axis=0>(s, two); k = Reshape(w, q); t = Shape(k)"
        "; l = Slice(t, first, second, first); e = Equal(l, s); c = Squeeze(e, first); " + IF,
        TAKEN, {"x": "float[N,L] x"},
    ),
    "expanded to nothing": (
        "e = Expand(row, nothing); s = Shape<start=0, end=1>(e); q = Equal(s, second)"
        "; c = Squeeze(q, first); " + IF,
        TAKEN,
    ),
    "rows expanded to nothing": (
        "u = Unsqueeze(x, second); r = Relu(u); e = Expand(r, nothing_of_rows)"
        "; s = Shape<start=1, end=2>(e); q = Equal(s, first); c = Squeeze(q, first); " + IF,
        TAKEN,
    ),
    "expanded by an unknown size": (
        "n = NonZero(row); l = Shape<start=1>(n); v = Concat<axis=0>(l, second)"
        "; p = Mul(second, second); e = Expand(p, v); s = Shape<start=0, end=1>(e)"
        "; q = Equal(s, second); c = Squeeze(q, first); " + IF,
        "n (NonZero): this operator has no rule",
    ),
    # Bounds and overflow.
    "int32, rows times a number": (
        "s = Shape<start=0, end=1>(x); i = Cast<to=6>(s); a = Mul(i, int_200000)"
        "; q = Greater(a, int_0); c = Squeeze(q, first); " + IF,
        TAKEN,
    ),
    "int32, a length times a number": (
        "s = Shape<start=1>(x); i = Cast<to=6>(s); a = Mul(i, int_1100); q = Greater(a, int_0)"
        "; c = Squeeze(q, first); " + IF,
        TAKEN, {"x": "float[N,L] x"},
    ),
    "int64, the fourth power of a length": (
        "s = Shape<start=1>(x); p = Mul(s, s); r = Mul(p, p); q = Greater(r, first)"
        "; c = Squeeze(q, first); " + IF,
        TAKEN, {"x": "float[N,L] x"},
    ),
    "rows repeated by a size that overflows": (
        "s = Shape<start=0, end=1>(x); h = Mul(s, huge); t = Concat<axis=0>(h, four)"
        "; e = Expand(row, t); y = Add(x, e)",
        "e (Expand): a size is computed from the number of rows, or may overflow",
    ),
    # Attributes.
    "mean and variance across channels": (
        "y = MeanVarianceNormalization<across_channels=1>(x)",
        "y (MeanVarianceNormalization): this operator has no rule",
        {"opset": 8, "x": "float[N,2,1,2] x", "y": "float[N,2,1,2] y"},
    ),
    "attention with a cache": (
        "y = com.microsoft.Attention<num_heads=1, past_present_share_buffer=1>(x, wide, long)",
        "y (com.microsoft.Attention): attribute past_present_share_buffer has no rule",
        {"x": "float[N,2,4] x", "y": "float[N,2,4] y"},
    ),
    "blocks of scales": (
        "q = QuantizeLinear<axis=0, block_size=2>(x, blocks); y = DequantizeLinear(q, small)",
        "q (QuantizeLinear): blocks of rows have no rule", {"opset": 21},
    ),
    "a scale for each row": (
        "q = QuantizeLinear<axis=0>(x, scale_of_rows); y = DequantizeLinear(q, small)",
        "q (QuantizeLinear): each row has a scale of its own",
    ),
    "resized and cropped": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="tf_crop_and_resize">'
        "(x, cropped, , half_sizes)",
        "y (Resize): its mode has no rule",
    ),
    "resized, as wide as possible": (
        'y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , small_sizes)',
        "y (Resize): attribute keep_aspect_ratio_policy has a rule for stretch only",
    ),
    "words are left out": (
        'y = StringNormalizer<stopwords=["a"]>(x)',
        "y (StringNormalizer): attribute stopwords has no rule",
        {"x": "string[N] x", "y": "string[M] y"},
    ),
    "strings of several rows": (
        "t = Transpose(x); g = Gather<axis=0>(t, first); y = Transpose(g)",
        "g (Gather): it may take strings of several rows",
        {"x": "string[N,4] x", "y": "string[A,B] y"},
    ),
    # Axes.
    "largest index, of rows": (
        "i = ArgMax<axis=0, select_last_index=1>(x); f = Cast<to=1>(i); y = Add(x, f)",
        "i (ArgMax): over rows",
    ),
    "running sum, backwards": (
        "y = CumSum<exclusive=1, reverse=1>(x, zero)", "y (CumSum): it looks over rows",
    ),
    "places in all rows": (
        "u = Unsqueeze(x, second); p, i = MaxPool<kernel_shape=[2], storage_order=1>(u)"
        "; f = Cast<to=1>(i); y = Squeeze(f, second)",
        "p, i (MaxPool): its output 1 has no rule",
    ),
    "groups of rows": (
        "t = Unsqueeze(x, first); y0 = GroupNormalization<num_groups=1>(t, single_1, single_1)"
        "; y = Squeeze(y0, first)",
        "y0 (GroupNormalization): this operator has no rule", {"opset": 18},
    ),
    "upper triangle": ("y = Trilu(x)", "y (Trilu): it looks over rows"),
    "unit matrix": ("e = EyeLike(x); y = Add(x, e)", "e (EyeLike): its input 0 depends on rows"),
    "rows as time": (
        "u = Unsqueeze(x, first); y0, h = GRU<hidden_size=2, layout=1>(u, gru_w, gru_r)"
        "; y1 = Squeeze(y0, pair_axes); y = Identity(y1)",
        "y0, h (GRU): attribute layout has a rule for 0 only", {"opset": 14},
    ),
    "rows as sequences of one": (
        "u = Unsqueeze(x, second); a = Attention<q_num_heads=1, kv_num_heads=1>(u, k, k)"
        "; y = Squeeze(a, second)",
        "a (Attention): its input 1 has its rows along axis 1, not along axis 0",
        {"opset": 23, "before": "k = Unsqueeze(x, first); "},
    ),
    "reversed in time, over rows": (
        "y = ReverseSequence<batch_axis=1, time_axis=0>(x, lengths)",
        "y (ReverseSequence): its input 0 has its rows along axis 0, not along axis 1",
    ),
    "a normalization's scale for each row": (
        "y = LayerNormalization<axis=-1>(x, three_rows)",
        "y (LayerNormalization): a constant has an element for each row",
    ),
    "wrapped border": (
        'y0 = Pad<mode="wrap">(x, above); y = Slice(y0, first, minus_one, first)',
        "y0 (Pad): it pads the batch", {"opset": 19},
    ),
    "scattered over rows": (
        'i = Cast<to=7>(x); c = Clip(i, zero, zero); y = ScatterElements<axis=0, reduction="add">'
        "(x, c, x)",
        "y (ScatterElements): it takes from other rows",
    ),
    "scattered by number": (
        "u = Slice(x, first, second, first); n = Neg(u); y = ScatterND(x, corner, n)",
        "u (Slice): it takes some of the rows",
    ),
    "elements at constant places": (
        "y = GatherElements<axis=1>(x, places)",
        "y (GatherElements): rows meet others than their own",
    ),
    "zero points of rows": (
        "q = Cast<to=2>(x); m = MatMulInteger(q, bytes, zeros_of_rows); y = Cast<to=1>(m)",
        "m (MatMulInteger): each row has a scale of its own",
    ),
    "diagonal of all pairs": (
        'y0 = Einsum<equation="ij,ij->j">(x, x); y = Mul(x, y0)',
        "y0 (Einsum): it adds up over rows",
    ),
    "trace": (
        't = MatMul(x, w); e = Einsum<equation="ii->i">(t); y = Add(x, e)',
        "e (Einsum): its axes have no rule",
    ),
    "ellipsis": ('y = Einsum<equation="i...->...i">(x)', "y (Einsum): its equation has no rule"),
    "columns of a flat batch": (
        "f = Reshape(x, whole); y0 = ai.onnx.ml.Normalizer<norm=\"MAX\">(f); y = Reshape(y0, open)",
        "y0 (Normalizer): it is no table of rows",
    ),
    "elements of a flat batch": (
        "f = Reshape(x, whole); a = ai.onnx.ml.ArrayFeatureExtractor(f, ids); g = Gather<axis=1>"
        "(a, first); y = Add(x, g)",
        "a (ArrayFeatureExtractor): it takes rows by number",
    ),
    "rows as a difference": (
        "d = com.microsoft.CDist<metric=\"euclidean\">(x, x); r = ReduceMax(d, second)"
        "; y = Add(x, r)",
        "d (com.microsoft.CDist): this operator has no rule",
    ),
    "distinct numbers": (
        "u = Unique(x); s = Size(u); f = Cast<to=1>(s); y = Mul(x, f)",
        "u (Unique): this operator has no rule",
    ),
    "how many are not zero": (
        "r = Relu(x); n = NonZero(r); s = Size(n); f = Cast<to=1>(s); y = Mul(x, f)",
        "n (NonZero): this operator has no rule",
    ),
    "compressed": (
        "g = Greater(x, half); f = Reshape(g, whole); c = Compress(x, f); m = ReduceSum(c)"
        "; y = Add(x, m)",
        "c (Compress): this operator has no rule",
    ),
    "cropped to the middle": (
        "c = CenterCropPad<axes=[0]>(x, second); y = Add(x, c)",
        "c (CenterCropPad): this operator has no rule",
    ),
    "a batch joined twice and cut": (
        "d = Concat<axis=0>(x, x); s = Softmax<axis=0>(d); y = Slice(s, first, n, first)",
        "s (Softmax): it looks over rows", {"before": "n = Shape<start=0, end=1>(x); "},
    ),
    "a batch joined twice, folded in pairs": (
        "d = Concat<axis=0>(x, x); t = Reshape(d, pairs_of_rows); y = ReduceMax<keepdims=0>"
        "(t, second)",
        "t (Reshape): the batch axis is moved across another one",
    ),
    "a batch joined twice beside one repeated": (
        "d = Concat<axis=0>(x, x); u = Unsqueeze(x, second); e = Expand(u, twice_1)"
        "; r = Reshape(e, open); y0 = Add(d, r); y1 = Reshape(y0, two_n_4)"
        "; y = ReduceMax<keepdims=0>(y1, first)",
        "y0 (Add): rows meet others than their own",
        {"before": "sh = Shape(x); two_n_4 = Concat<axis=0>(two, sh); "},
    ),
}  # fmt: skip
CONSTANTS |= {
    "zeroed": np.zeros((1, 4), np.float32), "one_turn": np.int64(1), "three_0": np.int64(3),
    "six": np.array([6], np.int64), "nothing": np.array([0, 4], np.int64),
    "huge": np.array([2**62], np.int64), "blocks": np.ones((2, 4), np.float32),
    "cropped": np.array([0, 0, 1, 1], np.float32), "small_sizes": np.array([2, 2], np.int64),
    "single_1": np.ones(1, np.float32), "pair_axes": np.array([0, 2], np.int64),
    "minus_one": np.array([-1], np.int64), "corner": np.array([[0]], np.int64),
    "places": np.zeros((3, 4), np.int64), "bytes": np.ones((4, 4), np.uint8),
    "zeros_of_rows": np.array([1, 2, 3], np.uint8), "twice_1": np.array([1, 2, 1], np.int64),
    "nothing_of_rows": np.array([0, 1], np.int64),
    "one_of_3": np.ones((1, 1, 1), np.float32), "row_of_0": np.zeros((1, 4), np.float32),
    "wide": np.ones((4, 12), np.float32), "long": np.ones(12, np.float32),
    "pairs_of_rows": np.array([-1, 2, 4], np.int64),
}  # fmt: skip


UNSHOWN = {
    # Of 16,384 rows, lengths of two millions, and worse.
    "int32, rows times a number", "int32, a length times a number",
    "int64, the fourth power of a length", "rows repeated by a size that overflows",
    # ONNX Runtime 1.32 refuses them, or has no operator for them on this machine.
    "joined with nothing", "words are left out", "rows as time", "rows as sequences of one",
    "zero points of rows",
    # It does not mix: attributes without a rule are refused, whatever they do.
    "attention with a cache",
}  # fmt: skip
"""Graphs that a small run can't show to mix rows."""


def build(name):
    body, reason, *options = MIXING[name]
    options = dict(options[0]) if options else {}
    return graph(options.pop("before", "") + body, **options), reason


@pytest.mark.parametrize("name", MIXING)
def test_hostile_graph_is_refused_by_name(name):
    model, reason = build(name)
    assert verdict(model) == reason


@pytest.mark.parametrize("name", [each for each in MIXING if each not in UNSHOWN])
def test_hostile_graph_mixes_rows(name):
    model, _ = build(name)
    session = session_of(model)
    assert any(mixes(session, num_rows) for num_rows in (2, 3, 4, 6))


def mixes(session, num_rows):
    """Return whether rows have another answer in a batch than alone, or none at all alone."""
    generator = np.random.default_rng(0)
    feeds = {}
    for each in session.get_inputs():
        shape = [num_rows, *(size if isinstance(size, int) else 4 for size in each.shape[1:])]
        feeds[each.name] = (generator.standard_normal(shape) * 3).astype(np.float32)
        if each.type == "tensor(string)":
            feeds[each.name] = feeds[each.name].astype(str).astype(object)
    rows = [{key: array[i : i + 1] for key, array in feeds.items()} for i in range(num_rows)]
    try:
        (batch,) = session.run(None, feeds)
    except Exception:  # ONNX Runtime's have no common base; a batch of another size may run
        return False
    try:
        wanted = np.concatenate([session.run(None, row)[0] for row in rows])
    except Exception:  # alone, rows have no answer, or answers of different shapes
        return True
    if batch.shape != wanted.shape:
        return True
    if batch.dtype == object:
        return not np.array_equal(batch, wanted)
    return not np.allclose(batch, wanted, rtol=1e-3, equal_nan=True)


DECLARED = (
    "t = Relu(x); s = Shape(t); n = Slice(s, first, second, first); q = Concat<axis=0>(n, last)"
    "; r = Reshape(x, q); m = ReduceMax(r, second); d = Sub(r, m); o = Shape(x); y = Reshape(d, o)"
)


def test_declared_size_that_is_not_proved_is_refused():
    """ONNX Runtime replaces Shape by a declared number, and then folds pairs of rows into one."""
    model = graph(DECLARED)
    assert verdict(model) is None
    model.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [3, 4]))
    assert verdict(model) == "t (Relu): axis 0 of t is declared with 3, not proved"
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    session = session_of(model)
    (batch,), (first,) = session.run(None, {"x": rows}), session.run(None, {"x": rows[:3]})
    assert not np.allclose(batch[:3], first)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("t", ["N", 4], None),
        ("t", [-1, 4], None),
        ("t", ["N", 5], "t (Relu): axis 1 of t is declared with 5, not proved"),
        ("t", ["N", 4, 1], "t (Relu): t is declared with 3 axes, and has 2"),
        ("s", [3], "s (Shape): axis 0 of s is declared with 3, not proved"),
        ("s", [2], None),
    ],
)
def test_declared_shape_is_compared_with_the_proved_one(name, shape, reason):
    model = graph(DECLARED)
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    assert verdict(model) == reason


def test_declared_size_of_an_output_that_a_node_reads_is_compared():
    model = graph(DECLARED)
    output = helper.make_tensor_value_info("t", TensorProto.FLOAT, [3, 4])
    model.graph.output.append(output)
    assert verdict(model) == "t (Relu): axis 0 of t is declared with 3, not proved"


def test_each_of_several_declarations_is_compared():
    """Of an output that stands there twice ONNX Runtime believes the first one."""
    model = graph(DECLARED)
    for size in (3, "N"):
        output = helper.make_tensor_value_info("t", TensorProto.FLOAT, [size, 4])
        model.graph.output.append(output)
    assert verdict(model) == "t (Relu): axis 0 of t is declared with 3, not proved"
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    session = session_of(model)
    batch, first = session.run(["y"], {"x": rows}), session.run(["y"], {"x": rows[:3]})
    assert not np.allclose(batch[0][:3], first[0])


def test_wrong_size_of_an_unread_output_does_not_become_anothers():
    """ONNX Runtime moves the transposition behind both, which then are one node."""
    body = (
        "o = Shape(x); scale = Constant<value_float=0.05>(); t = Transpose<perm=[0,2,1]>(x)"
        "; v = QuantizeLinear(t, scale, centre); f = DequantizeLinear(v, scale, centre)"
        "; again = Transpose<perm=[0,2,1]>(f); s = Shape(again); n = Slice(s, first, second, first)"
        "; q = Concat<axis=0>(n, last); r = Reshape(x, q); m = ReduceMax(r, second)"
        "; d = Sub(r, m); y = Reshape(d, o); u = QuantizeLinear(t, scale, centre)"
    )
    model = graph(body, x="float[N,4,2] x")
    model.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), "centre"))
    answer = model.graph.output.pop()
    answer.type.tensor_type.ClearField("shape")
    wrong = helper.make_tensor_value_info("u", TensorProto.UINT8, [3, 2, 4])
    model.graph.output.extend([wrong, answer])
    text = "axis 0 of u is declared with 3, not proved, beside another QuantizeLinear"
    assert verdict(model) == text
    rows = np.random.default_rng(0).standard_normal((6, 4, 2)).astype(np.float32)
    session = session_of(model)
    batch, first = session.run(["y"], {"x": rows}), session.run(["y"], {"x": rows[:3]})
    assert not np.allclose(batch[0][:3], first[0])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert verdict(model) is None


def test_declared_size_of_a_tensor_that_no_answer_depends_on_is_refused():
    """ONNX Runtime computes both once, and then has the shape of the one that nobody follows."""
    model = graph(DECLARED + "; u = Relu(x); unread = Neg(u)")
    assert verdict(model) is None
    model.graph.value_info.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, [3, 4]))
    assert verdict(model) == "u is declared, and no answer depends on it"
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    session = session_of(model)
    (batch,), (first,) = session.run(None, {"x": rows}), session.run(None, {"x": rows[:3]})
    assert not np.allclose(batch[:3], first)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [([1], None), ([3], "u (Constant): axis 0 of u is declared with 3, not proved")],
)
def test_declared_size_of_a_constant_that_no_answer_depends_on_is_compared(shape, reason):
    model = graph("u = Constant<value_ints=[7]>(); " + DECLARED)
    model.graph.value_info.append(helper.make_tensor_value_info("u", TensorProto.INT64, shape))
    assert verdict(model) == reason


def test_session_fails_where_a_fusion_would_answer():
    """A Gather beyond the end must not become a Slice: its size settles conditions."""
    body = (
        "n = Shape<start=1>(z); p = Squeeze(n, first); r = Range(zero, p, unit)"
        "; g = Gather<axis=1>(x, r); s = Shape<start=1>(g); q = Equal(s, n)"
        "; c = Squeeze(q, first); " + IF
    )
    model = graph(body, x="float[N,L] x, float[N,M] z")
    assert verdict(model) is None
    rows = {"x": np.ones((2, 4), np.float32), "z": np.ones((2, 6), np.float32)}
    with pytest.raises(Exception, match="out of data bounds"):
        session_of(model).run(None, rows)


def test_session_keeps_the_number_of_axes():
    model = graph("a = Div(one_of_3, x); y = Mul(a, z)", x="float[N,4] x, float[N,4] z")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    rows = np.ones((2, 4), np.float32)
    assert session_of(model).run(None, {"x": rows, "z": rows})[0].shape == (1, 2, 4)


def test_declared_size_of_a_constant_is_compared():
    model = graph("y = Add(x, row)")
    model.graph.value_info.append(helper.make_tensor_value_info("row", TensorProto.FLOAT, [3, 4]))
    assert verdict(model) == "axis 0 of row is declared with 3, not proved"


def test_sparse_constant_may_not_replace_another_one():
    model = graph("y = Add(x, row)")
    values = numpy_helper.from_array(np.ones(1, np.float32), "row")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1, 4]))
    assert verdict(model) == "a sparse constant has the name of another tensor"


@pytest.mark.parametrize(
    ("domain", "version", "reason"),
    [
        ("", 99, "y (Neg): opset 99 is newer than the rules"),
        ("", 6, "y (Neg): opset 6 is older than the rules"),
        ("ai.onnx.ml", 9, "y (Scaler): opset 9 is newer than the rules"),
        ("com.microsoft", 2, "y (com.microsoft.Gelu): opset 2 is newer than the rules"),
    ],
)
def test_operators_of_other_versions_than_the_rules_are_refused(domain, version, reason):
    node = {"": "Neg", "ai.onnx.ml": "ai.onnx.ml.Scaler"}.get(domain, "com.microsoft.Gelu")
    model = graph(f"y = {node}(x)")
    for each in model.opset_import:
        if each.domain == domain:
            each.version = version
    assert verdict(model) == reason


@pytest.mark.parametrize("domain", ["ai.onnx.preview", "com.ms.internal.nhwc", "ai.onnx"])
def test_function_in_a_domain_of_onnx_runtime_is_refused(domain):
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18, "{domain}" : 18]>\ng (float[N,4] x) =>'
        f' (float[N,4] y) {{ y = {domain}.Conv(x) }}\n<domain: "{domain}", opset_import:'
        ' ["" : 18]> Conv (a) => (b) { b = Neg(a) }'
    )
    assert verdict(model) == ("function Conv has the name of an operator")


def test_graph_in_an_attribute_of_another_operator_is_refused():
    model = graph("y = Neg(x)")
    body = helper.make_graph([], "b", [], [onnx.ValueInfoProto(name="x")])
    model.graph.node[0].attribute.append(helper.make_attribute("body", body))
    assert verdict(model) == "y (Neg): attribute body has no rule"
