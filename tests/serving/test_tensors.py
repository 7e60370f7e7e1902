"""A caller's values go into a tensor's type only if each of them stays what it is."""

from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from serving.errors import InvalidRequest
from serving.tensors import (
    DTYPES,
    ModelInfo,
    Signature,
    Tensor,
    TensorSignature,
    as_array,
    as_feeds,
    as_names,
    finite,
    is_label,
)

FLOATS = 0.0, -1.5, 3e38, 1e39, -1e39, np.inf, np.nan
INTEGERS = [each + more for each in (0, 2**7, 2**8, 2**15, 2**31, 2**32, 2**62) for more in (-1, 0)]


def taken(datatype, value):
    """Return the array that is made of a value; None if it is refused."""
    try:
        return as_array(Tensor("x", datatype, (-1,)), value)
    except InvalidRequest:
        return None


@pytest.mark.parametrize("kind", [list, np.float64])
def test_floats_go_into_float32_if_each_finite_one_stays_finite(kind):
    for values in product(FLOATS, repeat=2):
        found = taken("FP32", list(values) if kind is list else np.array(values))
        is_lost = any(np.isfinite(each) and abs(each) > 3.5e38 for each in values)
        assert (found is None) == is_lost, f"one of {values} became an infinity, or none did"
        if found is not None:
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, np.array(values, np.float32))


@pytest.mark.parametrize("datatype", [each for each in DTYPES if "INT" in each])
@pytest.mark.parametrize("kind", [list, np.int64])
def test_integers_go_into_a_type_that_holds_each_of_them(datatype, kind):
    most = np.iinfo(DTYPES[datatype])
    for values in product(INTEGERS, repeat=2):
        found = taken(datatype, list(values) if kind is list else np.array(values, np.int64))
        fits = all(most.min <= each <= most.max for each in values)
        assert (found is not None) == fits, f"one of {values} became another number, or none did"
        if found is not None:
            assert found.tolist() == list(values)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), (("a",), ("a",)), ([], ()), (iter("ab"), ("a", "b"))],
    ids=["text", "list", "tuple", "none", "iterator"],
)
def test_names_are_one_or_several(names, expected):
    assert as_names("outputs", names) == expected


@pytest.mark.parametrize(
    ("names", "got"),
    [(b"a", "b'a'"), ({"a": 1}, "{'a': 1}"), (5, "5"), (None, "None"), (["a", 5], "5"),
     (["a", b"b"], "b'b'"), ("\ud800", r"'\ud800'"), (["x" * 99 + "\ud800"], "'" + "x" * 79)],
)  # fmt: skip
def test_other_names_are_refused(names, got):
    with pytest.raises(InvalidRequest) as caught:
        as_names("outputs", names)
    assert str(caught.value) == f"outputs: expected a name, got {got}"


X, Y = Tensor("x", "FP32", (-1, 2)), Tensor("y", "INT8", (-1,))
TWO = TensorSignature((X, Y), (), is_batchable=True)
ONE = TensorSignature((X,), (), is_batchable=True)
PIXEL = TensorSignature((Tensor("x", "UINT8", (-1, 1)),), (), is_batchable=True)
ROWS, NUMBERS = np.zeros((3, 2), np.float32), np.zeros(3, np.int8)


def test_feeds_are_in_the_order_of_the_model():
    feeds = as_feeds(TWO, {"y": [1, 2, 3], "x": ROWS})
    assert [*feeds] == ["x", "y"]
    assert feeds["x"] is ROWS, "an array that fits is not copied"
    assert feeds["y"].dtype == np.int8
    assert feeds["y"].tolist() == [1, 2, 3]
    assert [*as_feeds(ONE, ROWS)] == ["x"]
    assert [len(each) for each in as_feeds(TWO, {"x": ROWS, "y": NUMBERS[:1]}).values()] == [3, 1]
    alone = TensorSignature((X, Y), (), is_batchable=False)
    assert [len(each) for each in as_feeds(alone, {"x": ROWS[:0], "y": NUMBERS}).values()] == [0, 3]


@pytest.mark.parametrize(
    ("signature", "inputs", "text"),
    [
        (TWO, ROWS, "expected the inputs x, y by name, got one array"),
        (TWO, {"x": ROWS}, "expected the inputs x, y, got x"),
        (TWO, {}, "expected the inputs x, y, got none"),
        (TWO, {"x": ROWS, "y": NUMBERS, "z": 1}, "expected the inputs x, y, got x, y, z"),
        (ONE, ROWS[:0], "expected at least 1 row, got 0"),
        (TWO, {"x": ROWS, "y": NUMBERS[:0]}, "expected at least 1 row, got 0"),
        (TWO, {"x": ROWS, "y": NUMBERS[:2]}, "expected as many rows of each input, got [3, 2]"),
        (ONE, ROWS[0], "expected x FP32 [N, 2], got the shape [2]"),
        (ONE, ROWS[:, :1], "expected x FP32 [N, 2], got the shape [3, 1]"),
        (ONE, 0.5, "expected x FP32 [N, 2], got 0.5: a list of 1 item is [0.5]"),
        (ONE, [["a", "b"]], "expected x FP32 [N, 2], got <U1"),
        (ONE, ROWS.astype(np.float16), "expected x FP32 [N, 2], got float16: if its values fit, "
         "write .astype(numpy.float32)"),
        (PIXEL, [[300]], "expected x UINT8 [N, 1], got numbers from 300 to 300, "
         "which it can't hold"),
        (PIXEL, np.array([[-1], [255]]), "expected x UINT8 [N, 1], got numbers from -1 to "
         "255, which it can't hold"),
        (ONE, [[1, 10**39]], "expected x FP32 [N, 2], got object"),
        (ONE, [[1.0, 1e39]], "expected x FP32 [N, 2], got a number that it can't hold"),
        (ONE, np.ma.masked_less(ROWS, 1), "expected x FP32 [N, 2], got a masked array: fill it "
         "first"),
    ],
)  # fmt: skip
def test_feeds_that_do_not_fit_are_refused_with_both(signature, inputs, text):
    with pytest.raises(InvalidRequest) as caught:
        as_feeds(signature, inputs)
    assert str(caught.value) == text


@pytest.mark.parametrize("content", ["", "text", "json", "bytes", "picture"])
def test_contents_of_bytes(content):
    tensor = Tensor("x", "BYTES", (-1,), content=content)
    facts = tensor.is_text, tensor.is_json, tensor.is_binary, tensor.is_picture
    assert facts == (content in ("text", "json"), content == "json",
                     content in ("bytes", "picture"), content == "picture")  # fmt: skip
    column = np.array([["a"], ["b"]], object)
    if tensor.is_text:
        assert as_array(tensor, column).tolist() == ["a", "b"]
    else:
        with pytest.raises(InvalidRequest, match=r"got the shape \[2, 1\]"):
            as_array(tensor, column)
    with pytest.raises(InvalidRequest, match=r"^expected x BYTES \[N\], got objects that are no"):
        as_array(tensor, ["a", 5])
    assert as_array(tensor, [b"a\0", "b"]).tolist() == [b"a\0", "b"]


@pytest.mark.parametrize(
    ("tensor", "text", "row_bytes", "no_rows"),
    [
        (Tensor("x", "FP32", (-1, 2, 3)), "x FP32 [N, 2, 3]", 24, (0, 2, 3)),
        (Tensor("x", "FP16", (-1, -1)), "x FP16 [N, ?]", 0, (0, 0)),
        (Tensor("x", "INT64", (-1, -1), ("batch", "words")), "x INT64 [batch, words]", 0, (0, 0)),
        (Tensor("x", "INT64", (-1, -1, -1), ("batch", "")), "x INT64 [batch, ?, ?]", 0, (0, 0, 0)),
        (Tensor("x", "UINT8", (-1,)), "x UINT8 [N]", 1, (0,)),
        (Tensor("x", "BYTES", (-1, 2)), "x BYTES [N, 2]", 0, (0, 2)),
        (Tensor("x", "BOOL", ()), "x BOOL []", 0, (0,)),
        (Tensor("x", "BOOL", (4, 0)), "x BOOL [4, 0]", 0, (0, 0)),
    ],
    ids=str,
)
def test_tensors_say_what_they_are(tensor, text, row_bytes, no_rows):
    assert str(tensor) == text
    assert (tensor.row_bytes, tensor.no_rows().shape) == (row_bytes, no_rows)
    assert tensor.no_rows().dtype == tensor.dtype == DTYPES[tensor.datatype]


def test_only_rows_of_one_input_travel_as_bytes():
    assert (ONE.row_bytes, TWO.row_bytes) == (8, 0)
    assert TensorSignature((X,), (Y,), is_batchable=False).row_bytes == 0
    assert str(TensorSignature((X, Y), (Y,), True)) == "x FP32 [N, 2], y INT8 [N] -> y INT8 [N]"


def test_numbers_of_json_are_finite():
    assert finite("1e308") == 1e308
    with pytest.raises(ValueError, match=f"^{'1' * 20} is too large for a number$"):
        finite("1" * 400)


def test_types_are_the_protocols():
    """Little-endian on each machine: values travel as they lie in memory."""
    assert {name: each.str for name, each in DTYPES.items()} == {
        "BOOL": "|b1", "INT8": "|i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
        "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
        "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BYTES": "|O",
    }  # fmt: skip


def test_tensors_are_shown_and_compared_by_their_name_type_and_shape():
    named, plain = Tensor("x", "FP32", (-1, 2), ("batch",), "text"), Tensor("x", "FP32", (-1, 2))
    assert repr(named) == repr(plain) == "Tensor(name='x', datatype='FP32', shape=(-1, 2))"
    assert (named == plain, hash(named) == hash(plain)) == (True, True)
    assert (plain.names, plain.content) == ((), "")
    signature = TensorSignature((plain,), (), True)
    assert repr(signature) == (
        f"TensorSignature(inputs=({plain!r},), outputs=(), is_batchable=True, in_parts=False)"
    )
    assert signature == TensorSignature((named,), (), True)
    digits = Signature((28, 28), 10)
    assert repr(digits) == "Signature(input_shape=(28, 28), num_classes=10, labels=())"
    assert (digits.image_bytes, digits.row_bytes) == (784, 40)


def test_signature_of_a_classifier_is_that_of_its_document():
    plain = {"input_shape": [28, 28], "dtype": "uint8", "classes": 3}
    for document in (plain, {**plain, "labels": ["cat", "dog", "eel"]}):
        found = Signature.of(document)
        assert found.document() == document
        assert found.labels == tuple(document.get("labels", ()))
    tensors = Signature.of(plain).tensors
    assert str(tensors) == "images UINT8 [N, 784] -> probabilities FP32 [N, 3]"
    assert (tensors.is_batchable, tensors.in_parts) == (True, False)


@pytest.mark.parametrize(
    ("label", "is_one"), [("x" * 100, True), ("x" * 101, False), ("", False), ("a\n", False)]
)
def test_label_has_up_to_a_hundred_printable_characters(label, is_one):
    assert is_label(label) is is_one
    if is_one:
        Signature((1,), 1, (label,))
    else:
        with pytest.raises(ValueError, match=r"^a label must be 1 to 100 printable characters$"):
            Signature((1,), 1, (label,))


def test_description_that_says_little_is_this():
    info = ModelInfo(
        name="m", version="3", versions=("3",), default_version="3", inputs=(X,), outputs=(Y,),
        is_batchable=True, max_batch_size=8,
    )  # fmt: skip
    assert asdict(info) | {"inputs": (), "outputs": ()} == {
        "name": "m", "version": "3", "versions": ("3",), "default_version": "3",
        "canary_version": None, "not_served": {}, "inputs": (), "outputs": (),
        "is_batchable": True, "in_parts": False, "batching": "", "device": "", "precision": "",
        "optimized": "", "max_batch_size": 8, "max_request_rows": None, "max_message_bytes": None,
        "labels": (), "pictures": None, "test_accuracy": None,
    }  # fmt: skip
    assert info.tensors == TensorSignature((X,), (Y,), is_batchable=True)


class Raises:
    """An object that numpy asks for its array, and that raises an error instead."""

    def __init__(self, error):
        self.error = error

    def __array__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize("error", [MemoryError("full"), TimeoutError("a signal")])
def test_errors_that_are_no_fault_of_the_value_are_passed_on(error):
    with pytest.raises(type(error)) as caught:
        as_array(X, Raises(error))
    assert caught.value is error


def test_error_of_a_value_is_the_callers():
    with pytest.raises(InvalidRequest) as caught:
        as_array(X, Raises(RuntimeError("no  such\nfile")))
    assert str(caught.value) == "expected x FP32 [N, 2], got a Raises: no such file"


@pytest.mark.filterwarnings("error")
def test_number_that_does_not_fit_is_an_error_and_no_warning():
    with pytest.raises(InvalidRequest, match=r"got float64: if its values fit, write "):
        as_array(Tensor("x", "FP32", (-1,)), np.array([1e39]))
    with pytest.raises(InvalidRequest, match=r"got a number that it can't hold$"):
        as_array(Tensor("x", "FP16", (-1,)), [1e6])
