"""Whether a model's rows can be batched, as it is found out at load."""

import logging
import re
import threading
from typing import Any

import numpy as np
import onnx
import pytest

from serving import Model
from serving.config import BatchingConfig
from serving.errors import ModelError
from serving.model import trial, verdicts
from serving.model.trial import try_rows
from serving.model.verdicts import Verdict
from serving.system import usage
from serving.tensors import Tensor, TensorSignature
from tests.serving.model.graphs import model, node, rows_model, save, two_layers, value
from tests.support.fakes import TIMEOUT_S

GENERATOR = np.random.default_rng(0)
WEIGHTS = GENERATOR.normal(size=(4, 4)).astype(np.float32)
LSTM = {
    "weights": GENERATOR.normal(size=(1, 12, 4)).astype(np.float32),
    "recurrent": GENERATOR.normal(size=(1, 12, 3)).astype(np.float32),
}
"""Weights of layers with 4 inputs and 3 units."""


def embedding(num_rows):
    """Indices from 0 to num_rows - 1, of any number, to the sum of their vectors."""
    table = GENERATOR.normal(size=(num_rows, 5)).astype(np.float32)
    return model(
        [node("Gather", ["table", "x"], ["vectors"]),
         node("ReduceSum", ["vectors", "axis"], ["y"], keepdims=0)],
        [value("x", "INT64", ["batch", "length"])], [value("y", "FP32", ["batch", 5])],
        {"table": table, "axis": np.array([1])},
    )  # fmt: skip


INDEPENDENT = {
    "dense": two_layers(),
    "vector": model(
        [node("Neg", ["x"], ["y"])], [value("x", "FP32", ["N"])], [value("y", "FP32", ["M"])]
    ),
    "any length": rows_model(node("ReduceMax", ["x"], ["y"], axes=[1]), num_columns="length"),
    "tokens": embedding(128),
    "few tokens": embedding(2),
    "texts": model(
        [node("LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_strings=["0"],
              values_int64s=[7], default_int64=8)],
        [value("x", "BYTES", ["N"])], [value("y", "INT64", ["N"])],
    ),
    "two of each": model(
        [node("Add", ["a", "b"], ["sum"]), node("Cast", ["a"], ["whole"], to=6)],
        [value("a", "FP32", ["N", 3]), value("b", "FP32", ["M", 3])],
        [value("sum", "FP32", ["N", 3]), value("whole", "INT32", ["N", 3])],
    ),
    # A tree whose threshold no usual random number reaches.
    "large numbers": rows_model(
        node("Greater", ["x", "hundred"], ["is"]), node("Cast", ["is"], ["y"], to=1),
        constants={"hundred": np.float32(100)},
    ),
    # As converters of trees write it.
    "output of one row": model(
        [node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
        [value("x", "FP32", ["N", 4])], [value("y", "INT64", [1])],
    ),
    "undefined numbers": rows_model(node("Log", ["x"], ["y"])),
}  # fmt: skip
INDEPENDENT["texts"].opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 2))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_rows_are_batched(name, tmp_path):
    with Model.load(save(INDEPENDENT[name], tmp_path), device="cpu") as loaded:
        assert loaded.served.batching.startswith("batching on: row independence proved")
        assert loaded.served.tensors.is_batchable
        tensors = loaded.served.tensors
        assert {each.shape[0] for each in (*tensors.inputs, *tensors.outputs)} == {-1}


DEPENDENT: dict[str, tuple[onnx.ModelProto, str]] = {
    "mean of the batch": (
        rows_model(node("ReduceMean", ["x"], ["m"], axes=[0]), node("Add", ["x", "m"], ["y"])),
        r"m \(ReduceMean\): over rows",
    ),
    "found boxes": (
        model(
            [node("NonMaxSuppression", ["boxes", "scores", "most"], ["y"])],
            [value("boxes", "FP32", ["N", 6, 4]), value("scores", "FP32", ["N", 2, 6])],
            [value("y", "INT64", ["K", 3])], {"most": np.array([3])},
        ),
        r"y \(NonMaxSuppression\): this operator has no rule",
    ),
    "fixed": (
        model([node("Neg", ["x"], ["y"])], [value("x", "FP32", [2, 3])],
              [value("y", "FP32", [2, 3])]),
        r"input x FP32 \[2, 3\] has no batch axis",
    ),
    "state": (
        model([node("Add", ["x", "state"], ["y"]), node("Neg", ["y"], ["next"])],
              [value("x", "FP32", ["N", 3]), value("state", "FP32", [1, 3])],
              [value("y", "FP32", ["N", 3]), value("next", "FP32", ["N", 3])]),
        r"input state FP32 \[1, 3\] has no batch axis",
    ),
    "nothing": (
        model([node("Constant", [], ["y"], value_float=1.0)], [], [value("y", "FP32", [])]),
        "there is no input",
    ),
    "a part that only fails beside others": (
        rows_model(node("Add", ["x", "three"], ["unused"]), node("Neg", ["x"], ["y"]),
                   constants={"three": np.zeros((3, 4), np.float32)}),
        "a batch of 2 rows fails",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_run_alone_and_the_line_says_why(name, tmp_path):
    graph, reason = DEPENDENT[name]
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        assert not loaded.served.tensors.is_batchable
        assert re.match(f"batching off: {reason}", loaded.served.batching)


def test_output_that_no_row_changes_is_batched(tmp_path):
    graph = rows_model(node("Mul", ["x", "none"], ["y"]), constants={"none": np.float32(0)})
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        assert loaded.served.tensors.is_batchable


def test_proof_that_no_run_can_check_does_not_batch(tmp_path):
    """A size that nobody guesses: 77 columns."""
    graph = rows_model(
        node("Reshape", ["x", "shape"], ["y"]), num_columns="length",
        constants={"shape": np.array([0, 7, 11])},
    )  # fmt: skip
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        assert loaded.served.batching == (
            "batching off: row independence is proved, but no drawn input can be run to check it"
        )
        assert loaded.infer(np.ones((2, 77), np.float32))["y"].shape == (2, 7, 11)


def test_loud_row_beside_quiet_ones_is_noticed():
    """A trial on rows of one size would not show it: each is scaled by about the same."""
    model = Counted(row_s=1e-6)

    def run(feeds):
        peak = np.nan_to_num(np.abs(feeds["x"])).max()
        return [(feeds["x"] / max(float(peak), 1000.0)).sum(axis=1, dtype=np.float32)]

    signature = TensorSignature(
        (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1,)),), is_batchable=False
    )
    found = try_rows(run, signature, 512, lambda: model.now_s)
    assert "rows depend on the batch" in found.line


@pytest.mark.parametrize(
    ("datatype", "allowed", "refused"),
    [("FP16", 5e-3, 2e-2), ("FP32", 5e-4, 2e-3), ("FP64", 5e-4, 2e-3)],
)
@pytest.mark.parametrize("is_allowed", [True, False])
def test_sums_in_another_order_are_allowed_and_no_more(datatype, allowed, refused, is_allowed):
    signature = TensorSignature(
        (Tensor("x", datatype, (-1, 4)),), (Tensor("y", datatype, (-1, 4)),), is_batchable=False
    )
    factor = 1 + (allowed if is_allowed else refused)

    def run(feeds):
        rows = feeds["x"]
        with np.errstate(over="ignore"):
            return [(rows * (factor if len(rows) > 1 else 1)).astype(rows.dtype)]

    found = try_rows(run, signature, 8, lambda: 0.0)
    assert found.tensors.is_batchable == is_allowed, found.line


def test_line_is_logged_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "serving"):
        Model.load(save(DEPENDENT["fixed"][0], tmp_path, "two rows.onnx")).close()
    assert caplog.messages == [
        "model two-rows version 1: batching off: input x FP32 [2, 3] has no batch axis"
    ]


class Counted:
    """A model of one number a row that takes its own time, and fails where it is told to."""

    tensors = TensorSignature(
        (Tensor("x", "INT32", (-1, -1)),), (Tensor("y", "FP32", (-1,)),), is_batchable=False
    )

    def __init__(self, row_s, failing=()):
        self.row_s, self.failing, self.now_s = row_s, failing, 0.0
        self.shapes: list[Any] = []

    def run(self, feeds):
        self.shapes.append(feeds["x"].shape)
        self.now_s += self.row_s * len(feeds["x"])
        if feeds["x"].shape[1] in self.failing:
            raise ModelError
        return [feeds["x"].sum(axis=1).astype(np.float32)]

    def find(self):
        return try_rows(self.run, self.tensors, 512, lambda: self.now_s)


def test_dear_model_is_tried_in_few():
    model = Counted(row_s=0.5)
    assert model.find().tensors.is_batchable
    assert [size for size, _ in model.shapes] == [1, 1, 2, *[1, 2] * 3]


def test_dearest_model_is_tried_in_no_more_than_six_seconds():
    model = Counted(row_s=0.9)
    assert model.find().tensors.is_batchable
    assert [size for size, _ in model.shapes] == [1, 1, 2, *[1, 2]]


def test_slow_model_is_run_once_and_never_corrupt():
    model = Counted(row_s=30.0)
    found = model.find()
    assert found.line == "batching off: a row takes 30.0 s"
    assert len(model.shapes) == 1


def test_other_sizes_are_tried_if_the_first_fails():
    model = Counted(row_s=1e-6, failing=(32, 8))
    assert model.find().tensors.is_batchable
    assert {length for _, length in model.shapes[:5]} == {32, 8, 1}


def test_cheap_model_is_tried_in_64_draws_of_several_sizes_and_none_shorter():
    model = Counted(row_s=1e-6)
    found = model.find()
    assert found.verdict == Verdict(None)
    first = max(at for at, (size, _) in enumerate(model.shapes) if size == 512)
    assert sum(size > 1 for size, _ in model.shapes[first + 1 :]) == 63
    assert {length for _, length in model.shapes} == {32, 33, 64, 96}


def test_model_of_two_seconds_is_tried_in_fewer_draws():
    model = Counted(row_s=0.01)
    model.find()
    batches = [size for size, _ in model.shapes if size > 1]
    assert 4 <= len(batches) < 64


@pytest.mark.parametrize("loud", [1e9, 1e4, -np.inf, 1e-38])
def test_difference_beside_one_kind_of_loud_row_is_found(loud):
    """The first draw has no such row."""

    def run(feeds):
        rows = feeds["x"]
        with np.errstate(all="ignore"):
            is_loud = (rows == np.float32(loud)).any() if loud != 1e4 else (rows > 1e6).any()
            return [np.nan_to_num(rows).sum(axis=1, dtype=np.float32) * (2 if is_loud else 1)]

    signature = TensorSignature(
        (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1,)),), is_batchable=False
    )
    found = try_rows(run, signature, 8, lambda: 0.0)
    assert "rows depend on the batch" in found.line
    assert found.verdict == Verdict(found.line.removeprefix("batching off: "))


def test_rows_that_the_model_refuses_are_no_evidence():
    """A row of an infinite sum fails, alone and in a batch; the others agree."""

    def run(feeds):
        with np.errstate(all="ignore"):
            if (feeds["x"] == -np.inf).all(axis=1).any():
                raise ModelError
            return [feeds["x"] * 2]

    signature = TensorSignature(
        (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),), is_batchable=False
    )
    found = try_rows(run, signature, 8, lambda: 0.0)
    assert found.tensors.is_batchable, found.line


def test_batch_that_fails_in_a_later_draw_is_found():
    def run(feeds):
        with np.errstate(all="ignore"):
            if len(feeds["x"]) > 1 and (feeds["x"] == -np.inf).all(axis=1).any():
                raise ModelError
            return [feeds["x"] * 2]

    signature = TensorSignature(
        (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),), is_batchable=False
    )
    found = try_rows(run, signature, 8, lambda: 0.0)
    assert re.fullmatch(r"batching off: a batch of \d rows fails", found.line)


def test_known_trial_is_not_made_again():
    model = Counted(row_s=1e-6)
    known = Verdict(None)
    found = try_rows(model.run, model.tensors, 512, lambda: 0.0, known=known)
    assert model.shapes == [(1, 32)]
    assert (found.tensors.is_batchable, found.verdict) == (True, None)
    known = Verdict("rows depend on the batch: as it showed")
    found = try_rows(model.run, model.tensors, 512, lambda: 0.0, known=known)
    assert found.line == "batching off: rows depend on the batch: as it showed"
    assert not found.tensors.is_batchable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: A\nflags\t\t: avx2\n\nprocessor\t: 1\nmodel name\t: A\n",
         "model name\t: A\nflags\t\t: avx2"),
        ("processor\t: 0\nFeatures\t: fp asimd\nprocessor\t: 1\n", "Features\t: fp asimd"),
    ],
)  # fmt: skip
def test_processor_is_the_first_ones_name_and_features(text, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(usage, "_CPUINFO", tmp_path / "cpuinfo")
    assert usage.processor() == expected
    monkeypatch.setattr(usage, "_CPUINFO", tmp_path / "none")
    assert usage.processor() == ""


def test_slow_row_is_not_remembered():
    """Another start may find an idle machine."""
    assert Counted(row_s=30.0).find().verdict is None


@pytest.mark.parametrize("change", [None, "threads", "batch", "optimizations", "processor"])
def test_second_load_compares_nothing_unless_the_session_may_differ(change, tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path / "verdicts"))
    compared = []
    right = trial._compare

    def compare(*arguments):
        compared.append(arguments)
        return right(*arguments)

    monkeypatch.setattr(trial, "_compare", compare)
    path = save(two_layers(), tmp_path)
    more: dict[str, Any] = {}
    Model.load(path, device="cpu").close()
    assert len(compared) == 1
    if change == "threads":
        more = {"threads": 2}
    if change == "batch":
        more = {"batching": BatchingConfig(max_batch_size=1000)}
    if change == "optimizations":
        monkeypatch.setattr(trial, "sources_version", lambda *_: "others are disabled")
    if change == "processor":
        monkeypatch.setattr(trial, "processor", lambda: "another")
    with Model.load(path, device="cpu", **more) as loaded:
        assert loaded.served.batching == "batching on: row independence proved"
    assert len(compared) == 1 + (change is not None)


def test_trials_end_where_each_takes_long():
    model = Counted(row_s=0.7, failing=(32, 8, 1, 64, 512))
    found = model.find()
    assert found.feeds is None
    assert len(model.shapes) == 3


def test_inputs_that_run_for_ever_leave_a_model_that_serves(tmp_path, monkeypatch):
    """A loop that ends only for a negative number, which is not drawn."""
    monkeypatch.setattr("serving.model.loading._CHECK_LIMIT_S", 0.3)
    monkeypatch.setattr("serving.model.trial._DRAWS_S", 0.1)
    body = onnx.helper.make_graph(
        [node("Identity", ["again"], ["goes_on"]), node("Abs", ["n"], ["same"])],
        "body",
        [value("turn", "INT64", []), value("again", "BOOL", []), value("n", "INT64", [1])],
        [value("goes_on", "BOOL", []), value("same", "INT64", [1])],
    )
    graph = model(
        [node("GreaterOrEqual", ["x", "zero"], ["all"]),
         node("Squeeze", ["all"], ["first"]), node("Loop", ["", "first", "x"], ["y"], body=body)],
        [value("x", "INT64", [1])], [value("y", "INT64", [1])], {"zero": np.int64(0)},
    )  # fmt: skip
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        assert loaded.served.batching == "batching off: drawn inputs take more than 0.3 s"
        assert loaded.infer({"x": [-7]})["y"].tolist() == [-7]
    for thread in threading.enumerate():
        if thread.name == "model-loader":
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


@pytest.mark.parametrize(("row_s", "is_dear"), [(0.019, False), (0.021, True)])
def test_row_of_20_ms_is_compared_in_batches_of_two(row_s, is_dear):
    model = Counted(row_s)
    assert model.find().tensors.is_batchable
    sizes = [size for size, _ in model.shapes[-12:]]
    assert (max(sizes) == 2) == is_dear


@pytest.mark.parametrize(("row_s", "is_slow"), [(0.99, False), (1.01, True)])
def test_row_of_a_second_gains_nothing_from_a_batch(row_s, is_slow):
    found = Counted(row_s).find()
    assert found.tensors.is_batchable != is_slow
    assert ("a row takes 1.0 s" in found.line) == is_slow
