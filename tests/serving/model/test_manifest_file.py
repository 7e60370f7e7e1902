"""A manifest's fields, each by itself: what it says of a version, and what it may not say."""

import base64
import json

import numpy as np
import pytest

from serving.errors import CorruptModel
from serving.model.agreement import AgreementLimits
from serving.model.manifest_file import parse_manifest
from serving.model.preprocessing import Preprocessing
from serving.model.verdicts import Verdict, rules_version
from serving.publishing.manifest import digests, golden, render
from serving.tensors import Signature

DIGEST = "0123456789abcdef" * 4
PIXELS = np.arange(8, dtype=np.uint8).reshape(2, 4)
SHARES = [[0.25, 0.75], [1.0, 0.0]]
OTHERS = [[0.5, 0.5], [0.0, 1.0]]


def document(**changes):
    """A manifest with all that an exporter writes of a classifier; None leaves a field out."""
    fields = {
        "format": 1, "name": "net", "version": "3", "recipe": "cnn", "seed": 7,
        "settings": {"epochs": 3}, "parameters": 99,
        "signature": {"input_shape": [2, 2], "dtype": "uint8", "classes": 2,
                      "labels": ["cat", "dog"]},
        "preprocessing": {"resize": "pad", "invert": True},
        "accuracy": {"validation": None, "test": 0.875},
        "files": {"model.onnx": DIGEST, "model.int8.onnx": DIGEST[::-1]},
        "parity": {}, "int8": {}, "libraries": {"numpy": "2"},
        "batching": {"rules": rules_version(), "verdicts": {
            "model.onnx": {"obstacle": None, "remark": ""},
            "model.int8.onnx": {"obstacle": "it mixes", "remark": "of two"},
        }},
        "golden": {"images": base64.b64encode(PIXELS.tobytes()).decode(),
                   "probabilities": SHARES, "int8_probabilities": OTHERS},
    }  # fmt: skip
    changed = {**fields, **changes}
    return {name: each for name, each in changed.items() if each is not None}


def parsed(**changes):
    return parse_manifest(json.dumps(document(**changes)).encode())


def refusal(**changes):
    with pytest.raises(CorruptModel) as caught:
        parsed(**changes)
    text = str(caught.value)
    assert text.startswith("manifest.json is malformed: ")
    return text.removeprefix("manifest.json is malformed: ")


def test_classifier_is_described_whole():
    found = parsed()
    facts = {name: getattr(found, name) for name in found.__slots__}
    images, shares = facts.pop("golden_images"), facts.pop("golden_probabilities")
    assert facts == {
        "name": "net", "version": "3", "test_accuracy": 0.875,
        "digests": {"model.onnx": DIGEST, "model.int8.onnx": DIGEST[::-1]},
        "signature": Signature((2, 2), 2, ("cat", "dog")),
        "pictures": Preprocessing(size=(2, 2), resize="pad", invert=True, labels=("cat", "dog")),
        "verdicts": {"model.onnx": Verdict(None),
                     "model.int8.onnx": Verdict("it mixes", "of two")},
        "golden": None, "comparison": None, "gated_on": "", "optimized": "", "unknown": (),
    }  # fmt: skip
    np.testing.assert_array_equal(images, PIXELS)
    assert {name: each.tolist() for name, each in shares.items()} == {
        "fp32": SHARES, "int8": OTHERS,
    }  # fmt: skip
    assert all(each.dtype == np.float32 for each in shares.values())


def test_model_of_any_kind_is_described_by_its_golden_file():
    found = parsed(
        signature=None, preprocessing=None, accuracy=None, batching=None,
        files={"model.onnx": DIGEST, "golden.npz": DIGEST},
        golden={"file": "golden.npz", "outputs": {"y": "values"}, "gated_on": "a processor",
                "limits": {"least_equal": 0.9, "least_cosine": 0.8, "most_error": 0.1}},
        optimized={"from": {"name": "mine", "version": "2"}, "by": {"candidate": "int8 u8"}},
    )  # fmt: skip
    assert (found.signature, found.pictures, found.test_accuracy) == (None, None, None)
    assert (found.golden_images.size, found.golden_probabilities, found.verdicts) == (0, {}, {})
    assert (found.comparison.kinds, found.comparison.limits) == (
        {"y": "values"}, AgreementLimits(least_equal=0.9, least_cosine=0.8, most_error=0.1),
    )  # fmt: skip
    assert found.gated_on == "a processor"
    assert found.optimized == "int8 u8, of mine version 2"


def test_fields_that_may_be_left_out():
    found = parsed(preprocessing=None, batching=None, recipe=None, seed=None, settings=None,
                   parity=None, int8=None, libraries=None, parameters=None)  # fmt: skip
    assert found.pictures == Preprocessing(size=(2, 2), labels=("cat", "dog"))
    assert (found.verdicts, found.unknown) == ({}, ())
    other = parsed(batching={"rules": "others", "verdicts": {}})
    assert other.verdicts == {}, "other rules have found them"
    only = parsed(files={"model.onnx": DIGEST})
    assert [*only.golden_probabilities] == ["fp32"]


@pytest.mark.parametrize("name", ["lineage", "x"])
def test_field_of_a_later_exporter_is_unknown(name):
    signature = document()["signature"] | {name: 1}
    assert parsed(**{name: 1}, signature=signature).unknown == (name, f"signature.{name}")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("signatur", "signature"), ("PREPROCESING", "preprocessing"), ("baching", "batching"),
     ("optimised", "optimized")],
)  # fmt: skip
def test_optional_field_that_is_misspelled_is_refused(name, meant):
    assert refusal(**{name: 1}) == f"ValueError: there is no field '{name}': did you mean {meant}?"


def test_labels_that_are_misspelled_are_refused():
    signature = document()["signature"] | {"lables": ["a"]}
    expected = "ValueError: there is no field 'lables': did you mean labels?"
    assert refusal(signature=signature) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "format 1 expected, got 2"),
        ({"name": ""}, "name must be 1 to 100 printable characters"),
        ({"version": "9" * 101}, "version must be 1 to 100 printable characters"),
        ({"name": "a\nb"}, "name must be 1 to 100 printable characters"),
        ({"accuracy": {"test": 1.001}}, "the accuracy must be from 0 to 1"),
        ({"accuracy": {"test": -0.001}}, "the accuracy must be from 0 to 1"),
        ({"files": {"model.onnx": DIGEST[:-1]}},
         "the digest of model.onnx must be 64 hexadecimal digits"),
        ({"files": {"model.onnx": DIGEST.upper()}},
         "the digest of model.onnx must be 64 hexadecimal digits"),
        ({"golden": {"images": "", "probabilities": SHARES}},
         "golden probabilities have shape (2, 2), not (0, 2)"),
        ({"golden": {"images": "", "probabilities": [[0.5, 1.001], [0, 1]]}},
         "golden probabilities have shape (2, 2), not (0, 2)"),
        ({"golden": document()["golden"] | {"probabilities": [[0.5, 1.001], [0, 1]]}},
         "golden probabilities are not all from 0 to 1"),
        ({"golden": document()["golden"] | {"int8_probabilities": [[-0.001, 1], [0, 1]]}},
         "golden probabilities are not all from 0 to 1"),
        ({"golden": {"file": "other.npz"}}, "the golden file golden.npz expected, got 'other.npz'"),
        ({"golden": {"file": "golden.npz"}}, "the digest of golden.npz expected"),
    ],
)  # fmt: skip
def test_field_that_can_not_be_is_named(changes, reason):
    assert refusal(**changes) == f"ValueError: {reason}"


def test_limits_of_texts_are_reached():
    found = parsed(name="x" * 100, version="9" * 100, accuracy={"test": 1})
    assert (len(found.name), len(found.version), found.test_accuracy) == (100, 100, 1)
    own = {"files": {"model.onnx": DIGEST, "golden.npz": DIGEST}, "signature": None,
           "preprocessing": None}  # fmt: skip
    entry = {"file": "golden.npz", "outputs": {"y": "values"},
             "limits": {"least_equal": 1, "least_cosine": 1, "most_error": 0}}  # fmt: skip
    assert len(parsed(**own, golden=entry | {"gated_on": "x" * 200}).gated_on) == 200
    reason = refusal(**own, golden=entry | {"gated_on": "x" * 201})
    assert reason == "ValueError: gated_on must be 1 to 200 printable characters"


def test_manifest_has_half_a_mebibyte_at_most():
    data = json.dumps(document()).encode()
    most = data + b" " * ((512 << 10) - len(data))
    assert parse_manifest(most).name == "net"
    with pytest.raises(CorruptModel) as caught:
        parse_manifest(most + b" ")
    assert str(caught.value) == "manifest.json: 524289 bytes, at most 524288 expected"


def test_what_is_written_is_what_is_read():
    answers = {"fp32": np.array(SHARES, np.float32), "int8": np.array([[0.1, 0.9], [0, 1]], "f4")}
    entry = golden(PIXELS, answers)
    assert entry == {
        "images": "AAECAwQFBgc=", "probabilities": SHARES,
        "int8_probabilities": [[0.1, 0.9], [0.0, 1.0]],
    }  # fmt: skip
    assert digests({"a": b"", "b": b"abc"}) == {
        "a": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "b": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    data = render("net", "3", {"accuracy": {"test": None}, "golden": entry})
    assert json.loads(data) == {
        "format": 1, "name": "net", "version": "3", "accuracy": {"test": None}, "golden": entry,
    }  # fmt: skip
    changes = {name: document()[name] for name in ("signature", "files")}
    found = parse_manifest(render("net", "3", {**changes, "accuracy": {"test": None},
                                               "golden": entry}))  # fmt: skip
    np.testing.assert_array_equal(found.golden_probabilities["int8"], answers["int8"])
