"""Client.infer: any model of a server, ours or another of the Open Inference Protocol."""

from typing import Any

import numpy as np
import pytest

from serving import AsyncClient, Client
from serving.errors import InvalidRequest, ModelNotFound, Unavailable
from serving.oip import inference_pb, protobuf, queries
from serving.oip.inference_pb import (
    SERVICE,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
)
from serving.oip.request import InferAnswer, understand
from serving.tensors import DTYPES, Array, Tensor, TensorSignature
from tests.serving.oip.test_oip_tensors import SHAPE, echo_of, samples
from tests.support.servers import fake_service


class Echo:
    """Answers the inputs of each request, and counts the questions for metadata."""

    def __init__(self, signature):
        self.signature = signature
        self.num_asked = 0
        self.is_raw = True
        self.last: Any = None

    def methods(self):
        return {"ModelMetadata": self.metadata, "ModelInfer": self.infer}

    def metadata(self, request, context):
        self.num_asked += 1
        fields = queries.model_metadata("echo", ("1",), self.signature)
        answer = inference_pb.ModelMetadataResponse(**fields)
        data: bytes = answer.SerializeToString()
        return data

    def infer(self, request, context):
        self.last = ModelInferRequest.FromString(request)
        sent = protobuf.sent_in(self.last)._replace(as_bytes=self.is_raw)
        asked, arrays = understand(sent, "echo", self.signature, 8)
        chosen = [arrays[at] for at in asked.outputs]
        answer = protobuf.message_of(InferAnswer(asked, chosen, "1", sent.id))
        data: bytes = answer.SerializeToString()
        return data


KINDS = [kind for kind in DTYPES if kind != "FP16"]
ARRAYS: dict[str, Array] = {f"in{i}": samples(kind) for i, kind in enumerate(KINDS)}


@pytest.fixture
def echo():
    return Echo(echo_of(*KINDS))


@pytest.fixture
def client(echo):
    with fake_service(SERVICE, echo.methods()) as address, Client(address) as client:
        yield client


@pytest.mark.usefixtures("client_transport")
async def test_digits_are_classified_as_by_the_classifier(server, classifier, images):
    expected = classifier.classify(images).probabilities
    async with AsyncClient(server.address) as awaited:
        answers = [await awaited.infer("digits", {"images": images}, version=1)]
    with Client(server.address) as client:
        answers.append(client.infer("digits", {"images": images}))
        for answer in answers:
            assert list(answer) == ["probabilities"]
            np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
        answer = client.infer("digits", {"images": images[:2].tolist()}, outputs=["probabilities"])
        np.testing.assert_allclose(answer["probabilities"], expected[:2], atol=1e-6)


def test_bad_calls_are_refused(server, images):
    with Client(server.address) as client:
        for inputs, text in (
            ({}, "expected the inputs images, got none"),
            ({"images": images, "more": 1}, "expected the inputs images, got images, more"),
            ({"images": images / 255}, r"expected images UINT8 \[N, 784\], got float64"),
            ({"images": images[:, :9]}, r"expected images UINT8 \[N, 784\], got the shape"),
            ({"images": images[:0]}, "expected at least 1 row, got 0"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                client.infer("digits", inputs)
        with pytest.raises(InvalidRequest, match="expected outputs 'probabilities', got 'x'"):
            client.infer("digits", {"images": images}, outputs=["x"])
        with pytest.raises(ModelNotFound, match="no model 'x'"):
            client.infer("x", {"images": images})
        with pytest.raises(ModelNotFound, match="no version '9'"):
            client.infer("digits", {"images": images}, version="9")


@pytest.mark.parametrize("is_raw", [True, False])
def test_every_type_goes_there_and_back(echo, client, is_raw):
    echo.is_raw = is_raw
    answer = client.infer("echo", ARRAYS)
    assert [*answer] == [f"out{i}" for i in range(len(KINDS))]
    for found, expected in zip(answer.values(), ARRAYS.values(), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, SHAPE)
        np.testing.assert_array_equal(found, expected)
        found[:] = expected  # it is the caller's own
    chosen = client.infer("echo", ARRAYS, outputs=["out3", "out0"], version="7")
    assert [*chosen] == ["out3", "out0"]
    assert echo.last.model_version == "7"


def test_inputs_of_any_name_and_type_of_python(echo, client):
    names = ("model", "inputs", "outputs", "version", "self", "input:0")
    echo.signature = TensorSignature(
        tuple(Tensor(name, "BYTES", (-1,)) for name in names),
        (Tensor("out", "BYTES", (-1,)),),
        True,
    )
    values = {name: [name, "x"] for name in names}
    assert client.infer("echo", values)["out"].tolist() == ["model", "x"]


def test_metadata_is_asked_for_once_and_again_after_a_refusal(echo, client):
    for _ in range(3):
        client.infer("echo", ARRAYS)
    assert echo.num_asked == 1
    echo.signature = echo_of("FP32")
    ones = np.ones((1, 2, 1), np.float32)
    with pytest.raises(InvalidRequest):  # refused by the known signature
        client.infer("echo", {"in0": ones})
    np.testing.assert_array_equal(client.infer("echo", {"in0": ones})["out0"], ones)
    assert echo.num_asked == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff",
        ModelMetadataResponse(inputs=[{"name": "x", "datatype": "BF16"}]).SerializeToString(),
    ],
)
def test_broken_metadata_is_unavailable(echo, answer):
    methods = echo.methods() | {"ModelMetadata": lambda *_: answer}
    with (
        fake_service(SERVICE, methods) as address,
        Client(address) as client,
        pytest.raises(Unavailable, match="the server is broken: it answered no metadata"),
    ):
        client.infer("echo", ARRAYS)


OUTPUT = {"name": "out", "datatype": "FP32", "shape": [2]}


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs": [OUTPUT]},
        {"outputs": [OUTPUT], "raw_output_contents": [bytes(7)]},
        {"outputs": [OUTPUT], "raw_output_contents": [bytes(8), bytes(8)]},
        {"outputs": [OUTPUT | {"datatype": "FP8"}], "raw_output_contents": [bytes(8)]},
        {"outputs": [OUTPUT | {"shape": [-1, -2]}], "raw_output_contents": [bytes(8)]},
        {"outputs": [OUTPUT | {"shape": [1] * 65}], "raw_output_contents": [bytes(4)]},
        {"outputs": [OUTPUT | {"datatype": "BYTES"}], "raw_output_contents": [b"\1\0\0\0\xff" * 2]},
        {"outputs": [OUTPUT | {"datatype": "FP16"}]},
    ],
    ids=str,
)
def test_broken_answer_is_unavailable(echo, fields):
    answer = ModelInferResponse(**fields).SerializeToString()
    methods = echo.methods() | {"ModelInfer": lambda *_: answer}
    with (
        fake_service(SERVICE, methods) as address,
        Client(address) as client,
        pytest.raises(Unavailable, match="the server is broken: it answered no tensors"),
    ):
        client.infer("echo", ARRAYS)
