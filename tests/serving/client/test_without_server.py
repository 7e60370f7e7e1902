"""What a client sends, reads and refuses, without a server."""

import asyncio
import base64
import json
import sys
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import AsyncClient, Client
from serving.client import retries, transport
from serving.client.addresses import address_for_h2
from serving.client.client import _checked
from serving.client.credentials import Credentials, client_span
from serving.client.failures import trailers_failure
from serving.client.grpcio import _OPTIONS, GrpcioLoopTransport, GrpcioTransport, _failure, _taken
from serving.client.h2 import session, threads
from serving.client.infer_messages import infer_requests, joined, outputs_of
from serving.client.model_messages import metadata_request, model_info, ready_models
from serving.errors import ConfigurationError, InvalidRequest, TooLarge, Unavailable
from serving.oip import inference_pb
from serving.protocols import error_info
from serving.protocols.status import Failure, StatusCode
from serving.tensors import ModelInfo, Outputs, Tensor
from tests.support.locks import KeptLock, waits

# Messages of tensors


def info(**changed):
    facts = {
        "name": "net", "version": "1", "versions": ("1",), "default_version": "1",
        "canary_version": None, "inputs": (Tensor("x", "FP32", (-1, -1)),),
        "outputs": (Tensor("y", "FP32", (-1, 3)),), "is_batchable": True, "batching": "",
        "device": "", "precision": "", "max_batch_size": 8, "max_request_rows": None,
        "max_message_bytes": None, "labels": (), "pictures": None, "test_accuracy": None,
    }  # fmt: skip
    return ModelInfo(**facts | changed)


def parsed(requests):
    return [inference_pb.ModelInferRequest.FromString(each) for each in requests]


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    most_rows=st.none() | st.integers(1, 12),
    room=st.none() | st.integers(4, 400),
    columns=st.integers(1, 4),
    output=st.sampled_from([3, 2 << 20, 1 << 19]),
)
def test_rows_of_all_messages_are_those_of_the_call(num_rows, most_rows, room, columns, output):
    """In order, none beyond a limit, and in no more messages than two times the fewest."""
    model = info(
        max_request_rows=most_rows,
        max_message_bytes=None if room is None else 4096 + room,
        outputs=(Tensor("y", "FP32", (-1, output)),),
    )
    rows = np.arange(num_rows * columns, dtype=np.float32).reshape(num_rows, columns)
    limits = [most_rows or num_rows, max(1, (8 << 20) // (4 * output)), num_rows]
    if room is not None:
        if room < 4 * columns:
            with pytest.raises(TooLarge):
                infer_requests("net", "", model, {"x": rows}, ())
            return
        limits.append(room // (4 * columns))
    requests = parsed(infer_requests("net", "", model, {"x": rows}, ()))
    parts = [np.frombuffer(each.raw_input_contents[0], np.float32) for each in requests]
    np.testing.assert_array_equal(np.concatenate(parts), rows.reshape(-1))
    sizes = [each.inputs[0].shape[0] for each in requests]
    assert sum(sizes) == num_rows
    assert max(sizes) <= min(limits)
    assert len(sizes) <= 2 * -(-num_rows // min(limits))


def test_request_has_the_names_the_parameters_and_the_outputs():
    rows = np.ones((2, 3), np.float32)
    parameters = {"text": "a", "number": 7, "flag": True}
    (request,) = parsed(infer_requests("net", "7", info(), {"x": rows}, ("y",), parameters))
    assert (request.model_name, request.model_version) == ("net", "7")
    assert [(each.name, each.datatype, [*each.shape]) for each in request.inputs] == [
        ("x", "FP32", [2, 3])
    ]
    assert [each.name for each in request.outputs] == ["y"]
    found = {name: each.WhichOneof("parameter_choice") for name, each in request.parameters.items()}
    assert found == {"text": "string_param", "number": "int64_param", "flag": "bool_param"}


@pytest.mark.parametrize(("num_bytes", "fits"), [(4096 + 8, True), (4095 + 8, False)])
def test_message_of_one_row_takes_its_bytes_and_some_more(num_bytes, fits):
    model, rows = info(max_message_bytes=num_bytes), np.ones((1, 2), np.float32)
    if fits:
        assert len(infer_requests("net", "", model, {"x": rows}, ())) == 1
        return
    text = f"model net: a row of it takes 8 bytes, and a message has at most {num_bytes}"
    with pytest.raises(TooLarge, match=text):
        infer_requests("net", "", model, {"x": rows}, ())


@pytest.mark.parametrize("most", [0, 1, 4095, 4096, 4097])
def test_message_that_takes_no_row_refuses_each_of_several(most):
    model, rows = info(max_message_bytes=most or 1), np.ones((3, 2), np.float32)
    with pytest.raises(TooLarge, match="a row of it takes 8 bytes"):
        infer_requests("net", "", model, {"x": rows}, ())


def test_texts_take_their_bytes_and_a_length_each():
    inputs = (Tensor("x", "BYTES", (-1,)),)
    model, rows = info(inputs=inputs, max_message_bytes=4096 + 2 * 7), ["abc", "äb"]
    assert len(infer_requests("net", "", model, {"x": rows}, ())) == 1
    assert len(infer_requests("net", "", model, {"x": [*rows, ""]}, ())) == 2


def test_model_that_is_not_batched_is_never_divided():
    rows = np.ones((40, 2), np.float32)
    model = info(is_batchable=False, max_request_rows=None, max_message_bytes=4096 + 320)
    assert len(infer_requests("net", "", model, {"x": rows}, ())) == 1
    with pytest.raises(TooLarge, match="it, which is not batched, so not divided, takes 328 bytes"):
        infer_requests("net", "", model, {"x": np.ones((41, 2), np.float32)}, ())


def test_inputs_of_unlike_numbers_of_rows_are_not_divided():
    both = (Tensor("x", "FP32", (-1, 1)), Tensor("z", "FP32", (-1, 1)))
    feeds = {"x": np.ones((2, 1), np.float32), "z": np.ones((3, 1), np.float32)}
    model = info(inputs=both, max_request_rows=1)
    with pytest.raises((TooLarge, InvalidRequest)):
        parsed(infer_requests("net", "", model, feeds, ()))[1]


def test_answers_of_several_messages_are_joined_in_order():
    parts = [Outputs({"y": np.array([[at]])}, str(at)) for at in range(3)]
    found = joined(parts, "x:1")
    assert (found["y"].tolist(), found.model_version) == ([[0], [1], [2]], "2")
    assert joined(parts[:1], "x:1") is parts[0]
    for wrong in (Outputs({"z": np.array([[1]])}, ""), Outputs({"y": np.array([1])}, "")):
        with pytest.raises(Unavailable, match=r"x:1: .*parts that don't fit together"):
            joined([*parts, wrong] if "y" in wrong else [wrong, *parts], "x:1")


def test_contents_of_bytes_are_those_of_the_model():
    described = Tensor("y", "BYTES", (-1,), content="bytes")
    output = {"name": "y", "datatype": "BYTES", "shape": [1]}
    data = inference_pb.ModelInferResponse(
        outputs=[output], raw_output_contents=[b"\1\0\0\0\xff"], model_version="9"
    ).SerializeToString()
    found = outputs_of(data, "x:1", info(outputs=(described,)))
    assert (found["y"].tolist(), found.model_version) == ([b"\xff"], "9")
    with pytest.raises(Unavailable):
        outputs_of(data, "x:1")


# Messages about models


def metadata(**changed):
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    fields = {"name": "net", "versions": ["2", "1"], "inputs": [tensor], "outputs": [tensor]}
    return inference_pb.ModelMetadataResponse(**fields | changed).SerializeToString()


def config(max_batch_size=8, **parameters):
    values = {name: {"string_value": text} for name, text in parameters.items()}
    return inference_pb.ModelConfigResponse(
        config={"name": "net", "max_batch_size": max_batch_size, "parameters": values}
    ).SerializeToString()


FACTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "version": ({"version": "7"}, {"version": "7"}),
    "versions": (
        {"versions": '["3","2"]'}, {"versions": ("3", "2"), "default_version": "3", "version": "3"}
    ),
    "default_version": ({"default_version": "1"}, {"default_version": "1"}),
    "canary_version": ({"canary_version": "1"}, {"canary_version": "1"}),
    "batching": ({"batching": "on"}, {"batching": "on"}),
    "device": ({"device": "cpu"}, {"device": "cpu"}),
    "precision": ({"precision": "int8"}, {"precision": "int8"}),
    "optimized": ({"optimized": "int8 of mine"}, {"optimized": "int8 of mine"}),
    "not_served": ({"not_served": '{"4": "corrupt"}'}, {"not_served": {"4": "corrupt"}}),
    "max_request_rows": ({"max_request_rows": "9"}, {"max_request_rows": 9}),
    "max_message_bytes": ({"max_message_bytes": "99"}, {"max_message_bytes": 99}),
    "labels": ({"labels": '["a"]'}, {"labels": ("a",)}),
    "pictures": ({"pictures": '{"size": [2, 2]}'}, {"pictures": {"size": [2, 2]}}),
    "test_accuracy": ({"test_accuracy": "0.5"}, {"test_accuracy": 0.5}),
    "unknown": ({"later": "no JSON"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_parameter_of_a_configuration_is_a_fact_of_the_model(name):
    parameters, facts = FACTS[name]
    plain = model_info(metadata(), config(), "", "x:1")
    found = model_info(metadata(), config(**parameters), "", "x:1")
    changed = {each for each in ModelInfo.__dataclass_fields__
               if getattr(found, each) != getattr(plain, each)}  # fmt: skip
    assert changed == facts.keys()
    assert {each: getattr(found, each) for each in facts} == facts


def test_facts_of_a_server_without_configurations():
    found = model_info(metadata(), None, "", "x:1")
    assert (found.version, found.versions, found.default_version) == ("2", ("2", "1"), "2")
    assert (found.is_batchable, found.max_batch_size, found.labels) == (False, 0, ())
    assert (found.batching, found.device, found.precision) == ("", "", "")
    assert model_info(metadata(), None, "stable", "x:1").version == "stable"
    assert model_info(metadata(versions=[]), None, "", "x:1").default_version == ""
    assert model_info(metadata(), config(1), "", "x:1").is_batchable
    assert not model_info(metadata(), config(0), "", "x:1").is_batchable


def test_axes_and_contents_are_those_of_the_named_tensors():
    found = model_info(
        metadata(), config(axes='{"x": ["N", "L"]}', contents='{"x": "bytes"}'), "", "x:1"
    )
    for each in (*found.inputs, *found.outputs):
        assert (each.names, each.content) == (("N", "L"), "bytes")


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_request_rows": "true"}, {"max_request_rows": "1.5"}, {"axes": "[]"},
        {"axes": '{"x": "NL"}'}, {"axes": '{"x": [1]}'}, {"contents": '{"x": 1}'},
        {"versions": "[1]"}, {"test_accuracy": "true"}, {"pictures": "[]"},
        {"not_served": "[]"}, {"not_served": '{"4": 1}'}, {"contents": "[]"}, {"labels": "{}"},
        {"versions": "{}"}, {"max_message_bytes": '"9"'}, {"max_request_rows": '"9"'},
    ],
    ids=str,
)  # fmt: skip
def test_parameter_of_another_type_is_a_broken_server(parameters):
    with pytest.raises(Unavailable, match="x:1: the server is broken: it answered a configuration"):
        model_info(metadata(), config(**parameters), "", "x:1")


def test_index_names_each_ready_model_once():
    rows = [("b", "READY"), ("a", "UNAVAILABLE"), ("b", "READY"), ("c", "READY")]
    data = inference_pb.RepositoryIndexResponse(
        models=[{"name": name, "state": state} for name, state in rows]
    ).SerializeToString()
    assert ready_models(data, "x:1") == ["b", "c"]
    with pytest.raises(Unavailable, match=r"x:1: .*no index of models"):
        ready_models(b"\xff", "x:1")
    request = inference_pb.ModelMetadataRequest.FromString(metadata_request("net", "7"))
    assert (request.name, request.version) == ("net", "7")


# Metadata, tokens, traces


@pytest.mark.parametrize(
    ("given_metadata", "expected"),
    [
        (None, ()), ({}, ()), ({"X-Tenant": "A b"}, (("x-tenant", "A b"),)),
        ({"a_b": "", "c": "~"}, (("a_b", ""), ("c", "~"))), ({"1": "x"}, (("1", "x"),)),
    ],
)  # fmt: skip
def test_metadata_that_can_be_sent_have_small_names(given_metadata, expected):
    assert _checked(given_metadata) == expected


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (3, "metadata: expected texts by name, got 3"),
        ({3: "a"}, "expected a name of metadata such as x-tenant, got 3"),
        *(({name: "a"}, f"expected a name of metadata such as x-tenant, got '{name}'")
          for name in ("", "-", "a b", "ä", ":path", "Grpc-Timeout", "x-BIN", "a.b")),
        *(({"x": value}, "metadata x: expected printable ASCII") for value in ("ä", "a\nb", 3)),
    ],
)  # fmt: skip
def test_metadata_that_can_not_be_sent_are_named(wrong, text):
    with pytest.raises(InvalidRequest, match=f"^{text}$"):
        _checked(wrong)


def test_token_is_metadata_with_and_without_traces(monkeypatch):
    from opentelemetry import propagate

    expected = (("authorization", "Bearer t"),)
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    assert Credentials("t", None, None, None).metadata == expected
    assert Credentials(None, None, None, None).metadata == ()
    with client_span("/a.B/C", "x:1") as none:
        assert none is None
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace())
    monkeypatch.setattr(propagate, "inject", lambda fields: fields.update(traceparent="00-1"))
    assert Credentials("t", None, None, None).metadata == (*expected, ("traceparent", "00-1"))


def test_span_of_a_call_says_what_was_called_and_where(monkeypatch):
    from opentelemetry import trace

    found = []

    class Tracer:
        def start_as_current_span(self, name, **options):
            found.append((name, options))

    monkeypatch.setattr(trace, "get_tracer", lambda name: Tracer())
    client_span("/a.b.Service/Method", "x:1")
    ((name, options),) = found
    assert (name, options["kind"]) == ("a.b.Service/Method", trace.SpanKind.CLIENT)
    assert options["attributes"] == {
        "rpc.system": "grpc", "rpc.service": "a.b.Service", "rpc.method": "Method",
        "server.address": "x:1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("tö", None, None, None), "a token must be printable ASCII without blanks"),
        (("a\tb", None, None, None), "a token must be printable ASCII without blanks"),
        (("", None, None, None), "a token must be printable ASCII without blanks"),
        ((" a", None, None, None), "a token must be printable ASCII without blanks"),
        ((None, None, "cert", None), "tls_cert and tls_key go together"),
        ((None, "ca", None, "key"), "tls_cert and tls_key go together"),
        ((None, None, "cert", "key"), "tls_cert needs tls_ca, which makes the connection TLS"),
    ],
)
def test_credentials_that_do_not_fit_are_refused(arguments, text):
    with pytest.raises(ConfigurationError, match=f"^{text}$"):
        Credentials(*arguments)


# Failures, as the trailers of an answer say them


@pytest.mark.parametrize(
    ("pushback", "expected"),
    [
        ("", None), ("0", 0.0), ("250", 0.25), ("-1", -0.001), ("soon", -1.0),
        ("1234567890123456", 123456789012 / 1e3),
    ],
)  # fmt: skip
def test_pushback_is_read_in_milliseconds(pushback, expected):
    found = trailers_failure(StatusCode.UNAVAILABLE, "t", [("grpc-retry-pushback-ms", pushback)])
    assert found == Failure(StatusCode.UNAVAILABLE, "t", False, "", expected)


@pytest.mark.parametrize("is_binary", [True, False])
def test_reason_is_read_from_both_forms_of_its_trailer(is_binary):
    text = error_info.encode(8, "full", "OVERLOADED")
    value = base64.b64decode(text + "=" * (-len(text) % 4)) if is_binary else text
    found = trailers_failure(StatusCode.RESOURCE_EXHAUSTED, "full", [(error_info.TRAILER, value)])
    assert found == Failure(StatusCode.RESOURCE_EXHAUSTED, "full", True, "OVERLOADED")


class CoreError:
    def __init__(self, text, *trailers):
        self.text, self.trailers = text, trailers

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return self.text

    def trailing_metadata(self):
        return self.trailers


@pytest.mark.parametrize(
    ("text", "is_answer"),
    [
        ("not now", True), (None, True), ("failed to connect to all addresses", False),
        ("Socket closed", False), ("the Socket closed", True), ("GOAWAY received", False),
    ],
)  # fmt: skip
def test_failure_of_core_is_an_answer_unless_core_made_it(text, is_answer):
    assert _failure(CoreError(text)) == Failure(StatusCode.UNAVAILABLE, text or "", is_answer)
    details = (error_info.TRAILER, error_info.encode(14, "x", "UNAVAILABLE"))
    assert _failure(CoreError(text, details)).is_answer, "a reason is a server's"


def test_core_has_the_options_of_our_own_transport():
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
    assert [(name, json.loads(value) if name == "grpc.service_config" else value)
            for name, value in _OPTIONS] == [
        ("grpc.service_config", config),
        ("grpc.keepalive_time_ms", 1_500),
        ("grpc.keepalive_timeout_ms", 1_250),
        ("grpc.http2.ping_timeout_ms", 1_250),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("has_tls", [False, True], ids=["plaintext", "TLS"])
@pytest.mark.parametrize(
    ("target", "opened", "authority"),
    [
        ("dns:///a:1", "dns:///a:1", None),
        ("127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1"),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1"),
    ],
)  # fmt: skip
def test_channel_of_core_is_opened_with_these_options(
    has_tls, target, opened, authority, monkeypatch
):
    """A list of addresses is no valid authority: servers would refuse its calls."""
    found = []

    def channel(target, credentials=None, *, options):
        found.append((target, credentials, options))
        return SimpleNamespace(unary_unary=None, unary_stream=None)

    for library in (grpc, grpc.aio):
        monkeypatch.setattr(library, "insecure_channel", channel)
        monkeypatch.setattr(library, "secure_channel", channel)
    monkeypatch.setattr(grpc, "ssl_channel_credentials", lambda *files: files)
    files: Any = (b"ca", b"key", b"cert") if has_tls else None
    credentials: Any = SimpleNamespace(files=files)
    GrpcioTransport(target, credentials)
    GrpcioLoopTransport(target, credentials)
    longest = ("grpc.max_receive_message_length", 257 << 20)
    named = [] if authority is None else [("grpc.default_authority", authority)]
    assert found == [(opened, files, [*_OPTIONS, longest, *named])] * 2


def test_answer_that_core_finds_too_long_is_too_large():
    text = "CLIENT: Received message larger than max (5 vs. 4)"
    assert _failure(CoreError(text)) == Failure(
        StatusCode.RESOURCE_EXHAUSTED,
        "the answer has more than 269484032 bytes, the most that this client takes",
        True,
        "TOO_LARGE",
    )


async def test_closed_channel_of_core_cuts_calls_off():
    without = Credentials(None, None, None, None)
    awaited, blocking = GrpcioLoopTransport("x:1", without), GrpcioTransport("x:1", without)
    await awaited.close()
    assert await awaited.exchange("/a.B/C", b"", 1.0) == transport.CUT_OFF
    await blocking.close()
    assert await blocking.exchange("/a.B/C", b"", 1.0) == transport.CUT_OFF
    assert await (await blocking.send("/a.B/C", b"", 1.0)).result() == transport.CUT_OFF


def test_limits_are_those_of_the_documentation():
    assert (transport.KEEPALIVE_TIME_S, transport.KEEPALIVE_TIMEOUT_S) == (1.5, 1.25)
    assert (session.CONNECT_S, threads._STALLED_S, threads._IDLE_S) == (5.0, 2.75, 0.05)
    assert (threads._BLOCK_S, threads._LOOK_S, threads._READ_BYTES) == (1.0, 1.0, 256 << 10)
    assert session._LIMITS.stream_window_bytes == 1 << 30
    assert session._LIMITS.max_frame_bytes == 1 << 20
    assert session.STREAMS.stream_window_bytes == session.STREAMS.max_frame_bytes == 1 << 20


# Addresses


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80, "127.0.0.1:80")), ("[::1]:80", ("::1", 80, "[::1]:80")),
        ("name:80", ("name", 80, "name:80")), ("::1:80", None), ("name:", None), (":80", None),
        ("a:1,b:2", None), ("unix:/a:1", None), ("name:x", None),
    ],
)  # fmt: skip
def test_h2_takes_one_host_and_port(target, expected):
    if expected is None:
        with pytest.raises(ConfigurationError, match="transport h2 takes one host:port, got"):
            address_for_h2("h2", target)
    else:
        found = address_for_h2("h2", target)
        assert (found.host, found.port, found.authority) == expected


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_proxy_is_left_to_core(name, monkeypatch):
    for each in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(each, raising=False)
    assert address_for_h2("auto", "127.0.0.1:1") is not None
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert address_for_h2("auto", "127.0.0.1:1") is None
    assert address_for_h2("h2", "127.0.0.1:1") is not None


# Calls in flight, on a transport of a test


class Scripted(transport.Transport):
    """Ends each call as a list says, answers the others, and counts those in flight."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.num_open = self.most_open = self.num_cancelled = 0
        self.sent = []

    async def stream(self, path, message, timeout_s, metadata=()):
        self.sent.append((path, message, timeout_s, metadata))
        outcomes = self.outcomes.pop(0)
        scripted = self

        class Stream:
            def cancel(self):
                scripted.num_cancelled += 1

            async def next(self):
                return outcomes.pop(0)

        return Stream()

    async def send(self, path, message, timeout_s, metadata=()):
        self.sent.append((path, message, timeout_s, metadata))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        outcome = self.outcomes.pop(0) if self.outcomes else b"re " + message
        scripted = self

        class Call:
            def cancel(self):
                scripted.num_cancelled += 1

            async def result(self):
                scripted.num_open -= 1
                return outcome

        return Call()

    async def close(self):
        """Do nothing."""


@pytest.fixture(params=[Client, AsyncClient])
def call(request, monkeypatch):
    """Call a method of a client of either kind over a transport of a test."""

    def use(scripted, method, *arguments, **options):
        kind = request.param
        monkeypatch.setattr(kind, "_new_transport", lambda self: scripted)
        client = kind("127.0.0.1:1", timeout_s=7.0)
        if kind is Client:
            return getattr(client, method)(*arguments, **options)

        async def awaited():
            return await getattr(client, method)(*arguments, **options)

        return asyncio.run(awaited())

    return use


def test_messages_of_a_request_are_eight_at_a_time_and_in_order(call):
    scripted = Scripted()
    messages = [b"%d" % at for at in range(30)]
    answers = call(scripted, "call_many", "/a.B/C", messages, metadata={"x": "1"})
    assert answers == [b"re " + each for each in messages]
    assert scripted.most_open == 8
    assert {(path, more) for path, _, _, more in scripted.sent} == {("/a.B/C", (("x", "1"),))}


def test_messages_after_one_that_fails_are_cancelled(call):
    broken = Failure(StatusCode.INTERNAL, "bug", True, "MODEL_ERROR")
    scripted = Scripted(b"one", broken)
    with pytest.raises(Exception, match="bug"):
        call(scripted, "call_many", "/a.B/C", [b""] * 30)
    assert scripted.num_cancelled == scripted.num_open == 7


def test_call_takes_the_clients_time_or_its_own(call):
    for options, most_s in (({}, 7.0), ({"timeout_s": 3.0}, 3.0)):
        scripted = Scripted()
        assert call(scripted, "call", "/a.B/C", b"hi", **options) == b"re hi"
        ((_, _, timeout_s, _),) = scripted.sent
        assert most_s - 1 < timeout_s <= most_s


def test_first_failure_is_looked_into_once_and_only_of_a_connection(call, monkeypatch):
    looked = []

    def mismatch(target, timeout_s, *, is_tls):
        looked.append((target, timeout_s, is_tls))
        return "the server speaks TLS"

    monkeypatch.setattr("serving.client.client.tls_mismatch", mismatch)
    gone = Failure(StatusCode.UNAVAILABLE, "gone")
    with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:1: the server speaks TLS$"):
        call(Scripted(gone), "call", "/a.B/C", b"")
    assert looked == [("127.0.0.1:1", 1.0, False)]
    for known in (
        gone._replace(is_answer=True, pushback_s=-1.0), gone._replace(is_permanent=True),
        Failure(StatusCode.DEADLINE_EXCEEDED, "gone"),
    ):  # fmt: skip
        with pytest.raises(Exception, match="gone"):
            call(Scripted(known), "call", "/a.B/C", b"")
    assert len(looked) == 1
    assert call(Scripted(b"an answer"), "call", "/a.B/C", b"") == b"an answer"
    assert len(looked) == 1


def test_client_that_never_had_an_answer_gives_up_after_five_seconds(call, monkeypatch):
    """One that had some tries until its timeout; the clock goes on by the pauses alone."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: now.s))
    monkeypatch.setattr("serving.client.client.tls_mismatch", lambda *_, **__: None)

    async def pause(_, seconds):
        now.s += seconds

    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "_pause", pause)
    gone = Failure(StatusCode.UNAVAILABLE, "gone")
    with pytest.raises(Unavailable, match="gone"):
        call(Scripted(*[gone] * 99), "call", "/a.B/C", b"")
    assert 4 < now.s < 5
    monkeypatch.setattr(Client, "_new_transport", lambda self: Scripted(b"yes", *[gone] * 99))
    client, now.s = Client("127.0.0.1:1", timeout_s=7.0), 0.0
    assert client.call("/a.B/C", b"") == b"yes"
    with pytest.raises(Unavailable, match="gone"):
        client.call("/a.B/C", b"")
    assert 6 < now.s < 7


def test_client_waits_until_the_server_serves(call):
    unknown, not_serving, serving = b"", b"\x08\x02", b"\x08\x01"
    scripted = Scripted(unknown, not_serving, serving)
    assert call(scripted, "wait_ready") is None
    assert len(scripted.sent) == 3
    with pytest.raises(Unavailable, match="the server does not serve yet"):
        call(Scripted(*[b"\x08\x02"] * 99), "wait_ready", 0.2)
    late = Failure(StatusCode.DEADLINE_EXCEEDED, "no answer within the timeout")
    with pytest.raises(Unavailable, match="no answer within the timeout"):
        call(Scripted(late), "wait_ready", 0.2)


def test_closed_client_says_so():
    client = Client("127.0.0.1:1")
    client.close()
    with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:1: the client is closed$"):
        client.call("/a.B/C", b"")
    assert (client.target, client.timeout_s) == ("127.0.0.1:1", 10.0)


ANSWER = inference_pb.ModelInferResponse(
    outputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
    raw_output_contents=[np.arange(4, dtype="<f4").tobytes()], model_version="2",
).SerializeToString()  # fmt: skip
ABOUT = ["ModelMetadata", "ModelConfig"]
NO_CONFIG = Failure(StatusCode.UNIMPLEMENTED, "no", True, "UNSUPPORTED")
REFUSED = Failure(StatusCode.INVALID_ARGUMENT, "bad", True, "INVALID_REQUEST")


@pytest.fixture(params=[Client, AsyncClient])
def client(request, monkeypatch):
    """A client whose transport is a test's: a function that calls a verb, and the transport."""
    scripted, kind = Scripted(), request.param
    monkeypatch.setattr(kind, "_new_transport", lambda self: scripted)
    made = kind("127.0.0.1:1")
    loop = asyncio.new_event_loop()

    def use(verb, *arguments, **options):
        found = getattr(made, verb)(*arguments, **options)
        return found if kind is Client else loop.run_until_complete(found)

    yield use, scripted
    loop.close()


def paths(scripted):
    found = [path.rpartition("/")[2] for path, *_ in scripted.sent]
    scripted.sent.clear()
    return found


def test_description_of_a_model_is_asked_for_once_and_again_after_a_refusal(client):
    """Another model may be served by then, with other inputs."""
    use, scripted = client
    x = np.zeros((1, 4), np.float32)
    scripted.outcomes += [metadata(), NO_CONFIG, ANSWER, ANSWER, REFUSED]
    for _ in range(2):
        outputs = use("infer", "net", {"x": x})
        assert ({name: each.tolist() for name, each in outputs.items()}, outputs.model_version) == (
            {"x": [[0.0, 1.0, 2.0, 3.0]]}, "2")  # fmt: skip
    with pytest.raises(InvalidRequest, match=r"^127\.0\.0\.1:1: bad$"):
        use("infer", "net", {"x": x})
    assert paths(scripted) == [*ABOUT, *["ModelInfer"] * 3]
    scripted.outcomes += [metadata(), config(), ANSWER, metadata(), config(), ANSWER]
    use("infer", "net", {"x": x})
    use("infer", "net", {"x": x}, version=2)
    assert paths(scripted) == [*ABOUT, "ModelInfer"] * 2, "a version has its own"
    scripted.outcomes += [metadata(), config()]
    assert use("describe", "net").name == "net"
    assert paths(scripted) == ABOUT, "who asks wants to know it now"
    with pytest.raises(InvalidRequest):
        use("infer", "net", {"x": np.zeros((1, 5), np.float32)})
    scripted.outcomes += [metadata(), config(), ANSWER]
    use("infer", "net", {"x": x})
    assert paths(scripted) == [*ABOUT, "ModelInfer"], "the model may take other shapes by now"


def test_call_has_its_model_outputs_parameters_and_metadata(client):
    use, scripted = client
    scripted.outcomes += [metadata(), NO_CONFIG, ANSWER]
    use(
        "infer", "net", {"x": np.ones((1, 4), np.float32)}, version="2", outputs=["x"],
        metadata={"X-Tenant": "a"}, parameters={"style": "short", "own": 3},
    )  # fmt: skip
    (*_, (path, message, _, more)) = scripted.sent
    assert (path, more) == ("/inference.GRPCInferenceService/ModelInfer", (("x-tenant", "a"),))
    assert inference_pb.ModelInferRequest.FromString(message) == inference_pb.ModelInferRequest(
        model_name="net", model_version="2",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
        raw_input_contents=[np.ones(4, "<f4").tobytes()], outputs=[{"name": "x"}],
        parameters={"style": {"string_param": "short"}, "own": {"int64_param": 3}},
    )  # fmt: skip
    asked = inference_pb.ModelMetadataRequest.FromString(scripted.sent[0][1])
    assert (asked.name, asked.version) == ("net", "2")


def test_stream_that_is_left_is_cancelled(monkeypatch):
    part = inference_pb.ModelStreamInferResponse(
        infer_response=inference_pb.ModelInferResponse.FromString(ANSWER)
    ).SerializeToString()
    scripted = Scripted(metadata(), NO_CONFIG)
    monkeypatch.setattr(Client, "_new_transport", lambda self: scripted)
    client = Client("127.0.0.1:1")
    client.describe("net")
    scripted.outcomes.append([part, part, Failure(StatusCode.OK, "")])
    stream, kept = Client._stream, []

    def noted(*given):
        kept.append(stream(*given))
        return kept[-1]

    monkeypatch.setattr(Client, "_stream", noted)
    parts = client.stream("net", {"x": np.zeros((1, 4), np.float32)})
    assert next(parts)["x"].tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert scripted.num_cancelled == 0
    parts.close()
    assert scripted.num_cancelled == 1, "now, not once it is freed"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StopIteration(), transport.ENDED), (grpc.FutureCancelledError(), transport.CUT_OFF),
        (KeyboardInterrupt(), None),
    ],
    ids=["end", "cut off", "interrupted"],
)  # fmt: skip
def test_message_of_core_is_taken_or_its_call_is_over(error, expected):
    cancelled = []

    def take():
        raise error

    if expected is None:
        with pytest.raises(KeyboardInterrupt):
            _taken(take, lambda: cancelled.append("it"))
        assert cancelled == ["it"], "nobody waits for it any more"
    else:
        assert _taken(take, lambda: cancelled.append("it")) == expected
        assert cancelled == []
    assert _taken(lambda: b"hi", list) == b"hi"


def test_threads_open_one_connection():
    client: Any = Client("127.0.0.1:1")
    client._lock = lock = KeptLock()
    assert waits(lock, client._open)
    assert client._opened() is client._opened() is client._open()
    client.close()


async def test_closed_client_says_so_on_any_loop():
    """Not that another one has used it."""
    client = AsyncClient("127.0.0.1:1")

    async def use():
        client._opened()

    await use()
    await client.close()
    for run in (use, lambda: asyncio.to_thread(asyncio.run, use())):
        with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:1: the client is closed$"):
            await run()


async def test_calls_of_a_closed_channel_of_core_take_no_place():
    """There are 512 in flight at most; the others wait."""
    channel = GrpcioLoopTransport("x:1", Credentials(None, None, None, None))
    await channel.close()
    for _ in range(513):
        assert await channel.exchange("/a.B/C", b"", 1.0) == transport.CUT_OFF
    stream = await channel.stream("/a.B/C", b"", 1.0)
    assert await stream.next() == transport.CUT_OFF
    assert not channel._slots.locked()


SETTINGS = {
    "timeout_s": 3.0, "attempt_timeout_s": 2.0, "token": "t", "tls_ca": "ca", "tls_cert": "cert",
    "tls_key": "key", "transport": "h2",
}  # fmt: skip


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_client_is_pickled_with_each_of_its_settings(kind, monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr("serving.client.client.Credentials", lambda *facts: made.append(facts))
    again, arguments = kind("127.0.0.1:1", **SETTINGS).__reduce__()
    assert (again.func, again.args, again.keywords, arguments) == (
        kind, ("127.0.0.1:1",), SETTINGS, ())  # fmt: skip
    other = again()
    assert (other.target, other.timeout_s, other._attempt_timeout_s) == ("127.0.0.1:1", 3.0, 2.0)
    assert made == [("t", "ca", "cert", "key")] * 2


def test_attempts_of_a_stream_have_the_whole_time(monkeypatch):
    """It may take longer than one call's attempt, as long as its parts come."""
    scripted = Scripted(metadata(), NO_CONFIG)
    monkeypatch.setattr(Client, "_new_transport", lambda self: scripted)
    client = Client("127.0.0.1:1", timeout_s=7.0, attempt_timeout_s=0.5)
    client.describe("net")
    scripted.outcomes.append([Failure(StatusCode.OK, "")])
    assert [*client.stream("net", {"x": np.zeros((1, 4), np.float32)})] == []
    *others, last = [timeout_s for _, _, timeout_s, _ in scripted.sent]
    assert max(others) <= 0.5
    assert 6 < last <= 7.0


def test_server_that_refuses_often_is_waited_for(call, monkeypatch):
    """A proxy in front of it answers so until it has started."""
    monkeypatch.setattr(retries, "_SHORTEST_BACKOFF_S", 0.0)
    monkeypatch.setattr(retries, "_LONGEST_BACKOFF_S", 0.0)
    refused = Failure(StatusCode.UNAVAILABLE, "no healthy upstream", True)
    scripted = Scripted(*[refused] * 20, b"\x08\x01")
    assert call(scripted, "wait_ready") is None
    assert len(scripted.sent) == 21


# Calls of core


class Core:
    """A channel of core, whose calls are noted and answered."""

    def __init__(self, target, *, options):
        self.sent: list[Any] = []

    def unary_unary(self, path):
        return CoreMethod(self, "one", path)

    def unary_stream(self, path):
        return CoreMethod(self, "many", path)


class CoreMethod:
    def __init__(self, core, *facts):
        self.core, self.facts = core, facts

    def __call__(self, message, *, timeout, metadata):
        self.core.sent.append((*self.facts, message, timeout, metadata))
        return CoreCall()

    future = __call__


class CoreCall(bytes):
    """The answer, and the call that has it."""

    def __new__(cls):
        return super().__new__(cls, b"re")

    def result(self):
        return self

    def __await__(self):
        yield from ()
        return self

    def cancel(self):
        """Do nothing: it is answered."""

    def add_done_callback(self, done):
        done(self)


async def test_call_of_core_has_its_time_and_the_callers_words(monkeypatch):
    for library in (grpc, grpc.aio):
        monkeypatch.setattr(library, "insecure_channel", Core)
    credentials = Credentials("t", None, None, None)
    token, own = ("authorization", "Bearer t"), ("x-tenant", "a")
    for kind in (GrpcioTransport, GrpcioLoopTransport):
        channel: Any = kind("x:1", credentials)
        assert await (await channel.send("/a.B/C", b"1", 1.0, (own,))).result() == b"re"
        assert await channel.exchange("/a.B/C", b"2", 2.0, (own,)) == b"re"
        await channel.stream("/a.B/D", b"3", 3.0, (own,))
        await channel.send("/a.B/C", b"4", 4.0)
        assert channel._channel.sent == [
            ("one", "/a.B/C", b"1", 1.0, (token, own)), ("one", "/a.B/C", b"2", 2.0, (token, own)),
            ("many", "/a.B/D", b"3", 3.0, (token, own)), ("one", "/a.B/C", b"4", 4.0, (token,)),
        ]  # fmt: skip


def test_ready_is_waited_for_half_a_minute(call):
    """Or as long as the caller says."""
    for arguments, most_s in (((), 30.0), ((3.0,), 3.0)):
        scripted = Scripted(b"\x08\x01")
        assert call(scripted, "wait_ready", *arguments) is None
        ((_, _, timeout_s, _),) = scripted.sent
        assert most_s - 1 < timeout_s <= most_s


@pytest.mark.parametrize("is_decoupled", [True, False])
def test_model_answers_in_parts_where_its_calls_have_any_number_of_answers(is_decoupled):
    policy = {"decoupled": is_decoupled}
    found = inference_pb.ModelConfigResponse(
        config={"name": "net", "model_transaction_policy": policy}
    ).SerializeToString()
    about = model_info(metadata(), found, "", "x:1")
    assert (about.in_parts, about.tensors.in_parts) == (is_decoupled, is_decoupled)
