"""Overload and deadlines, proved by ledgers: an engine of known speed, an open loop of load."""

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
import pytest

from serving.protocols.digits_v1.wire import encode_request
from tests.support.load import OWN_CONNECTION
from tests.support.processes import paced_server
from tests.support.raw import CLASSIFY
from tests.support.tickets import image_with

SERVICE_S, BATCH, QUEUE = 0.08, 8, 50
CAPACITY = BATCH / SERVICE_S  # 100 images/s
DEADLINE_S = 1.0  # a full queue is 0.5 s
LOAD_S, WARM_UP_S = 4.0, 1.0

Outcome = tuple[float, grpc.StatusCode]
"""When a call ended, in monotonic seconds, and how."""


def channel_to(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=OWN_CONNECTION)


async def classify(method: Any, ticket: int, timeout_s: float = DEADLINE_S) -> Outcome:
    """Send one image; a wrong answer is a failure of the test."""
    try:
        answer = await method(encode_request(image_with(ticket).tobytes()), timeout=timeout_s)
    except grpc.aio.AioRpcError as err:
        return time.monotonic(), err.code()
    assert answer[:3] == bytes((0x0A, 1, ticket % 10))
    return time.monotonic(), grpc.StatusCode.OK


async def offer(
    address: str, rate: float, duration_s: float, timeout_s: float = DEADLINE_S
) -> list[Outcome]:
    """Send images at a fixed rate, whatever comes back; return how each call ended."""
    async with channel_to(address) as channel:
        method: Any = channel.unary_unary(CLASSIFY)
        start_s = time.monotonic()
        calls = []
        for ticket in range(int(rate * duration_s)):
            await asyncio.sleep(max(0.0, start_s + ticket / rate - time.monotonic()))
            calls.append(asyncio.create_task(classify(method, ticket, timeout_s)))
        return await asyncio.gather(*calls)


@pytest.mark.parametrize(("factor", "share"), [(2, 0.95), (5, 0.90), (10, 0.80)])
def test_goodput_holds_under_overload_and_ends_with_it(
    factor: int, share: float, record_property: Any
) -> None:
    options = {"service_s": SERVICE_S, "max_batch_size": BATCH, "queue_capacity": QUEUE}
    with paced_server(**options) as server:
        start_s = time.monotonic()
        outcomes = asyncio.run(offer(server.address, factor * CAPACITY, LOAD_S))
        after = asyncio.run(offer(server.address, CAPACITY / 2, 1.0))
    codes = Counter(code for _, code in outcomes)
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, codes
    goodput = goodput_of(outcomes, start_s)
    print(f"{factor} x capacity, goodput {goodput:.1%}, {names(codes)}")
    assert goodput >= share
    # Calls with a deadline of one second, sent from the end of the load on, are all answered.
    assert {code for _, code in after} == {grpc.StatusCode.OK}


def test_callers_less_patient_than_the_queue_is_long_are_answered_in_time() -> None:
    """Served first come, first served, each would be reached when it is about to give up."""
    patience_s = 0.3  # the queue is 5 s long
    options = {"service_s": SERVICE_S, "max_batch_size": BATCH, "queue_capacity": 500}
    with paced_server(**options) as server:
        start_s = time.monotonic()
        outcomes = asyncio.run(offer(server.address, 5 * CAPACITY, LOAD_S, patience_s))
    codes = Counter(code for _, code in outcomes)
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED  # at once, what would be late
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED, refused}, codes
    goodput = goodput_of(outcomes, start_s)
    print(f"5 x capacity, impatient, goodput {goodput:.1%}, {names(codes)}")
    assert goodput >= 0.80


def goodput_of(outcomes: list[Outcome], start_s: float) -> float:
    """What was answered in time once the queue was full, as a share of the capacity."""
    window = (start_s + WARM_UP_S, start_s + LOAD_S)
    num_good = sum(
        1
        for end_s, code in outcomes
        if code is grpc.StatusCode.OK and window[0] <= end_s < window[1]
    )
    return num_good / (CAPACITY * (window[1] - window[0]))


def names(codes: Counter[grpc.StatusCode]) -> dict[str, int]:
    return {code.name: number for code, number in codes.items()}


def test_not_one_of_ten_thousand_expired_rows_runs() -> None:
    num_calls, per_connection = 10_000, 1_000

    async def expire(address: str) -> Counter[grpc.StatusCode]:
        channels = [channel_to(address) for _ in range(num_calls // per_connection)]
        for channel in channels:
            await channel.channel_ready()
        calls = [
            classify(
                channel.unary_unary(CLASSIFY), ticket, timeout_s=5.0 + 3.0 * ticket / num_calls
            )
            for number, channel in enumerate(channels)
            for ticket in range(number * per_connection, (number + 1) * per_connection)
        ]
        outcomes = await asyncio.gather(*calls)
        for channel in channels:
            await channel.close()
        return Counter(code for _, code in outcomes)

    async def one(address: str, ticket: int) -> Outcome:
        async with channel_to(address) as channel:
            return await classify(channel.unary_unary(CLASSIFY), ticket, timeout_s=60.0)

    async def scenario(server: Any) -> Counter[grpc.StatusCode]:
        server.tell("hold")
        occupier = asyncio.create_task(one(server.address, 1_000_001))
        codes = await expire(server.address)
        server.tell("release")
        assert (await occupier)[1] is grpc.StatusCode.OK
        assert (await one(server.address, 1_000_002))[1] is grpc.StatusCode.OK
        return codes

    with paced_server() as server:
        codes = asyncio.run(scenario(server))
        ledger = server.ledger()
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED: num_calls}
    assert ledger == {1_000_001: 1, 1_000_002: 1}
