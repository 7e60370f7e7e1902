"""The way of a one-image call through the loop is short enough to read in one sitting."""

import json
import sys
import threading
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import serving
from digit_classifier import Classifier
from digit_classifier.predictions import DIGITS
from digit_classifier.wire import encode_request
from serving.transports.port_limits import PortLimits
from tests.serving.http.test_wire import Wire, binary
from tests.support.h2_server import h2_server, server_inside
from tests.support.servers import wait_until
from tests.support.wire import Connection, message

ROOT = Path(serving.__file__).parent
REQUEST = message(encode_request(bytes(DIGITS.image_bytes)))
MAX_FUNCTIONS, MAX_FILES, MAX_CHANGES = 40, 14, 24
MAX_HTTP_FUNCTIONS, MAX_JSON_FUNCTIONS = 44, 66
Function = tuple[str, str]
"""Its file below serving/, and its name."""


class Recorder:
    """Notes the functions of serving/ that the loop's thread enters, in order."""

    entry = "H2Port.receive"
    """The function that takes a call."""

    def __init__(self):
        self.entered: list[Function] = []
        self._is_on = False

    def __call__(self, frame, event, argument):
        """Note a function, as `sys.setprofile` calls this."""
        code = frame.f_code
        if not self._is_on or threading.current_thread().name != "h2":
            return
        if event == "call" and code.co_filename.startswith(str(ROOT)):
            file = Path(code.co_filename).relative_to(ROOT)
            self.entered.append((str(file), getattr(code, "co_qualname", code.co_name)))

    def turn(self):
        """Return the functions of the loop's turn that has read a call; None before its end."""
        entered = [*self.entered]
        at = next((i for i, (_, name) in enumerate(entered) if name == self.entry), None)
        names = [name for _, name in entered]
        if at is None or "Loop.timeout_s" not in names[at:]:
            return None
        begin = max(i for i, name in enumerate(names[:at]) if name == "Loop.turn")
        return entered[begin : names.index("Loop.timeout_s", at)]

    @contextmanager
    def recording(self):
        """Record the functions entered meanwhile."""
        self._is_on = True
        yield
        self._is_on = False


@pytest.fixture
def recorder():
    recorder = Recorder()
    threading.setprofile(recorder)
    yield recorder
    threading.setprofile(None)


def test_warm_one_image_call_enters_few_functions(recorder):
    with (
        Classifier.pretrained() as classifier,
        h2_server(classifier, PortLimits(max_message_bytes=4_000_000)) as address,
        Connection(address, 10.0) as connection,
    ):
        connection.open()
        for stream in range(1, 200, 2):  # warm: its headers and its prefix are known
            assert connection.ask(stream, REQUEST).status == "OK"
        with recorder.recording():
            assert connection.ask(201, REQUEST).status == "OK"
            wait_until(lambda: recorder.turn() is not None)
    turn = recorder.turn()
    files = [file for file, _ in turn]
    changes = sum(a != b for a, b in pairwise(files))
    functions, different = set(turn), set(files)
    for file, name in turn:
        print(f"{file}: {name}", file=sys.stderr)
    print(f"{len(functions)} functions, {len(different)} files, {changes} changes", file=sys.stderr)
    assert len(functions) <= MAX_FUNCTIONS
    assert len(different) <= MAX_FILES
    assert changes <= MAX_CHANGES


def as_json(images):
    """A request with the images as values in JSON, in one piece."""
    given = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    body = json.dumps({"inputs": [given | {"data": images.tolist()}]}).encode()
    line = "POST /v2/models/digits/infer HTTP/1.1"
    head = f"{line}\r\nhost: localhost\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@pytest.mark.process
@pytest.mark.parametrize(
    ("make", "most"), [(binary, MAX_HTTP_FUNCTIONS), (as_json, MAX_JSON_FUNCTIONS)]
)
def test_warm_request_over_http_enters_few_functions(recorder, make, most):
    recorder.entry = "HttpPort.receive"
    with (
        Classifier.pretrained() as classifier,
        server_inside(classifier, http_port=0) as server,
        closing(Wire(str(server.http_url))) as wire,
    ):
        request = make(np.zeros((1, 784), np.uint8))
        for _ in range(100):
            assert wire.ask(request)[0] == 200
        with recorder.recording():
            assert wire.ask(request)[0] == 200
            wait_until(lambda: recorder.turn() is not None)
    functions = set(recorder.turn())
    print(*(f"{file}: {name}" for file, name in recorder.turn()), sep="\n", file=sys.stderr)
    assert len(functions) <= most
