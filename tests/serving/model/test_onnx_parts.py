"""What is found in an ONNX file without the library: labels; and its errors on one line."""

import io
import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.model.answers import labels_of
from serving.model.onnx_errors import complaint_of, reason_of
from serving.proof.onnx_fields import Fields
from serving.proof.onnx_file import small_array
from tests.serving.model.graphs import two_layers

CODE = "[ONNXRuntimeError] : 1 : FAIL : "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{CODE}no such axis\nand more", "no such axis"),
        (f"{CODE}Protobuf parsing failed.", "it is not an ONNX file, or it is incomplete"),
        ("no graph was found in the protobuf.", "it is not an ONNX file, or it is incomplete"),
        (f"{CODE}/onnxruntime_src/a.cc:1 f(int) Shapes differ", "Shapes differ"),
        ("Failed to construct locale with name:C.UTF-8",
         "Failed to construct locale with name:C.UTF-8 (Debian: apt-get install locales-all)"),
    ],
)  # fmt: skip
def test_reason_of_a_failure_is_one_line(text, reason):
    assert reason_of(RuntimeError(text)) == reason


def test_reason_of_a_failure_is_short():
    assert len(reason_of(RuntimeError("x" * 10_000))) < 1_000
    assert complaint_of(RuntimeError("x" * 10_000)) is None


@pytest.mark.parametrize(("size", "is_read"), [(1, True), (1024, True), (1025, False)])
def test_elements_of_small_constants_alone_are_read(size, is_read):
    numbers = np.arange(size)
    found = small_array(numpy_helper.from_array(numbers))
    assert (found is not None) == is_read
    if is_read:
        np.testing.assert_array_equal(found, numbers)


def test_elements_in_another_file_are_not_read():
    tensor = numpy_helper.from_array(np.arange(2))
    tensor.data_location = TensorProto.EXTERNAL
    assert small_array(tensor) is None


def with_metadata(*pairs):
    model = two_layers()
    for key, value in pairs:
        helper.set_model_props(model, {each.key: each.value for each in model.metadata_props})
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("pairs", "labels"),
    [
        ([], ()),
        ([("labels", '["a", "b"]')], ("a", "b")),
        ([("author", "x"), ("labels", '["a", "b"]'), ("licence", "y")], ("a", "b")),
        ([("author", "labels")], ()),
        ([("labels", "no JSON")], ()),
        ([("labels", '["a", ""]')], ()),
        ([("labels", "3")], ()),
        ([("labels", json.dumps(["x" * 90] * 12_000))], ()),  # more than a megabyte
    ],
    ids=["none", "alone", "among others", "as a value", "no JSON", "an empty one", "3", "too long"],
)
def test_labels_are_found_among_the_metadata(pairs, labels):
    assert labels_of(with_metadata(*pairs)) == labels


def test_file_that_ends_early_has_no_labels():
    data = with_metadata(("labels", '["a", "b"]'))
    assert [labels_of(data[:-end]) for end in (1, 5, 20)] == [()] * 3


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    num_reads = 0

    def read(self, *arguments):
        self.num_reads += 1
        return super().read(*arguments)


@pytest.mark.parametrize(
    ("data", "most_reads", "reason"),
    [
        (bytes(1 << 20), 1, "it is not an ONNX file"),  # field 0
        (with_metadata() + bytes(1 << 20), 10, "it is not an ONNX file"),
        (b"\x08\0" * (1 << 19), 1000, "it has more than 1000 fields"),  # ir_version, for ever
    ],
)
def test_file_that_is_no_model_is_given_up_early(data, most_reads, reason):
    file = Counted(data)
    with pytest.raises(ValueError, match=reason):
        list(Fields(file, 1000).of(0, len(data)))
    assert file.num_reads <= most_reads


def test_fields_of_a_file_are_counted_in_all_its_messages():
    fields = Fields(io.BytesIO(b"\x0a\x02\x08\0" * 3), 5)
    with pytest.raises(ValueError, match="more than 5 fields"):
        [list(fields.of(begin, end)) for _, begin, end in fields.of(0, 12)]
