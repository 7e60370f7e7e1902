"""Callers that send messages as bytes, and bare clients of the Open Inference Protocol."""

import threading
import time

import grpc
import numpy as np
import pytest

from digit_classifier.pb.digits.v1 import digits_pb2
from serving.oip import inference_pb
from serving.oip.inference_pb import SERVICE

CLASSIFY = "/digits.v1.DigitClassifier/Classify"
STREAM = "/digits.v1.DigitClassifier/ClassifyStream"
GET_MODEL = "/digits.v1.DigitClassifier/GetModel"
HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
TIMEOUT_S = 20.0


def status_of(call):
    """The status that a call ends with, and its text."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def ask(server, data, path=CLASSIFY, **metadata):
    """Make one call to its end; underscores in metadata stand for dashes."""
    sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    with grpc.insecure_channel(server.address) as channel:
        future = channel.unary_unary(path).future(data, timeout=TIMEOUT_S, metadata=sent)
        future.exception()
        return future


class Raw:
    """A channel that sends bytes as they are."""

    def __init__(self, address, *options):
        self.channel = grpc.insecure_channel(address, options=options)

    def classify(self, data):
        method = self.channel.unary_unary(
            CLASSIFY, response_deserializer=digits_pb2.ClassifyResponse.FromString
        )
        return method(data, timeout=TIMEOUT_S)


# A bare client of the Open Inference Protocol, and messages for it


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
            f"/{SERVICE}/{method}", response_deserializer=response.FromString if response else None
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
"""Number of pixels of an image to the model that takes it."""


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


# A caller that sends on a stream and reads none of its answers


MAX_SENT_BYTES = 32 << 20
"""Far more than the windows and buffers of both sides hold, some 10 MB, and far less than a server
takes in that does not stop its caller."""
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
"""Else gRPC's client keeps 4 MB of answers that nobody reads."""


def assert_stopped_until_it_reads(address, path, message, ask):
    """Check that flow control stops the caller, and that it gets every answer once it reads.

    Args:
        address: the server's.
        path: the stream's.
        message: sent again and again.
        ask: a call of somebody else, who is answered meanwhile.
    """
    num_sent = 0
    is_enough = threading.Event()

    def messages():
        nonlocal num_sent
        while not is_enough.is_set():
            num_sent += 1
            yield message

    with grpc.insecure_channel(address, options=SMALL_WINDOW) as channel:
        answers = channel.stream_stream(path)(messages(), timeout=TIMEOUT_S)
        seen = 0
        while num_sent != seen or num_sent < 2:
            seen = num_sent
            ask()
            time.sleep(0.3)  # a caller that nobody stops sends hundreds of messages meanwhile
            assert num_sent * len(message) <= MAX_SENT_BYTES, "nothing stops the caller"
        assert answers.is_active()
        is_enough.set()
        assert sum(1 for _ in answers) == num_sent
