"""ModelInfer's messages to pixels, and an answer back to them.

One input, `images` UINT8 [N, pixels], and one output, `probabilities` FP32 [N, classes]; for digits
[N, 784] and [N, 10]. Anything else is refused with what was expected and what came; nothing is
guessed, converted or ignored.
"""

from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidRequest
from serving.images import check_count
from serving.protocols.oip import inference_pb
from serving.protocols.oip.typed import TypedContents

INPUT, OUTPUT = "images", "probabilities"

MAX_ID_CHARACTERS = 512
"""The longest id: it is part of the answer, whose size is limited."""
_MAX_SHOWN_CHARACTERS = 80
"""Texts from callers are cut to this length in errors, which travel as headers."""
_UNSUPPORTED = ("classification", "shared_memory_region")
"""Tensor parameters that change the meaning of a request; others are hints and are not read."""


class Inference(NamedTuple):
    """The content of a ModelInferRequest."""

    pixels: bytes
    """The bytes of N images, N >= 1."""
    num_images: int
    """N."""
    timeout_s: float | None
    """The request's own timeout; None if only the deadline of the call counts."""
    id: str
    """The request's id, which the answer repeats."""
    is_raw: bool
    """Whether tensors are raw bytes in both directions, or typed contents."""


def decode(
    request: Any, image_bytes: int, max_images: int, typed: TypedContents | None = None
) -> Inference:
    """Decode and check a ModelInferRequest for our model.

    Args:
        request: the message.
        image_bytes: the size of an image.
        max_images: the most images allowed.
        typed: the uint_contents that were taken out of the message; None if there are none.

    Raises:
        InvalidRequest: the text says what was expected and what came.
    """
    if len(request.id) > MAX_ID_CHARACTERS:
        raise InvalidRequest(
            f"expected an id of at most {MAX_ID_CHARACTERS} characters, got {len(request.id)}"
        )
    if len(request.inputs) != 1:
        raise InvalidRequest(f"expected 1 input, {INPUT!r}, got {len(request.inputs)}")
    tensor = request.inputs[0]
    num_images = _check_input(tensor, image_bytes, max_images)
    for output in request.outputs:
        _check_name("output", output.name, OUTPUT)
        _check_parameters(output)
    is_raw = len(request.raw_input_contents) > 0
    pixels = _raw_pixels(request) if is_raw else _typed_pixels(tensor.contents, typed)
    if len(pixels) != num_images * image_bytes:
        raise InvalidRequest(
            f"expected {num_images * image_bytes} {'bytes' if is_raw else 'uint_contents'} "
            f"for shape [{num_images}, {image_bytes}], got {len(pixels)}"
        )
    return Inference(pixels, num_images, _timeout_s(request.parameters), request.id, is_raw)


def encode(
    inference: Inference, probabilities: bytes | bytearray, model_name: str, version: str
) -> Any:
    """Build the ModelInferResponse, with the tensor in the request's form."""
    response = inference_pb.ModelInferResponse(
        model_name=model_name, model_version=version, id=inference.id
    )
    shape = (inference.num_images, len(probabilities) // 4 // inference.num_images)
    output = response.outputs.add(name=OUTPUT, datatype="FP32", shape=shape)
    if inference.is_raw:
        response.raw_output_contents.append(bytes(probabilities))
    else:
        output.contents.fp32_contents.extend(np.frombuffer(probabilities, "<f4").tolist())
    return response


def quoted(text: str) -> str:
    """Quote a text from a caller for an error, shortened."""
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return repr(text)
    return f"{text[:_MAX_SHOWN_CHARACTERS]!r}..."


def _check_input(tensor: Any, image_bytes: int, max_images: int) -> int:
    """Check everything except the contents; return the number of images."""
    _check_name("input", tensor.name, INPUT)
    if tensor.datatype != "UINT8":
        raise InvalidRequest(f"expected datatype 'UINT8', got {quoted(tensor.datatype)}")
    shape = tensor.shape
    if len(shape) != 2 or shape[0] < 0 or shape[1] != image_bytes:
        sizes = str(list(shape[:8]))[:_MAX_SHOWN_CHARACTERS]
        raise InvalidRequest(f"expected shape [N, {image_bytes}], got {sizes}")
    _check_parameters(tensor)
    num_images: int = shape[0]
    check_count(num_images, max_images)
    return num_images


def _check_name(kind: str, name: str, expected: str) -> None:
    if name != expected:
        raise InvalidRequest(f"expected {kind} {expected!r}, got {quoted(name)}")


def _check_parameters(tensor: Any) -> None:
    for name in _UNSUPPORTED:
        if name in tensor.parameters:
            raise InvalidRequest(f"expected tensors in the message, got the parameter {name!r}")


def _raw_pixels(request: Any) -> bytes:
    if len(request.raw_input_contents) != 1:
        raise InvalidRequest(
            f"expected 1 raw_input_contents, got {len(request.raw_input_contents)}"
        )
    if request.inputs[0].HasField("contents"):
        raise InvalidRequest("expected contents or raw_input_contents, got both")
    pixels: bytes = request.raw_input_contents[0]
    return pixels


def _typed_pixels(contents: Any, typed: TypedContents | None) -> bytes:
    for field, _ in contents.ListFields():
        raise InvalidRequest(f"expected uint_contents for UINT8, got {field.name}")
    return b"" if typed is None else typed.pixels()


def _timeout_s(parameters: Any) -> float | None:
    """Return the parameter "timeout" in seconds; None if it is missing or 0."""
    if "timeout" not in parameters:
        return None
    timeout = parameters["timeout"]
    kind = timeout.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(f"expected timeout as int64_param or uint64_param, got {kind}")
    microseconds: int = getattr(timeout, kind)
    if microseconds < 0:
        raise InvalidRequest(f"expected a timeout of at least 0, got {microseconds}")
    return microseconds / 1e6 or None
