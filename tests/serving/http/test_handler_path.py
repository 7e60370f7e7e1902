"""A path of a handler: one version answers a form, and another one that takes over answers all."""

# ruff: noqa: RUF012

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import serving
from serving.errors import ServingError
from serving.http_api.handler_path import Chosen, HandlerPath
from serving.tensors import Tensor, TensorSignature
from tests.digit_classifier.http.test_digits import form

TENSORS = TensorSignature(
    (Tensor("x", "FP32", (-1, 1)),), (Tensor("y", "FP32", (-1, 1)),), is_batchable=True
)


class Sizes(serving.Handler):
    """A row of the model for each byte."""

    inputs = {"file": serving.Bytes()}
    outputs = {"sum": serving.Array("float32")}

    def preprocess(self, file):
        if b"bad" in file[0]:
            raise serving.InvalidRequest("it is bad")
        return np.array([[byte] for each in file for byte in each], np.float32).reshape(-1, 1)

    def postprocess(self, y):
        return np.array([y.sum()], np.float32)


class Model:
    def __init__(self, version):
        self.version, self.tensors = version, TENSORS


class Call:
    """A request, whose work is done at once; `after` is called behind each read file."""

    def __init__(self, body, kind, after=lambda: None):
        self.body, self.deadline_s = body, 1.0
        self.plan = SimpleNamespace(get=lambda name: kind)
        self._after, self.runs = after, []

    async def work(self, function, *args, size=None, few_bytes=0):
        found = function(*args)
        if function.__name__ == "prepare":
            self._after()
        return found

    async def run(self, message, encoder, deadline_s):
        rows = np.frombuffer(message, np.float32).reshape(-1, 1)
        self.runs.append((encoder.target, len(rows)))
        return [rows * 2], SimpleNamespace(version=encoder.target)


class Path(HandlerPath):
    """Takes the newest version of a model of two, the second of which comes later."""

    def __init__(self):
        self.served = {"1": Model("1")}
        versions = SimpleNamespace(versions=self.served)
        self.route: Any = SimpleNamespace(name="m", versions=versions, find=lambda version: version)
        router: Any = SimpleNamespace(
            find=lambda name: self.route, batching=SimpleNamespace(max_request_rows=3)
        )
        super().__init__(router)
        self.handler = Sizes()

    def replace(self):
        self.served.clear()
        self.served["2"] = Model("2")

    def find(self, plan, share):
        return Chosen(self.handler, self.route, [*self.served.values()][-1])


def answered(path, call):
    with pytest.raises(StopIteration) as end:
        path.answered(call, {}).send(None)
    return end.value.value


def test_rows_of_a_file_run_within_the_limit_of_a_request_and_none_without_rows():
    path, call = Path(), Call(*form(("a", b"\1\2\3\4"), ("b", b"bad"), ("c", b"")))
    found = answered(path, call)
    assert call.runs == [("1", 3), ("1", 1)]
    assert found.version == "1"
    (a, sums), (b, error), (c, empty) = found.files
    assert (a, sums["sum"].tolist(), b, c, empty["sum"].tolist()) == ("a", [20], "b", "c", [0])
    assert isinstance(error, ServingError)
    assert str(error) == "it is bad"


def test_form_is_answered_whole_by_the_version_that_takes_over():
    path, number = Path(), [0]

    def after():
        number[0] += 1
        if number[0] == 2:
            path.replace()

    call = Call(*form(("a", b"\1"), ("b", b"\2"), ("c", b"\3")), after)
    found = answered(path, call)
    assert call.runs == [("1", 1), ("2", 1), ("2", 1), ("2", 1)]
    assert (found.version, found.chosen.model.version) == ("2", "2")
    assert [outputs["sum"].tolist() for _, outputs in found.files] == [[2], [4], [6]]


def test_only_file_that_is_refused_refuses_the_request():
    with pytest.raises(serving.InvalidRequest, match="it is bad"):
        Path().answered(Call(b"bad", "image/png"), {}).send(None)
