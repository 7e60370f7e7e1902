"""Older releases of ONNX Runtime: what they answer by another row is not proved for them.

1.20.1 and 1.24.4 answered each of these graphs by the row beside, or ended the process, where a
caller sent a short row, a length of 0, too few columns, or a number below 0; 1.26.0 has no fault
but that of ReverseSequence, and 1.28.0 none.
"""

import numpy as np
import pytest
from onnx import helper

from serving.model.judging import judge
from serving.model.onnx_runtime import release, runtime
from tests.serving.model.graphs import model, node, value

MICROSOFT, CLASSICAL = "com.microsoft", "ai.onnx.ml"
ROWS = value("x", "FP32", ["N", "S", 8])
ANSWERS = value("y", "FP32", ["N", "S", 8])
WEIGHTS = {"w": np.ones((8, 24), np.float32) / 8, "b": np.zeros(24, np.float32)}


def padded(mode):
    return model(
        [node("Pad", ["x", "border"], ["y"], mode=mode)],
        [value("x", "FP32", ["N", "L"])], [value("y", "FP32", ["N", "M"])],
        {"border": np.array([0, 3, 0, 3])},
    )  # fmt: skip


GRAPHS = {
    # name: (graph, the first release for which it is proved)
    "a mirrored border": (padded("reflect"), "1.26"),
    "a border of zeros": (padded("constant"), "1.20"),
    "reversed sequences": (
        model(
            [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
             node("ReverseSequence", ["t", "lengths"], ["r"], batch_axis=1, time_axis=0),
             node("Transpose", ["r"], ["y"], perm=[1, 0, 2])],
            [ROWS, value("lengths", "INT64", ["N"])], [ANSWERS],
        ),
        "1.28",
    ),
    "support vectors": (
        model(
            [node("SVMClassifier", ["x"], ["label", "y"], domain=CLASSICAL, classlabels_ints=[0, 1],
                  kernel_type="RBF", kernel_params=[0.5, 0.0, 3.0], rho=[0.1],
                  coefficients=[1.0, -1.0], support_vectors=[0.0] * 16 + [1.0] * 16,
                  vectors_per_class=[1, 1])],
            [value("x", "FP32", ["N", "F"])],
            [value("label", "INT64", ["N"]), value("y", "FP32", ["N", "C"])],
        ),
        "1.26",
    ),
    "ends that callers send": (
        model(
            [node("Attention", ["x", "w", "b", "ends"], ["y"], domain=MICROSOFT, num_heads=2)],
            [ROWS, value("ends", "INT32", ["N"])], [ANSWERS], WEIGHTS,
        ),
        "1.26",
    ),
    "no ends": (
        model(
            [node("Attention", ["x", "w", "b"], ["y"], domain=MICROSOFT, num_heads=2)],
            [ROWS], [ANSWERS], WEIGHTS,
        ),
        "1.20",
    ),
}  # fmt: skip
RELEASES = "1.20.1", "1.25.0", "1.26.0", "1.27.1", "1.28.0", "1.32.0", "2.0.0"


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_is_proved_from_the_release_on_that_keeps_its_rows_apart(name, monkeypatch):
    graph, since = GRAPHS[name]
    for each in {each.domain for each in graph.graph.node}:
        if each:
            graph.opset_import.append(helper.make_opsetid(each, 1))
    monkeypatch.setattr(runtime(), "__version__", f"{since}.0")
    first = release()
    for each in RELEASES:
        monkeypatch.setattr(runtime(), "__version__", each)
        found = judge(graph.SerializeToString()).obstacle
        if release() >= first:
            assert found is None, each
        else:
            assert f"ONNX Runtime before {since} may answer it by another row" in str(found)
