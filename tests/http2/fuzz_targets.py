"""The engine's fuzzed functions: each is given bytes and raises only when it has found a bug."""

import random

from serving.http2.client import ClientConnection
from serving.http2.frames import SETTINGS, Http2Error, frame, word
from serving.http2.limits import Limits
from tests.http2.test_recognition import Peer, calls_of, server


def http2(data):
    """HTTP/2 as a server: recognised or frame by frame, the same bytes are the same calls."""
    peer = Peer(random.Random(0))
    warm = b"".join(peer.headers() + peer.data(peer.stream) for _ in range(3))
    half = len(data) // 2
    reads = [warm, data[:half], data[half:]]
    one, other = server(varying=None), server()
    by_frames, _, end = calls_of(one, reads)
    recognised, _, same_end = calls_of(other, reads)
    assert end == same_end
    assert end or by_frames == recognised
    for connection in (one, other):
        for stream in list(connection.streams):
            connection.answer([stream], [bytes(50)])
        connection.data_to_send()


def http2_client(data):
    """HTTP/2 as a client: a server may send anything."""
    client = ClientConnection(Limits())
    for number in range(4):
        client.request(((b":method", b"POST"), (b":path", b"/")), bytes(100 * number))
    try:
        client.receive(frame(SETTINGS, 0, bytes(4)) + data, 0.0)
        client.receive(data, 0.0)
    except Http2Error:
        client.request(((b":method", b"POST"),), b"")
    client.cancel(word(3))
    client.data_to_send()
