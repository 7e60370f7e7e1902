"""Each limit of a request or an answer: the most that is taken, and the least that is not."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidRequest, TooLarge, Unavailable, Unsupported
from serving.http2 import Pieces
from serving.oip import large_messages, predict, rest
from serving.oip.infer import Infer
from serving.oip.inference_pb import ModelInferRequest, ModelStreamInferResponse
from serving.oip.long_values import is_long, joined
from serving.oip.parameters import check_parameter, of_handler, timeout_s_of
from serving.oip.protobuf import Messages, message_of, sent_in
from serving.oip.request import (
    InferAnswer,
    InferRequest,
    Sent,
    SentInput,
    SentOutput,
    check_others,
    understand,
)
from serving.oip.values import check_raw, check_strings, from_raw, quoted, typed_array
from serving.protocols.framing import frame
from serving.tensors import DTYPES, Tensor, TensorSignature

KIB, MIB = 1 << 10, 1 << 20


def refusal(function, *args):
    """The text of the refusal of some arguments; "" if they are taken."""
    try:
        function(*args)
    except InvalidRequest as err:
        return str(err)
    return ""


# Raw values


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "expected"),
    [
        ("FP32", [2], bytes(8), ""), ("FP32", [2], bytes(7), "expected 8 bytes for x [2], got 7"),
        ("FP32", [2], bytes(9), "expected 8 bytes for x [2], got 9"), ("INT8", [], b"a", ""),
        ("FP16", [2, 2], bytes(8), ""), ("INT64", [0], b"", ""),
        ("BOOL", [2], b"\0\1", ""),
        ("BOOL", [2], b"\0\2", "expected bytes of 0 or 1 for BOOL x, got others"),
        ("BOOL", [2], b"\2", "expected 2 bytes for x [2], got 1"),
        ("BOOL", [1], b"\2\2", "expected 1 bytes for x [1], got 2"),
    ],
)  # fmt: skip
def test_raw_bytes_fit_their_shape_and_then_their_type(datatype, shape, data, expected):
    assert refusal(check_raw, data, Tensor("x", datatype, (-1,)), shape) == expected


@pytest.mark.parametrize(
    ("data", "shape", "expected"),
    [
        (b"\1\0\0\0a\0\0\0\0", [2], ""),
        (b"", [0], ""),
        (b"", [1], "expected 1 BYTES for x [1], got 0"),
        (b"\0\0\0\0" * 3, [2], "expected 2 BYTES for x [2], got 3"),
        (b"\0\0\0\0" * 9, [2], "expected 2 BYTES for x [2], got 3"),
        (b"\2\0\0\0a", [1], "expected BYTES behind their lengths of 4 bytes, got a cut off one"),
        (b"\0\0\0", [1], "expected BYTES behind their lengths of 4 bytes, got a cut off one"),
        (b"\1\0\0\0\xff", [1], "expected BYTES of x as UTF-8: invalid start byte"),
    ],
)
def test_raw_texts_stand_behind_their_lengths(data, shape, expected):
    assert refusal(from_raw, data, Tensor("x", "BYTES", (-1,)), shape) == expected


def test_texts_of_callers_are_cut_to_80_characters():
    assert quoted("a" * 80) == f"'{'a' * 80}'"
    assert quoted("a" * 81) == f"'{'a' * 80}'..."


def test_request_has_65536_texts_and_as_many_bytes_beside_its_tensors():
    assert refusal(check_strings, 65_536) == ""
    text = "expected at most 65536 BYTES in a request, got more"
    assert refusal(check_strings, 65_537) == text
    assert refusal(check_others, 65_536) == ""
    text = "expected at most 65536 bytes beside the tensors, got more"
    assert refusal(check_others, 65_537) == text


# What a model takes

ANY = TensorSignature((Tensor("x", "FP32", ()),), (Tensor("y", "FP32", ()),), False)
ROWS = TensorSignature((Tensor("x", "FP32", (-1, -1)),), (Tensor("y", "FP32", (-1,)),), True)


def asked(signature=ANY, shape=(1,), **more):
    num_values = int(np.prod(shape)) if min(shape, default=0) >= 0 else 0
    values = [bytes(4 * min(num_values, 1 << 20))]
    sent = Sent([SentInput("x", "FP32", [*shape])], values, **more)
    return understand(sent, "m", signature, 4)


@pytest.mark.parametrize(
    ("signature", "shape", "is_taken"),
    [
        (ANY, (), True), (ANY, (1,) * 8, True), (ANY, (1,) * 9, False), (ANY, (-1,), False),
        (ANY, (0, 65_536), True), (ANY, (0, 65_537), False), (ANY, (256, 0, 256), True),
        (ANY, (256, 0, 257), False), (ROWS, (4, 2), True), (ROWS, (2,), False),
        (ROWS, (1, 1, 1), False), (ROWS, (1, 0), True),
    ],
)  # fmt: skip
def test_shape_is_one_that_the_model_takes(signature, shape, is_taken):
    found = refusal(asked, signature, shape)
    assert (found == "") == is_taken, found
    assert is_taken or found.startswith(f"expected {signature.inputs[0]}, got FP32 ")


def test_rows_are_from_one_to_the_most():
    with pytest.raises(InvalidRequest, match=r"^expected at least 1 row, got 0$"):
        asked(ROWS, (0, 2))
    with pytest.raises(TooLarge, match=r"^expected at most 4 rows in a request, got 5$"):
        asked(ROWS, (5, 2))


def test_id_has_512_characters():
    assert asked(id="x" * 512)
    with pytest.raises(
        InvalidRequest, match=r"^expected an id of at most 512 characters, got 513$"
    ):
        asked(id="x" * 513)


def test_faults_are_told_behind_those_of_names():
    assert refusal(lambda: asked(fault="no values")) == "no values"
    sent = Sent([SentInput("z", "FP32", [1])], (), fault="no values")
    assert refusal(understand, sent, "m", ANY, 4) == "expected inputs 'x', got 'z'"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classification", "classification is not supported: the outputs are sent as the model "
         "has them"),
        ("shared_memory_region", "shared memory is not supported: tensors travel in the messages"),
    ],
)  # fmt: skip
def test_parameters_that_change_a_tensors_meaning_are_refused(name, text):
    for sent in (
        Sent([SentInput("x", "FP32", [1], (name,))], [bytes(4)]),
        Sent([SentInput("x", "FP32", [1])], [bytes(4)], [SentOutput("y", (name,))]),
    ):
        with pytest.raises(Unsupported) as caught:
            understand(sent, "m", ANY, 4)
        assert str(caught.value) == text
    hint = Sent([SentInput("x", "FP32", [1], ("hint",))], [bytes(4)], [SentOutput("y", ("hint",))])
    assert understand(hint, "m", ANY, 4)


def test_request_is_understood_whole():
    two = TensorSignature(
        (Tensor("a", "FP32", (-1,)), Tensor("b", "INT8", (-1,))),
        (Tensor("y", "FP32", (-1,)), Tensor("z", "INT8", (-1,))),
        True,
    )
    sent = Sent(
        [SentInput("b", "INT8", [2]), SentInput("a", "FP32", [2])],
        [b"\1\2", bytes(8)],
        [SentOutput("z"), SentOutput("y")],
        "7",
        {"timeout": 1_500_000, "own": 3, "priority": 1, "binary_data_output": True,
         "triton_enable_empty_final_response": True},
        True,
        {"y": False},
    )  # fmt: skip
    request, rows = understand(sent, "m", two, 4)
    assert request == InferRequest(
        "m", 2, (1, 0), (two.outputs[1], two.outputs[0]), (True, False), 1.5, {"own": 3}, True
    )
    assert [(each.dtype.name, each.tolist()) for each in rows] == [
        ("float32", [0.0, 0.0]), ("int8", [1, 2])]  # fmt: skip


# Parameters


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (True, True), (0.5, True), (2**63 - 1, True), (-(2**63), True), (2**63, False),
        (-(2**63) - 1, False), ("a b", True), ("", True), ("a\n", False), (None, False),
        ([], False), ("\ud800", False),
    ],
)  # fmt: skip
def test_parameter_is_a_text_a_number_or_a_boolean(value, is_one):
    text = "expected the parameter 'p' as text, number or boolean"
    assert refusal(check_parameter, "p", value) == ("" if is_one else text)


@pytest.mark.parametrize(
    ("timeout", "expected_s"), [(1, 1e-6), (2_500_000, 2.5), (0, None), (None, "missing")]
)
def test_timeout_is_in_microseconds(timeout, expected_s):
    if expected_s == "missing":
        assert timeout_s_of({}) is None
    else:
        assert timeout_s_of({"timeout": timeout}) == expected_s


@pytest.mark.parametrize(
    ("timeout", "text"),
    [
        (-1, "expected a timeout of at least 0, got -1"),
        (True, "expected timeout as int64_param or uint64_param, got bool_param"),
        (0.5, "expected timeout as int64_param or uint64_param, got double_param"),
        ("1", "expected timeout as int64_param or uint64_param, got string_param"),
        (None, "expected timeout as int64_param or uint64_param, got None"),
    ],
)
def test_timeout_that_is_no_number_of_microseconds_is_refused(timeout, text):
    assert refusal(timeout_s_of, {"timeout": timeout}) == text


def test_handler_gets_the_parameters_without_a_meaning():
    own = {"a": 1, "b": False, "c": ""}
    others = {"timeout": 1, "priority": 2, "binary_data_output": True, "none": None,
              "triton_enable_empty_final_response": True}  # fmt: skip
    assert of_handler(own | others) == own


# JSON


def test_output_has_262144_values_as_json():
    assert refusal(rest.check_size, "y", (512, 512)) == ""
    text = ("expected an output of at most 262144 values as JSON, y has 262145: ask for it as "
            "bytes, by binary_data")  # fmt: skip
    assert refusal(rest.check_size, "y", (262_145,)) == text


def read(**item):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]} | item
    return rest.read(json.dumps({"inputs": [tensor]}).encode())


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"shape": [1] * 64}, ""),
        ({"shape": [1] * 65}, "expected at most 64 sizes in shape, got 65"),
        ({"shape": [2**63 - 1, 0], "data": []}, ""),
        ({"shape": [2**63]}, "expected sizes in shape that fit 64 bits"),
        ({"shape": [-(2**63) - 1]}, "expected shape as a list of integers"),
        ({"shape": "1"}, "expected shape as a list of integers"),
        ({"shape": [1.0]}, "expected shape as a list of integers"),
        ({"shape": [True]}, "expected shape as a list of integers"),
        ({"data": 1}, "expected data as a list, got 1: a list of 1 item is [1]"),
        ({"data": [1, 2]}, "expected 1 values of 'x' for the shape [1], got 2"),
        ({"shape": [], "data": [1, 2]}, "expected 1 values of 'x' for the shape [], got 2"),
        ({"data": [[1], 2], "shape": [2]}, "expected data as lists of one depth and length"),
        ({"data": [[1], [2, 3]], "shape": [3]}, "expected data as lists of one depth and length"),
        ({"datatype": "FP8"}, "expected datatype as one of BOOL, INT8, INT16, INT32, INT64, "
         "UINT8, UINT16, UINT32, UINT64, FP16, FP32, FP64, BYTES, got 'FP8'"),
        ({"name": 1}, "expected name as text"), ({"datatype": 1},
         "expected datatype as printable text"),
        ({"parameters": []}, "expected parameters as an object"),
        ({"parameters": {"a": []}}, "expected the parameter 'a' as text, number or boolean"),
        ({"parameters": {"binary_data_size": 1}},
         "expected binary_data_size from 0 to 0, the bytes that are left, got '1'"),
        ({"parameters": {"binary_data_size": -1}},
         "expected binary_data_size from 0 to 0, the bytes that are left, got '-1'"),
        ({"parameters": {"binary_data_size": True}},
         "expected binary_data_size from 0 to 0, the bytes that are left, got 'True'"),
    ],
    ids=str,
)  # fmt: skip
def test_input_of_json_is_checked(item, expected):
    assert refusal(lambda: read(**item)) == expected


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("BOOL", [1], "true or false"), ("INT8", [1.0], "integers"), ("INT8", [True], "integers"),
        ("UINT8", [True], "integers"), ("UINT8", [256], "integers that UINT8 can hold"),
        ("INT8", [128], "integers that INT8 can hold"), ("INT8", [-129], "integers that INT8 can "
         "hold"), ("UINT16", [-1], "integers that UINT16 can hold"), ("FP32", [True], "numbers"),
        ("FP16", [1e6], "numbers that FP16 can hold"), ("BYTES", [1], "texts"),
    ],
)  # fmt: skip
def test_values_of_json_are_of_their_type(datatype, data, text):
    has_range = "can hold" in text
    expected = f"expected data as {text}" + ("" if has_range else f" for {datatype}")
    assert refusal(lambda: read(datatype=datatype, data=data)) == expected


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "expected the body as an object"), ({"inputs": {}}, "expected inputs as a list of "
         "objects"), ({"inputs": [1]}, "expected each of inputs as an object"),
        ({"outputs": [1]}, "expected each of outputs as an object"),
        ({"id": 1}, "expected id as printable text"), ({"id": "\n"}, "expected id as printable "
         "text"), ({"parameters": 1}, "expected parameters as an object"),
        ({"parameters": {"binary_data_output": 1}}, "expected binary_data_output as a boolean"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
         "expected binary_data as a boolean"),
        ({"outputs": [{"name": 1}]}, "expected name as text"),
    ],
    ids=str,
)  # fmt: skip
def test_document_is_checked(document, text):
    assert refusal(rest.read, json.dumps(document).encode()) == text


def test_tensors_end_the_body():
    head = {"inputs": [{"name": "x", "datatype": "INT8", "shape": [2],
                        "parameters": {"binary_data_size": 2}}]}  # fmt: skip
    text = json.dumps(head).encode()
    assert rest.read(text + b"ab", len(text)).values == [b"ab"]
    assert refusal(rest.read, text + b"abc", len(text)) == (
        "expected the tensors to end the body, got 1 bytes more"
    )
    assert refusal(rest.read, text + b"a", len(text)).startswith(
        "expected binary_data_size from 0 to 1, the bytes that are left, got '2'"
    )
    assert refusal(rest.read, text, len(text) + 1) == (
        f"expected {len(text) + 1} bytes of JSON, got a body of {len(text)}"
    )


@pytest.mark.parametrize(("more", "is_kept"), [(0, True), (1, False)])
def test_text_around_known_values_has_eight_kibibytes(more, is_kept):
    """A connection keeps it, and there may be thousands of these."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}
    body = json.dumps({"inputs": [tensor]}).encode()
    body += b" " * (8 * KIB + len(b"[1.5, 2.5]") + more - len(body))
    found = rest.find_values(body, None, rest.read(body))
    assert (found is not None) == is_kept
    if found is not None:
        assert (body, found.datatype, found.num_bytes) == (
            found.before + b"[1.5, 2.5]" + found.after, "FP32", 8)  # fmt: skip
    head = b'{"inputs": []}'
    head += b" " * (8 * KIB + more - len(head))
    place = rest.find_values(head + b"abc", len(head), Sent([], []))
    assert (place == (head, b"", "", 3)) == is_kept
    assert (place is None) != is_kept


# Messages


@pytest.mark.parametrize(("size", "is_slow"), [(32 * KIB, False), (32 * KIB + 1, True)])
def test_messages_with_32_kibibytes_beside_raw_contents_are_read_elsewhere(size, is_slow):
    def padded(raw):
        request = ModelInferRequest(model_name="", raw_input_contents=raw)
        empty = len(request.SerializeToString()) - sum(map(len, raw))
        request.model_name = "m" * (size - empty - 4)
        return request.SerializeToString()

    for raw in ([], [bytes(1 << 20)]):
        message = padded(raw)
        assert len(message) - sum(map(len, raw)) == size
        assert large_messages.is_slow(message) is is_slow


@pytest.mark.parametrize(("num_bytes", "expected"), [(MIB - 1, False), (MIB, True)])
def test_answer_of_a_mebibyte_is_long(num_bytes, expected):
    half = num_bytes // 2
    arrays = [np.zeros(half, np.uint8), np.zeros(num_bytes - half, np.uint8)]
    assert is_long(arrays) is expected
    tensors = tuple(Tensor(name, "UINT8", (-1,)) for name in "ab")
    request = InferRequest("m", 1, (0, 1), tensors, (True, True))
    for is_stream in (False, True):
        found = Messages(is_stream=is_stream).write(InferAnswer(request, arrays, "1", "7"))
        assert isinstance(found, bytes) is not expected


def test_parts_of_texts_have_96_kibibytes_at_least():
    parts = [*joined(iter([b"x" * KIB] * 200))]
    assert [len(each) // KIB for each in parts] == [96, 96, 8]


@pytest.mark.parametrize(("datatype", "value"), [("INT64", 1 << 40), ("FP32", 1.5)])
def test_typed_contents_of_a_long_answer_are_written_some_at_a_time(datatype, value):
    """In a few long fields, each of which takes less than a MiB while it is written."""
    array = np.full(400_000, value, DTYPES[datatype])
    tensors = (Tensor("y", datatype, (-1,)),)
    answer = InferAnswer(InferRequest("m", 1, (0,), tensors, (False,)), [array], "1", "7")
    pieces = Messages().write(answer)
    assert isinstance(pieces, Pieces)
    value_bytes = 4 if datatype == "FP32" else 6
    assert 0 < len(pieces) - array.size * value_bytes < 400
    tracemalloc.start()
    try:
        while pieces:
            pieces.take(10_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_outline_of_a_long_answer_has_the_limit_of_json():
    tensors = (Tensor("y", "INT64", (-1,)),)
    array = np.zeros(262_145, np.int64)
    for as_bytes, is_taken in ((True, True), (False, False)):
        answer = InferAnswer(InferRequest("m", 1, (0,), tensors, (as_bytes,)), [array], "1", "")
        for write in (rest.outline, rest.write):
            assert (refusal(write, answer) == "") is is_taken
    few = InferAnswer(InferRequest("m", 1, (0,), tensors, (False,)), [array[:-1]], "1", "")
    assert refusal(rest.outline, few) == ""


@pytest.mark.parametrize(("number", "is_taken"), [(10_000, True), (32_769, False)])
def test_inputs_of_a_message_are_at_most_as_many_as_their_bytes_allow(number, is_taken):
    request = ModelInferRequest(inputs=[{}] * number)
    text = "expected at most 65536 bytes beside the tensors, got more"
    assert refusal(large_messages.as_raw, request.SerializeToString()) == ("" if is_taken else text)


def test_refused_request_of_a_stream_is_answered_with_its_id_and_the_reason():
    infer = Infer(None, is_stream=True)
    message = ModelInferRequest(id="x" * 513).SerializeToString()
    found = ModelStreamInferResponse.FromString(
        infer.error_message(message, InvalidRequest("it is bad")) or b""
    )
    assert (found.error_message, found.infer_response.id) == ("it is bad", "x" * 512)
    assert found.infer_response.parameters["error_reason"].string_param == "INVALID_REQUEST"
    assert infer.error_message(message, Unavailable("it drains")) is None


def whole(parts):
    """The text of an outline, with its values written."""
    return b"".join(
        each
        if isinstance(each, bytes)
        else b"".join(rest.write_texts(each))
        if each.are_texts
        else rest.write_numbers(each)
        for each in parts
    )


TEXTS = np.array(["a", "b"], object)
ANSWERS: dict[str, list[Any]] = {
    "one output": [np.arange(6, dtype=np.float32).reshape(2, 3)],
    "rows": [np.arange(2), np.arange(4, dtype=np.float64).reshape(2, 2), TEXTS],
    "other numbers of rows": [np.arange(2), np.arange(3)],
    "scalars": [np.array(2.5), np.array(7)], "a scalar": [np.array(2.5)],
    "halves": [np.arange(3, dtype=np.float16)], "no rows": [np.zeros((0, 2))],
    "not finite": [np.array([np.nan, np.inf, -np.inf])], "texts": [TEXTS],
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_long_answers_say_what_short_ones_do(name):
    arrays = ANSWERS[name]
    kinds = {"O": "BYTES", "f": "FP64", "i": "INT64"}
    tensors = tuple(
        Tensor(f"y{at}", kinds[each.dtype.kind], (-1,) * each.ndim)
        for at, each in enumerate(arrays)
    )
    request = InferRequest("m", 1, tuple(range(len(arrays))), tensors, (False,) * len(arrays))
    answer = InferAnswer(request, arrays, "1", "7")
    assert json.dumps(json.loads(whole(predict.outline(answer)))) == json.dumps(
        json.loads(predict.write(answer))
    )
    text, behind = rest.outline(answer)
    assert behind == []
    assert json.dumps(json.loads(whole(text))) == json.dumps(json.loads(rest.write(answer)[0]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_scalar_has_the_digits_of_its_type(dtype):
    array = np.array(0.1, dtype)
    request = InferRequest("m", 1, (0,), (Tensor("y", "FP64", ()),), (False,))
    answer = InferAnswer(request, [array], "1", "7")
    digits = {np.float16: 0.099975586, np.float32: 0.1, np.float64: 0.1}[dtype]
    for written in (predict.write(answer), whole(predict.outline(answer))):
        assert json.loads(written) == {"predictions": digits}


TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]), "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]), "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]), "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]), "FP32": ("fp32_contents", [-0.5, 2.5]),
    "FP64": ("fp64_contents", [-0.5, 1e300]), "BYTES": ("bytes_contents", ["a", "é"]),
}  # fmt: skip
"""The protocol's field for the values of each type, and two that it holds."""


@pytest.mark.parametrize("datatype", TYPED)
def test_type_has_its_field_of_typed_contents(datatype):
    field, values = TYPED[datatype]
    tensor, request = Tensor("x", datatype, (-1,)), ModelInferRequest()
    sent = request.inputs.add(name="x", datatype=datatype, shape=[2])
    raw = [each.encode() if isinstance(each, str) else each for each in values]
    getattr(sent.contents, field).extend(raw)
    found = typed_array(sent, tensor, [2])
    assert (found.tolist(), found.dtype) == (values, tensor.dtype)
    asked = InferRequest("m", 2, (0,), (tensor,), (False,))
    (output,) = message_of(InferAnswer(asked, [found], "1", "")).outputs
    assert [each.name for each, _ in output.contents.ListFields()] == [field]
    assert [*getattr(output.contents, field)] == raw
    none = typed_array(ModelInferRequest().inputs.add(datatype=datatype), tensor, [0])
    assert (none.shape, none.dtype) == ((0,), tensor.dtype)


def test_only_half_floats_have_no_typed_contents():
    assert {*DTYPES} - {*TYPED} == {"FP16"}
    halves = Tensor("x", "FP16", (-1,))
    text = "expected raw_input_contents for x: FP16 has no contents"
    assert refusal(typed_array, ModelInferRequest().inputs.add(), halves, [0]) == text


@pytest.mark.parametrize(
    ("datatype", "values", "text"),
    [
        ("INT8", [128], "expected int_contents from -128 to 127, got 128"),
        ("INT8", [0, -129], "expected int_contents from -128 to 127, got -129"),
        ("INT16", [2**15], "expected int_contents from -32768 to 32767, got 32768"),
        ("UINT8", [256], "expected uint_contents from 0 to 255, got 256"),
        ("UINT16", [65_536], "expected uint_contents from 0 to 65535, got 65536"),
        ("FP32", [1.0] * 3, "expected 2 fp32_contents for x [2], got 3"),
    ],
)  # fmt: skip
def test_typed_contents_fit_their_type_and_shape(datatype, values, text):
    sent = ModelInferRequest().inputs.add()
    getattr(sent.contents, TYPED[datatype][0]).extend(values)
    assert refusal(typed_array, sent, Tensor("x", datatype, (-1,)), [2]) == text


def test_scalar_of_typed_contents_is_read_in_a_process_too():
    request = ModelInferRequest()
    request.inputs.add(name="x", datatype="FP32").contents.fp32_contents.append(2.5)
    data, is_typed = large_messages.as_raw(request.SerializeToString())
    found = ModelInferRequest.FromString(data)
    assert (is_typed, [*found.raw_input_contents]) == (True, [np.float32(2.5).tobytes()])
    assert not found.inputs[0].HasField("contents")


def test_request_that_says_little_has_these_defaults():
    assert Sent([], []) == ([], [], (), "", {}, False, {}, "")
    assert InferRequest("m", 1, (), (), ())[5:] == (None, {}, False)
    assert InferAnswer(InferRequest("m", 1, (), (), ()), [], "1", "").is_end is None
    assert (SentInput("x", "FP32", [1]).parameters, SentOutput("y").parameters) == ((), ())


@pytest.mark.parametrize(("text", "is_ready"), [(b"{}", False), (b'{"ready": true}', True)])
def test_index_is_of_all_models_unless_the_ready_ones_are_wanted(text, is_ready):
    assert rest.read_index(text) is is_ready
    assert refusal(rest.read_index, b'{"ready": 1}') == "expected ready as a boolean"


def test_output_of_a_prediction_has_the_limit_of_json():
    tensors = (Tensor("y", "INT64", (-1,)),)
    for number, is_taken in ((262_144, True), (262_145, False)):
        asked = InferRequest("m", 1, (0,), tensors, (False,))
        answer = InferAnswer(asked, [np.zeros(number, np.int64)], "1", "")
        for write in (predict.outline, predict.write):
            assert (refusal(write, answer) == "") is is_taken


def test_numbers_too_large_for_a_double_are_refused_beside_those_that_are_none():
    assert np.isnan(rest.object_of(b'{"a": NaN, "b": 1e300}')["a"])
    text = "expected JSON: 1e400 is too large for a number"
    assert refusal(rest.object_of, b'{"a": NaN, "b": 1e400}') == text


@pytest.mark.parametrize("text", ["aGk", "aG!k=", "a", "é", 1, None, {"b64": "aGk=", "more": 1}])
def test_base64_is_strict(text):
    item = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [text]}
    body = json.dumps({"inputs": [item]}).encode()
    expected = "expected data as base64, since the input is bytes"
    assert refusal(rest.read, body, None, frozenset({"x"})) == expected


@pytest.mark.parametrize(("num_bytes", "is_taken"), [(65_000, True), (66_000, False)])
def test_json_has_as_few_bytes_beside_its_values_as_a_message(num_bytes, is_taken):
    """Each character of the JSON is read here, and what is kept of it is a message's."""
    item = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5],
            "parameters": {"note": "x" * num_bytes}}  # fmt: skip
    body = json.dumps({"inputs": [item]}).encode()
    text = "expected at most 65536 bytes beside the tensors, got more"
    assert refusal(rest.read, body) == ("" if is_taken else text)


def test_messages_of_calls_are_no_stream_by_default():
    asked = InferRequest("m", 1, (0,), (Tensor("y", "FP32", (-1,)),), (True,))
    answer = InferAnswer(asked, [np.array([2.5], np.float32)], "3", "7")
    message = message_of(answer)
    assert Messages().write(answer) == frame(message.SerializeToString())
    around = ModelStreamInferResponse(infer_response=message)
    assert Messages(is_stream=True).write(answer) == frame(around.SerializeToString())


def test_long_answer_is_described_whole():
    tensors = (Tensor("a", "FP32", (-1, 2)), Tensor("b", "INT64", (-1,)))
    arrays = [np.array([[0.5, 1.5]], np.float32), np.array([7])]
    for identifier, as_bytes in (("7", (True, False)), ("", (False, True))):
        answer = InferAnswer(
            InferRequest("m", 1, (0, 1), tensors, as_bytes), arrays, "3", identifier
        )
        outputs: list[dict[str, Any]] = [
            {"name": "a", "datatype": "FP32", "shape": [1, 2]},
            {"name": "b", "datatype": "INT64", "shape": [1]},
        ]
        for output, array, is_raw in zip(outputs, arrays, as_bytes, strict=True):
            output |= (
                {"parameters": {"binary_data_size": array.nbytes}}
                if is_raw
                else {"data": array.ravel().tolist()}
            )
        expected = {"model_name": "m", "model_version": "3", "outputs": outputs}
        expected |= {"id": identifier} if identifier else {}
        text, behind = rest.outline(answer)
        raw = b"".join(
            each.tobytes() for each, is_raw in zip(arrays, as_bytes, strict=True) if is_raw
        )
        assert json.loads(whole(text)) == expected
        assert b"".join(map(bytes, behind)) == raw
        body, json_bytes = rest.write(answer)
        assert json.loads(body[:json_bytes]) == expected
        assert body[json_bytes:] == raw


@pytest.mark.parametrize(
    ("raw", "has_contents", "fault"),
    [
        ([bytes(4)], False, ""), ([], True, ""),
        ([bytes(4)] * 2, False, "expected 1 raw_input_contents, got 2"),
        ([bytes(4)], True, "expected contents or raw_input_contents, got both"),
    ],
)  # fmt: skip
def test_message_has_either_kind_of_contents(raw, has_contents, fault):
    request = ModelInferRequest(model_name="m", raw_input_contents=raw)
    item = request.inputs.add(name="x", datatype="FP32", shape=[1])
    if has_contents:
        item.contents.fp32_contents.append(0.5)
    sent = sent_in(request)
    assert (sent.fault, sent.as_bytes) == (fault, bool(raw))
    if len(raw) > 1:
        assert sent.values == ()


@pytest.mark.parametrize(
    ("rows", "names", "expected"),
    [
        ([[1.5, 2.5], [3.5, 4.5]], "x", {"x": ([2, 2], [1.5, 2.5, 3.5, 4.5])}),
        ([{"x": 1.5}, {"x": 2.5}], "x", {"x": ([2], [1.5, 2.5])}),
        ([{"x": [1.5], "y": 2}, {"y": 4, "x": [3.5]}], "xy",
         {"x": ([2, 1], [1.5, 3.5]), "y": ([2], [2.0, 4.0])}),
    ],
)  # fmt: skip
def test_instances_are_the_rows_of_each_input(rows, names, expected):
    body = json.dumps({"instances": rows}).encode()
    sent = predict.read(body, [(name, "FP32") for name in names])
    found = {each.name: (each.shape, values.tolist())
             for each, values in zip(sent.inputs, sent.values, strict=True)}  # fmt: skip
    assert found == expected
    assert {each.datatype for each in sent.inputs} == {"FP32"}
