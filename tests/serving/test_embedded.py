"""A model in this process: how it is loaded, how its calls are run, and what it refuses."""

import asyncio
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import serving
from serving import AsyncModel, BatchingConfig, Model
from serving.embedded import JoinedCalls, on_thread
from serving.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Unavailable,
)
from serving.model.loaded import LoadedModel
from serving.model.settings import ModelSettings
from serving.tensors import Outputs
from tests.serving.model.graphs import model, node, save, two_layers, value
from tests.support.fakes import MANIFEST, FakeModel, called_soon, images_of


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    with Model.load(save(two_layers(), tmp_path_factory.mktemp("models")), device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """x FP32 [N, 2], n INT8 [N], texts BYTES [N], and back as y, m and same."""
    names = {"x": "y", "n": "m", "texts": "same"}
    kinds = {"x": ("FP32", ["N", 2]), "n": ("INT8", ["N"]), "texts": ("BYTES", ["N"])}
    graph = model(
        [node("Identity", [each], [other]) for each, other in names.items()],
        [value(each, *kinds[each]) for each in names],
        [value(other, *kinds[each]) for each, other in names.items()],
    )
    path = save(graph, tmp_path_factory.mktemp("models"), "mixed.onnx")
    with Model.load(path, device="cpu") as loaded:
        yield loaded


ONE = {"x": [[1, 2]], "n": [1], "texts": ["a"]}


class Parallel:
    """How a call is run: by which way, and with what."""

    def __init__(self, monkeypatch, enough_rows, most, *, is_wide=False, is_batchable=True):
        engine: Any = FakeModel()
        engine.max_concurrent_runs = 3
        engine.tensors = replace(engine.tensors, is_batchable=is_batchable)
        engine.run_alone = lambda feeds: self._note("alone", feeds)
        engine.run = lambda feeds: self._note("run", feeds)
        engine.wide = engine if is_wide else None
        self.ways: list[Any] = []
        monkeypatch.setattr("serving.embedded.run_parallel", self._parallel)
        monkeypatch.setattr("serving.embedded.run_whole", self._whole)
        batching = BatchingConfig(max_batch_size=most)
        self.model = Model(LoadedModel(engine, MANIFEST, "fp32", enough_rows=enough_rows), batching)

    def _note(self, *way):
        self.ways.append(way[0])
        return [np.zeros((1, 10), np.float32)]

    def _parallel(self, run, feeds, most, enough, cores, is_cancelled, alone):
        assert (most, enough, cores) == (20, 8, 3)
        assert is_cancelled() is False
        return self._note(("parallel", alone is not None))

    def _whole(self, run, feeds, alone):
        return self._note(("whole", alone is not None))

    def way(self, num_rows):
        self.model.infer({"images": images_of(*[0] * num_rows)})
        return self.ways.pop()


@pytest.mark.parametrize(
    ("is_wide", "ways"),
    [
        (False, {8: "run", 9: ("parallel", False), 16: ("parallel", False)}),
        (True, {1: ("parallel", True), 15: ("parallel", True), 16: ("parallel", False)}),
    ],
)
def test_rows_are_divided_from_as_many_on_as_are_worth_a_core(is_wide, ways, monkeypatch):
    """Fewer than twice as many are one run, which may have all cores if the model gains by it."""
    played = Parallel(monkeypatch, 8, 20, is_wide=is_wide)
    assert {number: played.way(number) for number in ways} == ways


@pytest.mark.parametrize(
    ("is_wide", "ways"),
    [(False, {1: "run", 99: "run"}), (True, {1: ("whole", True), 99: ("whole", True)})],
)
def test_call_whose_rows_belong_together_is_one_run(is_wide, ways, monkeypatch):
    played = Parallel(monkeypatch, 8, 20, is_wide=is_wide, is_batchable=False)
    assert {number: played.way(number) for number in ways} == ways


def test_batches_are_never_larger_than_the_limit(monkeypatch):
    assert Parallel(monkeypatch, 99, 20).way(20) == "run"
    small = Parallel(monkeypatch, 99, 20)
    monkeypatch.setattr("serving.embedded.run_parallel", lambda *call: small._note(call[2:5]))
    assert small.way(21) == (20, 99, 3)


@pytest.fixture
def asked(monkeypatch):
    """What is loaded, and how: each time the same model."""
    seen: list[Any] = []

    def load_model(*arguments, **options):
        seen.append((arguments, options))
        settings = ModelSettings(max_batch_size=5, num_threads=2)
        engine: Any = FakeModel()
        return LoadedModel(engine, MANIFEST, "fp32", settings=settings)

    monkeypatch.setattr("serving.embedded.load_model", load_model)
    monkeypatch.setattr("serving.embedded.usable_cores", lambda: 6)
    return seen


@pytest.mark.parametrize("kind", [Model, AsyncModel])
def test_model_is_loaded_as_its_caller_says_and_so_again(kind, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = kind.load("net")
    other = kind.load(
        tmp_path / "net", 3, "cpu", "int8", batching=BatchingConfig(max_batch_size=9), threads=4
    )
    one_thread = {"is_described": False, "num_threads": 1, "most_threads": 6}
    four = {"is_described": False, "num_threads": 4, "most_threads": 1}
    assert asked == [
        ((tmp_path / "net", None, "auto", "fp32", 512), one_thread),
        ((tmp_path / "net", "3", "cpu", "int8", 9), four),
    ]
    assert (usual.batching.max_batch_size, other.batching.max_batch_size) == (5, 5)
    assert usual._cores == 3, "each run has two threads"
    asked.clear()
    version = usual.version
    for each in (usual, other):
        again, arguments = each.__reduce__()
        assert again(*arguments).version == version
    assert asked == [
        ((tmp_path / "net", version, "auto", "fp32", 512), one_thread),
        ((tmp_path / "net", version, "cpu", "int8", 9), four),
    ]
    with pytest.raises(TypeError, match=rf"^only a {kind.__name__} from load\(\) can be pickled$"):
        kind(usual.served).__reduce__()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"path": 5}, "path: expected a file or a folder, got 5"),
        ({}, "expected an ONNX file, a model's directory, or a handler"),
        ({"path": "a", "batching": 64}, "batching: expected BatchingConfig(max_batch_size=64), "
         "got 64"),
        ({"path": "a", "device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"path": "a", "threads": 1025}, "threads must be 0 to 1024, got 1025"),
        ({"path": "a", "precision": "fp8"}, "precision must be one of fp32, int8, got 'fp8'"),
    ],
)  # fmt: skip
def test_argument_that_can_not_be_is_refused_before_anything_is_loaded(options, text, asked):
    for kind in (Model, AsyncModel):
        with pytest.raises(ConfigurationError) as caught:
            kind.load(**options)
        assert str(caught.value) == text
    assert asked == []


def test_outputs_are_those_that_are_named(mixed):
    assert mixed.models() == ["mixed"]
    found = mixed.infer(ONE, outputs=["same", "y"])
    assert ([*found], found.model_version) == (["same", "y"], "1")
    assert [*mixed.infer(ONE, outputs="m")] == ["m"]
    assert [*mixed.infer(ONE)] == ["y", "m", "same"]
    (part,) = mixed.stream(ONE, outputs=["m"])
    assert ([*part], part.model_version) == (["m"], "1")
    expected = r"^expected outputs of y, m, same, got 'z'$"
    with pytest.raises(InvalidRequest, match=expected):
        mixed.infer(ONE, outputs=["y", "z"])
    with pytest.raises(InvalidRequest, match=expected):
        [*mixed.stream(ONE, outputs="z")]


async def test_awaited_model_has_the_same_answers(mixed):
    loaded = AsyncModel(mixed.served)
    assert await loaded.models() == ["mixed"]
    assert [*await loaded.infer(ONE, outputs=["same", "y"])] == ["same", "y"]
    assert [[*part] async for part in loaded.stream(ONE, outputs="m")] == [["m"]]
    with pytest.raises(InvalidRequest, match="got 'z'"):
        await loaded.infer(ONE, outputs="z")
    assert await loaded.describe() == mixed.describe()


async def test_only_the_version_that_is_loaded_is_described(mixed):
    model = AsyncModel(mixed.served)
    for version in (None, "", "1", 1):
        assert mixed.describe(version) == await model.describe(version) == mixed.describe()
    text = "^version 1 is loaded, not '2'$"
    for version in ("2", 2):
        with pytest.raises(ModelNotFound, match=text):
            mixed.describe(version)
        with pytest.raises(ModelNotFound, match=text):
            await model.describe(version)


async def test_closed_model_refuses_each_of_its_calls(mixed):
    model, awaited = Model(mixed.served), AsyncModel(mixed.served)
    model.wait_ready()
    await awaited.wait_ready()
    for _ in range(2):
        model.close()
        await awaited.close()
    closed = "^the model is closed$"
    with pytest.raises(Unavailable, match=closed):
        model.infer(ONE)
    with pytest.raises(Unavailable, match=closed):
        next(model.stream(ONE))
    with pytest.raises(Unavailable, match=closed):
        model.wait_ready()
    with pytest.raises(Unavailable, match=closed):
        await awaited.infer(ONE)
    with pytest.raises(Unavailable, match=closed):
        await anext(awaited.stream(ONE))
    with pytest.raises(Unavailable, match=closed):
        await awaited.wait_ready()
    async with AsyncModel(mixed.served) as again:
        await again.infer(ONE)
    with pytest.raises(Unavailable, match=closed):
        await again.infer(ONE)


@pytest.mark.parametrize(
    ("num_rows", "most", "is_joined"),
    [(16, 512, True), (17, 512, False), (4, 4, True), (5, 4, False)],
)
async def test_calls_of_few_rows_are_run_together(num_rows, most, is_joined, layers, monkeypatch):
    model, ways = AsyncModel(layers.served, BatchingConfig(max_batch_size=most)), []
    run = JoinedCalls.run

    async def joined(self, feeds):
        ways.append((self._max_batch_size, self._num_threads))
        return await run(self, feeds)

    monkeypatch.setattr(JoinedCalls, "run", joined)
    await model.infer(np.ones((num_rows, 4), np.float32))
    enough = min(model.served.enough_rows, most)
    assert ways == [(enough, model._cores)] * is_joined


def test_description_is_that_of_the_model_without_a_servers_limit(layers):
    served = layers.served.describe(layers.batching)
    assert served.max_request_rows == BatchingConfig().max_request_rows
    assert layers.describe() == replace(served, max_request_rows=None)


def test_what_is_wrong_with_a_model_is_said_before_the_rest(asked):
    with pytest.raises(ConfigurationError, match=r"^device must be one of auto, cpu, cuda, got"):
        Model.load("a", device="tpu", batching=64)
    assert asked == []


@pytest.mark.parametrize("way", ["answered", "fails", "cancelled"])
async def test_work_on_a_thread_knows_that_nobody_waits_for_it(way):
    begun, seen = threading.Event(), []

    def work(inputs, is_cancelled):
        seen.extend([inputs, is_cancelled])
        begun.set()
        if way == "fails":
            raise KeyError("x")
        if way == "cancelled":
            assert may_end.wait(20.0)
        return "answer"

    may_end = threading.Event()
    task = asyncio.ensure_future(on_thread(work, "inputs"))
    await asyncio.to_thread(begun.wait, 20.0)
    if way == "cancelled":
        assert not seen[1]()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen[1](), "while it is done"
        may_end.set()
    elif way == "fails":
        with pytest.raises(KeyError):
            await task
    else:
        assert await task == "answer"
    assert (seen[0], seen[1]()) == ("inputs", True)


async def test_turn_of_a_loop_begins_one_run(monkeypatch):
    """However many calls come in it; the calls of the next turn begin another one."""
    starts = called_soon(
        monkeypatch, lambda each: getattr(each, "__func__", None) is JoinedCalls._start
    )
    calls = JoinedCalls(asyncio.get_running_loop(), lambda feeds: Outputs(feeds, "1"), 8, 1)
    for number in (1, 2):
        answers = [calls.run({"x": np.full((1, 1), value)}) for value in range(3)]
        found = await asyncio.gather(*answers)
        assert [each["x"].tolist() for each in found] == [[[0]], [[1]], [[2]]]
        assert len(starts) == number
        assert (calls._num_rows, calls._num_running, calls._is_due) == (0, 0, False)


def test_run_that_is_divided_ends_with_its_call(monkeypatch):
    played, seen = Parallel(monkeypatch, 8, 20), []

    def parallel(run, feeds, most, enough, cores, is_cancelled, alone):
        seen.append(is_cancelled())
        return [np.zeros((1, 10), np.float32)]

    monkeypatch.setattr("serving.embedded.run_parallel", parallel)
    for is_cancelled in (False, True):
        played.model._run({"images": images_of(*[0] * 9)}, partial(bool, is_cancelled))
    assert seen == [False, True]


async def test_parameters_of_a_call_are_for_its_handler(mixed):
    given: list[Any] = []

    def answer(feeds, parameters, run):
        given.append(parameters)
        return [feeds[each] for each in ("x", "n", "texts")]

    def stream(feeds, parameters, run):
        yield answer(feeds, parameters, run)

    for kind in (Model, AsyncModel):
        model: Any = kind(mixed.served)
        model.served = SimpleNamespace(
            tensors=mixed.served.tensors, version="1", is_awaited=False, answer=answer,
            stream=stream,
        )  # fmt: skip
        for parameters in (None, {"style": "short"}):
            if kind is Model:
                found = model.infer(ONE, parameters=parameters)
                (part,) = model.stream(ONE, parameters=parameters)
            else:
                found = await model.infer(ONE, parameters=parameters)
                (part,) = [each async for each in model.stream(ONE, parameters=parameters)]
            assert [*found] == [*part] == ["y", "m", "same"]
    assert given == [{}, {}, {"style": "short"}, {"style": "short"}] * 2


def test_block_closes_its_model(mixed):
    with Model(mixed.served) as model:
        assert [*model.infer(ONE, outputs="same")] == ["same"], "one name is one, not its letters"
    with pytest.raises(Unavailable, match=r"^the model is closed$"):
        model.infer(ONE)


def test_run_that_fails_says_why(monkeypatch):
    def fail(feeds):
        raise ModelError("m") from RuntimeError("no kernel for it")

    model: Any = Parallel(monkeypatch, 8, 20).model
    model._network = SimpleNamespace(tensors=model.served.tensors, enough_rows=8, run=fail)
    with pytest.raises(ModelError, match=r"^the model failed: .*no kernel for it"):
        model._run_network({"images": images_of(1)})


@pytest.mark.parametrize("is_alone", [True, False])
async def test_handler_answers_by_itself_or_around_a_model(is_alone, tmp_path):
    class Shouts(serving.Handler):
        inputs: ClassVar[Any] = {"text": serving.Text()}
        outputs: ClassVar[Any] = {"loud": serving.Text()}

        def predict(self, text):
            return [each.upper() for each in text]

    class Lengths(serving.Handler):
        inputs: ClassVar[Any] = {"text": serving.Text()}

        def preprocess(self, text):
            return np.array([[len(each)] * 4 for each in text], np.float32)

    path = None if is_alone else save(two_layers(), tmp_path)
    handler = Shouts if is_alone else Lengths
    for kind in (Model, AsyncModel):
        loaded: Any = kind.load(path, handler=handler, device="cpu")
        found = loaded.infer({"text": ["a", "bc"]})
        answer = await found if kind is AsyncModel else found
        if is_alone:
            assert answer["loud"].tolist() == ["A", "BC"]
        else:
            assert answer["y"].shape == (2, 3)
