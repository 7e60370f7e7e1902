"""The reader of ONNX files: small constants, and fields without reading the whole."""

import io

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from serving.proof.onnx_fields import Fields
from serving.proof.onnx_file import small_array
from tests.serving.model.graphs import two_layers


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
        (two_layers().SerializeToString() + bytes(1 << 20), 10, "it is not an ONNX file"),
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
