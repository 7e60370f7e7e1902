"""Answers in parts, as clients take them: by each of their transports."""

import asyncio
import threading

import pytest

import serving
from serving.oip import inference_pb as pb
from serving.protocols.status import Failure, StatusCode
from tests.serving.client.test_without_server import Scripted
from tests.serving.handlers.conftest import Gate, named
from tests.support.servers import wait_until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def told(request, tmp_path_factory):
    handlers = named(story="Story", behaviours="Behaviours", teller="Teller")
    options = {"transport": request.param, "handler_processes": 1}
    with serving.Server(handler=handlers, **options) as told:
        yield told


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def client(told, request):
    with serving.Client(told.address, transport=request.param, timeout_s=20) as client:
        yield client


def tokens(parts):
    return [part["token"].tolist() for part in parts]


def num_open(client):
    """How many generators are open, as the one that is begun to ask says."""
    (part,) = client.stream("story", {"prompt": ["word"]})
    return part["open"][0]


def test_parts_come_in_order(client):
    parts = [*client.stream("story", {"prompt": ["once upon a", "time"]})]
    assert tokens(parts) == [["once"] * 2, ["upon"] * 2, ["a"] * 2]
    assert {part.model_version for part in parts} == {"1"}
    assert tokens(client.stream("story", ["many:500"])) == [[f"{each}"] for each in range(500)]


def test_no_part_at_all_is_no_part(client):
    assert [*client.stream("story", {"prompt": [""]})] == []


def test_model_of_one_answer_has_one_part(client):
    (part,) = client.stream("behaviours", {"text": ["say a"]}, outputs=["answer"])
    assert {name: each.tolist() for name, each in part.items()} == {"answer": ["SAY A"]}


def test_errors_have_their_classes_behind_the_parts(client):
    found = {}
    words = "refuse:because", "raise:no", "exit:3"
    for word in words:
        parts = client.stream("story", {"prompt": [f"once {word}"]})
        assert next(parts)["token"] == ["once"]
        with pytest.raises(serving.ServingError) as caught:
            next(parts)
        found[word] = type(caught.value)
    assert found == dict(
        zip(words, (serving.InvalidRequest, serving.ModelError, serving.ModelError), strict=True)
    )
    with pytest.raises(serving.ModelNotFound):
        next(client.stream("nothing", {"prompt": ["once"]}))
    with pytest.raises(serving.InvalidRequest, match="expected the inputs prompt"):
        next(client.stream("story", {"text": ["once"]}))


def test_handler_streams_another_model(client):
    def told(prompt, **options):
        return [token for (token,) in tokens(client.stream("teller", [prompt], **options))]

    assert told("once upon a") == ["ONCE", "UPON", "A"]
    assert told("many:200") == [f"{each}" for each in range(200)]
    assert told("") == []
    assert told("say hi") == ["SAY HI"]
    assert told("once stop many:1000000000") == ["ONCE"]
    for word, error in (("refuse:no", serving.InvalidRequest), ("exit:3", serving.ModelError)):
        parts = client.stream("teller", [f"once {word} upon"])
        assert next(parts)["token"] == ["ONCE"]
        with pytest.raises(error):
            next(parts)
    with pytest.raises(serving.DeadlineExceeded):
        told("many:1000000000", timeout_s=0.3)
    for _ in client.stream("teller", ["many:1000000000"]):
        break
    wait_until(lambda: num_open(client) == 1)


def test_loop_that_is_left_ends_the_generator(client):
    for part in client.stream("story", {"prompt": ["many:1000000000"]}):
        assert part["token"] == ["0"]
        break
    wait_until(lambda: num_open(client) == 1)


def test_stream_that_takes_too_long_is_late(client):
    with pytest.raises(serving.DeadlineExceeded):
        tokens(client.stream("story", {"prompt": ["many:1000000000"]}, timeout_s=0.3))
    wait_until(lambda: num_open(client) == 1)


def test_part_comes_as_soon_as_it_is_made(client, tmp_path):
    gate = Gate(tmp_path)
    parts = client.stream("story", {"prompt": [f"once wait:{gate.path} upon"]})
    assert next(parts)["token"] == ["once"]
    with gate.closed():
        pass
    assert tokens(parts) == [["upon"]]


def test_many_threads_read_at_a_time_and_slow_ones_hold_back_nobody(client):
    slow = client.stream("story", {"prompt": ["long:200"]}, timeout_s=60)
    found = [next(slow)["token"][0]]
    others = [[] for _ in range(8)]

    def read(number):
        others[number] += tokens(client.stream("story", {"prompt": ["many:100"]}))

    threads = [threading.Thread(target=read, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert others == [[[f"{each}"] for each in range(100)]] * 8
    assert num_open(client) == 2  # the slow one's 13 MB are not made ahead
    found += [each for (each,) in tokens(slow)]
    assert [each.rstrip("x") for each in found] == [f"{each}" for each in range(200)]
    assert {len(each) - len(each.rstrip("x")) for each in found} == {65536}


def test_part_that_is_longer_than_the_window_arrives(client):
    (part,) = client.stream("story", {"prompt": ["x" * 3_000_000]})
    assert len(part["token"][0]) == 3_000_000


def test_closed_client_ends_its_streams(told):
    client = serving.Client(told.address)
    parts = client.stream("story", {"prompt": ["many:1000000000"]})
    next(parts)
    client.close()
    with pytest.raises(serving.Unavailable):
        tokens(parts)
    with pytest.raises(serving.Unavailable):
        next(client.stream("story", {"prompt": ["once"]}))


@pytest.mark.parametrize("transport", ["h2", "grpcio"])
def test_event_loop_reads_streams_at_a_time(told, transport):
    async def read(client, prompt, **options):
        parts = client.stream("story", {"prompt": [prompt]}, **options)
        return [part["token"].tolist() async for part in parts]

    async def call():
        async with serving.AsyncClient(told.address, transport=transport, timeout_s=20) as client:
            found = await asyncio.gather(*(read(client, "many:50") for _ in range(20)))
            assert found == [[[f"{each}"] for each in range(50)]] * 20
            with pytest.raises(serving.InvalidRequest):
                await read(client, "once refuse:no")
            with pytest.raises(serving.DeadlineExceeded):
                await read(client, "many:1000000000", timeout_s=0.3)
            async for _ in client.stream("story", {"prompt": ["many:1000000000"]}):
                break
            task = asyncio.create_task(read(client, "many:1000000000"))
            await read(client, "once")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(call())
    with serving.Client(told.address) as client:
        wait_until(lambda: num_open(client) == 1)


def test_stream_is_sent_again_before_its_first_part_alone(monkeypatch):
    response = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse())
    response.infer_response.outputs.add(name="y", datatype="INT64", shape=[1])
    response.infer_response.raw_output_contents.append(bytes(8))
    part, gone = response.SerializeToString(), Failure(StatusCode.UNAVAILABLE, "gone")
    scripted = Scripted([gone], [part, gone])
    monkeypatch.setattr(serving.Client, "_new_transport", lambda self: scripted)
    client = serving.Client("127.0.0.1:1")
    tensors = (serving.Tensor("x", "INT64", (-1,)),), (serving.Tensor("y", "INT64", (-1,)),)
    facts = {"version": "1", "versions": ("1",), "default_version": "1", "max_batch_size": 0}
    client._infos["m", ""] = serving.ModelInfo(
        name="m", inputs=tensors[0], outputs=tensors[1], is_batchable=True, **facts
    )
    parts = client.stream("m", [1])
    assert next(parts)["y"].tolist() == [0]
    with pytest.raises(serving.Unavailable, match="gone"):
        next(parts)
    assert len(scripted.sent) == 2
    assert scripted.num_cancelled == 2
