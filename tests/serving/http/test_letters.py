"""Models of 28 x 28 images that are no digits: neither the page nor the paths of digits."""

import io

import numpy as np
import pytest
from PIL import Image

from serving.model.preprocessing import of_signature
from serving.tensors import DIGITS, Signature
from tests.serving.http.peer import HttpPeer
from tests.serving.model.templates import publish
from tests.support.servers import running_server

LETTERS = Signature((28, 28), 26, tuple("abcdefghijklmnopqrstuvwxyz"))
CLOTHES = Signature((28, 28), 10, tuple(f"garment {number}" for number in range(10)))


def test_pictures_of_the_ten_digits_alone_are_centred_as_digits():
    found = [of_signature(each) for each in (DIGITS, LETTERS, CLOTHES)]
    assert [each and each.resize for each in found] == ["digits", "stretch", "stretch"]


@pytest.mark.parametrize("signature", [LETTERS, CLOTHES])
def test_page_and_paths_of_digits_are_not_offered_for_other_classes(signature, tmp_path):
    publish(tmp_path, "letters", signature)
    picture = io.BytesIO()
    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(picture, "PNG")
    with running_server(tmp_path, "--model", "letters", "--http-port", "0") as server:
        peer = HttpPeer(server.facts["http"])
        paths = peer.get("/openapi.json").json["paths"]
        home = peer.get("/").body.decode()
        reply = peer.post("/v1/models/letters/classify", picture.getvalue())
        refused = [peer.post(f"/v1/{name}", picture.getvalue()).status for name in
                   ("digits", "numbers")]  # fmt: skip
    assert not {"/v1/digits", "/v1/numbers"} & {*paths}
    assert "Draw" not in home
    assert "<title>Models" in home
    assert reply.json["pictures"][0]["label"] in signature.labels
    assert refused == [404, 404]
