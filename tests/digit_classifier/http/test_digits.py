"""Models of 28 x 28 images that are no digits: neither the page nor the paths of digits."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from digit_classifier import PRETRAINED
from digit_classifier.handler import DigitPictures
from digit_classifier.pictures import from_picture
from digit_classifier.predictions import DIGITS
from serving import InvalidRequest, Model
from serving.model.preprocessing import of_signature
from serving.tensors import Signature
from tests.serving.http.peer import HttpPeer
from tests.serving.model.templates import publish
from tests.support.pictures import encoded
from tests.support.servers import running_server

LETTERS = Signature((28, 28), 26, tuple("abcdefghijklmnopqrstuvwxyz"))
CLOTHES = Signature((28, 28), 10, tuple(f"garment {number}" for number in range(10)))


def test_pictures_are_centred_as_digits_where_a_manifest_says_it():
    documents = [{"resize": "digits"}, {}, {}]
    found = map(of_signature, (DIGITS, LETTERS, CLOTHES), documents)
    assert [each and each.resize for each in found] == ["digits", "stretch", "stretch"]


@pytest.mark.parametrize("signature", [LETTERS, CLOTHES])
def test_page_and_paths_of_digits_are_not_offered_for_other_classes(signature, tmp_path):
    publish(tmp_path, "letters", signature)
    content = encoded(Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)))
    with running_server(tmp_path, "--model", "letters", "--http-port", "0") as server:
        peer = HttpPeer(server.facts["http"])
        paths = peer.get("/openapi.json").json["paths"]
        home = peer.get("/").body.decode()
        reply = peer.post("/v1/models/letters/classify", content)
        refused = peer.post("/v1/digits", content).status
    assert "/v1/digits" not in paths
    assert "Draw" not in home
    assert "<title>Models" in home
    assert reply.json["pictures"][0]["label"] in signature.labels
    assert refused == 404


# Pictures over HTTP: as a body, as files of a form, and images as JSON


def picture(image, kind="PNG"):
    """Make a picture of an image: dark on white, ten times as large."""
    return encoded(Image.fromarray(255 - image.reshape(28, 28)).resize((280, 280)), kind)


def form(*files):
    """Write a form with files; returns it and its content type."""
    parts = [
        f'--mark\r\nContent-Disposition: form-data; name="p"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + b"--mark--\r\n", "multipart/form-data; boundary=mark"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_picture_is_answered_as_in_process(kind, http, images, classifier):
    content = picture(images[0], kind)
    reply = http.post("/v1/digits?image", content, Content_Type=f"image/{kind.lower()}")
    assert reply.status == 200, reply.body
    answer = reply.json
    seen = from_picture(io.BytesIO(content))
    expected = classifier.classify(seen)
    (digit,) = answer["digits"]
    assert (answer["model_version"], digit["digit"]) == ("1", expected.digits[0])
    np.testing.assert_allclose(digit["probabilities"], expected.probabilities[0], atol=1e-5)
    assert digit["probability"] == max(digit["probabilities"])
    assert base64.b64decode(digit["image"]) == seen.tobytes()


def test_files_of_a_form_are_answered_in_their_order(http, images, classifier):
    body, kind = form(
        ("a.png", picture(images[0])), ("b.png", b"no picture"), ("c.png", picture(images[1]))
    )
    answers = http.post("/v1/digits", body, Content_Type=kind).json["digits"]
    assert [answer["name"] for answer in answers] == ["a.png", "b.png", "c.png"]
    assert "expected a picture" in answers[1]["error"]
    expected = classifier.classify(
        np.concatenate([from_picture(io.BytesIO(picture(image))) for image in images[:2]])
    )
    assert [answers[0]["digit"], answers[2]["digit"]] == expected.digits.tolist()


def test_images_as_json(http, images, classifier):
    for shape in ((3, 784), (3, 28, 28)):
        body = json.dumps({"images": images[:3].reshape(shape).tolist()})
        reply = http.post("/v1/digits", body, Content_Type="application/json")
        digits = [answer["digit"] for answer in reply.json["digits"]]
        assert digits == classifier.classify(images[:3]).digits.tolist()


def test_what_is_less_probable_than_asked_is_rejected(http, images):
    for limit, rejected in (("0", False), ("1", True)):
        reply = http.post(f"/v1/digits?reject_below={limit}", picture(images[0]))
        assert reply.json["digits"][0]["rejected"] is rejected


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "image/png", "empty body"),
        (b"no picture", "image/png", "expected a picture"),
        (b"x", "multipart/form-data; boundary=mark", "a form with"),
        (b"x", "multipart/form-data", "a form with"),
        (form()[0], form()[1], "at least 1 file"),
        (form(*[("a", b"x")] * 101)[0], form()[1], "a form with"),
        (b"{", "application/json", "expected JSON"),
        (b'{"images": [[1, 2]]}', "application/json", "expected images of shape"),
        (b'{"images": [[999]]}', "application/json", "expected JSON such as"),
        (b'{"images": [["x"]]}', "application/json", "expected JSON such as"),
        (b'{"images": []}', "application/json", "expected"),
        (b"[" * 100_000, "application/json", "expected JSON"),
    ],
)
def test_bad_bodies_are_400(body, kind, words, http):
    reply = http.post("/v1/digits", body, Content_Type=kind)
    assert reply.status == 400, reply.body
    assert words in reply.json["detail"]


@pytest.mark.parametrize("query", ["reject_below=2", "reject_below=x", "reject_below=nan"])
def test_bad_queries_are_400(query, http, images):
    assert http.post(f"/v1/digits?{query}", picture(images[0])).status == 400


def test_blank_picture_says_so(http):
    reply = http.post("/v1/digits", encoded(Image.new("L", (100, 100), 255)))
    assert (reply.status, reply.json["detail"]) == (400, "no ink found: the picture is blank")


def test_handler_answers_the_same_in_process(http, images):
    content = picture(images[0])
    (served,) = http.post("/v1/digits?image", content).json["digits"]
    with Model.load(PRETRAINED / "digits", device="cpu", handler=DigitPictures) as model:
        found = model.infer({"picture": [content]})
        with pytest.raises(InvalidRequest, match=r"picture 1: expected a picture"):
            model.infer({"picture": [content, b"no picture"]})
    assert (found["class"].tolist(), found["label"].tolist()) == (
        [served["digit"]],
        [served["label"]],
    )
    np.testing.assert_allclose(found["probabilities"][0], served["probabilities"], atol=1e-6)
    assert found["image"].tobytes() == base64.b64decode(served["image"])
