"""A page in Chromium calls by gRPC-Web: unary, with its status, from the origins that may."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import sync_playwright

from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.wire import encode_request
from serving.protocols.framing import frame
from tests.deploy.conftest import needed
from tests.support.raw import CLASSIFY

CALL = """async ([url, body]) => {
    const answer = await fetch(url, {
        method: "POST", body: new Uint8Array(body),
        headers: {"content-type": "application/grpc-web+proto", "x-grpc-web": "1",
                  "authorization": "Bearer none-is-needed"},
    });
    return [answer.status, answer.headers.get("grpc-status"),
            Array.from(new Uint8Array(await answer.arrayBuffer()))];
}"""


@pytest.fixture(scope="module")
def browser():
    chromium = needed("chromium", "apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_): ...


@pytest.fixture(scope="module")
def port():
    """The port of a web server with an empty page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def page_at(browser, origin):
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(origin)
    yield page
    context.close()


def frames(body):
    """Split a gRPC-Web body: 0 is the message, 0x80 the trailers."""
    found, rest = {}, bytes(body)
    while rest:
        size = int.from_bytes(rest[1:5], "big")
        found[rest[0]] = rest[5 : 5 + size]
        rest = rest[5 + size :]
    return found


def test_page_gets_the_answer_and_its_status(shared, browser, port, classifier, images):
    url = f"https://{shared.edge.tls}{CLASSIFY}"
    with page_at(browser, f"http://localhost:{port}") as page:
        body = list(frame(encode_request(images[:20].tobytes())))
        status, _, answer = page.evaluate(CALL, [url, body])
        parts = frames(answer)
        assert status == 200
        digits = list(digits_pb2.ClassifyResponse.FromString(parts[0]).digits)
        assert digits == classifier.classify(images[:20]).digits.tolist()
        assert b"grpc-status:0" in parts[0x80].replace(b" ", b"")
        assert page.evaluate(CALL, [url, list(frame(b""))])[1] == "3", "INVALID_ARGUMENT"


def test_page_of_another_origin_gets_nothing(shared, browser, port):
    url = f"https://{shared.edge.tls}{CLASSIFY}"
    with page_at(browser, f"http://127.0.0.1:{port}") as page:
        refused = page.evaluate(
            f"call => ({CALL})(call).then(() => 'answered', () => 'refused')",
            [url, list(frame(b""))],
        )
    assert refused == "refused"
