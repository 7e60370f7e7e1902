"""A version with a handler, as others see it: its facts, and those of the model inside."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.config import BatchingConfig, ModelConfig
from serving.errors import ConfigurationError, Unavailable
from serving.handlers import process
from serving.handlers.kinds import Json, Text
from serving.handlers.loading import HandlerSource, NeedsModel
from serving.handlers.model import (
    LoadedHandler,
    alone,
    around,
    require_model,
    with_handler,
    without_model,
)
from serving.handlers.process import Program
from serving.handlers.signature import HandlerSignature
from serving.model.loaded import LoadedModel
from serving.model.manifest import Manifest
from serving.tensors import Tensor, TensorSignature
from tests.support.servers import wait_until

NETWORK = TensorSignature(
    (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 3)),), is_batchable=True
)
SOURCE = HandlerSource(Path("/h/around.py"), "Around")


def signature_of(*methods, **options):
    kinds: Any = {"inputs": {"text": Text()}, "outputs": {"found": Json()}}
    return HandlerSignature(name="H", methods=methods, **{**kinds, **options})


BETWEEN = signature_of("preprocess", "postprocess", uses=("other",), options=("metadata",))
PREDICTS = signature_of("predict", batching=True)


class First:
    """A process that is ready."""

    memory_bytes, files = 5000, [Path("words.py")]

    def __init__(self, signature):
        self.signature, self.done = signature, []

    def close(self):
        self.done.append("closed")

    def kill(self):
        self.done.append("killed")


class Engine:
    tensors, device = NETWORK, "cuda"


def network():
    engine: Any = Engine()
    return LoadedModel(
        engine, Manifest.of_graph("m", "3", {}), "fp32", inline_rows=5, enough_rows=6,
        batching="batching on", is_proved=True, output_step=0.5, verdict_key="key",
        labels=("a",), sample_shapes={"x": (1, 4)},
    )  # fmt: skip


@pytest.fixture
def starts(monkeypatch):
    """The programs whose processes start; each gets the process of the test's signature."""
    seen: Any = SimpleNamespace(programs=[], process=First(BETWEEN))

    def start(program):
        seen.programs.append(program)
        return seen.process

    monkeypatch.setattr(process, "start", start)
    return seen


def test_model_with_a_handler_is_the_handlers_and_runs_as_the_model(starts):
    inside = network()
    config = ModelConfig(max_handler_setup_s=7.0)
    found = around(inside, SOURCE, "name", Path("/h/3"), config)
    assert starts.programs == [Program("name", SOURCE, Path("/h/3"), NETWORK, 7.0)]
    assert found.tensors == BETWEEN.tensors(NETWORK)
    assert (found.network, found.engine, found.manifest) == (inside, inside.engine, inside.manifest)
    assert (found.uses, found.files, found.options) == (("other",), First.files, ("metadata",))
    assert (found.is_around, found.is_as_its_graph, found.is_awaited) == (True, False, False)
    assert (found.signature, found.pictures) == (None, None)
    assert (found.backend, found.device, found.version) == ("onnxruntime", "cuda", "3")
    assert found.batching == "handler H: each call alone; batching on"
    same = ("precision", "inline_rows", "enough_rows", "is_proved", "output_step", "verdict_key",
            "settings", "labels", "answers", "sample_shapes")  # fmt: skip
    for name in same:
        assert getattr(found, name) == getattr(inside, name), name


def test_handler_alone_is_a_model_of_its_name(starts):
    starts.process = First(PREDICTS)
    found = alone(SOURCE, "name", ModelConfig())
    assert starts.programs == [Program("name", SOURCE, Path("/h"), None, 120.0)]
    assert (found.network, found.engine) == (None, None)
    assert (found.manifest.name, found.version, found.precision) == ("name", "1", "fp32")
    assert (found.backend, found.device, found.is_around) == ("python", "cpu", False)
    assert found.batching == "handler H: rows of several calls together"
    info = found.describe(BatchingConfig())
    assert (info.name, info.inputs, info.device) == ("name", found.tensors.inputs, "cpu")


def test_first_process_is_taken_once_or_ends_with_its_version(starts):
    found: Any = around(network(), SOURCE, "name", Path("/h/3"), ModelConfig())
    handler: LoadedHandler = found.handler
    assert (handler.first_bytes, handler.signature) == (5000, BETWEEN)
    assert [*handler.take_first()] == [starts.process]
    assert [*handler.take_first()] == []
    found.close()
    assert starts.process.done == []
    around(network(), SOURCE, "name", Path("/h/3"), ModelConfig()).close()
    assert starts.process.done == ["closed"]


def test_handler_that_does_not_fit_is_ended_and_says_why(starts):
    with pytest.raises(NeedsModel, match=r"^H has preprocess and postprocess: it needs a model$"):
        alone(SOURCE, "name", ModelConfig())
    assert starts.process.done == ["killed"]
    starts.process = First(PREDICTS)
    with pytest.raises(ConfigurationError, match=r"^H has predict: it is a model without an ONNX"):
        around(network(), SOURCE, "name", Path("/h/3"), ModelConfig())
    assert starts.process.done == ["killed"]
    require_model(BETWEEN, has_model=True)
    require_model(PREDICTS, has_model=False)


@pytest.mark.parametrize("error", [None, Unavailable("no process")])
def test_further_process_is_handed_to_its_owner(error, monkeypatch):
    program = Program("m", SOURCE, Path("/h"), None, 1.0)
    first: Any = First(PREDICTS)

    def start(found):
        assert found is program
        if error is not None:
            raise error
        return first

    monkeypatch.setattr(process, "start", start)
    posted: list[Any] = []
    done: list[Any] = []
    LoadedHandler(PREDICTS, PREDICTS.tensors(None), program).launch(posted.append, done.append)
    wait_until(lambda: posted)
    assert done == [], "it is for the owner's thread"
    posted.pop()()
    assert done == [error or first]


class Here:
    """A handler in this process, whose answers are JSON."""

    signature, files, line = PREDICTS, (), "handler H, in this process"
    tensors = PREDICTS.tensors(None)

    def __init__(self):
        self.closed = []

    def run(self, feeds, run, parameters):
        assert (feeds, run, parameters) == ("feeds", "run", {"top": 1})
        return [np.array(['{"a": 1}'], object)]

    def stream(self, *call):
        try:
            yield self.run(*call)
            yield self.run(*call)
        finally:
            self.closed.append("sync")

    async def run_awaited(self, *call):
        return self.run(*call)

    async def stream_awaited(self, *call):
        try:
            yield self.run(*call)
            yield self.run(*call)
        finally:
            self.closed.append("async")


async def test_answers_in_this_process_are_values():
    handler = Here()
    model: Any = without_model("name", handler)
    call: Any = "feeds", {"top": 1}, "run"
    expected = [[{"a": 1}]]
    assert [each.tolist() for each in model.answer(*call)] == expected
    assert [each.tolist() for each in await model.answer_awaited(*call)] == expected
    parts = model.stream(*call)
    assert [each.tolist() for each in next(parts)] == expected
    parts.close()
    assert handler.closed == ["sync"]
    awaited = model.stream_awaited(*call)
    assert [each.tolist() for each in await anext(awaited)] == expected
    await awaited.aclose()
    assert handler.closed == ["sync", "async"]
    assert len([*model.stream(*call)]) == 2
    assert len([each async for each in model.stream_awaited(*call)]) == 2


def test_entry_is_that_of_a_model_or_of_a_pipeline():
    maker: Any = SimpleNamespace(
        batcher_of=lambda *given: ("batcher", *given), pipeline_of=lambda *given: ("pipe", *given)
    )
    inside, handler = network(), Here()
    assert inside.entry("a", maker) == ("batcher", "a", inside)
    for model in (with_handler(inside, handler), without_model("b", handler)):
        assert model.entry("a", maker) == ("pipe", "a", model)


def test_handler_without_a_first_process_has_its_bytes_and_processes_from_nobody():
    program = Program("m", SOURCE, Path("/h"), None, 1.0)
    first, second = (LoadedHandler(PREDICTS, PREDICTS.tensors(None), program) for _ in range(2))
    assert (first.first_bytes, [*first.take_first()]) == (0, [])
    assert (first.program, first.signature) == (program, PREDICTS)
    assert first.first is not second.first


def test_threads_that_start_processes_do_not_keep_the_server_alive(monkeypatch):
    seen: list[bool] = []
    posted: list[Any] = []

    def start(program):
        seen.append(threading.current_thread().daemon)
        return First(PREDICTS)

    monkeypatch.setattr(process, "start", start)
    program = Program("m", SOURCE, Path("/h"), None, 1.0)
    LoadedHandler(PREDICTS, PREDICTS.tensors(None), program).launch(posted.append, print)
    wait_until(lambda: posted)
    assert seen == [True]
