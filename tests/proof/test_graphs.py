"""The proof of batching: graphs that mix rows are refused by name, those that don't are proved.

Each line of GRAPHS is a graph in ONNX's own text syntax, of x float[N,4] to y unless it says more.
"""

import contextlib
import itertools
import random

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from onnx.backend.test.case.node import collect_testcases

from serving.model.onnx_runtime import runtime
from serving.proof import Mixes, prove
from serving.proof.onnx_file import parse_model
from serving.proof.sizes import ONE, ROWS, Size, product
from tests.proof.cases import with_rows
from tests.proof.models import compare_with_itself, graph, verdict

IF = "g = Squeeze(c, first); from_ = Where(g, first, second); y = Slice(x, from_, end, first)"
TAKEN = "y (Slice): it takes some of the rows"
MIXING = {
    # The maximum of the tensor, in the ways of frameworks.
    "max": ("m = ReduceMax<keepdims=1>(x); y = Div(x, m)", "m (ReduceMax): over rows"),
    "max of axis 0": ("m = ReduceMax(x, first); y = Div(x, m)", "m (ReduceMax): over rows"),
    "max of both axes": (
        "m = ReduceMax<keepdims=0>(x, both); y = Sub(x, m)",
        "m (ReduceMax): over rows",
    ),
    "max of a flat tensor": (
        "f = Reshape(x, whole); m = ReduceMax(f, first); y = Div(x, m)",
        "m (ReduceMax): over rows",
    ),
    "max by sorting": (
        "f = Reshape(x, whole); v, i = TopK(f, second); y = Div(x, v)",
        "v, i (TopK): it sorts rows",
    ),
    "max by pooling": (
        "a = Reshape(x, whole); b = Unsqueeze(a, both); m = GlobalMaxPool(b); s = Squeeze(m, both)"
        "; y = Div(x, s)",
        "m (GlobalMaxPool): its input 0 has its rows along axis 2, not along axis 0",
    ),
    "decibels": (
        "m = ReduceMax<keepdims=0>(x); d = Sub(m, big); y = Max(x, d)",
        "m (ReduceMax): over rows",
    ),
    "decibels, clipped": (
        "m = ReduceMax<keepdims=0>(x); d = Sub(m, big); y = Clip(x, d)",
        "m (ReduceMax): over rows",
    ),
    # Scaled from the least to the greatest.
    "min-max": (
        "a = ReduceMin<keepdims=0>(x); b = ReduceMax<keepdims=0>(x); c = Sub(x, a); d = Sub(b, a)"
        "; y = Div(c, d)",
        "a (ReduceMin): over rows",
    ),
    "min-max per column": (
        "a = ReduceMin(x, first); b = ReduceMax(x, first); c = Sub(x, a); d = Sub(b, a)"
        "; y = Div(c, d)",
        "a (ReduceMin): over rows",
    ),
    "peak": ("a = Abs(x); p = ReduceMax(a, both); y = Div(x, p)", "p (ReduceMax): over rows"),
    "sum of squares": ("p = ReduceSumSquare(x); y = Div(x, p)", "p (ReduceSumSquare): over rows"),
    "norm": ("p = ReduceL2(x, first); y = Div(x, p)", "p (ReduceL2): over rows"),
    "log-sum-exp over rows": (
        "p = ReduceLogSumExp(x, first); y = Sub(x, p)",
        "p (ReduceLogSumExp): over rows",
    ),
    # Scaled if anybody is large.
    "if any is large, Where": (
        "m = ReduceMax<keepdims=0>(x); c = Greater(m, one); d = Div(x, big); y = Where(c, d, x)",
        "m (ReduceMax): over rows",
    ),
    "if any is large, If": (
        "m = ReduceMax<keepdims=0>(x); c = Greater(m, one); y = If (c) <then_branch = t () =>"
        " (float[A,B] t_y) { t_y = Div(x, big) }, else_branch = e () => (float[A,B] e_y)"
        " { e_y = Identity(x) }>",
        "m (ReduceMax): over rows",
    ),
    "a mean that is added if it is large": (
        "m = ReduceMean<keepdims=0>(x); c = Greater(m, big); f = Cast<to=1>(c); p = Mul(m, f)"
        "; y = Add(x, p)",
        "m (ReduceMean): over rows",
    ),
    "NaN to the column's mean": (
        "n = IsNaN(x); m = ReduceMean(x, first); y = Where(n, m, x)",
        "m (ReduceMean): over rows",
    ),
    "second stage if any row is unsure": (
        "p = Softmax(x); m = ReduceMin<keepdims=0>(p); c = Less(m, small); y = If (c) <then_branch"
        " = t () => (float[A,B] t_y) { t_y = MatMul(p, w) }, else_branch = e () => (float[A,B] e_y)"
        " { e_y = Identity(p) }>",
        "m (ReduceMin): over rows",
    ),
    # Quantized by one scale.
    "8 bits": (
        "q, s, z = DynamicQuantizeLinear(x); y = DequantizeLinear(q, s, z)",
        "q, s, z (DynamicQuantizeLinear): it gives a row its neighbours' scale",
    ),
    "8 bits, in nodes": (
        "a = Abs(x); m = ReduceMax<keepdims=0>(a); q = Div(x, m); r = Mul(q, big); t = Round(r)"
        "; y = Mul(t, m)",
        "m (ReduceMax): over rows",
    ),
    "16 bits, in nodes": (
        "a = Abs(x); m = ReduceMax<keepdims=0>(a); q = Div(x, m); r = Round(q)"
        "; i = Cast<to=5>(r); f = Cast<to=1>(i); y = Mul(f, m)",
        "m (ReduceMax): over rows",
    ),
    "8 bits by the rows' scale": (
        "m = ReduceMax<keepdims=0>(x); y = QuantizeLinear(x, m)",
        "m (ReduceMax): over rows",
    ),
    # Normalized.
    "batch normalization": (
        "y, a, b = BatchNormalization<training_mode=1>(x, vector, vector, vector, vector)",
        "y, a, b (BatchNormalization): in training it normalizes over rows",
    ),
    "softmax over rows": ("y = Softmax<axis=0>(x)", "y (Softmax): it looks over rows"),
    "softmax over rows, turned": (
        "t = Transpose(x); s = Softmax(t); y = Transpose(s)",
        "s (Softmax): it looks over rows",
    ),
    "softmax of old, over all": (
        "y = Softmax<axis=0>(x)",
        "y (Softmax): it looks over rows",
        {"opset": 11},
    ),
    "layer normalization over rows": (
        "y = LayerNormalization<axis=0>(x, one)",
        "y (LayerNormalization): it normalizes over rows",
    ),
    "instance normalization of turned rows": (
        "t = Transpose(x); u = Unsqueeze(t, first); y = InstanceNormalization(u, vector, vector)",
        "y (InstanceNormalization): it looks over rows",
    ),
    "mean and variance": (
        "u = Unsqueeze(x, both); v = Transpose<perm=[2,3,0,1]>(u)"
        "; y = MeanVarianceNormalization(v)",
        "y (MeanVarianceNormalization): this operator has no rule",
    ),
    "running sum": ("y = CumSum(x, zero)", "y (CumSum): it looks over rows"),
    "ranks": ("v, i = TopK<axis=0>(x, second); y = Sub(x, v)", "v, i (TopK): it sorts rows"),
    "arg max over rows": (
        "i = ArgMax<axis=0>(x); f = Cast<to=1>(i); y = Add(x, f)",
        "i (ArgMax): over rows",
    ),
    "one hot of the best row": ("y = Hardmax<axis=0>(x)", "y (Hardmax): this operator has no rule"),
    # Rows beside rows.
    "all pairs": ("t = Transpose(x); y = MatMul(x, t)", "y (MatMul): rows meet other rows"),
    "all pairs by Gemm": ("y = Gemm<transB=1>(x, x)", "y (Gemm): rows meet other rows"),
    "all pairs by Einsum": (
        'y = Einsum<equation="ij,kj->ik">(x, x)',
        "y (Einsum): rows meet other rows",
    ),
    "sum by Einsum": (
        's = Einsum<equation="ij->j">(x); y = Add(x, s)',
        "s (Einsum): it adds up over rows",
    ),
    "differences of all": (
        "a = Unsqueeze(x, first); b = Unsqueeze(x, second); d = Sub(a, b)"
        "; y = ReduceSum<keepdims=0>(d, second)",
        "d (Sub): rows meet other rows",
    ),
    "attention over the batch": (
        "t = Transpose(x); s = MatMul(x, t); p = Softmax(s); y = MatMul(p, x)",
        "s (MatMul): rows meet other rows",
    ),
    "first row": (
        "r = Gather<axis=0>(x, first); y = Sub(x, r)",
        "r (Gather): it takes rows by number",
    ),
    "last row": (
        "r = Gather<axis=0>(x, last); y = Sub(x, r)",
        "r (Gather): it takes rows by number",
    ),
    "first row by Slice": (
        "r = Slice(x, first, second, first); y = Sub(x, r)",
        "r (Slice): it takes some of the rows",
    ),
    "all but the first": (
        "y = Slice(x, second, end, first)",
        "y (Slice): it takes some of the rows",
    ),
    "row by number": (
        "r = GatherND(x, first); y = Sub(x, r)",
        "r (GatherND): it takes rows by number",
    ),
    "row of the index in the row": (
        "i = Cast<to=7>(x); y = Gather<axis=0>(x, i)",
        "y (Gather): rows take from all rows",
    ),
    "neighbour": (
        "a = Slice(x, first, last, first); y = Pad(a, above)",
        "a (Slice): it takes some of the rows",
    ),
    "elements of other rows": (
        "i = Cast<to=7>(x); y = GatherElements<axis=0>(x, i)",
        "y (GatherElements): it takes from other rows",
    ),
    "rows changed by number": (
        "u = Slice(x, first, second, first); i = Cast<to=7>(u)"
        "; y = ScatterElements<axis=0>(x, i, u)",
        "u (Slice): it takes some of the rows",
    ),
    "turned around": (
        "y = Slice(x, last, start, first, last)",
        "y (Slice): it takes some of the rows",
    ),
    "reversed by length": (
        "l = Shape(x); n = Gather(l, first); y = ReverseSequence<batch_axis=1, time_axis=0>(x, n)",
        "y (ReverseSequence): the number of rows meets values",
    ),
    "split in two": (
        "a, b = Split<num_outputs=2>(x); y = Concat<axis=0>(b, a)",
        "a, b (Split): it divides the batch",
    ),
    "doubled": ("y = Concat<axis=0>(x, x)", "output y has several rows for each of the batch"),
    "embedded at a place for each row": (
        "i = Cast<to=6>(x); h, n = com.microsoft.EmbedLayerNormalization(i, , table, table, ,"
        " vector, vector, , three_places); y = ReduceMax<keepdims=0>(h, second)",
        "h, n (com.microsoft.EmbedLayerNormalization): its input 8 has no rows, not along axis 0",
        {"x": "int64[N,2] x", "y": "float[N,4] y"},
    ),
    "repeated": ("y = Tile(x, twice)", "y (Tile): it repeats the batch"),
    "over the batch as time": (
        "a = Reshape(x, halves); u = Unsqueeze(a, second); y, h = LSTM<hidden_size=3>"
        "(u, lstm_w, lstm_r)",
        "y, h (LSTM): its input 0 has its rows along axis 0, not along axis 1",
    ),
    "convolved over rows": (
        "a = Transpose(x); b = Unsqueeze(a, second); y = Conv<pads=[0,1]>(b, kernel)",
        "y (Conv): its input 0 has its rows along axis 2, not along axis 0",
    ),
    "pooled over rows": (
        "a = Transpose(x); b = Unsqueeze(a, first); y = MaxPool<kernel_shape=[3], pads=[1,1]>(b)",
        "y (MaxPool): its input 0 has its rows along axis 2, not along axis 0",
    ),
    "resized rows": ("y = Resize(x, , tall)", "y (Resize): it resizes the batch"),
    # A neighbour's NaN, times 0.
    "resized columns, 0 of the next row": (
        'y = Resize<mode="linear">(x, , scales)',
        "y (Resize): it weighs a row with its neighbours, if only by 0",
    ),
    "resized columns, cubic": (
        'y = Resize<mode="cubic">(x, , scales)',
        "y (Resize): it weighs a row with its neighbours, if only by 0",
    ),
    # The batch axis is lost.
    "two rows to one": ("y = Reshape(x, pairs)", "y (Reshape): it may join several rows to one"),
    "two rows to one and back": (
        "a = Reshape(x, pairs); s = Softmax(a); y = Reshape(s, open)",
        "a (Reshape): it may join several rows to one",
    ),
    "memory turned": (
        "a = Reshape(x, swap); s = Softmax(a); y = Reshape(s, open)",
        "a (Reshape): the batch axis is moved across another one",
    ),
    "transposed memory": (
        "a = Transpose(x); y = Reshape(a, open)",
        "y (Reshape): the batch axis is moved across another one",
    ),
    "flattened": (
        "a = Flatten<axis=0>(x); s = Softmax(a); y = Reshape(s, open)",
        "s (Softmax): it looks over rows",
    ),
    "pieces in another order": (
        "a = Reshape(x, lines); t = Transpose<perm=[1,0,2]>(a); y = Reshape(t, open)",
        "y (Reshape): the batch axis is moved across another one",
    ),
    "squeezed": ("y = Squeeze(x)", "y (Squeeze): it would drop the batch axis of one row"),
    "constant of three rows": (
        "y = Add(x, three_rows)",
        "y (Add): a constant has an element for each row",
    ),
    "constant to a turned batch": (
        "t = Transpose(x); y = MatMul(t, three_rows)",
        "y (MatMul): it adds up over rows",
    ),
    # The number of rows.
    "divided by the rows": (
        "s = Shape(x); n = Gather(s, zero); f = Cast<to=1>(n); y = Div(x, f)",
        "y (Div): the number of rows meets values",
    ),
    "size, at most 2": (
        "s = Shape<start=0, end=1>(x); n = Min(s, two); f = Cast<to=1>(n); y = Mul(x, f)",
        "y (Mul): the number of rows meets values",
    ),
    "size by eights": (
        "s = Shape<start=0, end=1>(x); n = Div(s, eight); f = Cast<to=1>(n); y = Add(x, f)",
        "y (Add): the number of rows meets values",
    ),
    "if there are many": (
        "s = Shape<start=0, end=1>(x); c = Greater(s, eight); d = Squeeze(c, first); y = If (d)"
        " <then_branch = t () => (float[A,B] t_y) { t_y = Neg(x) }, else_branch = e () =>"
        " (float[A,B] e_y) { e_y = Identity(x) }>",
        "y (If): this operator has no rule",
    ),
    "as many turns as rows": (
        "s = Shape(x); n = Gather(s, zero); y = Loop(n, , x) <body = b (int64 i, bool c,"
        " float[A,B] v) => (bool d, float[A,B] v2) { d = Identity(c) v2 = Mul(v, small) }>",
        "y (Loop): this operator has no rule",
    ),
    "row number": (
        "s = Shape(x); n = Gather(s, zero); r = Range(zero, n, unit); u = Unsqueeze(r, second)"
        "; f = Cast<to=1>(u); y = Add(x, f)",
        "y (Add): the number of rows meets values",
    ),
    "table by the number of rows": (
        "s = Shape<start=0, end=1>(x); r = Gather(table, s); y = Add(x, r)",
        "y (Add): the number of rows meets values",
    ),
    "reshaped by half the rows": (
        "s = Shape<start=0, end=1>(x); h = Div(s, two); t = Concat<axis=0>(h, last)"
        "; a = Reshape(x, t); p = Softmax(a); y = Reshape(p, open)",
        "a (Reshape): a size is computed from the number of rows, or may overflow",
    ),
    "pairs if there are eight": (
        "s = Shape<start=0, end=1>(x); h = Div(s, eight); m = Max(h, second)"
        "; f = Mul(m, four); t = Concat<axis=0>(last, f); a = Reshape(x, t); p = Softmax(a)"
        "; y = Reshape(p, open)",
        "a (Reshape): a size is computed from the number of rows, or may overflow",
    ),
    "first columns by the rows": (
        "s = Shape<start=0, end=1>(x); y = Slice(x, first, s, second)",
        "y (Slice): it cuts by the number of rows",
    ),
    "best by the rows": (
        "s = Shape<start=0, end=1>(x); y, i = TopK(x, s)",
        "y, i (TopK): the size of a row depends on the number of rows",
    ),
    "padded by the rows": (
        "s = Shape<start=0, end=1>(x); p = Concat<axis=0>(first, s, first, first); y = Pad(x, p)",
        "y (Pad): its border is unknown, or depends on the number of rows",
    ),
    # Sizes overflow, and other types round.
    "int32, multiplied and divided": (
        "s = Shape<start=0, end=1>(x); i = Cast<to=6>(s); a = Mul(i, int_2_30)"
        "; b = Div(a, int_2_12); c = Div(b, int_2_12); d = Div(c, int_2_6); e = Cast<to=7>(d)"
        "; r = Slice(x, first, e, first); y = Add(x, r)",
        "r (Slice): it takes some of the rows",
    ),
    "int32 below 0": (
        "s = Shape<start=0, end=1>(x); i = Cast<to=6>(s); a = Mul(i, int_2_30)"
        "; c = Greater(a, int_0); " + IF,
        TAKEN,
    ),
    "int32 past its greatest": (
        "s = Shape<start=0, end=1>(x); i = Cast<to=6>(s); a = Add(i, int_most)"
        "; c = Greater(a, int_0); " + IF,
        TAKEN,
    ),
    "int64, the 32nd power": (
        "s = Shape<start=0, end=1>(x); p = Mul(s, s); q = Mul(p, p); r = Mul(q, q); t = Mul(r, r)"
        "; u = Mul(t, t); c = Greater(u, first); " + IF,
        TAKEN,
    ),
    "reshaped by a size that is 0": (
        "s = Shape<start=0, end=1>(x); l = Shape<start=1, end=2>(x); i = Cast<to=6>(s)"
        "; j = Cast<to=6>(l); a = Mul(i, int_2_30); b = Mul(a, j); q = Cast<to=7>(b)"
        "; t = Concat<axis=0>(second, q, last); r = Reshape(x, t); p = Softmax(r)"
        "; u = Concat<axis=0>(s, l); y = Reshape(p, u)",
        "r (Reshape): a size is computed from the number of rows, or may overflow",
        {"x": "float[N,L] x"},
    ),
    "uint32 of -1": (
        "u = Cast<to=12>(last); c = Less(uint_1, u); e = Where(c, first, second); "
        "m = ReduceMax(x, e); y = Add(x, m)",
        "m (ReduceMax): its axes are computed",
    ),
    "uint8 that overflows": (
        "u = Mul(byte_200, byte_200); v = Cast<to=7>(u); c = Less(v, two_hundred)"
        "; e = Where(c, first, second); m = ReduceMax(x, e); y = Add(x, m)",
        "m (ReduceMax): its axes are computed",
    ),
    "floats that round": (
        "s = Shape<start=0, end=1>(x); f = Cast<to=1>(s); k = Cast<to=1>(int_2_24); a = Add(f, k)"
        "; b = Sub(a, k); c = Equal(b, f); " + IF,
        TAKEN,
    ),
    "two kinds of Mod": (
        "s = Shape<start=0, end=1>(x); n = Sub(s, eight); a = Mod<fmod=0>(n, three)"
        "; b = Mod<fmod=1>(n, three); c = Equal(a, b); " + IF,
        TAKEN,
    ),
    "greatest of three sizes": (
        "s = Shape<start=0, end=1>(x); n = Max(second, second, s); f = Cast<to=1>(n)"
        "; y = Mul(x, f)",
        "y (Mul): the number of rows meets values",
    ),
    "product of no axes": (
        "s = Shape(w); p = ReduceProd<noop_with_empty_axes=1>(s); n = Gather(p, first)"
        "; c = Equal(n, four); e = Where(c, first, second); m = ReduceMax(x, e); y = Add(x, m)",
        "m (ReduceMax): its axes are computed",
    ),
    "Einsum with a size of 1": (
        'e = Einsum<equation="ij,j->ij">(x, single); t = Transpose(e)'
        "; s = Shape<start=0, end=1>(x); u = Concat<axis=0>(s, last); y = Reshape(t, u)",
        "y (Reshape): the batch axis is moved across another one",
    ),
    # Loops and bodies.
    "loop whose state grows": (
        "y = Loop(three_times, , x) <body = b (int64 i, bool o, float[A,B] v) => (bool d,"
        " float[A,B] v2) { d = Identity(o) a = Shape<start=1, end=2>(v)"
        " l = Shape<start=1, end=2>(x) e = Equal(a, l) c = Squeeze(e, first) k = If (c)"
        " <then_branch = t () => (float[A,B] t_y) { t_y = Neg(v) }, else_branch = f () =>"
        " (float[A,B] f_y) { m = ReduceMax(v, first) f_y = Add(m, v) }>"
        " v2 = Concat<axis=1>(k, v) }>",
        "y (Loop): this operator has no rule",
        {"x": "float[N,L] x"},
    ),
    "loop over rows": (
        "i0 = Identity(row); z, y = Scan(i0, x) <num_scan_inputs=1, body = b (float[1,4] h,"
        " float[4] v) => (float[1,4] h2, float[1,4] o) { h2 = Add(h, v) o = Identity(h2) }>",
        "z, y (Scan): Add in its body has no rule",
    ),
    "loop that sees all": (
        "i0 = Identity(row); z, y = Scan(i0, x) <num_scan_inputs=1, body = b (float[1,4] h,"
        " float[4] v) => (float[1,4] h2, float[4] o) { h2 = Identity(h) m = ReduceMax(x, first)"
        " o = Sub(v, m) }>",
        "z, y (Scan): its turns see tensors around it",
    ),
    "loop until all are small": (
        "y = Loop( , , x) <body = b (int64 i, bool c, float[A,B] v) => (bool d, float[A,B] v2)"
        " { v2 = Mul(v, small) m = ReduceMax<keepdims=0>(v2) d = Greater(m, small) }>",
        "y (Loop): this operator has no rule",
    ),
    "as many turns as the greatest": (
        "m = ReduceMax<keepdims=0>(x); n = Cast<to=7>(m); y = Loop(n, , x) <body = b (int64 i,"
        " bool c, float[A,B] v) => (bool d, float[A,B] v2) { d = Identity(c) v2 = Mul(v, small) }>",
        "m (ReduceMax): over rows",
    ),
    # Others.
    "added to one row": (
        "y, m, i, s = com.microsoft.SkipLayerNormalization(row, x, vector)",
        "y, m, i, s (com.microsoft.SkipLayerNormalization): only the second tensor may be repeated",
    ),
    "added to one row, of a number each": (
        "u = Unsqueeze(one, both); y, m, i, s = com.microsoft.SkipLayerNormalization(x, u, vector)",
        "y, m, i, s (com.microsoft.SkipLayerNormalization): it normalizes over rows",
        {"x": "float[N] x"},
    ),
    "scores that nobody writes": (
        "v, y = ai.onnx.ml.LinearClassifier<classlabels_ints=[0, 1], coefficients=[1.0, 2.0, 3.0,"
        ' 4.0], intercepts=[1.0], post_transform="PROBIT">(x)',
        "v, y (LinearClassifier): with PROBIT, ONNX Runtime leaves scores as the memory was",
    ),
    "random": (
        "r = RandomUniformLike(x); y = Add(x, r)",
        "r (RandomUniformLike): it draws random numbers",
    ),
    "found places": ("y = NonZero(x)", "y (NonZero): this operator has no rule"),
    "dropout": ("y = Dropout(x, small, truth)", "y (Dropout): this operator has no rule"),
    "distinct": ("y = Unique<axis=0>(x)", "y (Unique): this operator has no rule"),
    "chosen rows": (
        "c = Cast<to=9>(vector); y = Compress<axis=0>(x, c)",
        "y (Compress): this operator has no rule",
    ),
    "no rows": ("y = Identity(row)", "output y has no axis of rows"),
    "scalar": ("y = ReduceMax<keepdims=0>(x)", "y (ReduceMax): over rows"),
    "turned output": ("y = Transpose(x)", "output y has its rows along axis 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
def test_graph_that_mixes_rows_is_refused_by_name(name):
    body, reason, *options = MIXING[name]
    assert verdict(graph(body, **(options[0] if options else {}))) == reason


TOKENS = {"x": "int64[N,L] x"}
PROVED = {
    "element by element": (
        "a = Mul(x, vector); b = Add(a, row); c = Tanh(b); y = Clip(c, small, one)"
    ),
    "chosen by element": "c = Greater(x, one); y = Where(c, x, vector)",
    "powers": "a = Pow(x, one); b = Max(a, x, vector); y = PRelu(b, vector)",
    "dense": "a = MatMul(x, w); b = Relu(a); y = Gemm<transB=1>(b, w, row)",
    "turned and back": (
        "a = Transpose(x); b = MatMul(w, a); c = Softmax<axis=0>(b); y = Transpose(c)"
    ),
    "softmax": "y = Softmax(x)",
    "softmax of old": ("y = Softmax<axis=1>(x)", {"opset": 11}),
    "layer normalization": "y = LayerNormalization(x, vector, vector)",
    "layer normalization, in nodes": (
        "m = ReduceMean(x, last); d = Sub(x, m); s = ReduceSumSquare(d, last); r = Sqrt(s)"
        "; y = Div(d, r)"
    ),
    "batch normalization": "y = BatchNormalization(x, vector, vector, vector, vector)",
    "batch normalization in training, of constants": (
        "n, a, b = BatchNormalization<training_mode=1>(table, vector, vector, vector, vector)"
        "; c = Slice(n, first, second, first); d = Add(c, a); y = Add(x, d)"
    ),
    "resized by scales of half precision": (
        "s = Cast<to=1>(half_scales); y = Resize<mode=\"nearest\">(x, , s)"
    ),
    "a constant that is tiled for each row": (
        "n = Shape<start=0, end=1>(x); t = Concat<axis=0>(n, second); c = Tile(row, t)"
        "; y = Add(x, c)"
    ),
    "a size that is left open beside rows and another": (
        "n = Shape<start=0, end=1>(x); m = Shape<start=1, end=2>(x); l = Sub(m, second)"
        "; t = Concat<axis=0>(n, l, last); r = Reshape(x, t); y = ReduceMax(r, once)",
        {"x": "float[N,L,4] x", "y": "float[N,A,B] y"},
    ),
    "one element of two axes beside rows of one": (
        "r = ReduceMax<keepdims=0>(x, second); a = Add(r, one_of_two); y = Reshape(a, row_of_1)"
    ),
    "embedded tokens": (
        "i = Cast<to=6>(x); m = Cast<to=6>(z); h, n = com.microsoft.EmbedLayerNormalization(i, ,"
        " table, table, , vector, vector, m); y = ReduceMax<keepdims=0>(h, second)",
        {"x": "int64[N,L] x, int64[N,L] z", "y": "float[N,4] y"},
    ),
    "embedded tokens at given places": (
        "i = Cast<to=6>(x); h, n = com.microsoft.EmbedLayerNormalization(i, , table, table, ,"
        " vector, vector, , both_places); y = ReduceMax<keepdims=0>(h, second)",
        {"x": "int64[N,2] x", "y": "float[N,4] y"},
    ),
    "row's own scale": "m = ReduceMax(x, last); y = Div(x, m)",
    "row's own decision": (
        "m = ReduceMax(x, last); c = Greater(m, one); d = Div(x, big); y = Where(c, d, x)"
    ),
    "column's best": "v, i = TopK(x, two); f = Cast<to=1>(i); y = Add(v, f)",
    "arg max": ("y = ArgMax<axis=1, keepdims=0>(x)", {"y": "int64[N] y"}),
    "running sum of columns": "y = CumSum(x, unit)",
    "columns": (
        "a = Gather<axis=1>(x, both); b = Slice(x, second, three, second)"
        "; y = Concat<axis=1>(a, b)"
    ),
    "all rows by Slice": "y = Slice(x, first, end, first)",
    "split columns": "a, b = Split<axis=1, num_outputs=2>(x); y = Concat<axis=1>(b, a)",
    "own elements": "i = ArgMax<axis=1>(x); y = GatherElements<axis=1>(x, i)",
    "changed elements": (
        "i = ArgMax<axis=1>(x); u = ReduceMax(x, last); y = ScatterElements<axis=1>(x, i, u)"
    ),
    "one hot": (
        "i = ArgMax<axis=1, keepdims=0>(x); v = Cast<to=1>(both); y = OneHot(i, eight, v)"
    ),
    "embedding": ("a = Gather(table, x); y = ReduceMean<keepdims=0>(a, second)", TOKENS),
    "embedding by GatherND": (
        "u = Unsqueeze(x, two); a = GatherND(table, u)"
        "; y = ReduceMean<keepdims=0>(a, second)", TOKENS,
    ),
    "positions": (
        "a = Gather(table, x); s = Shape<start=1, end=2>(x); p = Squeeze(s, first)"
        "; r = Range(zero, p, unit); e = Gather(table, r); b = Add(a, e)"
        "; y = ReduceMax<keepdims=0>(b, second)", TOKENS,
    ),
    "mask for each row": (
        "s = Shape(x); m = ConstantOfShape(s); c = Cast<to=1>(x); d = Add(m, c)"
        "; y = ReduceSum(d, second)", TOKENS,
    ),
    "heads": (
        "a = Gather(table, x); s = Shape<start=0, end=2>(x); t = Concat<axis=0>(s, two, last)"
        "; h = Reshape(a, t); q = Transpose<perm=[0,2,1,3]>(h); k = Transpose<perm=[0,2,3,1]>(h)"
        "; p = MatMul(q, k); f = Softmax(p); v = MatMul(f, q); b = Transpose<perm=[0,2,1,3]>(v)"
        "; u = Concat<axis=0>(s, last); c = Reshape(b, u); y = ReduceMean<keepdims=0>(c, second)",
        TOKENS,
    ),
    "sequence first, flat and back": (
        "a = Gather(table, x); b = Transpose<perm=[1,0,2]>(a); s = Shape(b); f = Reshape(b, open)"
        "; m = MatMul(f, w); c = Reshape(m, s); y = ReduceMean<keepdims=0>(c, first)", TOKENS,
    ),
    "recurrent": (
        "a = Reshape(x, lines); t = Transpose<perm=[1,0,2]>(a); b, h = LSTM<hidden_size=3>"
        "(t, lstm_w, lstm_r); y = Squeeze(h, first)"
    ),
    "recurrent, from zeros": (
        "a = Reshape(x, lines); t = Transpose<perm=[1,0,2]>(a); s = Shape<start=0, end=1>(x)"
        "; d = Concat<axis=0>(second, s, three); z = ConstantOfShape(d)"
        "; b, h = LSTM<hidden_size=3>(t, lstm_w, lstm_r, , , z, z); y = Squeeze(h, first)"
    ),
    "expanded for each row": (
        "s = Shape<start=0, end=1>(x); t = Concat<axis=0>(s, four); r = Expand(row, t)"
        "; y = Concat<axis=1>(x, r)"
    ),
    "expanded as PyTorch writes it": (
        "s = Shape(x); m = ConstantOfShape<value = int64[1] {1}>(two); o = ConstantOfShape<value ="
        " int64[1] {-1}>(two); e = Equal(s, o); t = Where(e, m, s); r = Expand(row, t)"
        "; y = Add(x, r)"
    ),
    "convolved": (
        "a = Unsqueeze(x, second); b = Conv<pads=[0,1]>(a, kernel)"
        "; c = MaxPool<kernel_shape=[2]>(b); y = Flatten(c)"
    ),
    "convolved, flat by its number": (
        "a = Unsqueeze(x, second); b = Conv<pads=[0,1]>(a, kernel); y = Reshape(b, pairs)"
    ),
    "pooled": "a = Unsqueeze(x, second); b = GlobalAveragePool(a); y = Flatten(b)",
    "pieces and back": "a = Reshape(x, lines); b = Softmax(a); y = Reshape(b, open)",
    "pieces as rows": "a = Reshape(x, halves); b = Softmax(a); y = Reshape(b, open)",
    "reshaped by its shape": (
        "s = Shape(x); n = Gather(s, zero); u = Unsqueeze(n, first)"
        "; t = Concat<axis=0>(u, two, last); a = Reshape(x, t)"
        "; y = ReduceMax<keepdims=0>(a, second)"
    ),
    "size or itself, as in Keras": "s = Shape(x); m = Max(s, s); y = Reshape(x, m)",
    "copied size": "a = Reshape(x, cube); b = ReduceSum<keepdims=0>(a, two); y = Reshape(b, keep)",
    "border": "y = Pad(x, border)",
    "border behind a Reshape": (
        "u = Unsqueeze(border, first); p = Reshape(u, whole); y = Pad(x, p)"
    ),
    "repeated columns": "y = Tile(x, once)",
    "resized columns": "y = Resize(x, , scales)",
    "sums by Einsum": 'y = Einsum<equation="ij,jk->ik">(x, w)',
    "quantized by constants": "q = QuantizeLinear(x, small); y = DequantizeLinear(q, small)",
    "scan over rows beside a constant": (
        "k = Identity(table); z, y = Scan(k, x) <num_scan_inputs=1, body = b (float[10,4] t,"
        " float[4] v) => (float[10,4] t2, float[10] o) { t2 = Identity(t)"
        " s = Constant<value_ints = [1]>() d = Sub(t, v) o = ReduceSumSquare<keepdims=0>(d, s) }>"
    ),
    # As exporters write it.
    "old addition, multiplied": ("a = Add(x, vector); y = Mul(a, row)", {"opset": 7}),
    "a hundred inputs": (
        f"y = Concat<axis=1>({', '.join(f'x{at}' for at in range(100))})",
        {"x": ", ".join(f"float[N,2] x{at}" for at in range(100))},
    ),
    "tokens of a picture of any size": (
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, kernel_3); p = MaxPool<kernel_shape=[3,3],"
        " strides=[2,2], pads=[1,1,1,1], ceil_mode=1>(c); t = Transpose<perm=[0,2,3,1]>(p)"
        "; s = Shape(t); l = Slice(s, second, three, first); m = ReduceProd(l, first)"
        "; n = Slice(s, first, second, first); f = Concat<axis=0>(n, m, two)"
        "; r = Reshape(t, f); a = Softmax(r); b = Reshape(a, s); g = Reshape(b, f)"
        "; y = ReduceMax<keepdims=0>(g, second)",
        {"x": "float[N,1,H,W] x"},
    ),
    "lines of a picture as rows": (
        "c = Conv(x, kernel_3); t = Transpose<perm=[0,2,3,1]>(c); s = Shape(t)"
        "; l = Slice(s, first, two, first); m = ReduceProd(l, first)"
        "; o = Slice(s, two, four, first); f = Concat<axis=0>(m, o); r = Reshape(t, f)"
        "; a = Softmax<axis=1>(r)"
        "; b = Reshape(a, s); y = ReduceMax<keepdims=0>(b, pair)",
        {"x": "float[N,1,H,W] x"},
    ),
    "resized to a size": (
        "s = Shape(x); n = Slice(s, first, two, first); t = Concat<axis=0>(n, eight, eight)"
        '; r = Resize<mode="linear">(x, , , t); y = Reshape(r, row_of_64)',
        {"x": "float[N,1,H,W] x"},
    ),
    "categories": (
        "i = Cast<to=7>(x); e = ai.onnx.ml.OneHotEncoder<cats_int64s=[0, 1, 2]>(i)"
        "; y = Reshape(e, row_of_12)"
    ),
    "categories of a column": (
        "c = ai.onnx.ml.ArrayFeatureExtractor(x, second); i = Cast<to=7>(c)"
        "; e = ai.onnx.ml.LabelEncoder<keys_int64s=[0, 1], values_floats=[2.0, 3.0]>(i)"
        "; y = Reshape(e, row_of_1)"
    ),
    "a table's element for each row": (
        "c = ai.onnx.ml.ArrayFeatureExtractor(x, second); i = Cast<to=7>(c)"
        "; z = Clip(i, zero, zero); e = ai.onnx.ml.ArrayFeatureExtractor(w, z); y = Transpose(e)"
    ),
    "regressor of one target": (
        "r = ai.onnx.ml.LinearRegressor<coefficients=[1.0, 2.0, 3.0, 4.0]>(x)"
        "; y = Reshape(r, row_of_1)"
    ),
    "scores of classes": (
        "l, s = ai.onnx.ml.LinearClassifier<classlabels_ints=[0, 1, 2], coefficients=[1.0, 2.0,"
        " 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], intercepts=[1.0, 2.0, 3.0]>(x)"
        "; y = Reshape(s, row_of_3)"
    ),
    "discriminants one after the other": (
        "a = ReduceSum(x, second); b = ReduceMax(x, second); d = Concat<axis=0>(a, b, a)"
        "; r = Reshape(d, three_rows_of); y = Transpose(r)"
    ),
    "both directions": (
        "a = Reshape(x, lines); t = Transpose<perm=[1,0,2]>(a); s = Shape(x)"
        "; n = Slice(s, first, second, first); l = Expand(two, n)"
        "; r = ReverseSequence<batch_axis=1, time_axis=0>(t, l); b, h = LSTM<hidden_size=3>"
        "(r, lstm_w, lstm_r); c = Squeeze(b, second)"
        "; e = ReverseSequence<batch_axis=1, time_axis=0>(c, l)"
        "; y = ReduceMax<keepdims=0>(e, first)"
    ),
    "attention as one operator": (
        "u = Unsqueeze(x, second); a = Attention<q_num_heads=1, kv_num_heads=1>(u, u, u)"
        "; y = Squeeze(a, second)",
        {"opset": 23},
    ),
    "shape of windows that are split": (
        "s = Shape(x); a, b = Split<num_outputs=2>(s); n = Neg(b); m = Neg(n)"
        "; t = Concat<axis=0>(a, m); y = Reshape(x, t)"
    ),
    "part that nobody needs": "m = ReduceMax<keepdims=1>(x); z = Div(x, m); y = Neg(x)",
    "two inputs": (
        "a = Add(x, z); y = Concat<axis=1>(a, x)", {"x": "float[N,4] x, float[N,4] z"}
    ),
    "two names of one axis": ("y = Add(x, z)", {"x": "float[N,4] x, float[M,4] z"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_graph_that_keeps_rows_apart_is_proved_and_does(name):
    entry = PROVED[name]
    body, options = entry if isinstance(entry, tuple) else (entry, {})
    model = graph(body, **options)
    assert verdict(model) is None
    compare_with_itself(model)


def test_axes_of_two_inputs_that_no_node_joins_are_no_batch():
    model = graph(
        "y = Neg(x); v = Neg(z)", x="float[N,4] x, float[M,4] z", y="float[N,4] y, float[M,4] v"
    )
    assert verdict(model) == "M and N are batch axes of their own"


@pytest.mark.parametrize(("num_columns", "is_too_large"), [(1 << 28, False), (1 << 28 | 1, True)])
def test_tensor_without_an_element_may_still_be_too_large_to_prove(num_columns, is_too_large):
    """Of its axes that have a size, the product counts, also of a constant."""
    model = graph("c = Cast<to=1>(hollow); m = ReduceSum<keepdims=0>(c); y = Add(x, m)")
    hollow = onnx.numpy_helper.from_array(np.empty((0, num_columns), np.float32), "hollow")
    model.graph.initializer.append(hollow)
    reason = "c (Cast): its output is too large to prove" if is_too_large else None
    assert verdict(model) == reason


@pytest.mark.parametrize(
    ("rank", "reason"), [(12, None), (13, "t (Unsqueeze): it has more than 12 axes")]
)
def test_tensor_of_more_axes_than_twelve_is_not_followed(rank, reason):
    model = graph("t = Unsqueeze(x, axes); y = Squeeze(t, axes)")
    axes = onnx.numpy_helper.from_array(np.arange(2, rank), "axes")
    model.graph.initializer.append(axes)
    assert verdict(model) == reason


def test_function_is_followed_into_its_body():
    text = (
        '<ir_version: 8, opset_import: ["" : 18, "own" : 1]>\ng (float[N,4] x) => (float[N,4] y)'
        " { y = own.scaled<by = 2.0>(x) }\n"
        '<domain: "own", opset_import: ["" : 18]> scaled <by> (a) => (b)'
        " { f = Constant<value_float: float = @by>() OP }"
    )
    for operation, reason in {
        "b = Mul(a, f)": None,
        "m = ReduceMax(a) b = Div(a, m)": "inlined1/m (ReduceMax): over rows",
    }.items():
        assert verdict(parser.parse_model(text.replace("OP", operation))) == reason


def test_function_is_read_as_onnx_runtime_runs_it():
    head = (
        '<ir_version: 10, opset_import: ["" : 18, "own" : 1]>\ng (float[N,4] x) => (float[N,4] y)'
    )
    main = head + " { y = own.f<axis = 0>(x) }\n"
    function = '<domain: "own", opset_import: ["" : VERSION]> f <axis> (a) => (b) { b = BODY }\n'
    body = "If (c) <then_branch = t () => (float[A,B] t) { t = BODY }, else_branch = e () =>"
    inner = "If (c) <then_branch = u () => (float[A,B] u) { u = Softmax<axis: int = @axis>(a) }, "
    inner += "else_branch = v () => (float[A,B] v) { v = Neg(a) }>"
    body = body.replace("BODY", inner) + " (float[A,B] e) { e = Neg(a) }>"
    nested = function.replace("b = BODY", f"c = Constant<value: tensor = bool {{1}}>() b = {body}")
    once = function.replace("BODY", "Neg(a)")
    for functions, version, reason in [
        (nested, 18, "a function with a body has no rule"),
        (once, 11, "function f is for other versions of the operators"),
        (once, 19, "function f is for other versions of the operators"),
        (once + once, 18, "two functions are named f"),
        (once, 18, None),
    ]:
        text = main + functions.replace("VERSION", str(version))
        assert verdict(parser.parse_model(text)) == reason


def test_size_of_minus_one_is_open():
    model = graph("y = Neg(x)")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert verdict(model) is None


def test_model_that_does_not_say_its_operators_version_is_refused():
    model = graph("r = Slice(x, first, second, first); y = Gemm(x, w, r)")
    del model.opset_import[0]
    assert "does not say which version" in (verdict(model) or "")


def test_function_may_not_replace_an_operator():
    text = (
        '<ir_version: 8, opset_import: ["" : 18]>\ng (float[N,4] x) => (float[N,4] y)'
        ' { y = ReduceMax(x) }\n<domain: "", opset_import: ["" : 18]> ReduceMax (a) => (b)'
        " { b = Neg(a) }"
    )
    assert verdict(parser.parse_model(text)) == ("function ReduceMax has the name of an operator")


def test_fields_are_read_as_onnx_runtime_reads_them():
    """The last one holds where fields exclude each other."""
    model = parse_model(graph("y = Neg(x)").SerializeToString())
    kind = model.graph.input[0].type
    size = kind.tensor_type.shape.dim[1]
    size.MergeFromString(onnx.TensorShapeProto.Dimension(dim_param="L").SerializeToString())
    assert not size.dim_value
    sequence = onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence())
    kind.MergeFromString(sequence.SerializeToString())
    assert not kind.HasField("tensor_type")


def test_names_that_are_no_text_end_the_proof():
    data = graph("m = ReduceMax(x); y = Add(x, m)").SerializeToString()
    with pytest.raises(Mixes):
        prove(parse_model(data.replace(b"\x01m", b"\x01\xff")))


def test_hostile_graphs_end_the_proof():
    names = [f"v{number}" for number in range(3000)]
    chain = "; ".join(f"{b} = Mul({a}, {a})" for a, b in itertools.pairwise(["s", *names]))
    sizes = graph(f"s = Shape(x); {chain}; y = Reshape(x, {names[-1]})")
    assert "Reshape" in (verdict(sizes) or "")
    # A product of sums has 10^10 terms; a constant of 64^6 elements takes 500 GB.
    columns = ", ".join("ABCDEFGHIJ")
    total = "; ".join(f"s{at} = Add(s{at - 1}, s{at}_)" for at in range(1, 10))
    shapes = "; ".join(f"s{at}_ = Shape<start={at + 1}, end={at + 2}>(x)" for at in range(10))
    ten = ", ".join(["s9"] * 10)
    large = f"{shapes}; s0 = Identity(s0_); {total}; t = Concat<axis=0>({ten}); y = Reshape(x, t)"
    assert "Reshape" in (verdict(graph(large, x=f"float[N, {columns}] x")) or "")
    filled = "c = ConstantOfShape<value = int64[1] {1}>(sixes); d = Expand(c, sixes); y = Add(x, d)"
    assert verdict(graph(filled)) is not None
    same = graph("y = Neg(x)")
    same.graph.node.append(same.graph.node[0])
    assert verdict(same) == "two tensors are named y"
    same.graph.node[0].input[0] = "nothing"
    assert verdict(same) is not None
    odd = graph("y = ReduceMax(x)")
    odd.graph.node[0].name = "a\n\x1b[31m" + "b" * 1000
    reason = verdict(odd)
    assert reason is not None
    assert reason.isprintable()
    assert len(reason) < 300


UNARY = ["Relu({})", "Tanh({})", "Softmax({})", "Neg({})", "LayerNormalization({}, vector)",
         "CumSum({}, unit)", "MatMul({}, w)", "Add({}, row)", "Mul({}, vector)",
         "Transpose({})", "Reshape({}, open)", "Reshape({}, halves)", "Reshape({}, pairs)",
         "ReduceMax({}, last)", "ReduceMean({}, first)", "Softmax<axis=0>({})",
         "Sub({}, three_rows)",
         "Slice({}, first, end, second)", "Slice({}, first, two, first)", "Pad({}, border)",
         "Unsqueeze({}, first)", "Unsqueeze({}, last)", "Squeeze({}, first)", "Flatten({})",
         "Flatten<axis=0>({})", "Tile({}, once)", "Concat<axis=1>({}, {})",
         "Concat<axis=0>({}, {})",
         "Reshape({}, lines)", "Transpose<perm=[1,0,2]>({})", "ReduceSum<keepdims=0>({}, second)",
         "Reshape({}, swap)", "Gather<axis=0>({}, both)", "Gather<axis=1>({}, both)"]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_graphs_that_are_proved_answer_each_row_alone(seed):
    """Compositions of operators: those that are proved equal themselves alone."""
    choose = random.Random(seed)
    names, lines = ["x"], []
    for number in range(choose.randint(1, 7)):
        name = f"v{number}"
        first = names[-1] if choose.random() < 0.8 else choose.choice(names)
        if choose.random() < 0.2:
            operation = choose.choice(["Add", "MatMul", "Div", "Max"])
            lines.append(f"{name} = {operation}({first}, {choose.choice(names)})")
        else:
            lines.append(f"{name} = {choose.choice(UNARY).format(first, first)}")
        names.append(name)
    lines.append(f"y = Identity({names[-1]})")
    model = graph("; ".join(lines))
    if verdict(model) is None:
        state = runtime().capi.onnxruntime_pybind11_state
        with contextlib.suppress(state.Fail, state.InvalidArgument):  # shapes don't fit
            compare_with_itself(model)


def test_size_is_a_polynomial():
    length, width = Size.unknown("+1"), Size.unknown("+2")
    assert (ROWS * length).per_row == length
    assert (ROWS + ONE).per_row is None
    assert (ROWS * ROWS).per_row is None
    assert Size.unknown("N?1").per_row is None
    assert product([ROWS, length, width]).divided(length * ROWS) == width
    assert (ROWS * length).divided(width) is None
    assert (length - length).number == 0
    assert not (length - ONE).is_positive


def test_size_is_evaluated_where_its_unknowns_are_known():
    size = ROWS * Size.unknown("+7") + Size.of(2)
    assert size.at({"N": 3, "+7": 5}) == 17
    assert (size + Size.unknown("?8")).at({"N": 3, "+7": 5}) is None


def test_proof_returns_what_it_knows_of_tensors():
    proof = prove(
        parse_model(graph("t = Transpose(x); y = Transpose(t)", "float[N,L] x").SerializeToString())
    )
    (length,) = proof.axes.keys() - {"N"}
    assert proof.axes == {"N": ("x", 0), length: ("x", 1)}
    shape = proof.values["t"].shape
    assert [size.at({"N": 3, length: 5}) for size in shape] == [5, 3]
    assert proof.values["t"].axis == 1


def test_schema_has_the_fields_of_onnx():
    ours = parse_model(graph("y = Neg(x)").SerializeToString()).DESCRIPTOR.file
    enum, number = onnx.AttributeProto.DESCRIPTOR.fields_by_name["type"].type, 5
    for name, message in ours.message_types_by_name.items():
        theirs = onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name
        for field in message.fields:
            other = theirs[field.name]
            assert (field.number, field.is_repeated) == (other.number, other.is_repeated)
            assert field.type == (number if other.type == enum else other.type)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_cases_of_onnx_that_are_proved_answer_each_row_alone():
    """ONNX's own cases of each operator, any of their inputs as rows and the others constant."""
    num_compared = 0
    for case in collect_testcases(None):
        for model, rows in with_rows(case):
            if verdict(model) is None:
                num_compared += compare_rows(model, rows)
    assert num_compared > 700


def compare_rows(model, rows):
    """Return whether the model runs, and then compare its rows with themselves alone."""
    count = len(next(iter(rows.values())))
    order = [*range(count), *reversed(range(count))]
    try:
        session = runtime().InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        answers = session.run(None, {name: array[order] for name, array in rows.items()})
        singles = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(count)]
        alone = [session.run(None, each) for each in singles]
    except Exception:  # ONNX Runtime's have no common base; a run that fails is no wrong answer
        return False
    for index, answer in enumerate(answers):
        wanted = np.concatenate([alone[i][index] for i in order])
        assert answer.shape == wanted.shape
        if answer.dtype.kind in "fc":
            np.testing.assert_allclose(answer, wanted, rtol=1e-3, atol=1e-5)
        else:
            np.testing.assert_array_equal(answer, wanted)
    return True
