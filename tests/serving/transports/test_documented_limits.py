"""The limits of peers are those that the pages promise."""

from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import ServerConfig
from serving.http2 import Limits
from serving.transports import port_limits as module
from serving.transports.port_limits import PortLimits, max_buffered_bytes, max_message_bytes
from tests.support.pages import cells

PEERS, HTTP2 = PortLimits(max_message_bytes=1), Limits()
MIB = 1 << 20


@pytest.mark.parametrize(
    ("begin", "text"),
    [
        ("a message that does", f"ends after {PEERS.message_s:.0f} to {2 * PEERS.message_s:.0f} s"),
        ("calls at once on", f"{HTTP2.max_streams:,}"),
        ("connections", f"{PEERS.max_connections:,}; one more closes the longest idle one"),
        ("idle connections", f"closed after {PEERS.idle_s / 60:.0f} min"),
        ("TLS handshake", f"{PEERS.handshake_s:.0f} s"),
        ("a stream whose peer", f"reading stops, too: {HTTP2.stream_window_bytes // MIB} MiB of "
         f"window, {PEERS.max_stream_unread_bytes >> 10} KiB of unread answers"),
        ("unread answers of a", f"{PEERS.max_unread_bytes // MIB} MiB, then its calls are refused"),
    ],
    ids=range(7),  # texts with a limit would be other tests with another one
)  # fmt: skip
def test_limits_of_the_port_are_those_of_the_page(begin, text):
    assert cells("limits.md", begin, "Limits of the ports")[1].startswith(text)


def test_nobody_is_asked_to_reconnect_by_age():
    assert PEERS.age_s == 0
    assert PEERS.max_buffered_bytes == 64 * MIB


def router_of(*row_bytes, most=4096) -> Any:
    routes = {number: SimpleNamespace(tensors=SimpleNamespace(row_bytes=each))
              for number, each in enumerate(row_bytes)}  # fmt: skip
    return SimpleNamespace(routes=routes, batching=SimpleNamespace(max_request_rows=most))


DIGITS = 2 * 4096 * 784 + 4096


@pytest.mark.parametrize(
    ("row_bytes", "config", "most"),
    [
        ((784,), {}, DIGITS), ((784, 5), {}, DIGITS), ((5, 784), {}, DIGITS),
        ((784, 0), {}, 64 * MIB), ((), {}, 64 * MIB), ((MIB,), {}, 64 * MIB),
        ((784,), {"reload_interval_s": 1.0}, 64 * MIB),
        ((784,), {"allow_repository_control": True}, 64 * MIB),
    ],
)  # fmt: skip
def test_longest_message_is_twice_the_largest_request(row_bytes, config, most):
    """And 64 MiB where rows have no fixed size, or other models may come."""
    assert max_message_bytes(router_of(*row_bytes), ServerConfig(**config)) == most
    if not config:
        assert max_message_bytes(router_of(*row_bytes)) == most


@pytest.mark.parametrize(
    ("memory", "config", "most"),
    [
        (1 << 40, {}, 8 * 32 * MIB),  # of JSON
        (1 << 40, {"max_json_bytes": MIB}, 64 * MIB),
        (1 << 40, {"max_json_bytes": 100 * MIB}, 800 * MIB),
        (1600 * MIB, {"max_json_bytes": 100 * MIB}, 200 * MIB),
        (1600 * MIB, {"max_json_bytes": 100 * MIB, "workers": 2}, 100 * MIB),
        (100 * MIB, {}, 64 * MIB),
        (1 << 40, {"max_buffered_bytes": 5 * MIB}, 5 * MIB),
    ],
)
def test_half_received_messages_are_eight_of_the_largest(memory, config, most, monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: memory)
    assert max_buffered_bytes(router_of(784), ServerConfig(**config)) == most
