"""A loaded version: how it is run, and how it describes itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.config import BatchingConfig
from serving.errors import ConfigurationError
from serving.model import fork
from serving.model.loaded import LoadedModel
from serving.model.manifest import Manifest
from serving.model.preprocessing import Preprocessing
from serving.model.settings import NO_SETTINGS
from serving.tensors import ModelInfo, Signature, Tensor, TensorSignature
from tests.support.guards import is_held

TENSORS = TensorSignature(
    (Tensor("x", "UINT8", (-1, 4)),), (Tensor("y", "FP32", (-1, 2)),), is_batchable=True
)
PICTURES = Preprocessing(size=(2, 2), labels=("cat", "dog"))
MANIFEST = replace(Manifest.of_graph("m", "3", {}), test_accuracy=0.5, optimized="int8, of m")
ROWS = np.zeros((1, 4), np.uint8)


class Engine:
    """Answers which way it was asked, while nobody may fork."""

    device, max_concurrent_runs, tensors = "cuda", None, TENSORS

    def __init__(self):
        self.asked: list[bool] = []

    def _answer(self, how, feeds):
        assert feeds["x"] is ROWS
        assert is_held(fork.native_run())
        return [how]

    def run(self, feeds):
        return self._answer("run", feeds)

    def run_alone(self, feeds):
        return self._answer("alone", feeds)

    def stoppable(self, *, is_alone=False):
        self.asked.append(is_alone)
        return self.run_alone if is_alone else self.run, "end"


@pytest.fixture
def model():
    engine: Any = Engine()
    return LoadedModel(engine, MANIFEST, "int8", batching="why")


def test_each_way_to_run_is_the_engines_and_holds_up_a_fork(model):
    feeds = {"x": ROWS}
    assert model.run(feeds) == ["run"]
    assert model.run_alone(feeds) == ["alone"]
    assert model.classify(ROWS) == "run"
    for options, how in (({}, "run"), ({"is_alone": False}, "run"), ({"is_alone": True}, "alone")):
        run, end = model.stoppable(**options)
        assert (run(feeds), end) == ([how], "end")
    assert model.session.asked == [False, False, True]
    assert not is_held(fork.native_run())


def test_lock_of_a_run_that_fails_is_free(model):
    with pytest.raises(AssertionError):
        model.run({"x": None})
    run, _ = model.stoppable(is_alone=True)
    with pytest.raises(AssertionError):
        run({"x": None})
    assert not is_held(fork.native_run())


def test_description_has_the_limits_of_the_server_and_of_the_model(model):
    batching = BatchingConfig(max_batch_size=64, max_request_rows=99)
    expected = ModelInfo(
        name="m", version="3", versions=("3",), default_version="3", canary_version=None,
        not_served={}, inputs=TENSORS.inputs, outputs=TENSORS.outputs, is_batchable=True,
        in_parts=False, batching="why", device="cuda", precision="int8", optimized="int8, of m",
        max_batch_size=64, max_request_rows=99, max_message_bytes=None, labels=(), pictures=None,
        test_accuracy=0.5,
    )  # fmt: skip
    assert model.describe(batching) == expected
    small = replace(model, settings=replace(NO_SETTINGS, max_batch_size=7))
    assert small.describe(batching) == replace(expected, max_batch_size=7)
    model.session.tensors = replace(TENSORS, is_batchable=False, in_parts=True)
    alone = replace(
        expected, is_batchable=False, in_parts=True, max_batch_size=0, max_request_rows=None
    )
    assert model.describe(batching) == alone


def test_labels_are_those_of_pictures_or_of_the_graph(model):
    assert model.class_labels == ()
    named = replace(model, labels=("a", "b"))
    assert named.class_labels == ("a", "b")
    pictures = replace(named, manifest=replace(MANIFEST, pictures=PICTURES))
    assert pictures.class_labels == ("cat", "dog")
    info = pictures.describe(BatchingConfig())
    assert info.labels == ("cat", "dog")
    assert info.pictures == {
        "size": (2, 2), "channels": 1, "layout": "flat", "dtype": "uint8", "scale": 1.0,
        "mean": (), "std": (), "resize": "stretch", "invert": False, "labels": ("cat", "dog"),
    }  # fmt: skip
    unnamed = replace(named, manifest=replace(MANIFEST, pictures=replace(PICTURES, labels=())))
    assert unnamed.class_labels == ("a", "b")


def test_model_without_a_manifest_is_none_of_images(model):
    with pytest.raises(ConfigurationError, match=r"^model m has no manifest, so it is not known"):
        model.image_signature  # noqa: B018
    images = Signature((2, 2), 2)
    known = replace(model, manifest=replace(MANIFEST, signature=images))
    assert known.image_signature is known.signature is images


def test_model_alone_has_nothing_around_it(model):
    facts = (model.network, model.uses, model.files, model.options, model.is_around,
             model.is_as_its_graph, model.is_awaited, model.backend, model.pictures)  # fmt: skip
    assert facts == (model, (), (), (), False, True, False, "onnxruntime", None)
    feeds = {"x": ROWS}
    assert model.answer(feeds, {}, lambda given: [given]) == [feeds]
    assert [*model.stream(feeds, {}, lambda given: [given])] == [[feeds]]
    model.close()


def test_facts_that_a_load_does_not_find_are_these(model):
    plain = LoadedModel(model.engine, MANIFEST, "fp32")
    assert (plain.inline_rows, plain.enough_rows, plain.batching) == (0, 128, "")
    assert (plain.is_proved, plain.output_step, plain.verdict_key) == (False, 0.0, "")
    assert (plain.settings, plain.labels, plain.answers) == (NO_SETTINGS, (), None)
    assert plain.sample_shapes == {}
