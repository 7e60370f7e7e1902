"""HTTP/2 as a test likes: a caller that sends any frames, and a server that gives any answers."""

import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import hpack
import ngh2
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from serving.protocols.status import StatusCode
from tests.support.raw import CLASSIFY, TIMEOUT_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Headers = list[tuple[str, str]]


def request_headers(**changed):
    """The headers of a gRPC call; `changed` replaces by name (_ for -), None leaves one out."""
    headers: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": CLASSIFY,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers |= {name.replace("__", ":").replace("_", "-"): v for name, v in changed.items()}
    return [(name, value) for name, value in headers.items() if value is not None]


def message(data, flag=0, length=None):
    """Frame a gRPC message, perhaps with a length that isn't its own."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


@dataclass
class Reply:
    """The data received on a stream."""

    headers: dict[str, str] = field(default_factory=dict)
    """The headers of all its blocks, trailers included."""
    body: bytes = b""
    ended: bool = False
    """Whether the server has ended its side."""
    reset: int | None = None
    """The error code of its RST_STREAM."""

    @property
    def status(self):
        """The name of the grpc-status, once it has come."""
        text = self.headers.get("grpc-status")
        return None if text is None else StatusCode(int(text)).name

    @property
    def is_over(self):
        """Whether no more will come."""
        return self.ended or self.reset is not None


class Connection:
    """A TCP connection to a server; nothing is checked on the way out."""

    def __init__(self, address, timeout_s, tls=None):
        self.address = address
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeout_s = timeout_s
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        self.answered: set[int] = set()
        """The streams whose grpc-status has come."""
        self.replies: dict[int, Reply] = {}
        """The replies, by stream."""
        self.goaways: list[int] = []
        """The last stream of each GOAWAY."""
        self.pongs: list[bytes] = []
        """The PINGs that were answered."""
        self.is_over = False
        """Whether the server has hung up."""
        self.num_credited = 0
        """Bytes that the server has added to the connection's window."""
        self.windows: dict[int, int] = {}
        """Bytes that `send_body` may send, by stream."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.socket.close()

    def send(self, *parts):
        """Send frames or bytes; some scripts expect the server to hang up meanwhile."""
        data = b"".join(p if isinstance(p, bytes) else p.serialize() for p in parts)
        with suppress(ConnectionError):
            self.socket.sendall(data)

    def open(self, **settings):
        """Send the preface and SETTINGS, such as INITIAL_WINDOW_SIZE=0."""
        codes = {getattr(SettingsFrame, name): value for name, value in settings.items()}
        self.send(PREFACE, SettingsFrame(0, settings=codes))

    def open_wide(self):
        """Open windows that the caller need not update; the server's limits count, too."""
        self.open(INITIAL_WINDOW_SIZE=2**31 - 1)
        self.send(WindowUpdateFrame(0, window_increment=2**31 - 1 - 65_535))
        self.acknowledge()

    def encode(self, headers):
        """Encode a header block; each is encoded once, in the order of sending."""
        return self._encoder.encode(headers)

    def headers(self, stream, headers, *flags):
        """Build a HEADERS frame."""
        return HeadersFrame(stream, self.encode(headers), flags=["END_HEADERS", *flags])

    def call(self, stream, body, **changed):
        """Send a whole call."""
        head = self.headers(stream, request_headers(**changed))
        self.send(head, DataFrame(stream, body, flags=["END_STREAM"]))

    def begin(self, stream, *parts, **changed):
        """Send the headers of a call, and parts of its body."""
        head = self.headers(stream, request_headers(**changed))
        self.send(head, *(DataFrame(stream, part) for part in parts))

    def end(self, stream, part=b""):
        """Send the last part of a call's body."""
        self.send(DataFrame(stream, part, flags=["END_STREAM"]))

    def ask(self, stream, body, **changed):
        """Send a whole call, and wait for its reply."""
        self.call(stream, body, **changed)
        return self.reply(stream)

    def wait(self, holds):
        """Read until something holds; fail if it never does."""
        deadline_s = time.monotonic() + self.timeout_s
        while not holds():
            assert not self.is_over, "the server hung up first"
            assert time.monotonic() < deadline_s, "it never happened"
            self._read_once(0.02)

    def acknowledge(self):
        """Wait for the server's SETTINGS and acknowledge them: its limits count from then on."""
        self.wait(lambda: self.num_credited > 0)
        self.send(SettingsFrame(0, flags=["ACK"]))

    def ping(self):
        """Wait until the server has answered a PING, and so everything before it."""
        num_pongs = len(self.pongs)
        self.send(PingFrame(0, bytes(8)))
        self.wait(lambda: len(self.pongs) > num_pongs)

    def receive(self):
        """Wait for something to come, and note it."""
        self.socket.settimeout(self.timeout_s)
        data = self.socket.recv(1 << 16)
        assert data, "the server hung up"
        self._received += data
        self._parse()

    def wait_closed(self):
        """Read until the server hangs up; fail if it never does."""
        deadline_s = time.monotonic() + self.timeout_s
        while not self.read(quiet_s=0.02):
            assert time.monotonic() < deadline_s, "it never hung up"

    def open_window(self, stream, num_bytes):
        """Record the stream windows that the server announces before reading."""
        self.windows[stream] = num_bytes

    def send_body(self, stream, body):
        """Send a message's bytes as the server's window lets them, and end the stream."""
        at = 0
        while at < len(body):
            self.wait(lambda: self.windows[stream] > 0)
            size = min(16_384, self.windows[stream])
            part = body[at : at + size]
            at += size
            self.windows[stream] -= size
            self.send(DataFrame(stream, part, flags=["END_STREAM"] if at >= len(body) else []))

    def reply(self, stream):
        """Wait for all that the server has to say on a stream."""
        reply = self.replies.setdefault(stream, Reply())
        self.wait(lambda: reply.is_over)
        return reply

    def read(self, quiet_s=0.15):
        """Read until the server is quiet or hangs up; note each status.

        Returns:
            True if it hung up.
        """
        while self._read_once(quiet_s):
            pass
        return self.is_over

    def _read_once(self, timeout_s):
        """Process one read; return False if it is empty."""
        self.socket.settimeout(timeout_s)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        self.is_over = not data
        self._received += data
        self._parse()
        return not self.is_over

    def _parse(self):
        while len(self._received) >= 9:
            try:
                frame, length = Frame.parse_frame_header(memoryview(self._received[:9]))
            except HyperframeError:
                return
            if len(self._received) < 9 + length:
                return
            frame.parse_body(memoryview(self._received[9 : 9 + length]))
            self._received = self._received[9 + length :]
            if isinstance(frame, HeadersFrame | ContinuationFrame):
                headers = dict(self._decoder.decode(frame.data))
                if headers.get("grpc-status") is not None:  # type: ignore[call-overload]
                    self.answered.add(frame.stream_id)
                self.replies.setdefault(frame.stream_id, Reply()).headers.update(headers)
            elif isinstance(frame, DataFrame):
                self.replies.setdefault(frame.stream_id, Reply()).body += frame.data
            elif isinstance(frame, RstStreamFrame):
                self.replies.setdefault(frame.stream_id, Reply()).reset = frame.error_code
            elif isinstance(frame, GoAwayFrame):
                self.goaways.append(frame.last_stream_id)
            elif isinstance(frame, WindowUpdateFrame):
                if frame.stream_id:
                    window = self.windows.get(frame.stream_id, 0)
                    self.windows[frame.stream_id] = window + frame.window_increment
                else:
                    self.num_credited += frame.window_increment
            elif isinstance(frame, PingFrame) and "ACK" in frame.flags:
                self.pongs.append(frame.opaque_data)
            if frame.stream_id and "END_STREAM" in frame.flags:
                self.replies[frame.stream_id].ended = True


# A server on HTTP/2 that answers as a test likes, one connection after the other


OK = ((b"grpc-status", b"0"),)
HEADERS = ((b":status", b"200"), (b"content-type", b"application/grpc"))


class Peer:
    """One connection of a server that answers as a test likes."""

    def __init__(self, sock, *, speaks_first=True):
        self.socket = sock
        self.http2 = ngh2.Connection(ngh2.Role.SERVER)
        if speaks_first:
            self.http2.initiate_connection()
            self.flush()

    def calls(self):
        """Yield the stream and the path of each call, once its message has come whole."""
        paths = {}
        while data := self.socket.recv(65_536):
            self.http2.receive_data(data)
            for event in self.http2.events():
                if isinstance(event, ngh2.RequestReceived):
                    paths[event.stream_id] = dict(event.headers)[b":path"].decode()
                if isinstance(event, ngh2.DataReceived) and event.end_stream:
                    yield event.stream_id, paths[event.stream_id]
            self.flush()

    def answer(self, stream, message, trailers=OK):
        self.http2.send_response(stream, HEADERS)
        self.http2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)
        self.http2.send_trailers(stream, trailers)
        self.flush()

    def flush(self):
        self.socket.sendall(self.http2.data_to_send())


@contextmanager
def peers(*scripts, speaks_first=True):
    """A server whose connections follow the scripts, one after the other, and then close."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for script in scripts:
                with suppress(OSError), listener.accept()[0] as sock:
                    script(Peer(sock, speaks_first=speaks_first))

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)  # connections that nobody made
        thread.join(TIMEOUT_S)
