"""Graphs of roots that once were proved and answered rows by their neighbours: now each is refused.

ONNX Runtime shows that they mix rows: a batch answers otherwise than its rows alone.
"""

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from tests.proof.drawing import session_of
from tests.proof.models import CONSTANTS, graph, verdict, walked

CONSTANTS |= {
    "nowhere": np.zeros(1, np.int64), "other_axis": np.array([1], np.int64),
    "far": np.array([-9], np.int64), "farther": np.array([-11], np.int64),
    "back": np.array([-1], np.int64), "both_axes": np.array([0, 1], np.int64),
    "rounded": np.array([2**53 + 1, 1], np.int64), "exact": np.array([2**53], np.int64),
    "thin_line": np.full((1, 1, 1), 1e-5, np.float32), "square": np.float32(2),
    "seed": np.zeros(1, np.float32), "columns": np.arange(4),
    "tiny": np.float32(1e-3), "half": np.float32(0.5), "two_and_half": np.float32(2.5),
    "inner": np.array([1, 2], np.int64), "halved": np.array([0.5], np.float32),
    "two_squares": np.full((1, 2, 1), 2, np.float32),
}  # fmt: skip
CHOSEN = "; e = Where(c, other_axis, nowhere); m = ReduceMax(x, e); y = Sub(x, m)"
"""Over columns if a condition is settled, else over rows."""
OWN = '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>\n'
POOL = "Pool<kernel_shape=[3], strides=[3], ceil_mode=1, pads="
NORMAL = (
    "m = ReduceMean<keepdims=1>(x, back); d = Sub(x, m); p = Pow(d, square)"
    "; v = ReduceMean<keepdims=1>(p, back); a = Add(v, EPSILON); q = Sqrt(a); n = Div(d, q)"
    "; k = Mul(n, vector); l = Add(k, vector); o = Softmax<axis=0>(l); y = Reshape(o, open)"
)
COUNTED = (
    "l = Shape<start=1, end=2>(x); e0 = Squeeze(l); r = Range(zero, e0, unit); f = Cast<to=1>(r)"
    "; u = Unsqueeze(f, other_axis); h = Mul(u, row); "
)
OF_CONSTANT = "; z = MatMul(x, k); t = ReduceMax(z, nowhere); s = Sub(z, t); y = Reshape(s, open)"
"""Over an axis of size 1 if a normalized constant has three axes, else over rows."""
COUNTED_ONE = COUNTED.replace("row", "half")
DROPPED = (
    "v = ReduceMean<keepdims=0>(p, back); a = Add(v, tiny); q = Sqrt(a); n = Div(NORMALIZED, q)"
    "; g = Mul(n, halved)"
)
AS_LONG = "; s = Shape(t); k = Slice(s, other_axis, two); c = Equal(k, l)" + CHOSEN
"""Over columns if a table has as many of them as rows, else over rows."""
ROOTS: dict[str, Any] = {
    # name: (graph, options, the reason)
    "rows and a size at once": (
        "s = Shape<start=0, end=1>(x); f = Cast<to=1>(s); t = Concat<axis=0>(s, other_axis)"
        "; y = Expand(f, t)",
        {"y": "float[N,1] y"}, "y (Expand): the number of rows meets values",
    ),
    "rows and a size at once, by Where": (
        "s = Shape<start=0, end=1>(x); f = Cast<to=1>(s); t = Concat<axis=0>(s, other_axis)"
        "; u = Expand(f, t); r = ReduceMax(x, other_axis); c = Greater(r, one)"
        "; y = Where(c, u, r)",
        {"y": "float[N,1] y"}, "u (Expand): the number of rows meets values",
    ),
    "a state that grows from size 1": (
        "z, y = Loop(three, , seed, x) <body = b (int64 i, bool c, float[A] g, float[D,B] v) =>"
        " (bool d, float[A2] g2, float[D,B] v2) { d = Identity(c) g2 = Concat<axis=0>(g, g)"
        " s = Shape(g) q = Equal(s, other_axis) e = Where(q, other_axis, nowhere)"
        " m = ReduceMax(v, e) v2 = Sub(v, m) }>",
        {}, "z, y (Loop): this operator has no rule",
    ),
    **{
        f"{kind}pools whose borders are as wide": (
            f"p = {kind}{POOL}[2,0]>(x); q = {kind}{POOL}[0,2]>(x); s = Shape<start=2>(p)"
            "; t = Shape<start=2>(q); c = Equal(s, t)" + CHOSEN,
            {"x": "float[N,1,L] x", "y": "float[N,1,L] y"},
            f"p ({kind}Pool): `ceil_mode=1` with unequal pads: no rule",
        )
        for kind in ("Max", "Average")
    },
    "backwards from before the front": (
        "v = Slice(both_axes, far, farther, nowhere, back); s = Shape(v); c = Equal(s, nowhere)"
        + CHOSEN,
        {}, "v (Slice): backwards, only a whole axis has a rule",
    ),
    "an axis that is expanded to 0": (
        "l = Shape<start=1, end=2>(x); z = Sub(l, l); v = Expand(z, nowhere)"
        "; a = Concat<axis=0>(v, other_axis); m = ReduceMax(x, a); y = Sub(x, m)",
        {"x": "float[N,L] x", "y": "float[N,L] y"}, "m (ReduceMax): its axes are computed",
    ),
    "a product that is rounded": (
        "p = ReduceProd<keepdims=1>(rounded); c = Equal(p, exact)"
        "; e = Where(c, nowhere, other_axis); m = ReduceMax(x, e); y = Sub(x, m)",
        {}, "m (ReduceMax): its axes are computed",
    ),
    "an epsilon of more axes": (
        NORMAL.replace("EPSILON", "thin_line"), {},
        "a (Add): a constant of more axes than rows: no rule",
    ),
    "an epsilon of more axes than a constant": (
        COUNTED + "m = ReduceMean<keepdims=1>(h, back); d = Sub(h, m); p = Pow(d, square)"
        "; v = ReduceMean<keepdims=1>(p, back); a = Add(v, thin_line); q = Sqrt(a)"
        "; n = Div(d, q); g = Mul(n, vector); k = Add(g, vector)" + OF_CONSTANT,
        {"x": "float[N,L] x", "y": "float[N,4] y"},
        "a (Add): one element of more axes than the others: no rule",
    ),
    "a computed epsilon of more axes than a constant": (
        COUNTED + "p = Pow(h, square); v = ReduceMean<keepdims=1>(p, back)"
        "; c = Range(tiny, half, one); b = Unsqueeze(c, inner); a = Add(v, b); q = Sqrt(a)"
        "; n = Div(h, q); k = Mul(n, vector); z = MatMul(x, k); t = ReduceMax(z, nowhere)"
        "; o = MatMul(x, h); s = Sub(o, t); y = Reshape(s, open)",
        {"x": "float[N,L] x", "y": "float[N,4] y"},
        "a (Add): one element of more axes than the others: no rule",
    ),
    "a computed exponent of more axes than a constant": (
        COUNTED + "c = Range(square, two_and_half, one); b = Unsqueeze(c, inner); p = Pow(h, b)"
        "; v = ReduceMean<keepdims=1>(p, back); a = Add(v, tiny); q = Sqrt(a); n = Div(h, q)"
        "; k = Mul(n, vector); z = MatMul(x, k); t = ReduceMax(z, nowhere); o = MatMul(x, h)"
        "; s = Sub(o, t); y = Reshape(s, open)",
        {"x": "float[N,L] x", "y": "float[N,4] y"},
        "p (Pow): one element of more axes than the others: no rule",
    ),
    "an exponent that repeats what is normalized": (
        "u = Unsqueeze(x, other_axis); b = ReduceMean<keepdims=1>(u, back); d = Sub(u, b)"
        "; p = Pow(d, two_squares); v = ReduceMean<keepdims=1>(p, back); a = Add(v, tiny)"
        "; q = Sqrt(a); n = Div(d, q); g = Mul(n, vector); t = Add(g, vector); s = Shape(t)"
        "; k = Slice(s, other_axis, two); e = Sub(k, other_axis); m = ReduceMax(x, e)"
        "; y = Sub(x, m)",
        {}, "p (Pow): its exponent repeats the others: no rule",
    ),
    "a variance without its axis": (
        COUNTED_ONE + "b = ReduceMean<keepdims=1>(h, back); d = Sub(h, b); p = Pow(d, square); "
        + DROPPED.replace("NORMALIZED", "d") + "; t = Add(g, halved)" + AS_LONG,
        {"x": "float[N,L] x", "y": "float[N,L] y"},
        "n (Div): a mean without its axis is repeated: no rule",
    ),
    "a mean without its axis": (
        COUNTED_ONE + "b = ReduceMean<keepdims=0>(h, back); d = Sub(h, b); p = Pow(d, square)"
        "; v = ReduceMean<keepdims=1>(p, back); a = Add(v, tiny); q = Sqrt(a); n = Div(d, q)"
        "; g = Mul(n, halved); t = Add(g, halved)" + AS_LONG,
        {"x": "float[N,L] x", "y": "float[N,L] y"},
        "d (Sub): a mean without its axis is repeated: no rule",
    ),
    "a mean of squares without its axis": (
        COUNTED_ONE + "p = Pow(h, square); " + DROPPED.replace("NORMALIZED", "h")
        + "; t = Identity(g)" + AS_LONG,
        {"x": "float[N,L] x", "y": "float[N,L] y"},
        "n (Div): a mean without its axis is repeated: no rule",
    ),
    "a mean of squares without its axis, behind nodes that do nothing": (
        COUNTED_ONE + "p = Pow(h, square); "
        + DROPPED.replace("NORMALIZED", "h").replace("a = Add(v,", "w0 = Identity(v)"
        "; w1 = Expand(w0, other_axis); w2 = Slice(w1, nowhere, end, nowhere); a = Add(w2,")
        + "; t = Identity(g)" + AS_LONG,
        {"x": "float[N,L] x", "y": "float[N,L] y"},
        "n (Div): a mean without its axis is repeated: no rule",
    ),
    "an epsilon of more axes than a constant, without a mean": (
        COUNTED + "p = Pow(h, square); v = ReduceMean<keepdims=1>(p, back)"
        "; a = Add(v, thin_line); q = Sqrt(a); n = Div(h, q); k = Mul(n, vector)" + OF_CONSTANT,
        {"x": "float[N,L] x", "y": "float[N,4] y"},
        "a (Add): one element of more axes than the others: no rule",
    ),
}  # fmt: skip
FUNCTIONS = {
    # name: (graph, functions, the reason)
    "a state that is kept by another Identity": (
        "g (float[N,4] x) => (float[N,4] y) { k = Identity(vector) z, y = Scan(k, x)"
        " <num_scan_inputs=1, body = b (float[4] h, float[4] v) => (float[4] h2, float[4] o)"
        " { o = Sub(v, h) h2 = own.Identity(h, v) }> }",
        '<domain: "own", opset_import: ["" : 18]> Identity (a, b) => (c) { c = Add(a, b) }',
        "z, y (Scan): own.Identity in its body has no rule",
    ),
    "texts that a function makes": (
        "g (float[N,4] x) => (string[N,4] y) { s = own.f<kind = 8>(x) t = Transpose(s)"
        " u = Gather<axis=0>(t, columns) y = Transpose(u) }",
        '<domain: "own", opset_import: ["" : 18]> f <kind> (a) => (c)'
        " { c = Cast<to: int = @kind>(a) }",
        "u (Gather): it may take strings of several rows",
    ),
}  # fmt: skip


def built(name):
    """A root's graph, and why it is refused."""
    if name in ROOTS:
        body, options, reason = ROOTS[name]
        model = graph(body, **options)
    else:
        text, functions, reason = FUNCTIONS[name]
        model = parser.parse_model(f"{OWN}{text}\n{functions}")
    known = {each.name for each in model.graph.initializer}
    for name in sorted({name for node in walked(model.graph) for name in node.input} - known):
        if name in CONSTANTS:
            array = np.asarray(CONSTANTS[name])
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model, reason


@pytest.mark.parametrize("name", [*ROOTS, *FUNCTIONS])
def test_root_is_refused_by_name(name):
    model, reason = built(name)
    assert verdict(model) == reason


@pytest.mark.parametrize("name", [*ROOTS, *FUNCTIONS])
def test_root_mixes_rows(name):
    session = session_of(built(name)[0])
    generator = np.random.default_rng(0)
    mixed = False
    for length in range(4, 10):
        (info,) = session.get_inputs()
        shape = [5, *(size if isinstance(size, int) else length for size in info.shape[1:])]
        rows = generator.standard_normal(shape).astype(np.float32)
        rows[4] *= 100
        (batch,) = session.run(None, {"x": rows})
        alone = np.concatenate([session.run(None, {"x": rows[[at]]})[0] for at in range(5)])
        is_same = batch.shape == alone.shape and (
            np.array_equal(batch, alone) if batch.dtype == object else np.allclose(batch, alone)
        )
        mixed |= not is_same
    assert mixed
