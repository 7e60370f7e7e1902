"""A request is answered alike on a connection that knows its kind and on a new one.

What is known of a connection or of all of them lets bytes go unread. Requests that were changed at
random, a little, must not be taken for what they resemble.
"""

import json
import random
import re
import struct
from typing import Any

import hpack
import numpy as np
import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame, WindowUpdateFrame

from digit_classifier import Classifier
from digit_classifier.wire import encode_request
from serving import Model
from serving.oip import rest
from serving.oip.inference_pb import ModelInferRequest
from tests.serving.model import graphs
from tests.serving.model.graphs import node, value
from tests.support.fakes import model_in
from tests.support.wire import PREFACE, message, request_headers
from tests.support.world import INFER, Caller, World

TOKEN = "0123456789abcdef"
WIDTH = 3
_OTHER_SIZES = "expected tensors of the sizes that their shapes have"
"""Where bytes between tensors are others, which a run finds out."""
_DATE = re.compile(rb"\r\ndate: [^\r]*\r\n")


@pytest.fixture(scope="module")
def digits():
    with Classifier.pretrained() as classifier:
        yield model_in(classifier)[0]


@pytest.fixture
def world(tmp_path, digits):
    both = [value("a", "FP32", ["N", WIDTH]), value("b", "INT64", ["N"])]
    pair = graphs.model(
        [node("Neg", ["a"], ["c"]), node("Mul", ["b", "b"], ["d"])],
        both, [value("c", "FP32", ["N", WIDTH]), value("d", "INT64", ["N"])])  # fmt: skip
    one = graphs.model([node("Neg", ["x"], ["y"])], [value("x", "FP32", ["N", WIDTH])],
                       [value("y", "FP32", ["N", WIDTH])])  # fmt: skip
    models = {"digits": digits}
    for name, graph in (("pair", pair), ("one", one)):
        graphs.save(graph, tmp_path, f"{name}.onnx")
        models[name] = Model.load(tmp_path / f"{name}.onnx").served
    made = World(tmp_path, models, tokens=TOKEN)
    yield made
    made.close()


class Kind:
    """Requests over HTTP that differ in values only."""

    def __init__(self, path, document, behind=b""):
        self.path, self.document, self.behind = path, document, behind

    def request(self, draw):
        """Return the lines of a head, and the body, with values of its own."""
        text = json.dumps(self.document(draw)).encode()
        body = text + (draw.randbytes(self.behind) if self.behind else b"")
        lines = [
            f"POST {self.path} HTTP/1.1", f"content-length: {len(body)}", "host: 127.0.0.1",
            f"authorization: Bearer {TOKEN}", "content-type: application/json",
        ]  # fmt: skip
        if self.behind:
            lines.append(f"inference-header-content-length: {len(text)}")
        return [line.encode() for line in lines], body


def floats(draw, number=WIDTH):
    return [draw.choice((0, 1.5, -2, 1e3, draw.random())) for _ in range(number)]


def input_of(name, datatype, shape, **more):
    return {"name": name, "datatype": datatype, "shape": shape, **more}


AS_BYTES = {"binary_data_output": True}
KINDS = [
    Kind("/v2/models/one/infer",
         lambda draw: {"inputs": [input_of("x", "FP32", [1, WIDTH], data=floats(draw))]}),
    Kind("/v2/models/one/infer",
         lambda draw: {"inputs": [input_of("x", "FP32", [2, WIDTH],
                                           data=[floats(draw), floats(draw)])],
                       "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}),
    Kind("/v2/models/digits/infer",
         lambda draw: {"inputs": [input_of("images", "UINT8", [1, 784],
                                           data=[draw.randrange(256) for _ in range(784)])]}),
    Kind("/v2/models/digits/infer",
         lambda draw: {"inputs": [input_of("images", "UINT8", [1, 784],
                                           parameters={"binary_data_size": 784})],
                       "parameters": AS_BYTES}, 784),
    Kind("/v2/models/pair/infer",
         lambda draw: {"inputs": [input_of("a", "FP32", [1, WIDTH],
                                           parameters={"binary_data_size": 4 * WIDTH}),
                                  input_of("b", "INT64", [1],
                                           parameters={"binary_data_size": 8})],
                       "parameters": AS_BYTES}, 4 * WIDTH + 8),
    Kind("/v1/models/pair:predict",
         lambda draw: {"instances": [{"a": floats(draw), "b": draw.randrange(9)}]}),
]  # fmt: skip

HEADERS = [
    b"content-encoding: gzip", b"request-timeout: 5", b"request-timeout: 0", b"expect: nothing",
    b"connection: close", b"x-request-id: 7", b"inference-header-content-length: 5",
    b"content-length: 3", b"transfer-encoding: chunked", b"content-type: image/png",
    b"authorization: Bearer no", b"x-content-length: 3", b"x", b" folded: 1", b"origin: http://a.b",
]  # fmt: skip
PIECES = [b"[", b"]", b"1", b",", b" ", b"NaN", b"true", b'"', b"{", b"}", b"1e400", b"\0", b"-"]


def changed(lines, body, draw):
    """A request with a change or two; its length is right most often."""
    lines = list(lines)
    is_length_kept = draw.random() < 0.2
    for _ in range(draw.choice((0, 1, 1, 1, 2))):
        what = draw.randrange(7)
        if what == 0:
            lines.insert(draw.randrange(1, len(lines) + 1), draw.choice(HEADERS))
        elif what == 1:
            del lines[draw.randrange(1, len(lines))]
        elif what == 2:
            at = draw.randrange(len(lines))
            lines[at] = _mutated(lines[at], draw, [b" ", b"/", b"0", b":", b"P", b"\t", b"%"])
        elif what == 3:
            at = draw.randrange(len(lines))
            lines[at] = draw.choice((lines[at].lower(), lines[at].upper(), lines[at] + b" "))
        else:
            body = _mutated(body, draw, PIECES)
    if not is_length_kept:
        lines = [
            b"content-length: %d" % len(body) if line.startswith(b"content-length: ") else line
            for line in lines
        ]
    return b"\r\n".join([*lines, b"", body])


def _mutated(data, draw, pieces):
    at = draw.randrange(len(data) + 1)
    cut = draw.choice((0, 0, 1, 1, 2, len(data)))
    return data[:at] + draw.choice((b"", *pieces)) + data[at + cut :]


class HttpCaller(Caller):
    """One over HTTP."""

    def __init__(self, world):
        super().__init__(world, world.web)

    def outcome(self, data):
        """What comes for a request, and whether the server hangs up."""
        self.received = b""
        self.send(data)
        is_over = self.read()
        return _DATE.sub(b"\r\n", self.received), is_over


def known_caller(world, kind, draw):
    """A caller of whose connection the server knows this kind."""
    caller = HttpCaller(world)
    for _ in range(2):
        lines, body = kind.request(draw)
        answer, is_over = caller.outcome(b"\r\n".join([*lines, b"", body]))
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert not is_over
    return caller


def compare_http(world, draw, number):
    answered = 0
    for _ in range(number):
        kind = draw.choice(KINDS)
        data = changed(*kind.request(draw), draw)
        outcomes = []
        # Each for one request: bytes that it does not read would be part of the next one.
        for caller in (HttpCaller(world), known_caller(world, kind, draw)):
            outcomes.append(caller.outcome(data))
            caller.leave()
        assert outcomes[0] == outcomes[1], data
        answered += outcomes[0][0].startswith(b"HTTP/1.1 200 ")
    return answered


class GrpcCaller(Caller):
    """One over gRPC; each call has a stream of its own."""

    def __init__(self, world):
        super().__init__(world, world.grpc)
        self.encoder, self.decoder, self.stream = hpack.Encoder(), hpack.Decoder(), -1
        settings = SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 2**30})
        more = WindowUpdateFrame(0, 2**30)
        ready = settings, more, SettingsFrame(0, flags=["ACK"])
        self.send(PREFACE + b"".join(each.serialize() for each in ready))
        self.read()

    def outcome(self, fields, parts):
        """What comes for a call whose message comes in parts: headers, data, trailers."""
        self.stream += 2
        self.received = b""
        block = self.encoder.encode(fields)
        data = [DataFrame(self.stream, part) for part in parts]
        data[-1].flags.add("END_STREAM")
        frames: list[Frame] = [
            HeadersFrame(self.stream, block, flags=["END_HEADERS"]),
            *data,
        ]
        self.send(b"".join(each.serialize() for each in frames))
        is_over = self.read()
        return self._events(), is_over

    def _events(self):
        found: list[Any] = []
        data = self.received
        while data:
            size, kind = int.from_bytes(data[:3], "big"), data[3]
            payload, data = data[9 : 9 + size], data[9 + size :]
            if kind == 1:
                found.append(sorted(self.decoder.decode(payload)))
            elif kind == 0:
                found.append(payload)
            elif kind in (3, 7):
                found.append((kind, payload[-4:]))
        joined = b"".join(each for each in found if isinstance(each, bytes))
        return joined, [each for each in found if not isinstance(each, bytes)]


def infer_of(draw, model):
    ask = ModelInferRequest(model_name=model)
    if model == "digits":
        ask.inputs.add(name="images", datatype="UINT8", shape=[1, 784])
        ask.raw_input_contents.append(draw.randbytes(784))
    else:
        ask.inputs.add(name="a", datatype="FP32", shape=[1, WIDTH])
        ask.inputs.add(name="b", datatype="INT64", shape=[1])
        ask.raw_input_contents.append(np.array(floats(draw), np.float32).tobytes())
        ask.raw_input_contents.append(struct.pack("<q", draw.randrange(9)))
    return ask.SerializeToString()


CALLS = [
    ("/digits.v1.DigitClassifier/Classify", lambda draw: encode_request(draw.randbytes(784))),
    (INFER, lambda draw: infer_of(draw, "digits")),
    (INFER, lambda draw: infer_of(draw, "pair")),
]
FIELDS = [
    ("grpc-timeout", "5S"), ("grpc-timeout", "x"), ("grpc-encoding", "gzip"),
    ("authorization", "Bearer no"), ("content-type", "text/plain"), ("te", "no"), ("x-a", "b"),
    ("x-request-id", "7"),
]  # fmt: skip


def fields_of(path):
    return request_headers(__path=path, authorization=f"Bearer {TOKEN}")


def changed_call(fields, data, draw):
    fields, frame = list(fields), message(data)
    for _ in range(draw.choice((0, 1, 1, 2))):
        what = draw.randrange(6)
        if what == 0:
            fields.append(draw.choice(FIELDS))
        elif what == 1:
            del fields[draw.randrange(len(fields))]
        elif what == 2:
            at = draw.randrange(len(fields))
            name, text = fields[at]
            fields[at] = (name, text[: draw.randrange(len(text) + 1)])
        elif what == 3:
            frame = message(_mutated(data, draw, [b"\0", b"\x0a", b"\x3a", b"\xff"]))
        else:
            frame = _mutated(frame, draw, [b"\0", b"\1", b"\xff", bytes(784)])
    at = draw.randrange(len(frame) + 1)
    return fields, draw.choice(([frame], [frame], [frame[:at], frame[at:]]))


def _are_refused(found, expected):
    """Whether both are refused, the known one by the text of its layout.

    Its bytes between tensors are others. Read whole they are malformed, or name another model.
    """
    described = [dict(events[-1]) for (_, events), _ in (found, expected)]
    statuses = [each.get("grpc-status") for each in described]
    is_by_layout = described[0].get("grpc-message") == _OTHER_SIZES and statuses[0] == "3"
    return is_by_layout and statuses[1] in ("3", "5")


def compare_grpc(world, draw, number):
    callers, answered = {}, 0
    for _ in range(number):
        at = draw.randrange(len(CALLS))
        path, data_of = CALLS[at]
        caller = callers.pop(at, None)
        if caller is None:
            caller = GrpcCaller(world)
            for _ in range(3):
                (data, _), _ = caller.outcome(fields_of(path), [message(data_of(draw))])
                assert data
        call = changed_call(fields_of(path), data_of(draw), draw)
        world.loop.forget_layouts()
        new = GrpcCaller(world)
        expected = new.outcome(*call)
        new.leave()
        for _ in range(2):  # that connection's kind is known again
            caller.outcome(fields_of(path), [message(data_of(draw))])
        found = caller.outcome(*call)
        assert found == expected or _are_refused(found, expected), call
        answered += bool(expected[0][0])
        if expected[1]:
            caller.leave()
        else:
            callers[at] = caller
    return answered


@pytest.mark.parametrize("zeros", [0, 1, 16, 17, 30, 5_000])
def test_length_with_zeros_before_it_is_read_as_on_a_new_connection(world, zeros, generator):
    kind = KINDS[0]
    (first, length, *lines), body = kind.request(generator)
    length = length.replace(b": ", b": " + b"0" * zeros)
    data = b"\r\n".join([first, length, *lines, b"", body])
    callers = HttpCaller(world), known_caller(world, kind, generator)
    new, known = [caller.outcome(data) for caller in callers]
    for caller in callers:
        caller.leave()
    assert new == known
    assert new[0].startswith(b"HTTP/1.1 200 " if zeros <= 17 else b"HTTP/1.1 400 ")


def test_values_that_can_not_be_cut_are_not_read_on_the_loop(world, generator, monkeypatch):
    read, lengths = rest.read_values, []

    def noted(text, datatype):
        lengths.append(len(text))
        return read(text, datatype)

    monkeypatch.setattr(rest, "read_values", noted)
    caller = known_caller(world, KINDS[1], generator)
    lines, body = KINDS[1].request(generator)
    at, end = body.index(b"[["), body.index(b"]]")
    for values, is_read in ((b"1," * 50_000, True), (b"1," * 70_000, False)):
        lengths.clear()
        other = b"%b[[%b1%b" % (body[:at], values, body[end:])
        lines[1] = b"content-length: %d" % len(other)
        data = b"\r\n".join([*lines, b"", other])
        for begin in range(0, len(data), 1 << 14):  # as much as the socket holds
            caller.send(data[begin : begin + (1 << 14)])
        assert bool(lengths) == is_read
        caller.read()
    caller.leave()


COMPARED = [compare_http, compare_grpc]


@pytest.mark.parametrize("compare", COMPARED)
def test_changed_requests_are_answered_as_on_a_new_connection(world, compare, generator):
    assert 30 <= compare(world, generator, 300) <= 270


@pytest.mark.slow
@pytest.mark.parametrize("compare", COMPARED)
def test_many_changed_requests_are_answered_as_on_a_new_connection(world, compare):
    for seed in range(5):
        answered = compare(world, random.Random(seed), 5_000)
        assert 500 <= answered <= 4_500
