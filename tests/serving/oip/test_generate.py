"""Triton's generate: members that are inputs, values that are rows, and outputs that are values."""

import json

import numpy as np
import pytest

from serving.errors import InvalidRequest
from serving.oip import generate, predict
from serving.oip.request import InferAnswer, InferRequest
from serving.oip.values import array_of
from serving.tensors import Tensor

INPUTS = [("prompt", "BYTES", 1), ("scale", "FP32", 2)]


def test_members_are_inputs_and_values_are_rows():
    body = {"prompt": "once", "scale": [0.5, 1], "id": "7", "parameters": {"a": True}}
    sent = generate.read(json.dumps(body).encode(), INPUTS)
    assert [(each.name, each.datatype, each.shape) for each in sent.inputs] == [
        ("prompt", "BYTES", [1]), ("scale", "FP32", [1, 2])]  # fmt: skip
    tensors = [Tensor(name, datatype, (-1,) * num_axes) for name, datatype, num_axes in INPUTS]
    found = [array_of(value, tensor, each.shape).tolist() for value, tensor, each
             in zip(sent.values, tensors, sent.inputs, strict=True)]  # fmt: skip
    assert found == [["once"], [[0.5, 1.0]]]
    assert (sent.id, dict(sent.parameters), sent.fault) == ("7", {"a": True}, "")


@pytest.mark.parametrize(
    ("value", "shape"), [(1, [1, 1]), ([1], [1, 1]), ([[1], [2]], [2, 1]), ([[[1]]], [1, 1, 1])]
)
def test_values_of_fewer_axes_are_one_row(value, shape):
    sent = generate.read(json.dumps({"scale": value}).encode(), INPUTS[1:])
    assert sent.inputs[0].shape == shape
    assert (sent.id, dict(sent.parameters)) == ("", {})


def test_base64_is_bytes():
    sent = generate.read(b'{"prompt": "aGk="}', INPUTS[:1], frozenset({"prompt"}))
    tensor = Tensor("prompt", "BYTES", (-1,), content="bytes")
    assert array_of(sent.values[0], tensor, [1]).tolist() == [b"hi"]


def test_one_value_has_the_digits_of_its_own_type():
    tensors = (Tensor("y", "FP32", (-1, 1)), Tensor("n", "UINT16", (-1,)))
    request = InferRequest("m", 1, (0, 1), tensors, (False, False))
    arrays = [np.array([[0.880797]], np.float32), np.array([7], np.uint16)]
    answer = InferAnswer(request, arrays, "1", "")
    assert b'"y":0.880797,"n":7' in generate.write(answer)
    rows = [np.array([0.880797, 0.5], np.float32), np.array([7, 8], np.uint16)]
    lines = tuple(Tensor(each.name, each.datatype, (-1,)) for each in tensors)
    asked = InferRequest("m", 2, (0, 1), lines, (False, False))
    assert predict.write(InferAnswer(asked, rows, "1", "")) == (
        b'{"predictions":[{"y":0.880797,"n":7},{"y":0.5,"n":8}]}'
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[]", "expected"),
        (b'{"prompt": "a"}', "expected the input scale"),
        (b'{"prompt": "a", "scale": 1, "more": 2}',
         "expected members of prompt, scale, id, parameters, got 'more'"),
        (b'{"prompt": "a", "scale": 1, "id": 5}', "expected"),
        (b'{"prompt": "a", "scale": 1, "parameters": []}', "expected"),
        (b'{"prompt": "a", "scale": "b"}', "expected"),
    ],
)  # fmt: skip
def test_other_bodies_are_refused(body, text):
    def arrays():
        sent = generate.read(body, INPUTS)
        for value, (name, datatype, num_axes) in zip(sent.values, INPUTS, strict=True):
            array_of(value, Tensor(name, datatype, (-1,) * num_axes), [1] * num_axes)

    with pytest.raises(InvalidRequest, match=text):
        arrays()


def answer_of(arrays, answer_id=""):
    tensors = tuple(
        Tensor(name, "BYTES" if array.dtype == object else "FP32", (-1,) * array.ndim, content=kind)
        for name, (array, kind) in arrays.items()
    )
    request = InferRequest("m", 1, tuple(range(len(tensors))), tensors, (False,) * len(tensors))
    return InferAnswer(request, [array for array, _ in arrays.values()], "3", answer_id)


def test_answer_is_whole_and_single_values_stand_alone():
    arrays = {
        "one": (np.array([[0.5]], np.float32), ""),
        "scalar": (np.array(0.25, np.float32), ""),
        "two": (np.array([0.5, 1.5], np.float32), ""),
        "text": (np.array(["a"], object), "text"),
        "texts": (np.array([["a", "b"]], object), "text"),
        "none": (np.zeros((0,), np.float32), ""),
    }
    body = generate.write(answer_of(arrays, "7"))
    assert json.loads(body) == {
        "id": "7", "model_name": "m", "model_version": "3", "one": 0.5, "scalar": 0.25,
        "two": [0.5, 1.5], "text": "a", "texts": [["a", "b"]], "none": [],
    }  # fmt: skip
    assert json.loads(generate.write(answer_of({}))) == {"model_name": "m", "model_version": "3"}
    assert generate.event(body) == b"data: " + body + b"\n\n"


def test_answer_that_is_too_large_for_json_is_refused():
    with pytest.raises(InvalidRequest):
        generate.write(answer_of({"x": (np.zeros((1 << 18) + 1, np.float32), "")}))
