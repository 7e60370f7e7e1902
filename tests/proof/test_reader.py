"""The reader of ONNX files: small constants, and fields without reading the whole."""

import io
from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from serving.errors import CorruptModel
from serving.proof.onnx_fields import Fields, outline
from serving.proof.onnx_file import cut_zip_maps, external_files, parse_model, small_array
from tests.serving.model.graphs import model, two_layers, value


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


LARGE, SMALL = np.arange(5000, dtype=np.float32), np.arange(4, dtype=np.float32)
CONTENT = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
           "string_data")  # fmt: skip


def everywhere(content):
    """A model with a tensor in each place where there can be one."""

    def tensor(name):
        return numpy_helper.from_array(content, name)

    within = helper.make_node("Constant", [], ["i"], value=tensor("in"))
    inner = helper.make_graph(
        [within], "inner", [], [value("i", "FP32", [None])], [tensor("inner")]
    )
    constant = helper.make_node("Constant", [], ["c"], value=tensor("constant"))
    sparse = helper.make_sparse_tensor(
        tensor("values"), numpy_helper.from_array(np.arange(len(content)), "at"), [len(content)]
    )
    nodes = [
        constant,
        helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("Odd", [], ["o"], domain="mine", tensors=[tensor("a"), tensor("b")]),
        helper.make_node("Odd", [], ["p"], domain="mine", graphs=[inner]),
    ]
    made = model(nodes, [value("b", "BOOL", [])], [value("y", "FP32", [None])])
    made.graph.initializer.append(tensor("weights"))
    made.graph.initializer.append(helper.make_tensor("f", 1, [len(content)], content))
    made.graph.sparse_initializer.append(sparse)
    function = helper.make_function("mine", "Odd", [], ["c"], [constant], [])
    made.functions.append(function)
    made.metadata_props.add(key="long", value="x" * 10_000)
    return made


def emptied(message):
    """The same message, with the large contents of tensors taken away."""
    for field, found in message.ListFields():
        if field.message_type is not None:
            for each in found if field.is_repeated else [found]:
                emptied(each)
        elif field.containing_type.name == "TensorProto" and field.name in CONTENT:
            is_large = len(found) * (1 if isinstance(found, bytes) else 4) > 16 << 10
            if is_large:
                message.ClearField(field.name)
    return message


def test_outline_has_all_but_the_content_of_large_tensors():
    whole = everywhere(LARGE)
    data = whole.SerializeToString()
    shown = outline(data)
    assert parse_model(shown) == parse_model(emptied(whole).SerializeToString())
    assert len(shown) < len(data) / 5


def test_outline_of_a_small_model_or_of_none_is_what_it_was():
    for data in (everywhere(SMALL).SerializeToString(), bytes(10_000), b"\x3a\xff" * 5000, b""):
        assert outline(data) == data or parse_model(outline(data)) == parse_model(data)
    assert outline(bytes(10_000)) == bytes(10_000)


def test_outline_keeps_the_names_of_files_with_weights():
    made = everywhere(LARGE)
    tensor = made.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "w" * 20_000 + ".bin")
    tensor.ClearField("raw_data")
    found = external_files(parse_model(outline(made.SerializeToString())))
    assert found == external_files(parse_model(made.SerializeToString()))


DATA = everywhere(LARGE).SerializeToString()


@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=6))
def test_outline_of_a_damaged_file_never_fails(at, damage):
    """What it can't read it leaves; what parses still has the same nodes."""
    data = DATA[:at] + damage + DATA[at + len(damage) :]
    shown = outline(data)
    assert len(shown) <= len(data)
    with suppress(CorruptModel):
        whole = parse_model(data)
        assert [each.op_type for each in parse_model(shown).graph.node] == [
            each.op_type for each in whole.graph.node
        ]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FLOAT", "f4"), ("UINT8", "u1"), ("INT8", "i1"), ("UINT16", "u2"), ("INT16", "i2"),
        ("INT32", "i4"), ("INT64", "i8"), ("BOOL", "?"), ("FLOAT16", "f2"), ("DOUBLE", "f8"),
        ("UINT32", "u4"), ("UINT64", "u8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_raw", [True, False])
def test_small_constant_of_each_type_is_read(kind, dtype, is_raw):
    array = np.array([[0, 1], [1, 0]], dtype)
    tensor = helper.make_tensor(
        "t", TensorProto.DataType.Value(kind), [2, 2],
        array.tobytes() if is_raw else array.reshape(-1).tolist(), raw=is_raw,
    )  # fmt: skip
    found = small_array(tensor)
    assert found is not None
    assert (found.dtype, found.tolist()) == (array.dtype, array.tolist())


def test_constant_that_is_no_array_is_not_read():
    short = numpy_helper.from_array(np.arange(3))
    short.dims[:] = [4]
    texts = TensorProto(dims=[1], data_type=TensorProto.STRING, string_data=[b"a"])
    assert [small_array(each) for each in (short, texts)] == [None, None]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FLOAT", [0.5] * 5_000), ("INT32", [1 << 28] * 5_000), ("STRING", ["text" * 5_000]),
        ("INT64", [1 << 60] * 5_000), ("DOUBLE", [0.5] * 5_000), ("UINT64", [1 << 60] * 5_000),
        ("raw", b"x" * 20_000),
    ],
)  # fmt: skip
def test_content_of_each_kind_is_no_part_of_an_outline(kind, values):
    """Be it numbers, texts or bytes; a large name is."""
    data_type = TensorProto.FLOAT if kind == "raw" else TensorProto.DataType.Value(kind)
    num = 5_000 if kind == "raw" else len(values)
    tensor = helper.make_tensor("t", data_type, [num], values, raw=kind == "raw")
    made = two_layers()
    made.graph.initializer.append(tensor)
    data = made.SerializeToString()
    shown = outline(data)
    assert len(shown) < len(data) - 15_000
    assert len(parse_model(shown).graph.initializer) == 3
    made.graph.initializer[-1].name = "t" * 20_000
    named = outline(made.SerializeToString())
    assert parse_model(named).graph.initializer[-1].name == "t" * 20_000


@pytest.mark.parametrize("size", [(16 << 10) - 1, 16 << 10, (16 << 10) + 1])
def test_content_of_16_kib_is_kept(size):
    made = two_layers()
    made.graph.initializer.append(
        helper.make_tensor("t", TensorProto.UINT8, [size], b"x" * size, raw=True)
    )
    found = parse_model(outline(made.SerializeToString())).graph.initializer[-1]
    assert len(found.raw_data) == (size if size <= 16 << 10 else 0)


def test_output_that_was_a_map_is_a_table_of_floats():
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, number))
    made = model(
        [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[3, 5])],
        [value("x", "FP32", ["N", 2])], [helper.make_value_info("y", kind)],
    )  # fmt: skip
    del made.opset_import[:]
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    read = parse_model(made.SerializeToString())
    assert cut_zip_maps(read) == ("3", "5")
    (output,) = read.graph.output
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    assert len(output.type.tensor_type.shape.dim) == 2
    (node,) = read.graph.node
    assert (node.op_type, node.domain, [*node.attribute]) == ("Identity", "", [])
    assert {each.domain: each.version for each in read.opset_import} == {"ai.onnx.ml": 3, "": 13}
    assert cut_zip_maps(read) is None
