"""Rows that are taken by their own numbers, as transformers' masks are, and others by theirs."""

import numpy as np
import pytest
from onnx import numpy_helper

from tests.proof.drawing import session_of
from tests.proof.models import graph, verdict

HEAD = (
    "s = Shape(x); n1 = Slice(s, first, second); n = Squeeze(n1, first)"
    "; l1 = Slice(s, second, two); l = Squeeze(l1, first); r = Range(zero, n, unit)"
    "; i = Unsqueeze(r, second); c = Range(zero, l, unit)"
)
FLAT = "; f = Reshape(x, whole); m = Mul(i, STRIDE); a = Add(m, ADDED); y = Gather(f, a)"
PAIRS = (
    "; o = Shape(x); e = Expand(ROWS, o); g = Expand(c, o); u = Unsqueeze(e, last)"
    "; v = Unsqueeze(g, last); p = Concat<axis=-1>(u, v); y = GatherND(x, p)"
)
PROVED = {
    "a flat tensor, at row * columns + column": FLAT.replace("STRIDE", "l").replace("ADDED", "c"),
    "pairs of row and column": PAIRS.replace("ROWS", "i"),
}
MIXING = {
    "a stride that is less": FLAT.replace("STRIDE", "h").replace("ADDED", "c").replace(
        "; m", "; h = Sub(l, unit); m"),
    "the row behind": FLAT.replace("STRIDE", "l").replace("ADDED", "c").replace(
        "; m", "; j = Add(i, unit); k = Mod(j, n); m").replace("Mul(i", "Mul(k"),
    "columns that begin later": (
        "; less = Sub(l, unit); d = Add(c, less); f = Reshape(x, whole); m = Mul(i, l)"
        "; a = Add(m, d); q = Mul(n, l); z = Mod(a, q); y = Gather(f, z)"
    ),
    "pairs of the last row first": PAIRS.replace("ROWS", "b").replace(
        "; o", "; t = Sub(n, unit); b = Sub(t, i); o"),
    "rows as columns": PAIRS.replace("ROWS", "i").replace("(u, v)", "(v, u)"),
    "one row for all": "; y = Gather(x, first)",
    "numbers beside values": "; f = Cast<to=1>(i); y = Add(x, f)",
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_row_that_takes_from_itself_by_number_is_proved(name):
    model = graph(HEAD + PROVED[name], "float[N,L] x")
    assert verdict(model) is None
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(session_of(model).run(["y"], {"x": rows})[0], rows)


@pytest.mark.parametrize("name", MIXING)
def test_row_that_takes_from_others_by_number_is_refused(name):
    model = graph(HEAD + MIXING[name], "float[N,L] x")
    assert verdict(model) is not None
    rows = np.arange(16, dtype=np.float32).reshape(4, 4) + 1
    session = session_of(model)
    (batch,) = session.run(["y"], {"x": rows})
    try:
        alone = np.concatenate([session.run(["y"], {"x": rows[[at]]})[0] for at in range(4)])
    except Exception:  # a row alone has no answer
        return
    assert batch.shape != alone.shape or not np.array_equal(batch, alone)


def test_numbers_of_32_bits_are_not_followed():
    """16,384 rows of two million columns overflow them."""
    narrow = HEAD.replace("r = Range(zero, n, unit)", "n3 = Cast<to=6>(n); r3 = Range(i0, n3, i1)"
                          "; r = Cast<to=7>(r3)")  # fmt: skip
    model = graph(narrow + PROVED["pairs of row and column"], "float[N,L] x")
    for name, number in {"i0": 0, "i1": 1}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.int32), name))
    assert verdict(model) is not None


def test_pairs_are_of_whole_tensors():
    """With batch dimensions a GatherND takes from each row, by other numbers."""
    model = graph(HEAD + PROVED["pairs of row and column"].replace(
        "GatherND(", "GatherND<batch_dims=1>("), "float[N,L] x")  # fmt: skip
    assert verdict(model) == "y (GatherND): attribute batch_dims has a rule for 0 only"
