"""The labels in an ONNX file, and ONNX Runtime's errors on one line."""

import json

import pytest
from onnx import helper

from serving.model.answers import labels_of
from serving.model.onnx_errors import complaint_of, reason_of
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
