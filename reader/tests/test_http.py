"""Numbers over HTTP: as in process, from a body or the files of a form."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digit_classifier import Classifier
from digit_reader import read_numbers
from digit_reader.handler import NumberPictures
from experiments.synthetic.strings import compose
from serving import Model
from tests.digit_classifier.http.test_digits import form
from tests.serving.http.peer import HttpPeer
from training.data.mnist import Mnist


@pytest.fixture(scope="module")
def page(mnist_sample: Mnist) -> bytes:
    digits = mnist_sample.test
    glyphs = [
        digits.images[np.flatnonzero(digits.labels == digit)[0]].reshape(28, 28)
        for digit in (9, 0, 2, 1, 0)
    ]
    file = io.BytesIO()
    ink = compose("90210", glyphs, [6.0] * 4, np.random.default_rng(1)).ink
    Image.fromarray(255 - ink).save(file, "PNG")
    return file.getvalue()


def test_picture_is_answered_as_in_process(
    page: bytes, http: HttpPeer, classifier: Classifier
) -> None:
    reply = http.post("/v1/numbers?image", page, Content_Type="image/png")
    assert reply.status == 200, reply.body
    answer = reply.json
    ((number,),) = [picture["numbers"] for picture in answer["pictures"]]
    (expected,) = read_numbers(io.BytesIO(page), classifier)
    assert (answer["model_version"], number["text"]) == ("1", "90210")
    assert number["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert (number["rejected"], number["turned"]) == (False, 0)
    assert number["fields"] == [{"text": "90210", "box": expected.box._asdict()}]
    for digit, each in zip(number["digits"], expected.digits, strict=True):
        assert digit["box"] == each.box._asdict()
        assert base64.b64decode(digit["image"]) == each.image
        assert digit["probabilities"] == pytest.approx(each.probabilities, abs=1e-5)


def test_files_of_a_form_are_answered_in_their_order(page: bytes, http: HttpPeer) -> None:
    blank = io.BytesIO()
    Image.new("L", (100, 100), 255).save(blank, "PNG")
    body, kind = form(("a.png", page), ("b.png", b"no picture"), ("c.png", blank.getvalue()))
    pictures = http.post("/v1/numbers", body, Content_Type=kind).json["pictures"]
    assert [picture["name"] for picture in pictures] == ["a.png", "b.png", "c.png"]
    assert pictures[0]["numbers"][0]["text"] == "90210"
    assert "expected a picture" in pictures[1]["error"]
    assert pictures[2]["numbers"] == []


def test_stroke_is_a_number_in_a_drawing_only(http: HttpPeer) -> None:
    image = Image.new("L", (320, 320), 255)
    image.paste(0, (150, 60, 164, 200))
    file = io.BytesIO()
    image.save(file, "PNG")
    (of_page,) = http.post("/v1/numbers", file.getvalue()).json["pictures"]
    assert of_page["numbers"] == []
    (of_drawing,) = http.post("/v1/numbers?drawing", file.getvalue()).json["pictures"]
    assert [number["text"] for number in of_drawing["numbers"]] == ["1"]


@pytest.mark.parametrize(("query", "texts"), [("%5Cd%7B5%7D", ["90210"]), ("%5Cd-%5Cd", [])])
def test_only_numbers_that_fit_a_pattern_are_answered(
    query: str, texts: list[str], page: bytes, http: HttpPeer
) -> None:
    (picture,) = http.post(f"/v1/numbers?pattern={query}", page).json["pictures"]
    assert [number["text"] for number in picture["numbers"]] == texts


def test_what_is_less_probable_than_asked_is_rejected(page: bytes, http: HttpPeer) -> None:
    reply = http.post("/v1/numbers?reject_below=1", page)
    assert reply.json["pictures"][0]["numbers"][0]["rejected"] is True


@pytest.mark.parametrize(
    ("body", "query", "words"),
    [
        (b"", "", "empty body"),
        (b"no picture", "", "expected a picture"),
        (b"x", "?reject_below=2", "reject_below"),
        (b"x", "?pattern=%5Cd(", "missing )"),
        (b"x", "?pattern=(%5Cd%7C1)*1(%5Cd%7C1)%7B20%7D", "simpler pattern"),
        (b"x", f"?pattern={'1' * 201}", "at most 200"),
    ],
)
def test_bad_requests_are_400(body: bytes, query: str, words: str, http: HttpPeer) -> None:
    reply = http.post(f"/v1/numbers{query}", body)
    assert (reply.status, reply.headers["content-type"]) == (400, "application/problem+json")
    assert words in reply.json["detail"]


def test_passed_deadline_is_504(page: bytes, http: HttpPeer) -> None:
    assert http.post("/v1/numbers", page, Request_Timeout="0.000001").status == 504


def test_several_digits_are_no_digit(page: bytes, http: HttpPeer) -> None:
    reply = http.post("/v1/digits", page)
    assert reply.status == 400
    assert reply.json["detail"].startswith("expected one digit, found 5")


def test_handler_answers_the_same_in_process(page: bytes, http: HttpPeer, models: Path) -> None:
    served = http.post("/v1/numbers?reject_below=0.9&image", page).json["pictures"][0]["numbers"]
    with Model.load(models / "digits", device="cpu", handler=NumberPictures) as model:
        options = {"reject_below": 0.9, "image": True}
        found = model.infer({"picture": [page, page]}, parameters=options)
    texts = found["numbers"].tolist()
    assert [[number["text"] for number in json.loads(text)] for text in texts] == [
        [number["text"] for number in served]
    ] * 2
    assert json.loads(texts[0])[0]["digits"][0]["image"] == served[0]["digits"][0]["image"]
