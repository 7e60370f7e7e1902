"""Answers in parts have a token, gzip, access lines and spans, and a caller's limit, as others."""

from collections import Counter
from uuid import uuid4

import grpc
import pytest

import serving
from tests.serving.handlers import test_parts_served
from tests.serving.handlers.conftest import named
from tests.serving.handlers.test_async_served import named as named_async
from tests.serving.handlers.test_parts_served import END, is_end, request, stream, token_of
from tests.serving.http.peer import HttpPeer
from tests.support.fleet.collector import attributes_of, running_collector
from tests.support.servers import wait_until

pytestmark = pytest.mark.process
TOKEN = "a-token-of-many-letters"
PARENT = "00f067aa0ba902b7"
MODELS = ("story", "asyncstory")
"""One whose generator is plain, and one of `async def`."""


@pytest.fixture(scope="module")
def collector():
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def guarded(request, collector):
    """A server with a token, which logs each call and sends its span."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVING_TOKEN", TOKEN)
        server = serving.Server(
            handler=named(story="Story") | named_async("asyncstory"),
            handler_processes=1,
            transport=request.param,
            access_log=1.0,
            otlp_endpoint=collector[1],
        )
    with server:
        yield server


@pytest.fixture
def channel(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        yield channel


def of(model, *args, **options):
    asked = request(*args, **options)
    asked.model_name = model
    return asked


def begin(channel, requests, metadata=(), **options):
    metadata = [("authorization", f"Bearer {TOKEN}"), *metadata]
    method = channel.stream_stream(test_parts_served.METHOD, **test_parts_served.CODEC)
    return method(iter(requests), timeout=20, metadata=metadata, **options)


def test_call_without_the_token_has_no_part(channel, guarded):
    with pytest.raises(grpc.RpcError) as caught:
        [*stream(channel, [request("once")])]
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with (
        serving.Client(guarded.address, timeout_s=20) as client,
        pytest.raises(serving.Unauthenticated),
    ):
        next(client.stream("story", ["once"]))
    peer = HttpPeer(f"http://{guarded.http_address}")
    path = "/v2/models/story/generate_stream"
    assert peer.post(path, b'{"prompt": "once"}').status == 401
    with serving.Client(guarded.address, timeout_s=20, token=TOKEN) as client:
        parts = client.stream("story", ["once upon"])
        assert [part["token"][0] for part in parts] == ["once", "upon"]


@pytest.mark.parametrize("model", MODELS)
def test_compressed_requests_have_their_parts(channel, model):
    prompt = "once " + "upon " * 2000
    answers = begin(channel, [of(model, prompt)], compression=grpc.Compression.Gzip)
    assert Counter(map(token_of, answers)) == {"once": 1, "upon": 2000}


@pytest.mark.parametrize("model", MODELS)
def test_call_has_one_span_and_one_line(channel, guarded, collector, model):
    spans, trace = collector[0], uuid4().hex
    metadata = [("traceparent", f"00-{trace}-{PARENT}-01"), ("x-request-id", f"of-{trace}")]
    assert len([*begin(channel, [of(model, "once upon a")], metadata)]) == 3

    def own():
        return [each for each in spans.spans if each.trace_id.hex() == trace]

    wait_until(own)
    (span,) = own()
    assert (span.name, span.parent_span_id.hex()) == (test_parts_served.METHOD[1:], PARENT)
    assert attributes_of(span)["rpc.grpc.status_code"] == 0

    def lines():
        return [line for line in guarded.errors.splitlines() if f"of-{trace}" in line]

    wait_until(lines)
    assert len(lines()) == 1


@pytest.mark.parametrize("model", MODELS)
def test_caller_of_many_requests_is_held_back_and_loses_none(channel, guarded, model):
    number = 600  # more than a stream may have open, and than a process has generators
    requests = [of(model, "a b", identifier=f"{each}", **{END: True}) for each in range(number)]
    answers = begin(channel, requests)
    found: dict[str, list[str | None]] = {f"{each}": [] for each in range(number)}
    first = next(answers)
    with serving.Client(guarded.address, timeout_s=20, token=TOKEN) as other:
        assert [part["token"][0] for part in other.stream(model, ["once"])] == ["once"]
    for each in (first, *answers):
        found[each.infer_response.id].append(None if is_end(each) else token_of(each))
    assert all(each == ["a", "b", None] for each in found.values())
