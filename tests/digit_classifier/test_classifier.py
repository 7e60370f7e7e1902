"""One classifier, four faces: in process and by a server, for threads and for event loops."""

import asyncio
import pickle
import re
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from digit_classifier import PRETRAINED, AsyncClassifier, Classifier, wire
from digit_classifier.async_local import AsyncLocalDigits
from digit_classifier.local import LocalDigits
from digit_classifier.pb.digits.v1.digits_pb2 import GetModelResponse
from digit_classifier.predictions import DIGITS
from digit_classifier.remote import (
    GET_MODEL,
    AsyncRemoteDigits,
    RemoteDigits,
    predictions_of,
    served_model_of,
)
from serving.config import BatchingConfig
from serving.errors import InvalidRequest, Unavailable
from serving.tensors import Signature
from tests.support.fakes import FakeClock, images_of, probabilities_of
from tests.support.h2_server import server_inside

FACES = ("load", "connect", "async load", "async connect")


class Face:
    """A face, called by the test's thread."""

    def __init__(self, name, address):
        kind, how = (AsyncClassifier if "async" in name else Classifier), name.split()[-1]
        load = partial(kind.load, PRETRAINED / "digits", device="cpu")
        self.inside = kind.connect(address) if how == "connect" else load()
        self._run = asyncio.Runner().run if "async" in name else lambda result: result

    def __getattr__(self, name):
        return lambda *args: self._run(self._called(name, args))

    def _called(self, name, args):
        return getattr(self.inside, name)(*args)


@pytest.fixture(scope="module")
def address():
    with Classifier.pretrained("cpu") as served, server_inside(served) as server:
        yield server.address


@pytest.fixture
def faces(address):
    faces = {name: Face(name, address) for name in FACES}
    yield faces
    for face in faces.values():
        face.close()


@pytest.mark.parametrize("number", [1, 16, 17, 256, 257, 500])
def test_all_faces_answer_the_same_whole(number, faces, images):
    first, *others = [face.classify(images[:number]) for face in faces.values()]
    assert first.probabilities.shape == (number, 10)
    for other in others:
        np.testing.assert_array_equal(first.digits, other.digits)
        np.testing.assert_allclose(first.probabilities, other.probabilities, rtol=0, atol=2e-6)
        assert (first.model_version, first.class_labels) == ("1", ())
        assert (other.model_version, other.class_labels) == ("1", ())
        assert first.digits.dtype == other.digits.dtype


def test_all_faces_describe_the_same(faces):
    first, *others = [face.describe() for face in faces.values()]
    facts = [(each.inputs, each.outputs, each.version, each.test_accuracy) for each in others]
    assert facts == [(first.inputs, first.outputs, first.version, first.test_accuracy)] * 3
    assert faces["load"].inside.signature == faces["connect"].inside.signature == DIGITS


@pytest.mark.parametrize("face", FACES)
def test_closed_faces_refuse(face, faces, images):
    one = faces[face]
    one.wait_ready(20.0)
    for bad in images[:0], images[:, :5], images.astype(float):
        with pytest.raises(InvalidRequest):
            one.classify(bad)
    one.close()
    one.close()
    with pytest.raises(Unavailable):
        one.classify(images[:1])


def test_unpickled_ones_answer_the_same(faces, images):
    for name in "load", "connect":
        with pickle.loads(pickle.dumps(faces[name].inside)) as copied:
            answer = copied.classify(images[:3])
        np.testing.assert_array_equal(answer.digits, faces[name].classify(images[:3]).digits)


def test_pretrained_ones_are_pickled_without_a_path(images):
    with Classifier.pretrained("cpu") as first, pickle.loads(pickle.dumps(first)) as copied:
        np.testing.assert_array_equal(
            first.classify(images[:5]).digits, copied.classify(images[:5]).digits
        )


# A server's answers


class Server:
    """A client of a server that answers as the test says, and takes time."""

    target, timeout_s = "here:1", 10.0

    def __init__(self, clock, most=1000, fault=None):
        self.clock, self.most, self.fault = clock, most, fault
        self.calls = []

    def answer(self, path, message, timeout_s):
        if path == GET_MODEL:
            self.calls.append(("model", 0, timeout_s))
            self.clock.advance(4.0)
            return model_document(max_request_images=self.most)
        images = np.frombuffer(wire.decode_request(message, 784, 1000), np.uint8).reshape(-1, 784)
        self.calls.append(("classify", len(images), timeout_s))
        table = probabilities_of(images)
        return self.fault or wire.encode_response(images[:, 0] % 10, table.tobytes(), "7")

    def call(self, path, message, timeout_s=None):
        return self.answer(path, message, timeout_s)

    def call_many(self, path, messages, timeout_s=None):
        return [self.answer(path, message, timeout_s) for message in messages]


class AsyncServer(Server):
    async def call(self, path, message, timeout_s=None):
        return self.answer(path, message, timeout_s)

    async def call_many(self, path, messages, timeout_s=None):
        return [self.answer(path, message, timeout_s) for message in messages]


def model_document(**facts):
    facts = {"name": "digits", "version": "7", "max_request_images": 1000,
             "signature": DIGITS.document()} | facts  # fmt: skip
    return GetModelResponse(**facts).SerializeToString()


@contextmanager
def called(kind, monkeypatch, **facts):
    """A client's digits, its server, and how to call it."""
    clock = FakeClock()
    monkeypatch.setattr("digit_classifier.remote.time", type("", (), {"monotonic": clock}))
    if kind == "threads":
        server = Server(clock, **facts)
        yield server, RemoteDigits(server).classify
    else:
        server = AsyncServer(clock, **facts)
        digits, runner = AsyncRemoteDigits(server), asyncio.Runner()
        yield server, lambda images: runner.run(digits.classify(images))


both = pytest.mark.parametrize("kind", ["threads", "event loop"])


@both
def test_first_call_asks_for_the_model_within_its_time(kind, monkeypatch):
    with called(kind, monkeypatch) as (server, classify):
        answer = classify(images_of(3, 4))
        assert answer.digits.tolist() == [3, 4]
        assert answer.model_version == "7"
        classify(images_of(5))
    assert server.calls == [("model", 0, None), ("classify", 2, 6.0), ("classify", 1, 10.0)]


@both
@pytest.mark.parametrize(
    ("most", "number", "parts"),
    [(1000, 256, [256]), (1000, 600, [256, 256, 88]), (2, 5, [2, 2, 1]), (1, 2, [1, 1])],
)
def test_many_images_are_divided(kind, most, number, parts, monkeypatch):
    images = images_of(*(each % 256 for each in range(number)))
    with called(kind, monkeypatch, most=most) as (server, classify):
        answer = classify(images)
    assert server.calls[1:] == [("classify", part, 6.0) for part in parts]
    np.testing.assert_array_equal(answer.digits, images[:, 0] % 10)
    np.testing.assert_array_equal(answer.probabilities, probabilities_of(images))


@both
def test_images_that_no_model_takes_are_refused_without_a_call(kind, monkeypatch):
    with called(kind, monkeypatch) as (server, classify), pytest.raises(InvalidRequest):
        classify(np.zeros((1, 784), float))
    assert server.calls == []


@both
def test_model_is_asked_for_again_after_an_answer_that_does_not_fit(kind, monkeypatch):
    with called(kind, monkeypatch, fault=b"\xff") as (server, classify):
        for _ in range(2):
            with pytest.raises(Unavailable):
                classify(images_of(3))
    assert [path for path, _, _ in server.calls] == ["model", "classify"] * 2


TABLE = np.full((2, 10), 0.1, np.float32)


def changed(place, value):
    table = TABLE.copy()
    table[place] = value
    return table


@pytest.mark.parametrize("number", [2, 12])  # checked by Python, and by numpy
@pytest.mark.parametrize(
    ("table", "is_valid"),
    [
        (TABLE, True),
        (changed((1, 3), 0.1009), True),
        (changed((1, 3), 0.1012), False),
        (changed((1, 3), 0.0988), False),
        (changed((1, slice(0, 2)), (-0.1, 0.3)), False),
        (changed((0, 0), np.nan), False),
        (changed((0, 0), np.inf), False),
    ],
    ids=["uniform", "rounded", "over 1", "below 1", "negative", "nan", "infinite"],
)
def test_answers_are_distributions(table, is_valid, number):
    rows = np.concatenate([table, *[TABLE] * (number // 2 - 1)])
    data = wire.encode_response(bytes(number), rows.tobytes(), "3")
    if is_valid:
        found = predictions_of(data, number, DIGITS, "here:1")
        np.testing.assert_array_equal(found.probabilities, rows)
        assert (found.model_version, found.digits.tolist()) == ("3", [0] * number)
    else:
        with pytest.raises(Unavailable, match="probabilities that are not 0 to 1 with a sum of 1"):
            predictions_of(data, number, DIGITS, "here:1")


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"\xff", "no ClassifyResponse"),
     (wire.encode_response(bytes(2), TABLE[:, :5].tobytes(), "3"), "shape (2, 5), not (2, 10)"),
     (wire.encode_response(bytes(1), TABLE[:1].tobytes(), "3"), "shape (1, 10), not (2, 10)")],
    ids=["no message", "classes", "images"],
)  # fmt: skip
def test_answers_have_the_shape_of_the_request(data, text):
    with pytest.raises(Unavailable, match=f"here:1.*{re.escape(text)}"):
        predictions_of(data, 2, DIGITS, "here:1")


def test_model_of_a_server_is_read_whole():
    signature = Signature((8, 8, 3), 3, labels=("a", "b", "c"))
    data = model_document(test_accuracy=0.5, signature=signature.document())
    model = served_model_of(data, "here:1")
    assert model[:2] == ("digits", "7")
    assert model.signature == signature
    assert model[3:] == (1000, 0.5, 1000), "1,045 images of 192 bytes fit a message"
    for accuracy in 0.0, float("nan"), float("inf"):
        assert served_model_of(model_document(test_accuracy=accuracy), "").test_accuracy is None
    large = Signature((1000, 1000, 3), 3)
    model = served_model_of(model_document(signature=large.document()), "")
    assert (model.max_request_images, model.message_images) == (1000, 1)


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"\xff", "no GetModelResponse"),
     (model_document(max_request_images=0), "max_request_images 0"),
     (model_document(signature={"input_shape": [0], "dtype": "uint8"}), "a model of ")],
    ids=["no message", "none", "shape"],
)  # fmt: skip
def test_impossible_models_are_refused(data, text):
    with pytest.raises(Unavailable, match=f"here:1.*{text}"):
        served_model_of(data, "here:1")


# How a model is loaded


@pytest.mark.parametrize("kind", [LocalDigits, AsyncLocalDigits])
@pytest.mark.parametrize("path", [None, "net"])
def test_model_is_loaded_with_all_that_its_caller_says(kind, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    tensors = DIGITS.tensors
    model = SimpleNamespace(
        version="3", served=SimpleNamespace(image_signature=DIGITS, tensors=tensors)
    )

    def load(*facts, **options):
        seen.append((*facts, options))
        return model

    for name in ("local._DescribedModel", "async_local._AsyncDescribedModel"):
        monkeypatch.setattr(f"digit_classifier.{name}.load", load)
    batching = BatchingConfig(max_batch_size=9)
    found = kind.open(path, 2, "cuda", "int8", batching)
    is_async = kind is AsyncLocalDigits
    place = PRETRAINED / "digits" if path is None else path if is_async else tmp_path / "net"
    assert seen == [(place, 2, "cuda", "int8", {"batching": batching})]
    if not is_async:
        again, arguments = found.__reduce__()
        assert again(*arguments).signature == DIGITS
        assert seen[1:] == [(place, "3", "cuda", "int8", {"batching": batching})]
        with pytest.raises(TypeError, match=r"^only a Classifier from load"):
            kind(model).__reduce__()


class Patient:
    """What is behind a face: it notes for how long it is waited for."""

    def __init__(self):
        self.waits: list[float] = []
        self.served = SimpleNamespace(image_signature=DIGITS, tensors=DIGITS.tensors)

    def wait_ready(self, timeout_s):
        self.waits.append(timeout_s)


class AsyncPatient(Patient):
    async def wait_ready(self, timeout_s):
        self.waits.append(timeout_s)


@pytest.mark.parametrize(
    "kind",
    [Classifier, AsyncClassifier, LocalDigits, AsyncLocalDigits, RemoteDigits, AsyncRemoteDigits],
)
async def test_ready_is_waited_for_half_a_minute(kind):
    inside: Any = AsyncPatient() if "Async" in kind.__name__ else Patient()
    for arguments in ((), (2.5,)):
        found = kind(inside).wait_ready(*arguments)
        if found is not None:
            await found
    assert inside.waits == [30.0, 2.5]
