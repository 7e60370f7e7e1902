"""Models for tests of the proof of batching, in ONNX's text syntax, and how they run."""

import numpy as np
from onnx import numpy_helper, parser

from serving.model.onnx_runtime import new_session
from serving.proof import Mixes, prove
from serving.proof.onnx_file import parse_model

HEAD = '<ir_version: 8, opset_import: ["" : {opset}, "ai.onnx.ml" : 3, "com.microsoft" : 1]>\n'
CONSTANTS = {
    "w": np.arange(16, dtype=np.float32).reshape(4, 4) / 9 - 0.8,
    "row": np.array([[0.5, -1, 2, 3]], np.float32),
    "vector": np.array([0.5, -1, 2, 3], np.float32),
    "one": np.float32(1), "small": np.float32(0.01), "big": np.float32(255),
    "zero": np.int64(0), "first": np.array([0], np.int64), "second": np.array([1], np.int64),
    "last": np.array([-1], np.int64), "two": np.array([2], np.int64),
    "three": np.array([3], np.int64), "eight": np.array([8], np.int64),
    "both": np.array([0, 1], np.int64), "open": np.array([-1, 4], np.int64),
    "pairs": np.array([-1, 8], np.int64), "halves": np.array([-1, 2], np.int64),
    "swap": np.array([4, -1], np.int64), "keep": np.array([0, -1], np.int64),
    "cube": np.array([0, 2, 2], np.int64), "lines": np.array([-1, 2, 2], np.int64),
    "whole": np.array([-1], np.int64), "end": np.array([2**63 - 1], np.int64),
    "once": np.array([1, 2], np.int64), "twice": np.array([2, 1], np.int64),
    "border": np.array([0, 1, 0, 1], np.int64), "above": np.array([1, 0, 0, 0], np.int64),
    "table": np.arange(40, dtype=np.float32).reshape(10, 4),
    "three_rows": np.ones((3, 4), np.float32), "four": np.array([4], np.int64),
    "kernel": np.ones((2, 1, 2), np.float32), "scales": np.array([1, 2], np.float32),
    "tall": np.array([2, 1], np.float32),
    "int_most": np.array([2**31 - 1], np.int32),
    "int_0": np.array([0], np.int32), "int_2_6": np.array([64], np.int32),
    "int_2_12": np.array([4096], np.int32), "int_2_30": np.array([2**30], np.int32),
    "int_2_24": np.array([2**24], np.int64), "two_hundred": np.array([200], np.int64),
    "uint_1": np.array([1], np.uint32), "byte_200": np.array([200], np.uint8),
    "single": np.array([2], np.float32),
    "lstm_w": np.ones((1, 12, 2), np.float32), "lstm_r": np.ones((1, 12, 3), np.float32),
}  # fmt: skip
CONSTANTS |= {
    "kernel_3": np.ones((2, 1, 3, 3), np.float32), "pair": np.array([1, 2], np.int64),
    "row_of_64": np.array([-1, 64], np.int64), "row_of_12": np.array([-1, 12], np.int64),
    "row_of_1": np.array([-1, 1], np.int64), "row_of_3": np.array([-1, 3], np.int64),
    "three_rows_of": np.array([3, -1], np.int64),
    "some_columns": np.array([True, False, True, True]),
}  # fmt: skip
CONSTANTS |= {
    "sixes": np.full(6, 64, np.int64),
    "start": np.array([-(2**63)], np.int64),
    "unit": np.int64(1),
    "three_times": np.int64(3),
    "truth": np.array(True),
    "half_scales": np.array([1, 2], np.float16),
    "one_of_two": np.ones((1, 1), np.float32),
    "both_places": np.array([[0, 1]], np.int32),
    "three_places": np.zeros((3, 2), np.int32),
}


def graph(body, x="float[N,4] x", y="float[N,M] y", opset=18):
    """A model of a graph's lines; those of the constants that it names are in it."""
    lines = body.replace("; ", "\n")
    text = HEAD.format(opset=opset) + f"g ({x}) => ({y}) {{\n{lines}\n}}"
    model = parser.parse_model(text)
    names = {name for each in walked(model.graph) for name in each.input}
    for name in sorted(names & CONSTANTS.keys()):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(CONSTANTS[name]), name))
    return model


def walked(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from walked(attribute.g)


class AnyKind:
    """Lets the rules alone decide, also about nodes that no export has."""

    def require_known(self, node):
        """Know every node."""


RULES = AnyKind()


def verdict(model, kinds=RULES):
    """Why rows are not proved independent; None if they are."""
    try:
        prove(parse_model(model.SerializeToString()), kinds)
    except Mixes as err:
        return str(err)
    return None


def compare_with_itself(model, sizes=(2, 3, 8)):
    """Rows of unlike size answer in a batch as they do alone."""
    session = new_session(model.SerializeToString())
    generator = np.random.default_rng(0)
    rows: dict = {}
    for each in session.get_inputs():
        shape = [8, *(size if isinstance(size, int) else 5 for size in each.shape[1:])]
        if each.type == "tensor(int64)":
            rows[each.name] = generator.integers(0, 10, shape)
        else:
            scale = np.array([1, 255, 0, 1e30, np.inf, np.nan, 0.01, 5], np.float32)
            with np.errstate(all="ignore"):
                rows[each.name] = (generator.random(shape, np.float32).T * scale).T
    singles = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(8)]
    alone = [session.run(None, each) for each in singles]
    for size in sizes:
        chosen = generator.choice(8, size, replace=False)
        answers = session.run(None, {name: array[chosen] for name, array in rows.items()})
        # Whether a maximum of numbers and NaN is NaN depends on ONNX Runtime's loop.
        is_sane = np.array(
            [not any(np.isnan(array[i]).any() for array in rows.values()) for i in chosen]
        )
        for index, answer in enumerate(answers):
            wanted = np.concatenate([alone[i][index] for i in chosen])
            assert answer.shape == wanted.shape
            # Sums are added in another order; loud rows are only compared with each other.
            finite = np.isfinite(wanted.astype(np.float64)) & (np.abs(wanted) < 1e20)
            finite = (finite.T & is_sane).T
            np.testing.assert_allclose(answer[finite], wanted[finite], rtol=1e-3, atol=1e-3)
