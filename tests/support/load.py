"""A steady load from one thread, with every call noted."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import grpc

from tests.support.raw import CLASSIFY, TIMEOUT_S

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
"""No sharing with other channels of this process, no second attempts: a ledger needs both."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call and how it ended."""

    number: int
    """Which one: it sent request `number` modulo their number."""
    begun_s: float
    ended_s: float
    code: grpc.StatusCode
    answer: bytes


class ClosedLoop:
    """Keeps a number of calls in flight, whatever comes back; use it as a context manager."""

    def __init__(self, address, requests, in_flight, credentials=None):
        """Prepare to send the requests over and over; they are numbered from 0 on."""
        self.calls: list[Call] = []
        self._requests = requests
        self._in_flight = in_flight
        self._channel = (
            grpc.secure_channel(address, credentials, options=OWN_CONNECTION)
            if credentials
            else grpc.insecure_channel(address, options=OWN_CONNECTION)
        )
        self._method: Any = self._channel.unary_unary(CLASSIFY)
        self._places = threading.Semaphore(in_flight)
        self._ended = threading.Event()
        self._noted = threading.Condition()
        self._thread = threading.Thread(target=self._send)

    def wait_for(self, number):
        """Wait until this many more calls have ended."""
        with self._noted:
            wanted = len(self.calls) + number
            assert self._noted.wait_for(lambda: len(self.calls) >= wanted, TIMEOUT_S)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._ended.set()
        self._thread.join()
        self._channel.close()

    def _send(self):
        number = 0
        while not self._ended.is_set():
            self._places.acquire()
            data = self._requests[number % len(self._requests)]
            begun_s = time.monotonic()
            call = self._method.future(data, timeout=TIMEOUT_S)
            call.add_done_callback(
                lambda call, number=number, begun_s=begun_s: self._note(number, begun_s, call)
            )
            number += 1
        for _ in range(self._in_flight):
            assert self._places.acquire(timeout=2 * TIMEOUT_S), "a call never ended"

    def _note(self, number, begun_s, call):
        code = call.code()
        answer = call.result() if code is grpc.StatusCode.OK else b""
        with self._noted:
            self.calls.append(Call(number, begun_s, time.monotonic(), code, answer))
            self._noted.notify_all()
        self._places.release()
