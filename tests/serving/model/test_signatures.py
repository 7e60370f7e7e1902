"""Which graph may follow another one, by its file alone."""

import io
import json
import shutil

import pytest
from onnx import TensorProto, helper

from digit_classifier.predictions import DIGITS
from serving.model.signatures import (
    MARK,
    GraphSignature,
    ValueFacts,
    difference,
    find_signature,
    newest_accepted,
    read_graph,
    read_signature,
    unaccepted,
)
from serving.protocols import varint
from tests.serving.model.graphs import TYPES, model, node, save, value


def signature(folder, inputs, outputs, version):
    """The signature of a file with these inputs and outputs."""
    (folder / version).mkdir()
    nodes = [node("Opaque", list(inputs), list(outputs))]
    sides = [[value(name, *each) for name, each in side.items()] for side in (inputs, outputs)]
    save(model(nodes, *sides, {"weight": [0.0] * 5000}), folder / version)
    return read_signature(folder, version)


ROWS, COLUMNS = ("FP32", ["N", 4]), ("FP32", ["N", "M"])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (({"x": ROWS}, {"y": ROWS}), ({"x": ROWS}, {"y": ROWS}), None),
        (({"x": ROWS}, {"y": ROWS}), ({"x": ROWS}, {"y": ROWS, "z": ROWS}), None),
        (({"x": ROWS}, {"y": ROWS}), ({"x": COLUMNS}, {"y": ROWS}), None),
        (({"x": ROWS}, {"y": ROWS}), ({"x": ("FP32", ["B", 4])}, {"y": ROWS}), None),
        (({"a": ROWS, "b": ROWS}, {"y": ROWS}), ({"b": ROWS, "a": ROWS}, {"y": ROWS}), None),
        (
            ({"x": COLUMNS}, {"y": ROWS}),
            ({"x": ROWS}, {"y": ROWS}),
            "x FP32 [N, N] has become",
        ),
        (({"x": ROWS}, {"y": ROWS}), ({"x": ROWS}, {"y": ("FP32", ["N", 5])}), "output y"),
        (({"x": ROWS}, {"y": ROWS}), ({"x_1": ROWS}, {"y": ROWS}), "input x is gone"),
        (({"x": ROWS}, {"y": ROWS}), ({"x": ROWS}, {"y_1": ROWS}), "output y is gone"),
        (({"x": ROWS}, {"y": ROWS}), ({"x": ("FP64", ["N", 4])}, {"y": ROWS}), "become x FP64"),
        (({"x": ROWS}, {"y": ROWS}), ({"x": ("FP32", ["N"])}, {"y": ROWS}), "become x FP32 [N]"),
        (({"x": ROWS}, {"y": ROWS}), ({"x": ROWS, "z": ROWS}, {"y": ROWS}), "input z is new"),
    ],
)
def test_callers_can_go_on_or_the_reason_is_named(old, new, reason, tmp_path):
    before, after = (
        signature(tmp_path, *each, version) for version, each in (("1", old), ("2", new))
    )
    found = difference(before, after)
    assert found is None if reason is None else reason in str(found)


def test_output_that_is_no_tensor_is_called_a_list(tmp_path):
    maps = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = model([node("SequenceConstruct", ["x"], ["y"])], [value("x", *ROWS)], [maps])
    (tmp_path / "2").mkdir()
    save(graph, tmp_path / "2")
    before, after = (
        signature(tmp_path, {"x": ROWS}, {"y": ROWS}, "1"),
        read_signature(tmp_path, "2"),
    )
    expected = "output y FP32 [N, 4] has become y (a list or a map, not a tensor)"
    assert difference(before, after) == expected


def test_weights_are_no_inputs_and_are_skipped(tmp_path):
    (tmp_path / "1").mkdir()
    graph = model([node("Add", ["x", "w"], ["y"])], [value("x", "FP32", ["N", 4])],
                  [value("y", "FP32", None)], {"w": [1.0] * 4})  # fmt: skip
    graph.graph.input.append(helper.make_tensor_value_info("w", TYPES["FP32"], [4]))
    save(graph, tmp_path / "1")
    found = read_signature(tmp_path, "1")
    assert (list(found.inputs), str(found)) == (["x"], "x FP32 [N, 4] -> y FP32 []")


def test_axes_of_no_size_are_open(tmp_path):
    """Some programs write 0 for one that they don't know."""
    found = signature(tmp_path, {"x": ("FP32", ["N", 0, 1])}, {"y": ROWS}, "1")
    assert str(found) == "x FP32 [N, N, 1] -> y FP32 [N, 4]"


@pytest.mark.parametrize("data", [b"no model", b"\x3a\xff\xff\xff\x7f", b"\x0f"])
def test_file_that_is_no_graph_is_an_error(data, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(data)
    with pytest.raises(ValueError, match="ONNX"):
        read_signature(tmp_path, "1")


@pytest.mark.parametrize("datatype", TYPES)
def test_datatype_is_the_one_that_onnx_wrote(datatype, tmp_path):
    found = signature(tmp_path, {"x": (datatype, ["N", 4])}, {"y": (datatype, ["N"])}, "1")
    assert str(found) == f"x {datatype} [N, 4] -> y {datatype} [N]"


OTHER, SAME = ({"x": ("FP64", ["N", 4])}, {"y": ROWS}), ({"x": ROWS}, {"y": ROWS})


@pytest.mark.parametrize("number", [1, 2, 3])
def test_versions_of_another_signature_are_named_however_few_there_are(number, tmp_path):
    kinds = {"1": SAME, "2": OTHER, "3": SAME}
    found = {name: signature(tmp_path, *kinds[name], name) for name in list(kinds)[:number]}
    reasons = unaccepted(tmp_path, list(found), found.get)
    assert list(reasons) == (["2"] if number > 1 else [])
    if number == 1:
        return
    assert "version 1 has x FP32 [N, 4]" in reasons["2"]
    (tmp_path / "2" / MARK).touch()
    assert list(unaccepted(tmp_path, list(found), found.get)) == (["3"] if number > 2 else [])


@pytest.mark.parametrize(("new", "reasons"), [(OTHER, ["10"]), (SAME, [])])
def test_older_versions_are_those_of_smaller_numbers(new, reasons, tmp_path):
    """However many digits these have, and in whichever order the folder lists them."""
    kinds = {"10": new, "9": SAME}
    found = {name: signature(tmp_path, *kind, name) for name, kind in kinds.items()}
    assert list(unaccepted(tmp_path, list(kinds), found.get)) == reasons
    newest = "9" if reasons else "10"
    assert newest_accepted(tmp_path, list(kinds), found.get) == (newest, found[newest])


def test_version_that_cannot_be_read_stands_for_nothing(tmp_path):
    kinds = {"1": SAME, "2": SAME, "3": OTHER}
    found = {name: signature(tmp_path, *kind, name) for name, kind in kinds.items()}
    for unread in ("1", "2"):
        read = {name: each for name, each in found.items() if name != unread}.get
        assert list(unaccepted(tmp_path, list(kinds), read)) == ["3"]


def test_values_of_all_versions_have_types_and_ranks_that_fit():
    """Each pair of an older and a newer description: may callers go on?"""
    open_, fixed, other = (ValueFacts("FP32", (-1, size)) for size in (-1, 4, 5))
    flat, unknown = ValueFacts("FP32", (-1,)), ValueFacts("FP32", None)
    every = {"open": open_, "fixed": fixed, "other": other, "flat": flat, "unknown": unknown}
    fitting = {"input": set(), "output": set()}
    for old, before in every.items():
        for new, after in every.items():
            for kind, sides in (("input", (0, 1)), ("output", (1, 0))):
                pair = [[{"x": each}, {}] for each in (before, after)]
                signatures = [GraphSignature(*(side[at] for at in sides)) for side in pair]
                if difference(*signatures) is None:
                    fitting[kind].add(f"{old} {new}")
    same = {f"{each} {each}" for each in every}
    assert fitting["input"] == same | {
        "fixed open", "other open", "open unknown", "fixed unknown", "other unknown",
        "flat unknown",
    }  # fmt: skip
    assert fitting["output"] == same | {
        "fixed open", "other open", "open fixed", "open other", "open unknown", "fixed unknown",
        "other unknown", "flat unknown", "unknown open", "unknown fixed", "unknown other",
        "unknown flat",
    }  # fmt: skip


def field(number, content):
    """A field of a message that is bytes."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def described(num_bytes):
    """The description of an input, with this number of bytes."""
    length = num_bytes - 1 - len(varint(num_bytes))
    return field(1, b"x" * length)


def read(*inputs, weights=b""):
    """The names of the inputs of a file with these descriptions."""
    graph = b"".join(field(11, each) for each in inputs) + weights
    file = field(7, graph)
    return [*read_graph(io.BytesIO(file), len(file))[0]]


MIB = 1 << 20


def test_description_of_an_input_has_a_mebibyte_and_all_have_64():
    """A file of a stranger's is read before it is tried."""
    largest = described(MIB)
    assert len(largest) == MIB
    assert [len(each) for each in read(*[largest] * 64)] == [MIB - 4]
    with pytest.raises(ValueError, match=r"^an input or output is described at length$"):
        read(described(MIB + 1))
    weight = field(5, field(8, b"w"))
    with pytest.raises(ValueError, match=r"^inputs, outputs and names of weights are too long$"):
        read(*[largest] * 64, weights=weight)
    assert read(b"\x0a\x01x", b"\x0a\x01w", weights=weight) == ["x"]


def test_datatype_that_is_not_served_has_its_name():
    tensor = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["N"])
    assert read_side(tensor) == {"x": ValueFacts("BF16", (-1,))}
    tensor = helper.make_tensor_value_info("x", TensorProto.COMPLEX64, [2])
    assert read_side(tensor) == {"x": ValueFacts("14", (2,))}


def read_side(tensor):
    """The inputs of a file with this one."""
    file = field(7, field(11, tensor.SerializeToString()))
    return read_graph(io.BytesIO(file), len(file))[0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ({"labels": ["a", "b"]}, {"labels": ["a", "c"]}, "class 1 was 'b' and is 'c'"),
        ({}, {"labels": ["0", "c"]}, "class 1 was '1' and is 'c'"),
        ({"labels": ["a", "1"]}, {}, "class 0 was 'a' and is '0'"),
        ({}, {"classes": 3}, "classes was 2 and is 3"),
        ({}, {"dtype": "float32"}, "dtype was uint8 and is float32"),
    ],
)
def test_images_and_classes_have_one_difference_that_is_named(old, new, reason):
    plain = {"input_shape": [2, 2], "dtype": "uint8", "classes": 2}
    before, after = (GraphSignature({}, {}, json.dumps({**plain, **each})) for each in (old, new))
    assert difference(before, after) == reason
    assert difference(before, before) is None
    assert difference(before, GraphSignature({}, {})) == (
        "it has no manifest that describes images and classes"
    )


def test_difference_of_images_without_classes_is_of_their_fields():
    before, after = (GraphSignature({}, {}, json.dumps({"dtype": each})) for each in "ab")
    assert difference(before, after) == "dtype was a and is b"


def test_images_and_classes_are_those_of_the_manifest(models, tmp_path):
    """One that is malformed has none: loading says why it is refused."""
    shutil.copytree(models / "digits", tmp_path / "digits")
    found = find_signature(tmp_path / "digits", "1")
    assert json.loads(found.images) == DIGITS.document()
    manifest = tmp_path / "digits" / "1" / "manifest.json"
    for text in ("", "[]", "{}", '{"signature": 3}', '{"signature": {"classes": "x"}}'):
        manifest.write_text(text)
        assert find_signature(tmp_path / "digits", "1") == found._replace(images="")
    manifest.unlink()
    assert find_signature(tmp_path / "digits", "1") == found._replace(images="")


def test_first_of_several_differences_is_the_one_that_most_callers_meet():
    """What is gone, then what is another, then what is new, then pictures and classes."""
    text, number = ValueFacts("BYTES", (-1,)), ValueFacts("FP32", (-1,))
    classes = [json.dumps({"classes": each}) for each in (2, 3)]
    old = GraphSignature({"a": text, "b": text}, {"y": text, "z": text}, classes[0])
    steps = {
        "input a is gone": GraphSignature({"b": number, "c": text}, {"y": number}),
        "input b BYTES [N] has become b FP32 [N]":
            GraphSignature({"a": text, "b": number, "c": text}, {"y": number}),
        "output y BYTES [N] has become y FP32 [N]":
            GraphSignature({"a": text, "b": text, "c": text}, {"y": number}),
        "output z is gone": GraphSignature({"a": text, "b": text, "c": text}, {"y": text}),
        "input c is new": GraphSignature({"a": text, "b": text, "c": text}, old.outputs),
        "it has no manifest that describes images and classes":
            GraphSignature(old.inputs, old.outputs),
        "classes was 2 and is 3": GraphSignature(old.inputs, old.outputs, classes[1]),
    }  # fmt: skip
    assert [difference(old, each) for each in steps.values()] == [*steps]
