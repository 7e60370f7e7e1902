"""A path of files: one version answers a form, and another one that takes over answers all."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import serving
from serving.errors import ServingError
from serving.http_api.files_path import Chosen, FilesPath
from serving.pictures.classifier import Decoded, Steps
from serving.tensors import Tensor, TensorSignature
from tests.digit_classifier.http.test_digits import form

TENSORS = TensorSignature(
    (Tensor("x", "FP32", (-1, 1)),), (Tensor("y", "FP32", (-1, 1)),), is_batchable=True
)


def decode(about, content):
    """A row of the model for each byte."""
    if b"bad" in content:
        raise serving.InvalidRequest("it is bad")
    return Decoded([np.array([[byte] for byte in content], np.float32).reshape(-1, 1)])


def finish(about, outputs, state):
    """The sum of the rows."""
    assert (about, state) == ("plain", None)
    return {"sum": np.array([outputs[0].sum()], np.float32)}


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
        if function is decode:
            self._after()
        return found

    async def run(self, message, encoder, deadline_s):
        rows = np.frombuffer(message, np.float32).reshape(-1, 1)
        self.runs.append((encoder.target, len(rows)))
        return [rows * 2], SimpleNamespace(version=encoder.target)


class Path(FilesPath):
    """Takes the newest version of a model of two, the second of which comes later."""

    def __init__(self):
        self.served = {"1": Model("1")}
        versions = SimpleNamespace(versions=self.served)
        self.route: Any = SimpleNamespace(name="m", versions=versions, find=lambda version: version)
        router: Any = SimpleNamespace(
            find=lambda name: self.route, batching=SimpleNamespace(max_request_rows=3)
        )
        super().__init__(router)

    def replace(self):
        self.served.clear()
        self.served["2"] = Model("2")

    def find(self, plan, share):
        return Chosen(Steps(decode, finish), "plain", self.route, [*self.served.values()][-1])


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
