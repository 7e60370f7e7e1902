"""The HTTP methods of our server: how their requests are written and their answers read."""

import json
import struct
import zlib

import numpy as np

from benchmarks.targets.methods import Method
from serving.images import Images
from serving.signature import DIGITS

_SCALE = 10
"""Pictures are drawn 280 pixels wide."""
_BOUNDARY = "picture"


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


def encode_json(images: Images) -> bytes:
    """Make a request of the inference protocol for (N, 784) uint8, with numbers in its JSON."""
    body = json.dumps({"inputs": [_tensor(images) | {"data": images.ravel().tolist()}]})
    return _post(INFER_JSON.path, body.encode(), "Content-Type: application/json")


def encode_binary(images: Images) -> bytes:
    """Make a request of the inference protocol for (N, 784) uint8, with bytes both ways."""
    tensor = _tensor(images) | {"parameters": {"binary_data_size": images.nbytes}}
    output = {"name": "probabilities", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return _post(INFER_BINARY.path, head + images.tobytes(), length)


def encode_pictures(images: Images) -> bytes:
    """Make a form with a PNG file for each of (N, 784) uint8, dark ink on white, 280 x 280."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="p"; filename="p.png"\r\n\r\n'
    parts = [head.encode() + _png(image.reshape(28, 28)) + b"\r\n" for image in images]
    body = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
    return _post(PICTURES.path, body, f"Content-Type: multipart/form-data; boundary={_BOUNDARY}")


def _tensor(images: Images) -> dict[str, object]:
    return {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}


def _png(image: Images) -> bytes:
    """Write an image enlarged, as a PNG file in grey."""
    grey = np.kron(255 - image, np.ones((_SCALE, _SCALE), np.uint8))
    height, width = grey.shape
    rows = np.pad(grey, ((0, 0), (1, 0)))  # before each row its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _decode_json(answer: bytes) -> list[int]:
    return _digits_of(np.array(json.loads(answer)["outputs"][0]["data"]))


def _decode_binary(answer: bytes) -> list[int]:
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))  # the JSON is ASCII
    return _digits_of(np.frombuffer(answer[end:], "<f4"))


def _decode_pictures(answer: bytes) -> list[int]:
    """Return the digits; -1 for a picture that was refused."""
    return [item.get("digit", -1) for item in json.loads(answer)["digits"]]


def _digits_of(probabilities: np.typing.NDArray[np.floating]) -> list[int]:
    return list(probabilities.reshape(-1, DIGITS.num_classes).argmax(1).tolist())


_INFER = "/v2/models/digits/infer"
INFER_JSON = Method(_INFER, encode_json, _decode_json, is_http=True)
INFER_BINARY = Method(_INFER, encode_binary, _decode_binary, is_http=True)
# A picture's ink is scaled and centred again, so that some get another digit or are refused: a
# third of the golden samples are the images that the model is least sure of.
PICTURES = Method("/v1/digits", encode_pictures, _decode_pictures, is_http=True, right_share=0.7)
