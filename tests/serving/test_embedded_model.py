"""Any model inside somebody else's program."""

import asyncio
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from serving import AsyncModel, BatchingConfig, Model
from serving.errors import ConfigurationError, InvalidRequest, Unavailable
from serving.model.onnx_runtime import runtime
from tests.serving.model.graphs import model, node, save, two_layers, value

GENERATOR = np.random.default_rng(1)
ROWS = GENERATOR.normal(size=(2000, 4)).astype(np.float32)
TOLERANCE = 1e-5
"""Batches of other sizes add up in another order."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save(two_layers(), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def layers(path):
    with Model.load(path, device="cpu", batching=BatchingConfig(max_batch_size=100)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected(path):
    session = runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": ROWS})[0]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Inputs of several types, x FP32 [N, 2], n INT8 [N], texts BYTES [N]; their names are odd."""
    graph = model(
        [node("Identity", ["x"], ["y"]), node("Identity", ["self"], ["n"]),
         node("Identity", ["text:0"], ["texts"])],
        [value("x", "FP32", ["N", 2]), value("self", "INT8", ["N"]),
         value("text:0", "BYTES", ["N"])],
        [value("y", "FP32", ["N", 2]), value("n", "INT8", ["N"]), value("texts", "BYTES", ["N"])],
    )  # fmt: skip
    with Model.load(save(graph, tmp_path_factory.mktemp("models")), device="cpu") as loaded:
        yield loaded


@pytest.mark.parametrize(("name", "given"), [("device", "gpu"), ("precision", "fp8")])
def test_unknown_device_or_precision_is_refused(path, name, given):
    with pytest.raises(ConfigurationError, match=f"{name} must be one of"):
        Model.load(path, **{name: given})


@pytest.mark.parametrize("num_rows", [1, 3, 100, 101, 2000])
def test_answers_are_those_of_onnx_runtime(layers, expected, num_rows):
    answer = layers.infer({"x": ROWS[:num_rows]})
    assert list(answer) == ["y"]
    np.testing.assert_allclose(answer["y"], expected[:num_rows], atol=TOLERANCE)
    awaited = asyncio.run(AsyncModel(layers.served, layers.batching).infer(ROWS[:num_rows]))
    np.testing.assert_allclose(awaited["y"], expected[:num_rows], atol=TOLERANCE)


def test_lists_and_texts_are_converted_where_nothing_is_lost(mixed):
    answer = mixed.infer({"x": [[1, 2.5]], "self": [-128], "text:0": ["é\0"]})
    assert answer["y"].tolist() == [[1, 2.5]]
    assert answer["n"].tolist() == [-128]
    assert answer["texts"].tolist() == ["é\0"]
    for texts in (["é"], ["é".encode()], np.array(["é"]), np.array(["é".encode()])):
        both = mixed.infer({"x": np.ones((1, 2), ">f4"), "self": (1,), "text:0": texts})
        assert both["texts"].tolist() == ["é"]
        assert both["y"].tolist() == [[1, 1]]


ONE = {"x": [[1, 2]], "self": [1], "text:0": ["a"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": 1}, r"expected the inputs x, self, text:0, got x, self, text:0, z"),
        (
            {"x": np.full((1, 2), 1e300)},
            r"x FP32 \[N, 2\], got float64: .* \.astype\(numpy\.float32\)",
        ),
        ({"x": np.ones((1, 2), np.uint8)}, r"expected x FP32 \[N, 2\], got uint8: .*astype"),
        ({"self": np.array([128])}, r"self INT8 \[N\], got numbers from 128 to 128, which"),
        ({"x": [1, 2]}, r"expected x FP32 \[N, 2\], got the shape \[2\]"),
        ({"x": [[1, 2, 3]]}, r"expected x FP32 \[N, 2\], got the shape \[1, 3\]"),
        ({"x": [[1, 2], [3]]}, r"expected x FP32 \[N, 2\], got a list"),
        ({"x": [["1", "2"]]}, r"expected x FP32 \[N, 2\], got <U1"),
        ({"x": None}, r"expected x FP32 \[N, 2\], got object"),
        ({"x": np.ma.masked_equal([[1.0, 2.0]], 2)}, "got a masked array"),
        ({"self": [128]}, r"expected self INT8 \[N\], got numbers from 128 to 128, which"),
        ({"self": [1.0]}, r"expected self INT8 \[N\], got float64"),
        ({"self": [True]}, r"expected self INT8 \[N\], got bool"),
        ({"self": [1, 2], "text:0": ["a"] * 3}, r"expected as many rows .* got \[1, 2, 3\]"),
        ({"text:0": [1]}, r"expected text:0 BYTES \[N\], got objects that are no texts"),
        ({"text:0": [b"\xff"]}, "expected texts in UTF-8"),
        ({"x": np.ones((0, 2), np.float32), "self": [], "text:0": []}, "at least 1 row, got 0"),
    ],
)
def test_bad_inputs_are_refused_with_expected_and_got(mixed, change, message):
    with pytest.raises(InvalidRequest, match=message):
        mixed.infer(ONE | change)
    with pytest.raises(InvalidRequest, match=message):
        asyncio.run(AsyncModel(mixed.served).infer(ONE | change))


def test_one_row_may_be_meant_for_all(tmp_path):
    inputs = [value(name, "FP32", ["N", 2]) for name in "ab"]
    graph = model([node("Add", ["a", "b"], ["y"])], inputs, [value("y", "FP32", ["N", 2])])
    batching = BatchingConfig(max_batch_size=2)
    with Model.load(save(graph, tmp_path), device="cpu", batching=batching) as loaded:
        assert loaded.served.tensors.is_batchable
        answer = loaded.infer({"a": [[1, 2]], "b": [[1, 1], [2, 2], [3, 3]]})["y"]
    assert answer.tolist() == [[2, 3], [3, 4], [4, 5]]


def test_failed_run_says_why_and_the_next_one_works(tmp_path):
    graph = model(
        [node("MatMul", ["x", "w"], ["y"])], [value("x", "FP32", ["N", "M"])],
        [value("y", "FP32", ["N", 2])], {"w": np.ones((3, 2), np.float32)},
    )  # fmt: skip
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        with pytest.raises(InvalidRequest, match="these values: MatMul: MatMul dimension mismatch"):
            loaded.infer({"x": [[1, 2]]})
        assert loaded.infer({"x": [[1, 2, 3]]})["y"].tolist() == [[6, 6]]


def test_closed_model_says_so(path):
    with Model.load(path) as loaded:
        pass
    with pytest.raises(Unavailable, match="the model is closed"):
        loaded.infer({"x": ROWS})


def test_pickled_model_is_loaded_again(path, expected, monkeypatch):
    monkeypatch.chdir(path.parent)
    with Model.load(path.name, device="cpu", batching=BatchingConfig(max_batch_size=3)) as loaded:
        pickled = pickle.dumps(loaded)
    monkeypatch.chdir("/")
    with pickle.loads(pickled) as again:
        assert again.batching.max_batch_size == 3
        np.testing.assert_allclose(again.infer({"x": ROWS})["y"], expected, atol=TOLERANCE)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_model_made_before_a_fork_answers_in_the_child(layers, expected):
    fork = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "fork")
    with ProcessPoolExecutor(1, mp_context=fork) as pool:
        answer = pool.submit(layers.infer, ROWS[:300]).result(60)
    np.testing.assert_allclose(answer["y"], expected[:300], atol=TOLERANCE)


def test_description_has_no_limits_of_a_server(layers, expected):
    """Such as rows in a request: here there is no request."""
    info = layers.describe()
    assert (info.max_request_rows, info.max_message_bytes) == (None, None)
    assert info.max_batch_size == 100
    rows = np.concatenate([ROWS, ROWS, ROWS])  # more than a server takes
    (found,) = layers.infer({"x": rows}).values()
    np.testing.assert_allclose(found, np.concatenate([expected] * 3), atol=TOLERANCE)
