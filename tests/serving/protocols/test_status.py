"""The tree of errors, drawn and real, and the table between it and what callers see."""

import base64
import pickle
import re

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import errors
from serving.errors import RequestError, ServerError, ServingError
from serving.protocols import error_info
from serving.protocols.status import TABLE, Failure, Status, StatusCode, error_from


def leaves(root):
    """Return the errors without others below them, of the tree: modules may refine some."""
    children = [each for each in root.__subclasses__() if each.__module__ == errors.__name__]
    return set().union(*map(leaves, children)) if children else {root}


def test_codes_are_those_of_grpc():
    expected = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: code.value for code in StatusCode} == expected


def test_every_error_has_a_status():
    assert set(TABLE) == leaves(ServingError) | {errors.InvalidRequest}  # TooLarge is one


def test_every_error_has_a_reason_of_its_own():
    assert len({row.reason for row in TABLE.values()}) == len(TABLE)


def test_every_error_is_the_callers_or_the_servers():
    assert leaves(RequestError) | leaves(ServerError) == leaves(ServingError)


def drawn_bases():
    """Each error of the tree in the docstring, and its parent there."""
    bases: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^ {4}([│├└─ ]*)(\w+)", errors.__doc__ or "", re.MULTILINE):
        del path[len(indent) // 4 :]
        bases[name] = path[-1] if path else "Exception"
        path.append(name)
    return bases


def test_the_drawn_tree_is_the_real_one():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert drawn_bases() == {each.__name__: (each.__base__ or each).__name__ for each in classes}


def test_statuses_that_reach_callers_lead_back_to_their_error():
    for error in TABLE:
        status = Status.of(error("any text"))
        reason = error_info.decode(dict(status.metadata)[error_info.TRAILER])
        assert type(error_from(Failure(status.code, "another", reason=reason), "here:1")) is error


@pytest.mark.parametrize(
    ("code", "pushback_s", "error"),
    [
        (StatusCode.INVALID_ARGUMENT, None, errors.InvalidRequest),
        (StatusCode.RESOURCE_EXHAUSTED, None, errors.TooLarge),  # of gRPC's own libraries
        (StatusCode.RESOURCE_EXHAUSTED, 0.1, errors.Overloaded),
        (StatusCode.UNIMPLEMENTED, None, errors.Unsupported),
        (StatusCode.UNKNOWN, None, errors.Unavailable),
    ],
)
def test_statuses_of_other_servers_have_an_error(code, pushback_s, error):
    failure = Failure(code, "any text", reason="OF_OTHERS", pushback_s=pushback_s)
    assert type(error_from(failure, "here:1")) is error


@given(st.binary(max_size=300))
def test_any_details_are_read_or_passed_over(data):
    assert isinstance(error_info.decode(data), str)
    assert isinstance(error_info.reason_in(data), str)


def test_details_are_read_by_the_messages_of_googleapis():
    """The same bytes as google.rpc.Status has them, whose package the tests don't need."""
    found = error_info.encode(8, "the queue is full", "OVERLOADED")
    assert base64.b64decode(found + "=" * (-len(found) % 4)) == (
        b"\x08\x08\x12\x11the queue is full\x1aG"
        b"\n(type.googleapis.com/google.rpc.ErrorInfo\x12\x1b\n\nOVERLOADED\x12\rdigit-serving"
    )


def test_internal_without_a_reason_is_a_broken_connection():
    failure = Failure(TABLE[errors.ModelError].code, "Received RST_STREAM with error code 2")
    error = error_from(failure, "here:1")
    assert type(error) is errors.Unavailable
    assert str(error) == "here:1: INTERNAL: Received RST_STREAM with error code 2"


def test_errors_survive_a_pipe_between_processes():
    for error in (errors.Overloaded(), errors.Overloaded("full"), errors.InvalidRequest("bad")):
        copied = pickle.loads(pickle.dumps(error))
        assert (type(copied), str(copied)) == (type(error), str(error))


@pytest.mark.parametrize("error", [errors.Overloaded(), errors.Unavailable("shutting down")])
def test_errors_that_pass_ask_for_another_attempt(error):
    assert Status.of(error).metadata[1:] == (("grpc-retry-pushback-ms", "100"),)
    assert len(Status.of(errors.ModelError()).metadata) == 1
    for again in (errors.Overloaded(retry_after_s=2.5), errors.Unavailable(retry_after_s=2.5)):
        assert Status.of(again).metadata[1:] == (("grpc-retry-pushback-ms", "2500"),)


def test_failure_is_none_of_a_servers_unless_that_is_said():
    """Else a broken connection would be charged to the budget of retries."""
    assert tuple(Failure(StatusCode.UNAVAILABLE, "gone")) == (14, "gone", False, "", None, False)


def status_of(size):
    """The bytes of a status with a reason, which an unknown field makes as long as this."""
    found = error_info.encode(8, "full", "OVERLOADED")
    begin = base64.b64decode(found + "=" * (-len(found) % 4))
    number = size - len(begin) - 3
    return begin + bytes((5 << 3 | 2, number & 0x7F | 0x80, number >> 7)) + bytes(number)


@pytest.mark.parametrize(("size", "reason"), [(16_384, "OVERLOADED"), (16_385, "")])
def test_details_of_sixteen_kibibytes_are_read(size, reason):
    data = status_of(size)
    assert len(data) == size
    assert error_info.reason_in(data) == reason
    assert error_info.decode(base64.b64encode(data).rstrip(b"=")) == reason


def test_details_with_other_characters_are_none():
    found = error_info.encode(8, "full", "OVERLOADED")
    for value in (found, found.encode()):
        assert error_info.decode(value) == "OVERLOADED"
    for wrong in ("!!!!", "\n \r\t", "é"):
        assert error_info.decode(found[:8] + wrong + found[8:]) == ""


def test_table_of_errors_is_this():
    """Statuses and reasons are a contract: programs compare them."""
    assert {error.__name__: (row.code.name, row.reason, row.http.value, row.is_retried)
            for error, row in TABLE.items()} == {
        "InvalidRequest": ("INVALID_ARGUMENT", "INVALID_REQUEST", 400, False),
        "TooLarge": ("RESOURCE_EXHAUSTED", "TOO_LARGE", 413, False),
        "Unsupported": ("UNIMPLEMENTED", "UNSUPPORTED", 501, False),
        "NotAllowed": ("FAILED_PRECONDITION", "NOT_ALLOWED", 403, False),
        "ModelNotFound": ("NOT_FOUND", "MODEL_NOT_FOUND", 404, False),
        "Unauthenticated": ("UNAUTHENTICATED", "UNAUTHENTICATED", 401, False),
        "Overloaded": ("RESOURCE_EXHAUSTED", "OVERLOADED", 429, True),
        "Unavailable": ("UNAVAILABLE", "UNAVAILABLE", 503, True),
        "DeadlineExceeded": ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 504, False),
        "ModelError": ("INTERNAL", "MODEL_ERROR", 500, False),
        "CorruptModel": ("INTERNAL", "CORRUPT_MODEL", 500, False),
        "DeviceError": ("INTERNAL", "DEVICE_ERROR", 500, False),
        "ConfigurationError": ("INTERNAL", "CONFIGURATION_ERROR", 501, False),
    }  # fmt: skip


@pytest.mark.parametrize("pushback_s", [None, 0.0, 2.5])
def test_pause_that_a_server_asks_for_is_the_errors(pushback_s):
    for code, kind in (
        (StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (StatusCode.UNAVAILABLE, errors.Unavailable),
        (StatusCode.DATA_LOSS, errors.Unavailable),
    ):
        reason = kind.__name__.upper() if code is not StatusCode.DATA_LOSS else ""
        error = error_from(Failure(code, "no", reason=reason, pushback_s=pushback_s), "here:1")
        assert isinstance(error, kind)
        assert isinstance(error, errors.Overloaded | errors.Unavailable)
        assert error.retry_after_s == pushback_s
