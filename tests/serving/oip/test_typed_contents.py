"""A request with typed contents is answered as the same one with raw contents, in process."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import serving
from serving.batching.run import Group
from serving.errors import RequestError
from serving.oip.infer import Infer
from serving.oip.inference_pb import ModelInferResponse
from serving.oip.large_messages import as_raw
from serving.oip.values import CONTENTS
from serving.router import Router
from serving.tensors import DTYPES
from tests.serving.model import graphs
from tests.serving.oip.test_oip_tensors import arrays_in, request_of
from tests.support.fakes import FakeCaller, FakeOwner, versions_of

WIDTH = 3
"""Of rows of a fixed size, which travel as bytes."""
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
MODELS = ("all", *CONTENTS)


def echo(kinds, width):
    """A graph that returns its inputs."""
    nodes = [graphs.node("Identity", [f"in{i}"], [f"out{i}"]) for i in range(len(kinds))]
    both = [
        [graphs.value(f"{side}{i}", kind, ["N", width]) for i, kind in enumerate(kinds)]
        for side in ("in", "out")
    ]
    return graphs.model(nodes, *both)


class Served:
    """The models in this process, and what is behind a port."""

    def __init__(self, folder):
        router = Router()
        for name in MODELS:
            graph = echo(CONTENTS, "T") if name == "all" else echo([name], WIDTH)
            graphs.save(graph, folder, f"{name}.onnx")
            model = serving.Model.load(folder / f"{name}.onnx")
            router.change(name, versions_of(model.served, name))
        self.signatures = {name: router.find(name).tensors for name in MODELS}
        self.infer = Infer(router)
        self.owner = FakeOwner(router.find("all").find("1"))
        router.attach(self.owner)

    def outcome(self, read, message):
        """Return the answer's facts and arrays, or the error."""
        try:
            rows, encoder = read(message)
        except RequestError as err:
            return type(err), str(err)
        caller, answers = FakeCaller(), Answers()
        caller.streams[1] = answers
        streams: Any = [1]
        encoder.target.submit(Group(caller, streams, [rows], encoder, answers, 0.0, 1e9))
        while answers.found is None:
            self.owner.work()
        response = ModelInferResponse.FromString(answers.found[5:])
        facts = [(each.name, each.datatype, [*each.shape]) for each in response.outputs]
        named = response.model_name, response.model_version, response.id, facts
        return named, arrays_in(response)


class Answers:
    """Takes the answer to one call."""

    found = None

    def answer(self, group, responses, run):
        (self.found,) = responses

    def fail(self, group, error):
        raise error


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("echo"))


@st.composite
def questions(draw):
    """A model, its inputs, an id, the outputs that are wanted, and a mistake."""
    name = draw(st.just("all") | st.sampled_from(MODELS))
    kinds = [*CONTENTS] if name == "all" else [name]
    shape = draw(st.integers(1, 2)), draw(st.integers(0, 2)) if name == "all" else WIDTH
    inputs = [
        arrays(DTYPES[kind], shape, elements=TEXTS if kind == "BYTES" else None, fill=st.nothing())
        for kind in kinds
    ]
    outputs = draw(st.lists(st.sampled_from(range(len(kinds))), unique=True))
    mistakes = ["input", "output", "datatype", "rows", "width"]
    mistake = draw(st.sampled_from([*[""] * 15, *mistakes]))
    assume(mistake != "rows" or shape[1] > 0)  # without elements there may be any number of rows
    return name, [draw(each) for each in inputs], draw(TEXTS), outputs, mistake


def ask(signature, name, inputs, is_raw, identifier, outputs, mistake):
    """A request, as `questions` draws it."""
    request = request_of(signature, inputs, is_raw=is_raw)
    request.model_name, request.id = name, identifier
    for number in outputs:
        request.outputs.add(name=f"out{number}")
    first = request.inputs[0]
    if mistake == "input":
        first.name = "nobody"
    elif mistake == "output":
        request.outputs.add(name="nobody")
    elif mistake == "datatype":
        first.datatype = "FP32" if first.datatype == "INT8" else "INT8"
    elif mistake in ("rows", "width"):
        first.shape[mistake == "width"] += 1
    return request.SerializeToString()


@settings(max_examples=60)
@given(question=questions())
def test_typed_contents_are_answered_as_raw_ones(served, question):
    """On the loop, and by a process that puts large ones into raw contents; twice each."""
    name, inputs, *others = question
    signature, infer = served.signatures[name], served.infer
    raw, typed = (ask(signature, name, inputs, is_raw, *others) for is_raw in (True, False))
    expected = served.outcome(infer.read, raw)
    found = [
        served.outcome(infer.read, raw),
        served.outcome(infer.read, typed),
        served.outcome(lambda message: infer.read_raw(as_raw(message)), typed),
    ]
    if isinstance(expected[0], type):
        assert others[-1]
        assert {kind for kind, _ in found} == {expected[0]}
        return
    for facts, values in found:
        assert facts == expected[0]
        for value, wanted, sent in zip(
            values, expected[1], wanted_of(others[1], inputs), strict=True
        ):
            np.testing.assert_array_equal(value, sent)
            np.testing.assert_array_equal(wanted, sent)


def wanted_of(outputs, inputs):
    """The outputs that a request names, or all."""
    return [inputs[number] for number in outputs] if outputs else inputs
