"""ClassifyStream: in order, bounded in flight, never rejected half-way."""

import queue

import grpc
import numpy as np
import pytest

from serving.digits.wire import encode_request
from serving.protocols.pb.digits.v1 import digits_pb2
from tests.serving.transports import test_faults
from tests.support.fakes import images_of
from tests.support.raw import TIMEOUT_S, Raw, status_of
from tests.support.servers import on_both, running_server
from tests.support.unread_stream import assert_stopped_until_it_reads

run = test_faults.run
STREAM = "/digits.v1.DigitClassifier/ClassifyStream"


def stream(raw):
    """ClassifyStream: bytes in, ClassifyResponses out."""
    return raw.channel.stream_stream(
        STREAM, response_deserializer=digits_pb2.ClassifyResponse.FromString
    )


def test_stream_is_answered_in_order(raw, classifier, images):
    sizes = [1 + number % 7 for number in range(100)]  # 397 images in all
    messages = np.split(images[: sum(sizes)], np.cumsum(sizes)[:-1])
    requests = (encode_request(message.tobytes()) for message in messages)
    responses = list(stream(raw)(requests, timeout=TIMEOUT_S))
    assert [len(response.digits) for response in responses] == sizes
    answered = [digit for response in responses for digit in response.digits]
    assert answered == classifier.classify(images[: sum(sizes)]).digits.tolist()


def test_stream_answers_while_the_caller_still_sends(raw, images):
    requests: queue.Queue[bytes | None] = queue.Queue()
    responses = stream(raw)(iter(requests.get, None), timeout=TIMEOUT_S)
    for size in (1, 300, 2, 1):  # one that comes in many pieces delays none behind it
        requests.put(encode_request(images[:size].tobytes()))
        assert len(next(responses).digits) == size
    requests.put(None)
    assert list(responses) == []


def test_bad_message_ends_a_stream_after_the_earlier_answers(raw, images):
    good = encode_request(images[0].tobytes())
    responses = stream(raw)(iter([good, good, good[:-1], good]), timeout=TIMEOUT_S)
    assert len(next(responses).digits) == 1
    assert len(next(responses).digits) == 1
    code, text = status_of(lambda: next(responses))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "ClassifyRequest" in text


@on_both
def test_streams_larger_than_the_queue_slow_down_and_are_never_rejected(models, images, transport):
    options = ("--queue-capacity", "10", "--max-request-images", "10", "--transport", transport)
    with running_server(models, *options) as server:
        requests = [encode_request(images[:9].tobytes())] * 20
        all_responses = [stream(Raw(server.address))(iter(requests)) for _ in range(8)]
        for responses in all_responses:
            assert sum(1 for _ in responses) == 20


@on_both
def test_stream_whose_caller_stops_reading_is_stopped(server, client, images):
    message = encode_request(images[:100].tobytes())
    assert_stopped_until_it_reads(
        server.address, STREAM, message, lambda: client.classify(images[:1])
    )


def open_stream(channel):
    method = channel.stream_stream(
        STREAM, response_deserializer=digits_pb2.ClassifyResponse.FromString
    )
    return method()


def message(*values):
    return encode_request(images_of(*values).tobytes())


@on_both
def test_streams_together_wait_where_their_share_of_the_queue_is_full(run):
    async def scenario(running):
        first = await running.occupy()
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            calls = [open_stream(channel) for _ in range(6)]
            for call in calls:
                await call.write(message(*[5] * 30))
            await running.until_waiting(60)  # more than half of the queue's 100
            await test_faults.round_trip(channel)
            assert running.server.report().num_waiting == 60
            running.engine.open(1000)
            for call in calls:
                assert list((await call.read()).digits) == [5] * 30
                await call.done_writing()
                assert await call.read() is grpc.aio.EOF
        assert await first == [0]

    run(scenario)


@on_both
def test_drain_ends_a_stream_after_the_answers_to_what_was_accepted(run):
    async def scenario(running):
        first = await running.occupy()
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            call = open_stream(channel)
            await call.write(message(5))
            await running.until_waiting(1)
            drain = await running.begin_drain()
            await call.write(message(6))
            await test_faults.round_trip(channel)
            running.engine.open(3)
            assert list((await call.read()).digits) == [5]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await drain
            assert await first == [0]
            assert running.engine.ran == [[0], [5]]

    run(scenario)
