"""The same request, and the same answer, in each form: raw or typed protobuf, JSON, and bytes."""

import json
import math
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.errors import InvalidRequest
from serving.oip import protobuf, rest
from serving.oip.inference_pb import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from serving.oip.parameters import set_parameter
from serving.oip.request import InferAnswer, InferRequest, understand
from serving.oip.values import CONTENTS, from_raw, to_raw, to_typed
from serving.tensors import DTYPES, Tensor, TensorSignature

MAX_ROWS = 8
FORMS = ["raw", "typed", "json", "bytes"]


class Asked(NamedTuple):
    """A request, and the model that it is for."""

    signature: TensorSignature
    arrays: list[Any]
    id: str
    parameters: dict[str, Any]
    outputs: list[str]


NOT_UTF_8 = st.just(b"\xff")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
IDS = st.one_of(st.just(""), st.sampled_from(["7", "ä b", "\n", "\u200b", "x" * 512, "x" * 513]))
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
    st.sampled_from(["", "a text", "line\n"]),
)  # fmt: skip
NAMES = st.sampled_from(["priority", "a", "sequence_id", "ö"])


@st.composite
def requests(draw):
    is_batchable = draw(st.booleans())
    num_rows = draw(st.integers(1, MAX_ROWS + 1))
    inputs, outputs, given_arrays = [], [], []
    for number in range(draw(st.integers(0, 3) if not is_batchable else st.integers(1, 3))):
        kind = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=2).map(tuple))
        shape = (num_rows, *shape) if is_batchable else shape
        known = tuple(draw(st.sampled_from([size, -1])) for size in shape)
        known = (-1, *known[1:]) if is_batchable else known
        elements = draw(st.sampled_from([TEXTS, TEXTS, TEXTS | NOT_UTF_8]))
        array = arrays(DTYPES[kind], shape, elements=elements if kind == "BYTES" else None)
        inputs.append(Tensor(f"in{number}", kind, known))
        outputs.append(Tensor(f"out{number}", kind, known))
        given_arrays.append(draw(array))
    chosen = draw(st.lists(st.sampled_from([each.name for each in outputs] or [""]), unique=True))
    parameters = draw(st.dictionaries(NAMES, VALUES, max_size=2))
    if draw(st.booleans()):
        parameters["timeout"] = draw(st.sampled_from([0, 1, 2_500_000, -1, "1", 0.5, True]))
    facts = given_arrays, draw(IDS), parameters, [each for each in chosen if each]
    return Asked(TensorSignature(tuple(inputs), tuple(outputs), is_batchable), *facts)


def message_of(asked, is_raw):
    """The request as protobuf; its inputs stand in the opposite order."""
    request = ModelInferRequest(model_name="m", id=asked.id)
    pairs = list(zip(asked.signature.inputs, asked.arrays, strict=True))
    for wanted, array in reversed(pairs):
        tensor = request.inputs.add(name=wanted.name, datatype=wanted.datatype, shape=array.shape)
        if is_raw:
            request.raw_input_contents.append(to_raw(array))
        else:
            getattr(tensor.contents, CONTENTS[wanted.datatype]).extend(to_typed(array))
    for name in asked.outputs:
        request.outputs.add(name=name)
    for name, value in asked.parameters.items():
        set_parameter(request.parameters, name, value)
    return request.SerializeToString()


def body_of(asked, in_bytes):
    """The request as JSON, its values in it or behind it; and the length of the JSON."""
    items, behind = [], []
    for tensor, array in zip(asked.signature.inputs, asked.arrays, strict=True):
        item = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if in_bytes:
            behind.append(to_raw(array))
            item["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            item["data"] = array.ravel().tolist()
        items.append(item)
    document = {"inputs": items, "parameters": asked.parameters, "id": asked.id}
    if asked.outputs:
        document["outputs"] = [{"name": name} for name in asked.outputs]
    text = json.dumps(document).encode()
    return text + b"".join(behind), len(text) if in_bytes else None


def sent_in(asked, form):
    if form in ("raw", "typed"):
        return protobuf.read(message_of(asked, form == "raw"))[1]
    return rest.read(*body_of(asked, form == "bytes"))


def understood(asked, form):
    """What the server makes of a form: request, rows and id, or its refusal."""
    try:
        sent = sent_in(asked, form)
        request, rows = understand(sent, "m", asked.signature, MAX_ROWS)
    except InvalidRequest as err:
        return str(err)
    if isinstance(rows, bytes):
        rows = (np.frombuffer(rows, asked.signature.inputs[0].dtype),)
    plain = tuple((each.dtype, each.shape, to_raw(_one_nan(each))) for each in rows)
    return request._replace(as_bytes=()), plain, sent.id


def _one_nan(array):
    """An array in which all NaN have the same bits: JSON has one word for them."""
    if array.dtype.kind != "f":
        return array
    return np.where(np.isnan(array), np.full_like(array, np.nan), array)


def has_kind(kind):
    return lambda asked: any(each.datatype == kind for each in asked.signature.inputs)


def has_bytes(asked):
    return any(isinstance(text, bytes) for each in asked.arrays if each.dtype == object
               for text in each.flat)  # fmt: skip


def has_printables(asked):
    texts = (asked.id, *(each for each in asked.parameters.values() if isinstance(each, str)))
    return all(text.isprintable() for text in texts)


UNSAYABLE = [
    ({"typed"}, has_kind("FP16"), "expected raw_input_contents for in.: FP16 has no contents"),
    ({"json"}, has_bytes, ""),  # there is no such text
    ({"raw", "typed", "bytes"}, has_bytes, "expected BYTES of in. as UTF-8"),
    ({"json", "bytes"}, lambda asked: not asked.id.isprintable(), "expected id as printable text"),
    ({"raw", "typed", "json", "bytes"}, lambda asked: not has_printables(asked),
     "expected id as printable text|expected the parameter '.*' as text, number or boolean"),
]  # fmt: skip
"""What single forms can't say, or refuse: the forms, for which requests, and the refusal."""


@given(requests())
def test_all_forms_say_the_same(asked):
    found = {}
    for form in FORMS:
        reasons = [text for forms, is_one, text in UNSAYABLE if form in forms and is_one(asked)]
        if "" in reasons or (form == "typed" and has_kind("FP16")(asked)):
            continue
        try:
            outcome = understood(asked, form)
        except InvalidRequest as err:  # its text can't be written as a message at all
            outcome = str(err)
        if isinstance(outcome, str) and any(re.search(text, outcome) for text in reasons if text):
            continue
        found[form] = outcome
    outcomes = list(found.values())
    assert all(each == outcomes[0] for each in outcomes), found


def test_half_as_typed_contents_is_refused():
    tensor = Tensor("in0", "FP16", (1,))
    request = ModelInferRequest(inputs=[{"name": "in0", "datatype": "FP16", "shape": [1]}])
    sent = protobuf.sent_in(request)
    with pytest.raises(InvalidRequest, match=UNSAYABLE[0][2]):
        understand(sent, "m", TensorSignature((tensor,), (), False), MAX_ROWS)


# Answers


def answers(asked, as_bytes):
    """The answer of a model that returns its inputs."""
    numbers = [int(name.removeprefix("out")) for name in asked.outputs]
    numbers = numbers or list(range(len(asked.arrays)))
    tensors = tuple(asked.signature.outputs[at] for at in numbers)
    request = InferRequest("m", 1, tuple(numbers), tensors, (as_bytes,) * len(numbers))
    return InferAnswer(request, [asked.arrays[at] for at in numbers], "3", asked.id)


def plain(array):
    """Values that are equal if two arrays are."""
    if array.dtype == object:
        return [each.encode() if isinstance(each, str) else each for each in array.ravel()]
    if array.dtype.kind == "f":
        return [None if math.isnan(each) else float(each) for each in array.ravel()]
    return array.ravel().tolist()


def read_message(response):
    found = []
    for number, output in enumerate(response.outputs):
        if response.raw_output_contents:
            tensor = Tensor(output.name, output.datatype, tuple(output.shape), content="bytes")
            array = from_raw(response.raw_output_contents[number], tensor, output.shape)
        else:
            values = getattr(output.contents, CONTENTS[output.datatype])[:]
            array = np.empty(len(values), DTYPES[output.datatype])
            array[:] = values
        found.append((output.name, output.datatype, list(output.shape), plain(array)))
    return response.model_name, response.model_version, response.id, found


def read_body(body, json_bytes):
    document, at = json.loads(body[:json_bytes]), json_bytes
    found = []
    for output in document["outputs"]:
        if "data" in output:
            array = np.empty(len(output["data"]), DTYPES[output["datatype"]])
            array[:] = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            shape = output["shape"]
            tensor = Tensor(output["name"], output["datatype"], tuple(shape), content="bytes")
            array = from_raw(body[at : at + size], tensor, shape)
            at += size
        found.append((output["name"], output["datatype"], output["shape"], plain(array)))
    head = document["model_name"], document["model_version"], document.get("id", "")
    return *head, found


@given(requests())
def test_all_forms_answer_the_same(asked):
    found = [read_message(protobuf.message_of(answers(asked, each))) for each in (True, False)]
    found.append(read_body(*rest.write(answers(asked, True))) if asked.arrays else found[0])
    if not has_bytes(asked):
        body, _ = rest.write(answers(asked, False))
        found.append(read_body(body, len(body)))
    assert all(each == found[0] for each in found)


LONG = 1 << 20


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_raw", [False, True])
@pytest.mark.parametrize("kind", [*CONTENTS, "mixed"])
def test_long_answers_are_the_messages_that_protobuf_writes(kind, is_raw, is_stream):
    """They are written part by part."""
    kinds = [kind] if kind != "mixed" else ["INT8", "FP32", "BYTES", "INT64", "BOOL"]
    tensors = tuple(Tensor(f"out{at}", each, (-1, 2)) for at, each in enumerate(kinds))
    drawn = np.random.default_rng(0)
    long = []
    for each in kinds:
        dtype = DTYPES[each]
        if each == "BYTES":
            texts = ["ä" * 300_000, "", "x" * 700_000, *["short"] * 7]
            long.append(np.array(texts, object).reshape(5, 2))
        else:
            data = drawn.integers(0, 2, LONG) if each == "BOOL" else drawn.bytes(LONG)
            array = np.array(data, dtype) if each == "BOOL" else np.frombuffer(data, dtype)
            long.append(array.reshape(-1, 2))
    if kind == "mixed":
        long[1] = long[1][:0]
    numbers = tuple(range(len(kinds)))
    request = InferRequest("m", 1, numbers, tensors, (is_raw,) * len(kinds))
    answer = InferAnswer(request, long, "3", "an id")
    pieces = protobuf.Messages(is_stream=is_stream).write(answer)
    assert not isinstance(pieces, bytes)
    data = bytes(pieces)
    assert int.from_bytes(data[1:5], "big") == len(data) - 5
    written = protobuf.message_of(answer)
    if is_stream:
        found = ModelStreamInferResponse.FromString(data[5:]).infer_response
    else:
        found = ModelInferResponse.FromString(data[5:])
    assert found.SerializeToString(deterministic=True) == written.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(("microseconds", "seconds"), [(2_500_000, 2.5), (1, 1e-6), (0, None)])
def test_timeout_is_in_microseconds(microseconds, seconds):
    signature = TensorSignature((), (), False)
    asked = Asked(signature, [], "", {"timeout": microseconds, "a": 1}, [])
    for form in FORMS:
        request, _, _ = understood(asked, form)
        assert (request.timeout_s, request.parameters) == (seconds, {"a": 1})


@given(requests())
def test_answers_are_framed_and_on_a_stream_within_another_message(asked):
    for as_bytes in True, False:
        answer = answers(asked, as_bytes)
        expected = protobuf.message_of(answer)
        data = bytes(protobuf.Messages().write(answer))
        assert data[:5] == b"\0" + len(data[5:]).to_bytes(4, "big")
        assert ModelInferResponse.FromString(data[5:]) == expected
        data = bytes(protobuf.Messages(is_stream=True).write(answer))
        assert data[:5] == b"\0" + len(data[5:]).to_bytes(4, "big")
        found = ModelStreamInferResponse.FromString(data[5:])
        assert (found.infer_response, found.error_message) == (expected, "")
