"""What /v1/digits reads and writes, compared whole: without a server."""

import base64
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from digit_classifier import http as digits
from digit_classifier.handler import IMAGE
from digit_classifier.predictions import DIGITS
from serving.config import ServerConfig
from serving.errors import InvalidRequest
from serving.http_api.files_path import MAX_BODY_BYTES, Answered
from serving.pictures.classifier import CLASS, LABEL, PROBABILITIES
from serving.transports.http_routing import JSON

IMAGES = np.arange(2 * 784, dtype=np.uint16).reshape(2, 784).astype(np.uint8)


def outputs(*classes):
    """The answer to images of these classes; each is 0.9 probable."""
    shares = np.full((len(classes), 10), 0.1 / 9, np.float32)
    for row, each in zip(shares, classes, strict=True):
        row[each] = 0.9
    return {
        CLASS: np.array(classes), LABEL: np.array([str(each) for each in classes], object),
        PROBABILITIES: shares, IMAGE: IMAGES[: len(classes)],
    }  # fmt: skip


def digit(number, **more):
    probabilities = [0.011111] * 10
    probabilities[number] = 0.9
    return {
        "digit": number, "label": str(number), "probability": 0.9, "probabilities": probabilities,
        "rejected": False, **more,
    }  # fmt: skip


def test_report_has_each_picture_in_its_order():
    files: Any = [("a.png", outputs(3)), ("b.png", InvalidRequest("blank")), ("", outputs(1, 7))]
    answer = digits.write_report(files, "m", "3", 0.5, False)
    assert (answer.kind, answer.status, answer.headers, answer.code) == (JSON, 200, (), "")
    assert json.loads(answer.body) == {
        "model_name": "m", "model_version": "3",
        "digits": [
            {"name": "a.png", **digit(3)}, {"name": "b.png", "error": "blank"}, digit(1), digit(7),
        ],
    }  # fmt: skip


@pytest.mark.parametrize(("reject_below", "rejected"), [(0.9, False), (0.900001, True)])
def test_less_probable_answers_are_rejected_and_images_are_there_if_asked_for(
    reject_below, rejected
):
    files: Any = [("", outputs(4))]
    answer = digits.write_report(files, "m", None, reject_below, True)
    image = base64.b64encode(IMAGES[0].tobytes()).decode()
    assert json.loads(answer.body) == {
        "model_name": "m", "model_version": None,
        "digits": [digit(4) | {"rejected": rejected, "image": image}],
    }  # fmt: skip


def test_images_of_json_are_rows_or_pictures():
    for images in (IMAGES, IMAGES.reshape(2, 28, 28)):
        body = json.dumps({"images": images.tolist()}).encode()
        np.testing.assert_array_equal(digits.read_images(body, 2), IMAGES)
        with pytest.raises(InvalidRequest, match="expected at most 1 images in a request, got 2"):
            digits.read_images(body, 1)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        ([[0.5] * 784], ", got floats (multiply 0..1 by 255)"),
        ([["1"] * 784], ", got texts"),
        ([[True] * 784], ", got booleans"),
        ([[True, 0.5] * 392], ", got booleans and floats (multiply 0..1 by 255)"),
        ([[256] * 784], ""),
        ([[-1] * 784], ""),
        ([[None] * 784], ""),
        ([[1] * 784, [1]], ""),
        ("abc", ""),
    ],
)
def test_other_json_is_refused_with_an_example(images, got):
    with pytest.raises(InvalidRequest) as caught:
        digits.read_images(json.dumps({"images": images}).encode(), 9)
    assert str(caught.value) == (
        'expected JSON such as {"images": [[0, ..., 255], ...]}: N lists of 784 integers from 0 '
        f"to 255{got}"
    )


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_anything_else_is_refused(body):
    with pytest.raises(InvalidRequest, match="expected JSON such as"):
        digits.read_images(body, 9)


def router(*, resize="digits", signature=DIGITS, name="digits"):
    model = SimpleNamespace(
        image_signature=signature, pictures=resize and SimpleNamespace(resize=resize)
    )
    route = SimpleNamespace(name=name, signature=signature, model=model)
    found: Any = SimpleNamespace(
        routes={name: route}, batching=SimpleNamespace(max_request_rows=99)
    )
    return found


def described():
    return digits.describe(router(), ServerConfig())


def test_schemas_are_those_of_the_images_and_the_answer():
    _, schemas = described()
    text, share = {"type": "string"}, {"type": "number", "minimum": 0, "maximum": 1}
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    assert schemas == {
        "Images": {
            "type": "object",
            "properties": {"images": {"type": "array", "minItems": 1, "items": {
                "type": "array", "items": pixel, "minItems": 784, "maxItems": 784,
            }}},
            "required": ["images"],
        },
        "Digits": {
            "type": "object",
            "properties": {
                "model_name": text | {"description": "The model's name."},
                "model_version": {"type": ["string", "null"]},
                "digits": {"type": "array", "minItems": 1, "items": {
                    "type": "object",
                    "properties": {
                        "name": text | {"description": "The file's name, where it has one."},
                        "digit": {"type": "integer", "minimum": 0, "maximum": 9},
                        "label": text | {"description": "The name of that class: the digit."},
                        "probability": share,
                        "probabilities": {
                            "type": "array", "items": share, "minItems": 10, "maxItems": 10,
                        },
                        "rejected": {"type": "boolean"},
                        "image": text | {
                            "description": "784 bytes in base64: the network's input.",
                        },
                        "error": text,
                    },
                    "required": [],
                }},
            },
            "required": ["model_name", "model_version", "digits"],
        },
    }  # fmt: skip


def test_path_takes_pictures_and_images_of_json():
    paths, _ = described()
    assert [*paths] == ["/v1/digits"]
    operation = paths["/v1/digits"]["post"]
    assert operation["summary"] == "Read one digit from each picture"
    assert "at most 99." in operation["description"]
    named = [(each["name"], each["in"], each["schema"]) for each in operation["parameters"]]
    assert [named[0][:2], named[1][:2]] == [("reject_below", "query"), ("image", "query")]
    assert len(named) == 3
    assert named[0][2] == {"type": "number", "minimum": 0, "maximum": 1, "default": 0}
    assert named[1][2] == {"type": "string"}
    assert all(each["description"] for each in operation["parameters"])
    codes = ["200", "401", "400", "413", "429", "500", "503", "504"]
    assert [*operation["responses"]] == codes
    content = operation["requestBody"]["content"]
    assert content["application/json"] == {"schema": {"$ref": "#/components/schemas/Images"}}
    assert {"multipart/form-data", "application/json"} < content.keys()


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "stretch"}, {"resize": None},
        {"signature": DIGITS.__class__((28, 28), 11), "name": "letters"},
        {"signature": None},
    ],
)  # fmt: skip
def test_path_is_there_where_a_model_reads_digits_of_pictures(options):
    other = router(**options)
    assert digits.digits_route(other) is None
    assert digits.describe(other, ServerConfig()) == ({}, {})
    assert [*digits.routes(other, ServerConfig())] == []
    own = router(name="mnist")
    assert digits.digits_route(own) is own.routes["mnist"]


class Call:
    """A call of JSON: what is done for it elsewhere, and how long its body is then."""

    def __init__(self, body):
        self.body, self.work_sizes = body, []
        self.plan: Any = SimpleNamespace(get=lambda name: JSON, query={})

    async def work(self, function, *args, size):
        self.work_sizes.append((size, len(self.body)))
        return function(*args)


async def test_images_of_json_are_run_and_their_text_is_kept_no_longer(monkeypatch):
    """It may have megabytes, and the run takes a while."""
    path = digits.DigitsPath(router())
    body = json.dumps({"images": IMAGES.tolist()}).encode()
    call: Any = Call(body)
    seen = []

    async def finished(call, chosen, decoded):
        seen.append((call.body, chosen, [each.shape for each in decoded.inputs]))
        return outputs(3, 4), "7"

    monkeypatch.setattr(path, "find", lambda plan, share: ("chosen", plan, 0 <= share < 1))
    monkeypatch.setattr(path, "finished", finished)
    found: Any = await path.answered(call, {})
    chosen = ("chosen", call.plan, True)
    assert seen == [(b"", chosen, [(2, 784)])]
    assert call.work_sizes == [(len(body), len(body))]
    assert (found.chosen, found.files[0][0], found.version) == (chosen, "", "7")


@pytest.mark.parametrize(
    ("kind", "most"), [(JSON, 4 << 20), (f"{JSON}; charset=utf-8", 4 << 20), ("image/png", None)]
)
def test_body_of_json_has_4_mib_at_most(kind, most):
    plan: Any = SimpleNamespace(get=lambda name: kind)
    assert digits._max_bytes(plan) == (most or MAX_BODY_BYTES)
    assert MAX_BODY_BYTES != 4 << 20


@pytest.mark.parametrize(("files", "items"), [([("", 3)], 3), ([("", 1), ("", "no")], 2)])
async def test_report_is_written_elsewhere_by_its_length(files, items, monkeypatch):
    """Each of its items has 256 bytes or more."""
    answers: Any = [
        (name, InvalidRequest(each) if isinstance(each, str) else outputs(*[1] * each))
        for name, each in files
    ]
    call: Any = Call(b"")
    chosen: Any = SimpleNamespace(route=SimpleNamespace(name="m"))
    answered = Answered(chosen, answers, "7")
    parameters = {"reject_below": 0.5, "with_image": False}
    monkeypatch.setattr(digits, "write_report", lambda *facts: facts)
    found: Any = await digits.DigitsPath(router()).write(call, answered, parameters)
    assert found == (answers, "m", "7", 0.5, False)
    assert call.work_sizes == [(256 * items, 0)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [({}, (0.0, False)), ({"reject_below": ["0.5"], "image": [""]}, (0.5, True))],
)
async def test_parameters_are_those_of_the_query(query, expected, monkeypatch):
    monkeypatch.setattr(digits, "share_of", lambda plan, name: float(plan.query.get(name, [0])[0]))
    call: Any = SimpleNamespace(plan=SimpleNamespace(query=query))
    reject_below, with_image = expected
    assert await digits.DigitsPath(router()).parameters(call) == {
        "reject_below": reject_below, "with_image": with_image,
    }  # fmt: skip
