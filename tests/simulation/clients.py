"""Polite clients of the simulation, on the project's own engine."""

from dataclasses import dataclass, field
from struct import pack

from digit_classifier.wire import decode_response, encode_request
from serving.http2 import events
from serving.http2.client import ClientConnection
from serving.http2.frames import (
    CONNECTION,
    INITIAL_WINDOW_SIZE,
    SETTINGS,
    ErrorCode,
    Http2Error,
    frame,
    word,
)
from serving.http2.hpack import INDEXED, INSERT, Encoder, _write_integer, encode_literally, literal
from serving.http2.limits import Limits
from serving.http2.streams import Stream, StreamPhase
from serving.oip import inference_pb
from serving.protocols.framing import frame as framed
from tests.simulation.network import Link

UNARY, STREAM = "/digits.v1.DigitClassifier/Classify", "/digits.v1.DigitClassifier/ClassifyStream"
INFER, SLOW = "/inference.GRPCInferenceService/ModelInfer", "/sim.Slow/Call"
PARTS = "/inference.GRPCInferenceService/ModelStreamInfer"
UNITS = {b"n": 1e-9, b"u": 1e-6, b"m": 1e-3, b"S": 1.0, b"H": 3600.0}
UNLIMITED = 10**9
MOST = b"\x7f\xff\xff\xff"


@dataclass(eq=False)
class Call:
    """One call of a polite client, and its fate."""

    number: int
    path: str
    label: str
    """The label of the version that it names; empty for none."""
    messages: list[list[bytes]]
    """The images of each message."""
    timeout_s: float
    sent_s: float
    stream: bytes = b""
    is_poison: bool = False
    is_ended: bool = False
    """Whether all of it was handed to the engine."""
    begun: int | None = None
    """Where in the client's bytes its headers begin, at the earliest."""
    end: int | None = None
    """Where it ends, and where it is reset, at the latest."""
    left: int | None = None
    data: bytes = b""
    answers: list[tuple[list[bytes], str]] = field(default_factory=list)
    """The rows of each answer, and their version."""
    outcome: str = ""
    """A gRPC status, or how it ended without one; empty before that."""
    done_s: float = 0.0
    model: str = "digits"
    reason: str = ""
    """The error that ends an answer in parts."""


class TerseEncoder(Encoder):
    """Inserts paths alone into the table: so a block's bytes soon mean another one."""

    def encode(self, fields):
        (path,) = (field for field in fields if field[0] == b":path")
        before, after = fields[: fields.index(path)], fields[fields.index(path) + 1 :]
        if path in self._table.fields:
            block = _write_integer(self._table.fields.index(path), 7, INDEXED)
        else:
            block = literal(path, INSERT)
            self._table.insert(path)
        return encode_literally(before) + block + encode_literally(after)


def has_finished(state):
    """Whether the client has sent everything on a stream."""
    return state.phase in (StreamPhase.HALF_CLOSED_LOCAL, StreamPhase.CLOSED)


class Engine(ClientConnection):
    """The project's, with calls of several messages."""

    def begin(self, fields):
        stream = word(self._next)
        self._next += 2
        self.streams[stream] = Stream(None, self.limits.stream_window_bytes)
        self._send_block(stream, self.encoder.encode(fields), end=False)
        return stream

    def send(self, stream, data, *, end):
        if isinstance(state := self.streams.get(stream), Stream) and not has_finished(state):
            self._send(stream, data, b"" if end else None)

    def has_finished(self, stream):
        state = self.streams.get(stream)
        return stream not in self._waiting and (state is None or has_finished(state))

    def widen(self, size):
        """Raise the first window of all streams."""
        more = size - self.limits.stream_window_bytes
        for state in self.streams.values():
            state.receive_window += more
        self.limits = limits(size, self.limits.connection_window_bytes)
        self._ready.append(frame(SETTINGS, 0, CONNECTION, pack(">HI", INITIAL_WINDOW_SIZE, size)))


def limits(stream_window, window):
    many = dict.fromkeys(("burst_small_frames", "burst_resets"), UNLIMITED)
    return Limits(stream_window_bytes=stream_window, connection_window_bytes=window, **many)


class Client:
    """Has a link, and writes its bytes as the link accepts them."""

    name = "client"

    def __init__(self, simulation, number, random, listener=None):
        self.simulation, self.number, self.random = simulation, number, random
        capacity = random.choice((500, 5_000, 1 << 20))
        self.link = Link(simulation, random, f"10.0.0.{number % 5}", self.arrived, capacity)
        self.link.resume, self.link.client = self.write, self
        self.out = b""
        self.num_queued = 0
        self.is_over = False
        simulation.after(self.link.latency_s, (listener or simulation.listener).connect, self.link)

    def tell(self, text):
        self.simulation.tell(f"{self.name} {self.number} {text}")

    def queue(self, data):
        self.out += data
        self.num_queued += len(data)
        self.write()

    def write(self):
        try:
            is_over = self.link.is_gone or self.link.is_reset or self.link.up.is_shut
            while self.out and not is_over:
                self.out = self.out[self.link.up.push(self.out) :]
        except BlockingIOError:
            pass

    def arrived(self):
        self.link.down.pop(UNLIMITED)

    def leave(self, how):
        """Close, reset, or be gone without a word."""
        if not self.is_over:
            self.tell(f"leaves: {how}")
            self.is_over = True
            link = self.link
            {"close": link.up.shut, "reset": link.reset, "vanish": link.vanish}[how]()


class Polite(Client):
    """Keeps to the protocol, so the server has to answer each of its calls, once."""

    model = "digits"

    def __init__(self, simulation, number, random, *, is_quick=False):
        super().__init__(simulation, number, random)
        self.is_quick = is_quick
        if is_quick:
            self.link.latency_s, self.link.cut_share = 1e-4, 0.0
        window = random.choice((20, 300, 65_535, 1 << 20))
        self.engine = Engine(limits(window, random.choice((70_000, 1 << 20))))
        if random.random() < 0.2:
            self.engine.encoder = TerseEncoder()
        self.calls: dict[bytes, Call] = {}
        self.begun: list[Call] = []
        """Those whose last byte has not been sent."""
        self.is_leaving = False
        """Whether it begins no more calls here."""
        self.is_stubborn = random.random() < 0.3
        """Whether it begins more calls until the server takes no more."""
        self.is_slow_reader = False
        self.is_reading, self.has_paused = True, False
        self.gives_up = random.random() < 0.6
        """Whether it cancels calls whose time is over."""
        self.flush()

    def flush(self):
        data, first = self.engine.data_to_send(), self.num_queued + 1
        if data:
            self.queue(data)
        for call in list(self.begun):
            if call.begun is None and call.stream not in self.engine._waiting:
                call.begun = first
            if call.is_ended and self.engine.has_finished(call.stream):
                call.end = self.num_queued
                self.begun.remove(call)

    # Calls

    def act(self, kind):
        """Do something: a burst of calls, or another step."""
        if self.is_over or self.is_leaving or self.link.is_reset:
            return
        if not self.engine.is_established:  # the server's windows are smaller than the usual ones
            self.simulation.after(0.1, self.act, kind)
            return
        random = self.random
        if kind == "widen":
            self.tell("widens its windows")
            self.engine.widen(1 << 20)
        elif kind == "pause":
            self.is_reading, self.has_paused = False, True
            self.simulation.after(random.choice((0.01, 1.0, 100.0)), self.read_on)
        elif kind == "cancel":
            for call in [each for each in self.calls.values() if random.random() < 0.5]:
                self.cancel(call)
        else:
            paths = random.choice(((UNARY,), (STREAM,), (INFER,), (UNARY, STREAM, INFER, SLOW)))
            images = random.choice((1, 1, 1, self.simulation.batching.max_request_rows))
            for _ in range(random.choice((1, 1, 5, 20))):
                self.begin(random.choice(paths), images)
        self.flush()

    def begin(self, path, most_images, timeout=b""):
        simulation, random, engine = self.simulation, self.random, self.engine
        if len(self.calls) >= min(engine.max_streams, simulation.limits.http2.max_streams):
            return None
        if timeout == b"":
            number = str(random.choice((1, 20, 300)))
            timeout = random.choice((None, None, number.encode() + random.choice([*UNITS])))
        num_messages = random.choice((1, 3, 3 if self.is_quick else 40)) if path == STREAM else 1
        images = [[simulation.image() for _ in range(random.randint(1, most_images))]
                  for _ in range(num_messages)]  # fmt: skip
        is_first = self.model == "digits"
        label = random.choice(("", "stable", "2")) if path == INFER and is_first else ""
        timeout_s = float("inf") if timeout is None else int(timeout[:-1]) * UNITS[timeout[-1:]]
        call = Call(
            simulation.count(), path, label, images, timeout_s, simulation.now_s, model=self.model
        )
        if random.random() < simulation.poison_share:
            message = random.choice(images)
            message[0] = message[0][:8] + b"\xff" + message[0][9:]
            call.is_poison = path != SLOW
        fields = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"sim"),
            (b":path", path.encode()), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
        ]  # fmt: skip
        if timeout is not None:
            fields.insert(4, (b"grpc-timeout", timeout))
        if random.random() < 0.1:
            fields.append((b"x-tenant", b"%d" % random.randrange(9)))
        for message in images:
            for image in message:
                simulation.calls[image[:8]] = self, call
        data = framed(message_of(call, images[0])) if path != SLOW else framed(b"")
        is_whole = path != STREAM and random.random() < 0.8
        if is_whole and not (engine.streams and random.random() < 0.1):
            call.stream, call.is_ended = engine.request(tuple(fields), data), True
        else:
            call.stream = engine.begin(tuple(fields))
            parts = [data] if path == STREAM else [data[:100], data[100:]]
            parts += [framed(message_of(call, each)) for each in images[1:]]
            pause_s = 0.0 if self.is_quick else random.choice((0.0, 1e-3, 0.3))
            self.send_parts(call, [part for part in parts if part], pause_s)
        self.calls[call.stream] = call
        self.begun.append(call)
        what = f"{call.path.rpartition('/')[2]}{'@' * bool(label)}{label}"
        within = f" within {call.timeout_s:g} s" if timeout else ""
        self.tell(f"begins call {call.number}: {what}, {sum(map(len, images))} images{within}")
        if timeout and self.gives_up:
            simulation.after(call.timeout_s, self.cancel, call)
        return call

    def send_parts(self, call, parts, pause_s):
        if call.outcome or self.is_over:
            return
        number = len(parts) if not pause_s else 1
        call.is_ended = number == len(parts)
        self.engine.send(call.stream, b"".join(parts[:number]), end=call.is_ended)
        if not call.is_ended:
            self.simulation.after(pause_s, self.send_parts, call, parts[number:], pause_s)
        if call.stream in self.calls:
            self.flush()

    def cancel(self, call):
        if not call.outcome and not self.is_over:
            self.tell(f"cancels call {call.number}")
            self.calls.pop(call.stream, None)
            self.engine.cancel(call.stream)
            self.flush()
            call.left = self.num_queued
            self.end(call, "cancelled")

    def end(self, call, outcome):
        self.calls.pop(call.stream, None)
        call.outcome, call.done_s = outcome, self.simulation.now_s
        if call in self.begun:
            self.begun.remove(call)
        self.tell(f"call {call.number} ends: {outcome}")
        self.simulation.judge(self, call)

    # Answers

    def read_on(self):
        self.is_reading = True
        self.arrived()

    def arrived(self):
        if self.is_over or not self.is_reading:
            return
        most = 200 if self.is_slow_reader else UNLIMITED
        data = self.link.down.pop(most)
        if self.link.down.buffer:
            self.simulation.after(0.02, self.arrived)
        try:
            for event in self.engine.receive(data, self.simulation.now_s):
                self.take(event)
        except Http2Error as err:
            self.simulation.fail(
                f"the server breaks the protocol towards client {self.number}: {err}"
            )
        self.flush()
        if self.link.down.is_ended and not self.link.down.buffer:
            self.is_over = True
            for call in list(self.calls.values()):
                self.end(call, "closed")
            self.link.up.shut()

    def take(self, event):
        if isinstance(event, events.GoAway):
            last = event.last_stream
            self.is_leaving = self.is_leaving or not self.is_stubborn or last < MOST
            for unread in [each for s, each in self.calls.items() if s > last]:
                self.end(unread, "unread")
            return
        if (call := self.calls.get(event.stream)) is None:
            return
        if isinstance(event, events.DataReceived):
            self.take_data(call, event.data)
            self.engine.acknowledge(event.stream, len(event.data))
        elif isinstance(event, events.StreamReset):
            self.end(call, f"reset {ErrorCode(event.code).name}")
        elif isinstance(event, events.TrailersReceived):
            self.end_with(call, event.fields)
        elif event.is_end:
            self.end_with(call, event.block.fields)

    def end_with(self, call, fields):
        self.end(call, dict(fields).get(b"grpc-status", b"none").decode())

    def take_data(self, call, data):
        call.data += data
        while len(call.data) >= 5 + (size := int.from_bytes(call.data[1:5], "big")):
            message, call.data = call.data[5 : 5 + size], call.data[5 + size :]
            if call.path in (INFER, PARTS):
                if call.path == INFER:
                    response = inference_pb.ModelInferResponse.FromString(message)
                else:
                    answer = inference_pb.ModelStreamInferResponse.FromString(message)
                    response = answer.infer_response
                    self.simulation.require(not call.reason, "a part comes behind an error")
                    if answer.error_message:
                        call.reason = response.parameters["error_reason"].string_param
                        continue
                rows, version = response.raw_output_contents[0], response.model_version
            elif call.path == SLOW:
                rows, version = b"", ""
            else:
                shape = len(call.messages[min(len(call.answers), len(call.messages) - 1)]), 10
                answer = decode_response(message, (), shape)
                rows, version = answer.probabilities.tobytes(), answer.model_version
            call.answers.append(([rows[i : i + 40] for i in range(0, len(rows), 40)], version))
            self.simulation.judge_answer(call)


def message_of(call, images):
    if call.path not in (INFER, PARTS):
        return encode_request(b"".join(images))
    tensor = {"name": "images", "datatype": "UINT8", "shape": [len(images), len(images[0])]}
    data: bytes = inference_pb.ModelInferRequest(
        model_name=call.model, model_version=call.label, inputs=[tensor],
        raw_input_contents=[b"".join(images)],
    ).SerializeToString()  # fmt: skip
    return data
