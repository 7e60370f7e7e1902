"""A bare client of the Open Inference Protocol, and messages for it."""

import grpc
import numpy as np
import pytest

from serving.protocols.oip import inference_pb
from serving.protocols.oip.inference_pb import SERVICE

TIMEOUT_S = 20.0


def status_of(call):
    """The status that a call ends with, and its text."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


class Peer:
    """A client that knows only the messages."""

    def __init__(self, channel):
        self._channel = channel

    def call(self, method, **fields):
        """Call a method whose messages are named after it."""
        request = getattr(inference_pb, f"{method}Request")(**fields)
        return self.send(method, request.SerializeToString())

    def send(self, method, data):
        """Send bytes as they are."""
        response = getattr(inference_pb, f"{method}Response", None)
        stub = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            response_deserializer=response.FromString if response else None,
        )
        return stub(data, timeout=TIMEOUT_S)

    def infer(self, request):
        """Call ModelInfer."""
        return self.send("ModelInfer", request.SerializeToString())

    def stream(self, requests):
        """Call ModelStreamInfer."""
        stub = self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            response_deserializer=inference_pb.ModelStreamInferResponse.FromString,
        )
        return stub(requests, timeout=TIMEOUT_S)


NAMES = {784: "digits", 1024: "letters", 64: "glyphs"}
"""The model that takes images of so many pixels."""


def raw_request(images, **fields):
    """A good request with its tensor as raw bytes; `fields` are added or changed."""
    tensor = {"name": "images", "datatype": "UINT8", "shape": images.shape}
    good = {"model_name": NAMES[images.shape[1]], "inputs": [tensor],
            "raw_input_contents": [images.tobytes()]}  # fmt: skip
    return inference_pb.ModelInferRequest(**{**good, **fields})


def typed_request(images, **fields):
    """A good request with its tensor as typed contents."""
    request = raw_request(images, raw_input_contents=[], **fields)
    request.inputs[0].contents.uint_contents.extend(images.ravel().tolist())
    return request


def probabilities_in(response):
    """The answer's tensor, in whichever form it came."""
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    if response.raw_output_contents:
        assert not output.HasField("contents")
        values = np.frombuffer(response.raw_output_contents[0], "<f4")
    else:
        values = np.array(output.contents.fp32_contents, np.float32)
    return values.reshape(output.shape)
