"""Bytes that the protocols share: numbers, frames, reasons, and what is wrong with a message."""

import base64

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from serving.errors import InvalidRequest
from serving.oip import inference_pb
from serving.protocols import error_info, parse, varint
from serving.protocols.framing import PREFIX_BYTES, frame, frame_prefix
from serving.protocols.method import Replies
from serving.protocols.reflection import reflection_methods


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, b"\0"), (1, b"\1"), (127, b"\x7f"), (128, b"\x80\1"), (300, b"\xac\2"),
        (16_383, b"\xff\x7f"), (16_384, b"\x80\x80\1"), (2**64 - 1, b"\xff" * 9 + b"\1"),
    ],
)  # fmt: skip
def test_number_has_seven_bits_a_byte(number, encoded):
    assert varint(number) == encoded


def test_frame_is_a_flag_the_length_and_the_message():
    assert frame(b"hi") == b"\0\0\0\0\2hi"
    assert (frame_prefix(0x01020304), PREFIX_BYTES) == (b"\0\1\2\3\4", 5)


def test_malformed_message_is_named():
    assert parse(health_pb2.HealthCheckRequest, b"\x0a\1a").service == "a"
    for kind, name in (
        (health_pb2.HealthCheckRequest, "a grpc.health.v1.HealthCheckRequest"),
        (inference_pb.ModelInferRequest, "an inference.ModelInferRequest"),
    ):
        with pytest.raises(InvalidRequest, match=rf"^expected {name}, got 2 bytes that are none$"):
            parse(kind, b"\xff\xff")


# google.rpc.Status with an ErrorInfo, byte by byte

TYPE = b"type.googleapis.com/google.rpc.ErrorInfo"
INFO = b"\x0a\4FULL\x12\x0ddigit-serving"
DETAIL = b"\x0a\x28" + TYPE + b"\x12\x15" + INFO
STATUS = b"\x08\x08\x12\4text\x1a\x41" + DETAIL


def test_reason_is_written_as_google_has_it():
    assert (len(TYPE), len(INFO), len(DETAIL)) == (0x28, 0x15, 0x41)
    found = error_info.encode(8, "text", "FULL")
    assert "=" not in found
    assert base64.b64decode(found + "=" * (-len(found) % 4)) == STATUS
    assert error_info.decode(found) == error_info.decode(found.encode()) == "FULL"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (STATUS, "FULL"), (STATUS[2:], "FULL"), (b"\x09" + bytes(8) + STATUS, "FULL"),
        (b"\x0d" + bytes(4) + STATUS, "FULL"), (STATUS + DETAIL, "FULL"),
        (STATUS.replace(b"digit-", b"other-"), ""),
        (STATUS.replace(b"ErrorInfo", b"OtherInfo"), ""),
        (STATUS[:-1], ""), (b"", ""), (b"\x0b" + STATUS, ""), (b"\x80" * 20, ""),
    ],
    ids=range(11),
)  # fmt: skip
def test_reason_is_read_where_there_is_one_of_ours(status, reason):
    assert error_info.reason_in(status) == reason


@pytest.mark.parametrize(("size", "reason"), [(16 << 10, "FULL"), ((16 << 10) + 1, "")])
def test_trailer_of_16_kibibytes_is_read(size, reason):
    """Others send them: a longer one would cost more than its reason is worth."""
    padding = size - len(STATUS) - 3
    longer = STATUS + b"\x22" + varint(padding) + bytes(padding)
    assert len(longer) == size
    assert error_info.reason_in(longer) == reason


# Reflection


def test_both_versions_of_reflection_list_each_service():
    methods = reflection_methods({})
    assert [(each.path, each.name, type(each)) for each in methods] == [
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "other", Replies),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "other", Replies),
    ]
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    for method in methods:
        (reply,) = method.replies(request)  # type: ignore[attr-defined]
        found = reflection_pb2.ServerReflectionResponse.FromString(reply)
        assert {each.name for each in found.list_services_response.service} == {
            "inference.GRPCInferenceService", "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("inference.GRPCInferenceService.ModelInfer", True), ("grpc.health.v1.Health.Check", True),
        ("inference.ModelInferRequest", True), ("nobody.Knows", False),
        ("inference.GRPCInferenceService.None", False),
    ],
)  # fmt: skip
def test_symbol_has_its_file(symbol, file):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
    (reply,) = reflection_methods({})[0].replies(request.SerializeToString())  # type: ignore[attr-defined]
    found = reflection_pb2.ServerReflectionResponse.FromString(reply)
    assert found.HasField("file_descriptor_response") is file
    assert file or found.error_response.error_code == 5
