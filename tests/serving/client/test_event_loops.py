"""The asyncio clients in programs of others: FastAPI under uvicorn, and loops that are uvloop's."""

import asyncio
import json
import socket
import threading
import urllib.request
from contextlib import asynccontextmanager, contextmanager

import fastapi
import numpy as np
import pytest
import uvicorn

from digit_classifier import AsyncClassifier
from serving import AsyncClient
from serving.client import transport
from serving.client.h2.session import Session
from serving.errors import Unavailable
from serving.http2.client import ClientConnection
from tests.support.fakes import TIMEOUT_S
from tests.support.wire import peers


def app_of(address):
    """An app as users write it: one client for all requests, made and closed with the app."""

    @asynccontextmanager
    async def lifespan(app):
        async with AsyncClient(address) as client, AsyncClassifier.connect(address) as classifier:
            app.state.client, app.state.classifier = client, classifier
            yield

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/digit/{row}")
    async def digit(row: int, request: fastapi.Request):
        image = np.zeros((1, 784), np.uint8)
        image[0, row] = 255
        state = request.app.state
        probabilities = await state.client.infer("digits", {"images": image})
        digits = (await state.classifier.classify(image)).digits
        loop = type(asyncio.get_running_loop()).__module__
        return {
            "loop": loop,
            "both": [int(probabilities["probabilities"].argmax()), int(digits[0])],
        }

    return app


@contextmanager
def uvicorn_of(app, loop):
    """Run an app under uvicorn on a thread; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, loop=loop, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_both_clients_answer_in_a_fastapi_app_under_uvicorn(loop, server):
    with uvicorn_of(app_of(server.address), loop) as address:
        for row in range(3):
            with urllib.request.urlopen(f"{address}/digit/{row}", timeout=TIMEOUT_S) as answer:
                facts = json.load(answer)
            assert loop in facts["loop"]
            client, classifier = facts["both"]
            assert client == classifier


STEPS = {
    "connection_made": (ClientConnection, "data_to_send"),
    "flush": (ClientConnection, "data_to_send"),
    "data_received": (Session, "receive"),
    "check": (Session, "is_alive"),
}
"""A step of each callback of the connection, which fails."""


@pytest.mark.parametrize("callback", STEPS)
async def test_exception_in_a_callback_fails_the_calls_at_once(callback, monkeypatch):
    """By its name; the loop's handler gets it with its traceback."""
    seen, is_broken, is_over = [], threading.Event(), threading.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
    monkeypatch.setattr(transport, "KEEPALIVE_TIME_S", 0.01)
    kind, name = STEPS[callback]
    step = getattr(kind, name)

    def fail(*arguments):
        if is_broken.is_set():
            raise LookupError("no such transport")
        return step(*arguments)

    def answer_once(peer):
        calls = peer.calls()
        peer.answer(next(calls)[0], b"re")
        if callback == "data_received":
            peer.answer(next(calls)[0], b"re")
        is_over.wait(TIMEOUT_S)

    monkeypatch.setattr(kind, name, fail)
    with peers(answer_once) as address:
        async with AsyncClient(address, timeout_s=3600) as client:
            if callback != "connection_made":
                assert await client.call("/a.B/C", b"") == b"re"
            is_broken.set()
            text = "the client failed: LookupError: no such transport"
            with pytest.raises(Unavailable, match=text):
                await client.call("/a.B/C", b"")
        is_over.set()
    assert seen
    assert all(isinstance(each["exception"], LookupError) for each in seen)
