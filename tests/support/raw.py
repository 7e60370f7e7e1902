"""A client that sends bytes as they are."""

import grpc
import pytest

from serving.protocols.pb.digits.v1 import digits_pb2

CLASSIFY = "/digits.v1.DigitClassifier/Classify"
TIMEOUT_S = 20.0


def status_of(call):
    """The status that a call ends with, and its text."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


class Raw:
    """A channel that sends bytes as they are."""

    def __init__(self, address, *options):
        self.channel = grpc.insecure_channel(address, options=options)

    def method(self, path=CLASSIFY):
        """A method that takes bytes and answers with a ClassifyResponse."""
        return self.channel.unary_unary(
            path, response_deserializer=digits_pb2.ClassifyResponse.FromString
        )

    def classify(self, data):
        response: digits_pb2.ClassifyResponse = self.method()(data, timeout=TIMEOUT_S)
        return response
