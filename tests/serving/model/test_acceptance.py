"""The check of a model: how many runs it makes, by their cost."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper

from serving.model.acceptance import Unfit, check, find_rows, has_bounded_time
from serving.predictions import Probabilities
from serving.tensors import Tensor, TensorSignature
from tests.serving.model import graphs
from tests.serving.model.graphs import node, value

GOLDEN = np.random.default_rng(1).integers(0, 256, (32, 784), np.uint8)


class FakeModel:
    """Answers by each image alone, and takes its own time for it."""

    def __init__(self, image_s):
        self.image_s = image_s
        self.now_s = 0.0
        self.sizes: list[int] = []

    def run(self, images):
        self.sizes.append(len(images))
        self.now_s += self.image_s * len(images)
        probabilities: Probabilities = np.eye(10, dtype=np.float32)[images.sum(axis=1) % 10]
        return probabilities

    def clock(self):
        return self.now_s


def expected():
    return FakeModel(0.0).run(GOLDEN)


def test_quick_model_is_checked_in_every_batch_size():
    model = FakeModel(image_s=1e-4)
    check(model.run, GOLDEN, expected(), 512, model.clock)
    assert model.sizes.count(1) == len(GOLDEN) + 16
    sizes = [2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512]
    assert model.sizes[-len(sizes) :] == sizes


@pytest.mark.parametrize(("image_s", "num_alone", "sizes"), [
    (0.02, 48, [2, 3, 4, 7, 8, 15, 16, 31]),  # a MobileNet of 224 px
    (0.1, 11, [2, 3, 4, 7]),
    (5.0, 4, [2]),
])  # fmt: skip
def test_dear_model_is_checked_in_few(image_s, num_alone, sizes):
    model = FakeModel(image_s)
    check(model.run, GOLDEN, expected(), 512, model.clock)
    assert model.sizes == [1] * num_alone + sizes


def test_dear_model_whose_rows_depend_on_each_other_is_unfit():
    model = FakeModel(image_s=5.0)
    with pytest.raises(Unfit, match="answers depending on the batch: of 2 images"):
        check(lambda images: model.run(images).cumsum(axis=0), GOLDEN, expected(), 512, model.clock)


@pytest.mark.parametrize(
    ("first_s", "row_s", "quick_rows"),
    [
        (18e-6, 2e-6, 512),  # the digits in int8
        (18e-6, 4.6e-6, 256),  # in fp32
        (10e-6, 1.5e-6, 512),  # trees
        (20e-6, 48e-6, 2),  # a segmenter of texts
        (60e-6, 120e-6, 1),
        (0.0, 600e-6, 0),  # a network of convolutions
    ],
)
def test_quick_rows_are_those_that_hold_nobody_up(monkeypatch, first_s, row_s, quick_rows):
    now_s = 0.0

    def run(feeds):
        nonlocal now_s
        now_s += first_s + row_s * len(feeds["x"])

    def clock():
        return now_s

    monkeypatch.setattr(
        "serving.model.acceptance.time", SimpleNamespace(monotonic=clock, thread_time=clock)
    )
    both = [Tensor(name, "FP32", (-1, 4)) for name in ("x", "y")]
    signature = TensorSignature((both[0],), (both[1],), is_batchable=True)
    feeds = {"x": np.zeros((1, 4), np.float32)}
    assert find_rows(run, signature, feeds, 512)[0] == quick_rows


@pytest.mark.parametrize("tensor", [Tensor("x", "FP32", (-1, -1)), Tensor("x", "BYTES", (-1, 2))])
def test_rows_of_any_length_are_not_quick(tensor):
    signature = TensorSignature((tensor,), (Tensor("y", "FP32", (-1, 1)),), is_batchable=True)
    feeds = {"x": np.zeros((1, 2), tensor.dtype)}
    assert find_rows(lambda feeds: [], signature, feeds, 512)[0] == 0


@pytest.mark.parametrize("operator", ["If", "Range", "Expand", "Tile", "NonMaxSuppression"])
def test_operators_whose_time_depends_on_values_are_found(operator):
    assert has_bounded_time(graphs.two_layers().SerializeToString())
    inner = helper.make_graph(
        [node(operator, ["a"], ["b"])], "body", [], [value("b", "FP32", None)]
    )
    hidden = graphs.rows_model(node("Other", ["x"], ["y"], body=inner))
    assert not has_bounded_time(hidden.SerializeToString())
