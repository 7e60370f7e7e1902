"""Server reflection, as grpcurl uses it: only where asked for, and then of every service."""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.support.raw import TIMEOUT_S
from tests.support.servers import on_both, running_server

PATHS = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
         for version in ("v1", "v1alpha")]  # fmt: skip


@pytest.fixture(scope="module")
def channel(models, transport):
    options = ("--device", "cpu", "--transport", transport, "--reflection", "--access-log", "1")
    with running_server(models, *options) as server, grpc.insecure_channel(server.address) as it:
        yield it


@on_both
def test_every_service_is_listed(channel):
    assert set(ProtoReflectionDescriptorDatabase(channel).get_services()) == {
        "digits.v1.DigitClassifier",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("digits.v1.DigitClassifier/Classify", {"images": 1}),
        ("grpc.health.v1.Health/Check", {"service": 1}),
        (
            "inference.GRPCInferenceService/ModelInfer",
            {"model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "inputs": 5,
             "outputs": 6, "raw_input_contents": 7},
        ),
    ],
)  # fmt: skip
def test_methods_are_described_with_their_messages(channel, method, fields):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, name = method.split("/")
    found = pool.FindServiceByName(service).FindMethodByName(name).input_type
    assert {field.name: field.number for field in found.fields} == fields


def ask(channel, path, *requests):
    """Send raw requests; return the parsed answers."""
    parse = reflection_pb2.ServerReflectionResponse.FromString
    return list(
        channel.stream_stream(path, response_deserializer=parse)(iter(requests), timeout=TIMEOUT_S)
    )


@pytest.mark.parametrize("path", PATHS)
def test_unknown_symbols_are_not_found_and_the_stream_goes_on(channel, path):
    request = reflection_pb2.ServerReflectionRequest
    questions = (request(file_containing_symbol="no.Such"), request(list_services="*"))
    unknown, listed = ask(channel, path, *(question.SerializeToString() for question in questions))
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert len(listed.list_services_response.service) == 4


@pytest.mark.parametrize("path", PATHS)
def test_malformed_request_is_refused(channel, path):
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, path, b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("path", PATHS)
def test_there_is_none_unless_asked_for(server, path):
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        ask(channel, path)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
