"""Attackers of the simulation: each floods the server with frames of one kind, or with any."""

from struct import pack

from digit_classifier.wire import encode_request
from serving.http2.frames import (
    CONNECTION,
    END_HEADERS,
    END_STREAM,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    frame,
    word,
)
from serving.http2.hpack import encode_literally
from serving.protocols.framing import frame as framed
from tests.simulation.clients import SLOW, STREAM, UNARY, Client


class Hostile(Client):
    """Sends frames of a kind, in pieces, and reads or does not read."""

    name = "attacker"

    def __init__(self, simulation, number, random):
        super().__init__(simulation, number, random)
        self.reads = random.random() < 0.5
        self.theme = random.choice(THEMES)
        self.tell(f"comes: {self.theme}")
        first = (PREFACE + frame(SETTINGS, 0, CONNECTION, b""),
                 PREFACE + frame(SETTINGS, 0, CONNECTION, pack(">HI", INITIAL_WINDOW_SIZE, 0)),
                 b"GET / HTTP/1.1\r\n\r\n", PREFACE[:9])  # fmt: skip
        self.queue(random.choice(first if self.theme == "nonsense" else first[:2]))
        self.next = 1

    def act(self, kind):
        if not self.is_over and len(self.out) < 200_000:
            data = b"".join(self.attack() for _ in range(self.random.choice((1, 10, 60))))
            if self.random.random() < 0.1:
                at = self.random.randrange(len(data))
                data = data[:at] + self.random.randbytes(2) + data[at + 1 :]
            self.queue(data)

    def arrived(self):
        if self.reads:
            super().arrived()

    def attack(self):
        random, theme = self.random, self.theme
        stream = word(self.next)
        if theme == "pings":
            return frame(6, 0, CONNECTION, bytes(8))
        if theme == "settings":
            size = random.choice((0, 100, 65_535, 1 << 31))
            return frame(4, 0, CONNECTION, pack(">HI", random.randrange(8), size))
        if theme == "nonsense":
            return frame(random.randrange(12), random.randrange(64), word(random.randrange(9)),
                         random.randbytes(random.choice((0, 4, 5, 8, 50))))  # fmt: skip
        if theme == "updates":
            at = word(random.choice((0, 1, self.next)))
            return frame(8, 0, at, word(random.choice((0, 1, 70_000, 1 << 30))))
        self.next += 2
        path = random.choice((UNARY, STREAM, SLOW, "/x/y")).encode()
        fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path),
                  (b"te", b"trailers"), (b"content-type", b"application/grpc"),
                  *[(b"grpc-timeout", random.choice((b"1S", b"0n", b"x", b"99999999H")))]
                  * (random.random() < 0.3))  # fmt: skip
        block = encode_literally(fields)
        head = frame(1, END_HEADERS, stream, block)
        if theme == "continued":
            return frame(1, 0, stream, block) + frame(9, 0, stream, b"") * random.choice((1, 99))
        message = framed(encode_request(self.simulation.image()))
        if theme == "calls":
            return head + frame(0, END_STREAM, stream, message)
        if theme == "resets":
            part = frame(0, random.randrange(2), stream, message) if random.random() < 0.8 else b""
            return head + part + frame(3, 0, stream, word(8))
        if theme == "padded":
            pad = random.randrange(60)
            return head + frame(0, 8 | random.randrange(2), stream, bytes((pad,)) + message
                                + bytes(pad))  # fmt: skip
        # Halves of messages, and such as are too long, empty, compressed or many
        body = random.choice((message[:50], message[:3], b"", b"\1" + message[1:], message * 2,
                              b"\0\xff\xff\xff\xff" + message, framed(b"\x0a\x01\x00"),
                              message * 9))  # fmt: skip
        return head + frame(0, random.random() < 0.4, stream, body)


THEMES = ("pings", "settings", "nonsense", "updates", "continued", "calls", "resets", "padded",
          "halves", "halves")  # fmt: skip
