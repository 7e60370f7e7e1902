"""Answers of a MiB and more over HTTP: from their arrays, and texts part by part."""

import http.client
import json
import struct
from base64 import b64encode

import numpy as np
import onnx
import pytest
from onnx import parser

from serving import Client
from serving.http2 import Pieces, Written
from serving.oip.long_values import raw_part
from serving.oip.rest import Unwritten, write_texts
from serving.tensors import Tensor
from serving.transports.http_port import HttpEngine
from tests.serving.http.peer import Reply
from tests.support.servers import running_server

MIB = 1 << 20
NO_HEADERS: dict[str, str] = {}
AS_BYTES = {"binary_data_output": True}
MIXED = """
<ir_version: 8, opset_import: ["" : 17]>
mixed (int64[1] size) => (float[N] ones, float16[N] halves, int64[M] none, int64[1] same) {
  ones = ConstantOfShape<value: tensor = float[1] {1.0}>(size)
  halves = Cast<to: int = 10>(ones)
  zero = Constant<value: tensor = int64[1] {0}>()
  none = ConstantOfShape<value: tensor = int64[1] {7}>(zero)
  same = Identity(size)
}
"""
ECHO = """
<ir_version: 8, opset_import: ["" : 17]>
echo (string[N] x) => (string[N] y) { y = Identity(x) }
"""
PAIR = """
<ir_version: 8, opset_import: ["" : 17]>
pair (string[N, 2] x, int64[N] n) => (string[N, 2] y, int64[N] m, float16[N, 2] h) {
  y = Identity(x)
  m = Identity(n)
  half = Cast<to: int = 10>(n)
  last = Constant<value_ints: ints = [1]>()
  column = Unsqueeze(half, last)
  h = Concat<axis: int = 1>(column, column)
}
"""
UNEVEN = """
<ir_version: 8, opset_import: ["" : 17]>
uneven (string[N] x) => (string[N] y, int64 n) { y = Identity(x) n = Size(x) }
"""
TEXTS = ['ä"\\\n' * 400_000, "", "\U0001f600" * 5, "x" * MIB, "null"]
"""Characters that JSON escapes, of one to four bytes; the first is longer than a part."""
NUMBER = 600_000


@pytest.fixture(scope="module")
def long_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    graphs = {"mixed": MIXED, "echo": ECHO, "pair": PAIR, "uneven": UNEVEN}
    files = [folder / f"{name}.onnx" for name in graphs]
    for file, text in zip(files, graphs.values(), strict=True):
        onnx.save(parser.parse_model(text), file)
    options = "--http-port", "0", "--max-buffered-bytes", "12M"
    with running_server(None, *map(str, files), *options) as running:
        yield running


class Caller:
    """A caller on one connection."""

    def __init__(self, server):
        self.connection = http.client.HTTPConnection(
            server.facts["http"].removeprefix("http://"), timeout=20.0
        )

    def send(self, path, body, headers=NO_HEADERS):
        self.connection.request("POST", path, body, headers)

    def post(self, path, body, headers=NO_HEADERS):
        self.send(path, body, headers)
        answer = self.connection.getresponse()
        received = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, received, answer.read())


@pytest.fixture
def peer(long_server):
    caller = Caller(long_server)
    yield caller
    caller.connection.close()


def asked(peer, model, given, outputs=None, **options):
    """Ask; return the JSON, and the bytes behind it."""
    ask = {"inputs": [given], **options}
    if outputs is not None:
        ask["outputs"] = [
            {"name": name, "parameters": {"binary_data": is_binary}}
            for name, is_binary in outputs.items()
        ]
    answer = peer.post(f"/v2/models/{model}/infer", json.dumps(ask).encode())
    assert answer.status == 200, answer.body[:300]
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    return json.loads(answer.body[:size]), answer.body[size:]


def size_of(number):
    return {"name": "size", "datatype": "INT64", "shape": [1], "data": [number]}


TEXT = {"name": "x", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}


def raw_texts(texts):
    packed = [each.encode() for each in texts]
    return b"".join(struct.pack("<I", len(each)) + each for each in packed)


def test_long_outputs_are_whole_beside_empty_ones(peer):
    for _ in range(3):  # read, then known
        head, behind = asked(peer, "mixed", size_of(NUMBER), parameters=AS_BYTES)
        sizes = [each["parameters"]["binary_data_size"] for each in head["outputs"]]
        assert sizes == [NUMBER * 4, NUMBER * 2, 0, 8]
        ones, halves = behind[: sizes[0]], behind[sizes[0] : sum(sizes[:2])]
        np.testing.assert_array_equal(np.frombuffer(ones, np.float32), np.ones(NUMBER))
        np.testing.assert_array_equal(np.frombuffer(halves, np.float16), np.ones(NUMBER))
        assert behind[sum(sizes[:2]) :] == np.int64(NUMBER).tobytes()


def test_long_output_is_whole_beside_values_in_json(peer):
    named = {"ones": True, "same": False, "none": False}
    head, behind = asked(peer, "mixed", size_of(NUMBER), named, id="a")
    assert head["id"] == "a"
    assert [each.get("data") for each in head["outputs"]] == [None, [NUMBER], []]
    assert behind == np.ones(NUMBER, np.float32).tobytes()


def test_request_in_bytes_that_is_repeated_gets_long_answers(peer):
    head = {"inputs": [{"name": "size", "datatype": "INT64", "shape": [1],
                        "parameters": {"binary_data_size": 8}}],
            "parameters": AS_BYTES}  # fmt: skip
    text = json.dumps(head).encode()
    for number in (3, NUMBER, 4, NUMBER, NUMBER):
        body = text + struct.pack("<q", number)
        header = {"inference-header-content-length": str(len(text))}
        answer = peer.post("/v2/models/mixed/infer", body, header)
        size = int(answer.headers["inference-header-content-length"])
        assert len(answer.body) - size == number * 6 + 8
        assert answer.body[-8:] == struct.pack("<q", number)


@pytest.mark.parametrize("is_binary", [True, False])
def test_long_texts_are_whole(peer, is_binary):
    head, behind = asked(peer, "echo", TEXT, {"y": is_binary})
    (output,) = head["outputs"]
    assert output["shape"] == [len(TEXTS)]
    if is_binary:
        assert behind == raw_texts(TEXTS)
    else:
        assert output["data"] == TEXTS


def test_long_texts_are_whole_in_the_general_form(peer):
    head, _ = asked(peer, "echo", TEXT, {"y": False}, id="b", parameters={"timeout": 10_000_000})
    assert head["outputs"][0]["data"] == TEXTS


def predicted(peer, model, instances):
    answer = peer.post(f"/v1/models/{model}:predict", json.dumps({"instances": instances}).encode())
    assert answer.status == 200, answer.body[:300]
    return json.loads(answer.body)["predictions"]


def test_long_texts_are_whole_as_predictions(peer):
    assert predicted(peer, "echo", TEXTS) == TEXTS


def test_long_rows_of_several_outputs_are_objects(peer):
    rows = [[text, "b"] for text in TEXTS]
    found = predicted(peer, "pair", [{"x": row, "n": at} for at, row in enumerate(rows)])
    assert found == [{"y": row, "m": at, "h": [at] * 2} for at, row in enumerate(rows)]


def test_long_outputs_of_other_numbers_of_rows_are_one_object(peer):
    found = predicted(peer, "uneven", TEXTS)
    assert found == {"y": TEXTS, "n": len(TEXTS)}


def test_long_texts_are_whole_over_grpc(long_server):
    with Client(long_server.address) as client:
        for _ in range(2):
            assert client.infer("echo", {"x": np.array(TEXTS, object)})["y"].tolist() == TEXTS


def test_long_answer_is_whole_on_a_connection_that_closes(long_server):
    peer = Caller(long_server)
    ask = {"inputs": [size_of(NUMBER)], "parameters": AS_BYTES}
    body = json.dumps(ask).encode()
    answer = peer.post("/v2/models/mixed/infer", body, {"connection": "close"})
    assert len(answer.body) > NUMBER * 6


def test_long_answer_is_sent_in_turns():
    engine = HttpEngine()
    engine.write(b"first")
    engine.write(Pieces([bytes(MIB), b"end"]))
    engine.write(b"last")
    assert engine.num_unsent == 5 + MIB + 3 + 4
    assert engine.data_to_send() == b"first" + bytes(MIB)
    assert engine.due
    assert engine.num_unsent == 7
    assert [engine.data_to_send(), engine.data_to_send()] == [b"end", b"last"]
    assert not engine.due
    engine.write(Pieces([b"more"]))
    engine.drop_unsent()
    assert (engine.num_unsent, engine.data_to_send()) == (0, b"")


def test_texts_are_written_part_by_part():
    array = np.array(TEXTS, object)
    texts, binary = Tensor("y", "BYTES", (-1,)), Tensor("y", "BYTES", (-1,), content="bytes")
    parts = [*write_texts(Unwritten(texts, array))]
    assert json.loads(b"".join(parts)) == TEXTS
    assert max(map(len, parts)) < MIB
    files = np.array([bytes(range(256)) * 3000, b""], object)
    written = b"".join(write_texts(Unwritten(binary, files)))
    assert json.loads(written) == [b64encode(each).decode() for each in files]
    assert b"".join(write_texts(Unwritten(binary, files[:0]))) == b"[]"
    size, part = raw_part(array)
    assert isinstance(part, Written)
    pieces = Pieces([b"<", part, b">"])
    assert len(pieces) == size + 2
    assert bytes(pieces) == b"<" + raw_texts(TEXTS) + b">"
    assert pieces.take(5) == b"<" + raw_texts(TEXTS)[:4]
