"""Tensors of every type, in every form, there and back; and hostile ones."""

import json
import re
from typing import Any, NamedTuple

import numpy as np
import pytest

from serving.errors import InvalidRequest, TooLarge
from serving.oip import predict, protobuf, rest
from serving.oip.inference_pb import ModelInferRequest
from serving.oip.large_messages import as_raw, id_of, is_slow
from serving.oip.request import InferAnswer, InferRequest, Sent, understand
from serving.oip.values import CONTENTS, MAX_STRINGS, from_raw, to_raw, to_typed
from serving.protocols import parse, varint
from serving.tensors import DTYPES, Tensor, TensorSignature

MAX_ROWS = 8
SHAPE = (3, 2, 2)


def samples(datatype):
    """Values of a type with its extremes, of shape SHAPE."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        texts = ["", "a", "é" * 100, "\0", "[]", '"', "日本", "\n", "x" * 300, " ", "b", ""]
        return np.array(texts, object).reshape(SHAPE)
    if datatype == "BOOL":
        return np.array([True, False, False] * 4).reshape(SHAPE)
    if dtype.kind == "f":
        info = np.finfo(dtype)
        edges = [info.max, info.min, info.tiny, np.nan, np.inf, -np.inf, -0.0, 0.1, 1, -2.5, 3, 0]
        return np.array(edges, dtype).reshape(SHAPE)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    edges = [low, high, high // 2, low // 2, 0, 1, 127, 100, high - 1, low + 1, 5, 64]
    return np.array(edges, dtype).reshape(SHAPE)


def echo_of(*datatypes, shape=(-1, 2, -1), is_batchable=True):
    """The signature of a model that answers its inputs."""
    inputs = tuple(Tensor(f"in{i}", kind, shape) for i, kind in enumerate(datatypes))
    outputs = tuple(Tensor(f"out{i}", kind, shape) for i, kind in enumerate(datatypes))
    return TensorSignature(inputs, outputs, is_batchable)


def request_of(signature, arrays, *, is_raw):
    """A request in which the inputs stand in the opposite order."""
    request = ModelInferRequest(model_name="echo")
    for wanted, array in reversed(list(zip(signature.inputs, arrays, strict=True))):
        tensor = request.inputs.add(name=wanted.name, datatype=wanted.datatype, shape=array.shape)
        if is_raw:
            request.raw_input_contents.append(to_raw(array))
        else:
            getattr(tensor.contents, CONTENTS[wanted.datatype]).extend(to_typed(array))
    return request


class Read(NamedTuple):
    """A request as the server has it."""

    sent: Sent
    request: InferRequest
    rows: Any

    def answered(self, arrays, version="1"):
        """The message that answers it; `arrays` are all outputs."""
        chosen = [arrays[at] for at in self.request.outputs]
        return protobuf.message_of(InferAnswer(self.request, chosen, version, self.sent.id))


def understood(request, signature):
    """Read a message that was parsed."""
    sent = protobuf.sent_in(request)
    return Read(sent, *understand(sent, "echo", signature, MAX_ROWS))


def decoded(message, signature):
    return understood(parse(ModelInferRequest, message), signature)


def decoded_elsewhere(message, signature):
    """The same of a message that a process has put into raw contents."""
    raw, is_typed = as_raw(message)
    sent = protobuf.read(raw)[1]
    sent = sent._replace(as_bytes=False) if is_typed else sent
    return Read(sent, *understand(sent, "echo", signature, MAX_ROWS))


def arrays_in(response):
    """An answer's arrays, as a client reads them without this project."""
    found = []
    for i, output in enumerate(response.outputs):
        if output.datatype == "BYTES" or not response.raw_output_contents:
            values = getattr(output.contents, CONTENTS[output.datatype])[:]
            if response.raw_output_contents:
                values = from_raw(response.raw_output_contents[i], output, output.shape).ravel()
            else:
                values = [v.decode() if isinstance(v, bytes) else v for v in values]
            array = np.array(values, DTYPES[output.datatype])
        else:
            array = np.frombuffer(response.raw_output_contents[i], DTYPES[output.datatype])
        found.append(array.reshape(output.shape))
    return found


@pytest.mark.parametrize("is_raw", [True, False])
def test_all_types_at_once_there_and_back(is_raw):
    kinds = [kind for kind in DTYPES if is_raw or kind in CONTENTS]
    signature, sent = echo_of(*kinds), [samples(kind) for kind in kinds]
    request = request_of(signature, sent, is_raw=is_raw)
    request.id = "7"
    for found in (
        decoded(request.SerializeToString(), signature),
        decoded_elsewhere(request.SerializeToString(), signature),
    ):
        assert (found.request.num_rows, found.sent.id) == (3, "7")
        assert set(found.request.as_bytes) == {is_raw}
        for array, expected in zip(found.rows, sent, strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
        response = found.answered(sent, "2")
        assert (response.model_name, response.model_version, response.id) == ("echo", "2", "7")
        assert bool(response.raw_output_contents) is is_raw
        assert [output.name for output in response.outputs] == [t.name for t in signature.outputs]
        for array, expected in zip(arrays_in(response), sent, strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind != "BYTES"])
def test_rows_of_one_input_are_bytes(kind):
    signature, array = echo_of(kind, shape=(-1, 2, 2)), samples(kind)
    for is_raw in (True, False) if kind in CONTENTS else (True,):
        request = request_of(signature, [array], is_raw=is_raw)
        found = decoded(request.SerializeToString(), signature)
        assert (found.rows, found.request.num_rows) == (array.tobytes(), 3)


def test_half_has_no_typed_contents():
    request = ModelInferRequest(inputs=[{"name": "in0", "datatype": "FP16", "shape": [1]}])
    with pytest.raises(InvalidRequest, match="raw_input_contents for in0: FP16 has no contents"):
        understood(request, echo_of("FP16", shape=(-1,)))


def test_typed_question_for_a_half_is_answered_raw():
    tensor = Tensor("in", "FP32", (-1,))
    signature = TensorSignature((tensor,), (tensor, Tensor("half", "FP16", (-1,))), True)
    array = np.ones(2, np.float32)
    request = request_of(signature, [array], is_raw=False)
    for outputs, is_raw in (([], True), (["in"], False), (["half"], True)):
        del request.outputs[:]
        for name in outputs:
            request.outputs.add(name=name)
        found = understood(request, signature)
        response = found.answered([array, array.astype("f2")])
        assert bool(response.raw_output_contents) is is_raw


def test_outputs_come_as_asked():
    signature = echo_of("INT8", "FP32", "BYTES")
    sent = [samples(tensor.datatype) for tensor in signature.inputs]
    request = request_of(signature, sent, is_raw=True)
    for names, numbers in ((["out2", "out0"], (2, 0)), (["out1"], (1,)), ([], (0, 1, 2))):
        del request.outputs[:]
        for name in names:
            request.outputs.add(name=name)
        found = understood(request, signature)
        assert found.request.outputs == numbers
        response = found.answered(sent)
        assert [output.name for output in response.outputs] == [f"out{i}" for i in numbers]


def test_scalars_empty_tensors_and_models_without_inputs():
    scalar = echo_of("INT64", shape=(), is_batchable=False)
    for array in (np.array(-5), np.array([[1, 2]])):  # () may be of any number of axes
        for is_raw in (True, False):
            request = request_of(scalar, [array], is_raw=is_raw)
            found = decoded(request.SerializeToString(), scalar)
            np.testing.assert_array_equal(found.rows[0], array)
            assert found.rows[0].shape == array.shape
            assert found.request.num_rows == 1
    empty = echo_of("FP32", "BYTES", shape=(-1, 4), is_batchable=False)
    arrays = [np.zeros((0, 4), np.float32), np.zeros((0, 4), object)]
    found = decoded(request_of(empty, arrays, is_raw=True).SerializeToString(), empty)
    assert [array.shape for array in found.rows] == [(0, 4), (0, 4)]
    constant = TensorSignature((), (Tensor("out", "FP32", ()),), False)
    found = decoded(b"", constant)
    response = found.answered([np.array(2, np.float32)])
    assert found.rows == ()
    assert arrays_in(response) == [2]


@pytest.mark.parametrize("kind", DTYPES)
def test_json_and_binary_tensors_there_and_back(kind):
    signature, array = echo_of(kind, kind), samples(kind)
    raw = to_raw(array)
    described = {"datatype": kind, "shape": SHAPE}
    for data in (array.tolist(), array.ravel().tolist()):
        size = {"binary_data_size": len(raw)}
        inputs = [{"name": "in0", "data": data, **described},
                  {"name": "in1", "parameters": size, **described}]  # fmt: skip
        outputs = [{"name": "out1"}, {"name": "out0", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
        sent = rest.read(head + raw, len(head))
        request, rows = understand(sent, "echo", signature, MAX_ROWS)
        for each in rows:
            np.testing.assert_array_equal(each, array)
        body, json_bytes = rest.write(InferAnswer(request, [array, array], "1", ""))
        first, second = json.loads(body[:json_bytes])["outputs"]
        assert (first["name"], second["name"]) == ("out1", "out0")
        np.testing.assert_array_equal(np.array(first["data"], DTYPES[kind]), array.ravel())
        assert second["parameters"] == {"binary_data_size": len(raw)}
        assert body[json_bytes:] == raw


BAD_DATA: list[tuple[str, list[Any], str]] = [
    ("BOOL", [0], "data as true or false for BOOL"),
    ("INT32", [True], "data as integers for INT32"),
    ("INT32", [1.0], "data as integers for INT32"),
    ("INT8", [128], "integers that INT8 can hold"),
    ("UINT64", [-1], "integers that UINT64 can hold"),
    ("UINT16", [10**30], "data as integers for UINT16"),
    ("FP32", [True], "data as numbers for FP32"),
    ("FP32", [None], "data as numbers for FP32"),
    ("FP16", [1e6], "numbers that FP16 can hold"),
    ("FP32", [1e300], "numbers that FP32 can hold"),
    ("FP64", [10**400], "expected JSON: number is infinity"),
    ("BYTES", [1], "data as texts for BYTES"),
    ("BYTES", ["\ud800"], "expected JSON: no low surrogate"),
    ("FP32", [[1], [2, 3]], "lists of one depth and length"),
    ("BYTES", [["a"], "b"], "lists of one depth and length"),
    ("INT8", [1, [1]], "data as integers for INT8"),
    ("BF16", [1], "expected datatype as one of BOOL, INT8"),
]


@pytest.mark.parametrize(("kind", "data", "text"), BAD_DATA)
def test_json_of_other_types_is_refused(kind, data, text):
    tensor = {"name": "in0", "datatype": kind, "shape": [len(data)], "data": data}
    with pytest.raises(InvalidRequest, match=text):
        rest.read(json.dumps({"inputs": [tensor]}).encode())


@pytest.mark.parametrize("data", ['{"a":' * 300 + "1" + "}" * 300, "9" * 30, '"\\ud800"'])
@pytest.mark.parametrize("base64", [set(), {"x"}])
def test_data_that_can_not_be_shown_is_refused(data, base64):
    tensor = f'{{"name": "x", "datatype": "BYTES", "shape": [1], "data": {data}}}'
    body = f'{{"inputs": [{tensor}], "other": NaN}}'  # NaN: json reads it, which takes more
    with pytest.raises(InvalidRequest, match="expected data as a list"):
        rest.read(body.encode(), base64=frozenset(base64))


PAIR = echo_of("FP32", "BYTES", shape=(-1, 2), is_batchable=False)
BOTH = [np.ones((1, 2), np.float32), np.array([["a", "b"]], object)]


def changed(path, value):
    """A good request for PAIR with one change: in1 and in0 are its inputs."""
    request = request_of(PAIR, BOTH, is_raw=True)
    if path == "raw":
        del request.raw_input_contents[:]
        request.raw_input_contents.extend(value)
    elif path == "shape":
        del request.inputs[1].shape[:]
        request.inputs[1].shape.extend(value)
    elif path == "strings":
        request.raw_input_contents[0] = value
    else:
        setattr(request.inputs[1], path, value)
    return request


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("name", "x", "expected inputs 'in0', 'in1', got 'in1', 'x'"),
        ("name", "in1", "expected inputs 'in0', 'in1', got 'in1', 'in1'"),
        ("datatype", "FP64", "expected in0 FP32 [N, 2], got FP64 [1, 2]"),
        ("datatype", "\n", "expected in0 FP32 [N, 2], got \\n [1, 2]"),
        ("shape", [1, 3], "expected in0 FP32 [N, 2], got FP32 [1, 3]"),
        ("shape", [2**62, 2], f"expected {2**65} bytes for in0 [{2**62}, 2], got 8"),
        ("shape", [-1, 2], "expected in0 FP32 [N, 2], got FP32 [-1, 2]"),
        ("shape", [1] * 10_000, "expected in0 FP32 [N, 2], got FP32 [1, 1, 1, 1, 1, 1, 1, 1]"),
        ("raw", [b""], "expected 2 raw_input_contents, got 1"),
        ("raw", [b"", b"", b""], "expected 2 raw_input_contents, got 3"),
        ("strings", b"", "expected 2 BYTES for in1 [1, 2], got 0"),
        ("strings", bytes(12), "expected 2 BYTES for in1 [1, 2], got 3"),
        ("strings", b"\xff" * 4, "expected BYTES behind their lengths of 4 bytes, got a cut off "
                                 "one"),
        ("strings", bytes(4) + b"\1", "expected BYTES behind their lengths of 4 bytes, got a cut "
                                      "off one"),
        ("strings", b"\1\0\0\0\xff" * 2, "expected BYTES of in1 as UTF-8: invalid start byte"),
    ],
)  # fmt: skip
def test_bad_tensors_are_refused(path, value, text):
    with pytest.raises(InvalidRequest) as refused:
        decoded(changed(path, value).SerializeToString(), PAIR)
    assert str(refused.value) == text


@pytest.mark.parametrize("raw", [[b""], [b"", b"", b""]])
@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("name", "x", "expected inputs 'in0', 'in1', got 'in1', 'x'"),
        ("shape", [1, 3], "expected in0 FP32 [N, 2], got FP32 [1, 3]"),
    ],
)
def test_names_and_shapes_are_compared_before_raw_contents_are_counted(raw, path, value, text):
    request = changed(path, value)
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(raw)
    with pytest.raises(InvalidRequest) as refused:
        understood(request, PAIR)
    assert str(refused.value) == text


def json_of(numbers):
    inputs = [{"name": f"in{at}", "datatype": "BYTES", "shape": [number], "data": ["ab"] * number}
              for at, number in enumerate(numbers)]  # fmt: skip
    return rest.read(json.dumps({"inputs": inputs}).encode())


def instances_of(numbers):
    names = [f"in{at}" for at in range(len(numbers))]
    body = {"instances": [dict.fromkeys(names, "ab")] * min(numbers)}
    return predict.read(json.dumps(body).encode(), [(name, "BYTES") for name in names])


@pytest.mark.parametrize("read", [json_of, instances_of])
def test_more_texts_than_a_request_may_have_come_as_bytes_and_are_refused(read):
    two = echo_of("BYTES", "BYTES", shape=(-1,))
    few = read([MAX_STRINGS // 2] * 2)
    assert [each.dtype for each in few.values] == [object, object]
    understand(few, "echo", two, MAX_STRINGS)
    many = read([MAX_STRINGS // 2 + 1] * 2)
    assert [type(each) for each in many.values] == [bytes, bytes]
    with pytest.raises(InvalidRequest, match="expected at most 65536 BYTES in a request, got more"):
        understand(many, "echo", two, MAX_STRINGS)
    with pytest.raises(TooLarge, match="expected at most 8 rows in a request, got 32769"):
        understand(many, "echo", two, MAX_ROWS)


@pytest.mark.parametrize(
    ("signature", "shape", "text"),
    [
        (
            echo_of("FP32", shape=(-1, -1), is_batchable=False),
            [2**40, 0],
            "got FP32 [1099511627776",
        ),
        (echo_of("BYTES", shape=(-1,), is_batchable=False), [2**62], "at most 65536 BYTES"),
        (echo_of("FP32", shape=(), is_batchable=False), [1] * 9, "expected in0 FP32 [], got FP32"),
        (echo_of("BOOL", shape=(-1, 1)), [2, 1], "expected bytes of 0 or 1 for BOOL in0"),
        (echo_of("BOOL", shape=(-1, 1)), [9, 1], "expected at most 8 rows in a request, got 9"),
    ],
)
def test_shapes_that_cost_nothing_to_send_are_refused(signature, shape, text):
    tensor = {"name": "in0", "datatype": signature.inputs[0].datatype, "shape": shape}
    request = ModelInferRequest(inputs=[tensor], raw_input_contents=[b"\2\1"])
    with pytest.raises(InvalidRequest) as refused:
        understood(request, signature)
    assert text in str(refused.value)


def test_inputs_of_other_numbers_of_rows_are_refused():
    signature = echo_of("INT8", "INT8", shape=(-1,))
    arrays = [np.zeros(2, np.int8), np.zeros(3, np.int8)]
    with pytest.raises(InvalidRequest, match=r"as many rows of each input, got \[2, 3\]"):
        understood(request_of(signature, arrays, is_raw=True), signature)


def test_changed_messages_are_read_as_protobuf_does_or_refused(generator):
    kinds = [kind for kind in DTYPES if kind != "FP16"]
    signature = echo_of(*kinds)
    arrays = [samples(kind) for kind in kinds]
    good = [request_of(signature, arrays, is_raw=is_raw).SerializeToString()
            for is_raw in (True, False)]  # fmt: skip
    refusals, num_read = set(), 0
    for _ in range(3000):
        message = bytearray(generator.choice(good))
        for _ in range(generator.randrange(1, 4)):
            at = generator.randrange(len(message))
            message[at : at + generator.randrange(3)] = generator.randbytes(generator.randrange(3))
        try:
            found = decoded_elsewhere(bytes(message), signature)
        except InvalidRequest as refused:
            refusals.add(str(refused))
            continue
        num_read += 1
        reference = decoded(bytes(message), signature)
        for one, other in zip(found.rows, reference.rows, strict=True):
            np.testing.assert_array_equal(one, other)
    assert num_read > 100
    assert all(text.isprintable() and len(text) < 1000 for text in refusals)


# Typed contents in every encoding that protobuf allows


NUMBERS = list(range(256)) * 3 + [0, 128, 255, 127]
TENSOR = b"\x0a\x06images\x12\x05UINT8\x18\x01\x18\x84\x06"
"""Name, type, and the shape [1, 772], not packed."""


def field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def packed(numbers):
    return field(4, b"".join(map(varint, numbers)))


def unpacked(numbers):
    return b"".join(b"\x20" + varint(number) for number in numbers)


def padded(number, size):
    """A varint that is longer than it need be."""
    return bytes([number & 0x7F | 0x80, number >> 7 | 0x80]) + b"\x80" * (size - 3) + b"\x00"


def request(*contents):
    """A ModelInferRequest whose input has `contents`, each in a field of its own."""
    tensor = TENSOR + b"".join(field(5, each) for each in contents)
    return field(1, b"digits") + field(5, tensor) + field(3, b"an id")


IMAGES = TensorSignature((Tensor("images", "UINT8", (-1, len(NUMBERS))),), (), True)


@pytest.mark.parametrize(
    "message",
    [
        request(packed(NUMBERS)),
        request(packed(NUMBERS[:400]) + packed(NUMBERS[400:])),
        request(packed(NUMBERS[:7]), packed(NUMBERS[7:])),
        request(field(4, b"".join(padded(number, 10) for number in NUMBERS))),
        request(unpacked(NUMBERS)),
        request(packed(NUMBERS[:300]) + unpacked(NUMBERS[300:])),
        request(packed(NUMBERS) + b"\x78\x01"),
        b"\x0b\x0c" + request(packed(NUMBERS)),
    ],
)
@pytest.mark.parametrize("decode", [decoded, decoded_elsewhere])
def test_numbers_are_read_in_every_encoding(message, decode):
    found = decode(message, IMAGES)
    assert found.rows == bytes(NUMBERS)
    assert (found.sent.id, found.sent.as_bytes) == ("an id", False)


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (packed([1, 2, 300, 400]), "expected uint_contents from 0 to 255, got 300"),
        (unpacked([7, 256]), "expected uint_contents from 0 to 255, got 256"),
        (packed(NUMBERS[1:]), "expected 772 uint_contents for images [1, 772], got 771"),
        (field(2, b"\1"), "expected uint_contents for UINT8, got int_contents"),
        (b"\x20", "expected an inference.ModelInferRequest, got "),
    ],
)
@pytest.mark.parametrize("decode", [decoded, decoded_elsewhere])
def test_other_contents_are_refused(contents, text, decode):
    with pytest.raises(InvalidRequest, match=re.escape(text)):
        decode(request(contents), IMAGES)


def test_much_beside_raw_contents_is_slow_to_read():
    small = request_of(PAIR, BOTH, is_raw=True)
    assert not is_slow(small.SerializeToString())
    small.raw_input_contents[0] = bytes(1 << 20)
    assert not is_slow(small.SerializeToString())
    assert is_slow(request(packed(NUMBERS * 40)))
    small.parameters["x"].string_param = "x" * 40_000
    assert is_slow(small.SerializeToString())
    assert is_slow(b"\x2a\0" * 20_000)
    for malformed in (b"\xff" * 40_000, b"\x08" + bytes(40_000), b"\x3a\xff\xff\xff\x7f" * 9_000):
        assert is_slow(malformed)


def test_id_is_found_in_what_is_refused():
    for end in (b"", b"\xff", b"\x3a\xff\xff\x7f"):
        assert id_of(request(packed(NUMBERS)) + end) == "an id"
    assert id_of(b"\x1a\x02\xffa") == "a"
    assert id_of(b"") == id_of(b"\x08\1") == id_of(b"\x1a\x05ab") == ""


@pytest.mark.parametrize(("num_bytes", "expected"), [(2, "a"), (10, "a"), (11, "")])
def test_number_in_what_is_refused_has_ten_bytes_at_most(num_bytes, expected):
    """What stands behind a longer one is not looked at."""
    tag = b"\x9a" + b"\x80" * (num_bytes - 2) + b"\0"
    assert id_of(tag + b"\1a") == expected


LONG = request_of(PAIR, BOTH, is_raw=True)
LONG.parameters["x"].string_param = "x" * 70_000


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (request(b"\x42\x00" * 65_537), "expected at most 65536 BYTES in a request, got more"),
        (b"\x2a\0" * 40_000, "expected at most 65536 bytes beside the tensors, got more"),
        (LONG.SerializeToString(), "expected at most 65536 bytes beside the tensors, got more"),
    ],
)  # fmt: skip
def test_what_would_take_the_loop_long_is_refused_elsewhere(message, text):
    with pytest.raises(InvalidRequest, match=text):
        as_raw(message)


def test_inputs_without_end_are_refused_before_each_is_looked_at():
    head = b"\x0a\x06digits"
    with pytest.raises(InvalidRequest, match="65536 bytes beside the tensors, got more"):
        as_raw(head + b"\x2a\x00" * 1_000_000)
