"""MNIST in a few bytes, and a server to fetch it from."""

import gzip
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from training.data import mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = (file.name for file in mnist.FILES)


def idx_bytes(*shape):
    values = np.arange(np.prod(shape), dtype=np.uint32) % 251
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


CONTENTS = {
    TRAIN_IMAGES: idx_bytes(6, 28, 28),
    TRAIN_LABELS: idx_bytes(6),
    TEST_IMAGES: idx_bytes(2, 28, 28),
    TEST_LABELS: idx_bytes(2),
}


class Mirror(BaseHTTPRequestHandler):
    """Serves `files`; a list is served one element a request, None as a 503."""

    def do_GET(self):
        server = self.server
        assert isinstance(server, MirrorServer)
        name = self.path.rpartition("/")[2]
        server.requests.append(name)
        content = server.files.get(name)
        if isinstance(content, list):
            content = content.pop(0)
        if content is None:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class MirrorServer(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Mirror)
        self.requests: list[str] = []
        self.files: dict[str, bytes | list[bytes | None]] = {
            f"{name}.gz": gzip.compress(content) for name, content in CONTENTS.items()
        }

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/mnist/"
