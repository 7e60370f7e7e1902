"""Answers of megabytes: how many there may be, and how they are sent."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import onnx
import pytest
from onnx import parser

from serving import AsyncClient, Client
from serving.batching.run import answer_bytes
from serving.client import transport as transport_module
from serving.errors import Overloaded, TooLarge
from serving.http2 import Pieces
from serving.oip.inference_pb import ModelInferRequest, ModelInferResponse
from serving.transports.byte_budget import Budget
from tests.serving.http.peer import HttpPeer
from tests.support.servers import on_both, running_server

MIB = 1 << 20
LIMIT = 8 * MIB
GROW = """
<ir_version: 8, opset_import: ["" : 17]>
grow (int64[1] size) => (int64[N] up, float[N] ones) {
  first = Constant<value: tensor = int64 {0}>()
  step = Constant<value: tensor = int64 {1}>()
  none = Constant<value_ints: ints = [0]>()
  scalar = Squeeze(size, none)
  up = Range(first, scalar, step)
  ones = ConstantOfShape<value: tensor = float[1] {1.0}>(size)
}
"""
"""Its answer has 12 bytes for each of the number that it is asked for."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "grow.onnx"
    onnx.save(parser.parse_model(GROW), path)
    return path


@pytest.fixture(scope="module")
def grower(file, transport):
    http = ["--http-port", "0"] if transport == "h2" else []
    options = [str(file), "--max-response-bytes", "8M", "--transport", transport, *http]
    with running_server(None, *options) as server:
        yield server


@pytest.fixture(scope="module")
def wide(file):
    """A server with the limit that servers have by default."""
    with running_server(None, str(file), "--http-port", "0") as server:
        yield server


def grown_by(kind, carrier, address, number):
    """Ask by a client for threads, or by one for event loops."""
    if kind is Client:
        with Client(address, transport=carrier) as client:
            return grown(client, number)

    async def ask():
        async with AsyncClient(address, transport=carrier) as client:
            return await grown(client, number)

    return asyncio.run(ask())


@pytest.fixture
def asker(grower):
    with Client(grower.address) as asker:
        yield asker


def grown(asker, number, **options):
    return asker.infer("grow", {"size": np.array([number])}, **options)


def infer_of(number):
    ask = ModelInferRequest(model_name="grow")
    ask.inputs.add(name="size", datatype="INT64", shape=[1])
    ask.raw_input_contents.append(np.array([number]).tobytes())
    return ask.SerializeToString()


@on_both
@pytest.mark.parametrize("number", [1, 80_000, 90_000, 600_000])
def test_answer_of_any_size_up_to_the_limit_is_whole(asker, number):
    """80,000 have less than a MiB, 90,000 more: these are sent from the arrays."""
    for _ in range(3):  # parsed, then recognised
        answer = grown(asker, number)
        np.testing.assert_array_equal(answer["up"], np.arange(number))
        np.testing.assert_array_equal(answer["ones"], np.ones(number))
    np.testing.assert_array_equal(grown(asker, number, outputs=["ones"])["ones"], np.ones(number))


@on_both
def test_answer_over_the_limit_is_refused_by_its_largest_output(asker):
    number = 700_000
    text = (
        f"up has {8 * number} bytes, and the outputs of a call may have {LIMIT} "
        r"\(--max-response-bytes\)"
    )
    for _ in range(3):
        with pytest.raises(TooLarge, match=text):
            grown(asker, number)
    assert len(grown(asker, 3)["up"]) == 3


@pytest.mark.parametrize("carrier", ["h2", "grpcio"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_clients_take_long_answers(wide, kind, carrier):
    number = 2_000_000
    answer = grown_by(kind, carrier, wide.address, number)
    assert len(answer["up"]) == len(answer["ones"]) == number
    assert answer["up"][-1] == number - 1


def test_client_takes_as_much_as_a_server_sends(wide):
    number = (256 << 20) // 12
    with Client(wide.address, timeout_s=60.0) as client:
        assert len(grown(client, number)["up"]) == number
        with pytest.raises(TooLarge, match="max-response-bytes"):
            grown(client, number + 1)


def test_answer_that_was_sent_leaves_its_room_before_the_deadline_of_its_call(file):
    """Each is the first call of a connection, which is an object that lives until then."""
    ask = infer_of(300_000)
    with running_server(None, str(file), "--max-buffered-bytes", "4M") as server:
        for _ in range(3):
            with grpc.insecure_channel(server.address) as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                assert len(call(ask, timeout=300.0)) > 300_000 * 12


@pytest.mark.parametrize("carrier", ["h2", "grpcio"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_answer_that_is_longer_than_a_client_takes_is_too_large(wide, kind, carrier, monkeypatch):
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", MIB)
    with pytest.raises(TooLarge, match=f"more than {MIB} bytes, the most that this client takes"):
        grown_by(kind, carrier, wide.address, 100_000)
    assert len(grown_by(kind, carrier, wide.address, 3)["up"]) == 3


def test_answer_over_the_limit_is_the_servers_error_over_http(grower):
    peer = HttpPeer(grower.facts["http"])
    ask = {"inputs": [{"name": "size", "datatype": "INT64", "shape": [1], "data": [700_000]}]}
    refused = peer.post("/v2/models/grow/infer", json.dumps(ask).encode())
    assert (refused.status, refused.json["reason"]) == (500, "TOO_LARGE")
    assert "up has 5600000 bytes" in refused.json["detail"]


def test_beside_a_long_answer_others_of_the_connection_are_answered(asker):
    """Each takes turns with the others, and none is refused for what is not sent yet."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda at: grown(asker, 600_000 if at % 2 else 2), range(24))
        sizes = [len(each["up"]) for each in answers]
    assert sizes == [2, 600_000] * 12


def test_long_answer_comes_through_the_windows_of_a_library(grower):
    """The first window has 64 KiB: the answer waits for more of them."""
    ask = infer_of(500_000)
    options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(grower.address, options) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(3):
            answer = ModelInferResponse.FromString(call(ask))
            up, ones = answer.raw_output_contents
            np.testing.assert_array_equal(np.frombuffer(up, np.int64), np.arange(500_000))
            np.testing.assert_array_equal(np.frombuffer(ones, np.float32), np.ones(500_000))


def test_pieces_are_taken_across_their_ends():
    array = np.arange(1000, dtype=np.int32).reshape(10, 100)
    pieces = Pieces([b"head", array.data, b"", b"between"])
    pieces.append(b"end")
    whole = b"head" + array.tobytes() + b"betweenend"
    assert len(pieces) == len(whole)
    assert bytes(pieces) == whole
    parts = [pieces.take(size) for size in (1, 9, 0, 3000, 5000)]
    assert [len(each) for each in parts] == [1, 9, 0, 3000, len(whole) - 3010]
    assert b"".join(parts) == whole
    assert len(pieces) == 0


def test_texts_of_an_output_are_measured_as_they_are_sent():
    texts = np.array(["abc", "ä", b"\xff\xff", ""], object)
    assert answer_bytes(texts) == 4 * 4 + 3 + 2 + 2
    assert answer_bytes(np.zeros((3, 2), np.float32)) == 24


def test_long_answers_count_in_the_budget_until_they_are_gone():
    budget = Budget(lambda: 0.0, lambda: None)
    budget.max_bytes = 100
    first = Pieces([bytes(1000)])  # one always fits
    budget.hold_answer(first)
    second = Pieces([bytes(10)])
    with pytest.raises(Overloaded, match="answers are not sent yet"):
        budget.hold_answer(second)
    del first
    budget.hold_answer(second)
