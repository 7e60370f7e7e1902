"""A model that answers in parts, over gRPC, as its protocol has it."""

import json
import queue
import threading

import grpc
import numpy as np
import pytest

import serving
from serving.oip import inference_pb as pb
from tests.serving.handlers.conftest import named
from tests.serving.http.peer import HttpPeer
from tests.support.servers import wait_until

pytestmark = pytest.mark.process
END = "triton_enable_empty_final_response"


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def told(request, network):
    handlers = named(story="Story", behaviours="Behaviours")
    options = {"transport": request.param, "handler_processes": 1, "max_response_bytes": 1 << 20}
    with serving.Server(network, handler=handlers, **options) as told:
        yield told


@pytest.fixture
def channel(told):
    with grpc.insecure_channel(told.address) as channel:
        yield channel


def request(prompt, *, model="story", identifier="", **parameters):
    name = "prompt" if model == "story" else "text"
    found = pb.ModelInferRequest(model_name=model, id=identifier)
    found.inputs.add(name=name, datatype="BYTES", shape=[1])
    found.inputs[0].contents.bytes_contents.append(prompt.encode())
    for each, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param"
        setattr(found.parameters[each], kind, value)
    return found


METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
CODEC = {
    "request_serializer": lambda each: each.SerializeToString(),
    "response_deserializer": pb.ModelStreamInferResponse.FromString,
}


def stream(channel, requests, timeout=20):
    return channel.stream_stream(METHOD, **CODEC)(iter(requests), timeout=timeout)


def stream_of_one(channel, asked, timeout=20):
    """A stream of one request, whose end is sent with it and not a moment later."""
    return channel.unary_stream(METHOD, **CODEC)(asked, timeout=timeout)


def token_of(answer):
    """An answer's text; its error, or None if it has no outputs."""
    if answer.error_message:
        return "error: " + answer.error_message
    outputs = answer.infer_response.outputs
    return outputs[0].contents.bytes_contents[0].decode() if outputs else None


def is_end(answer):
    return answer.infer_response.parameters["triton_final_response"].bool_param


def read(answers):
    """Take all; an error among them is raised."""
    for each in answers:
        if each.error_message:
            raise grpc.RpcError(each.error_message)


def num_open(channel):
    """How many generators are open, as the one that is begun to ask says."""
    (answer,) = stream(channel, [request("word")])
    return answer.infer_response.outputs[1].contents.int64_contents[0]


def is_draining(server):
    try:
        return HttpPeer(f"http://{server.http_address}").get("/v2/health/ready").status != 200
    except OSError:
        return True


def test_each_part_is_an_answer_and_the_end_is_marked(channel):
    answers = [*stream(channel, [request("once upon a", identifier="7", **{END: True})])]
    assert [token_of(each) for each in answers] == ["once", "upon", "a", None]
    assert [is_end(each) for each in answers] == [False, False, False, True]
    assert {each.infer_response.id for each in answers} == {"7"}
    assert {each.infer_response.model_name for each in answers} == {"story"}


def test_end_is_no_answer_where_none_is_wanted(channel):
    answers = [*stream(channel, [request("once upon")])]
    assert [token_of(each) for each in answers] == ["once", "upon"]
    assert [is_end(each) for each in answers] == [False, False]


def test_no_part_at_all_is_an_empty_end(channel):
    assert [*stream(channel, [request("")])] == []
    (end,) = stream(channel, [request("", **{END: True})])
    assert (token_of(end), is_end(end)) == (None, True)


def test_model_of_one_answer_marks_it_as_the_end_where_that_is_wanted(channel):
    (answer,) = stream(channel, [request("say a", model="behaviours", **{END: True})])
    assert (token_of(answer), is_end(answer)) == ("SAY A", True)
    (answer,) = stream(channel, [request("say a", model="behaviours")])
    assert not answer.infer_response.parameters


def test_requests_of_a_stream_interleave_and_each_keeps_its_order(channel):
    asked = queue.SimpleQueue()
    asked.put(request("many:1000000000", identifier="0"))
    answers = stream(channel, iter(asked.get, None))
    found = {each: [] for each in map(str, range(10))}
    found["0"].append(token_of(next(answers)))
    others = [*found][1:]
    for each in others:
        asked.put(request("many:20", identifier=each, **{END: True}))
    while not all(None in found[each] for each in others):
        answer = next(answers)
        found[answer.infer_response.id].append(token_of(answer))
    assert next(each for each in answers if each.infer_response.id == "0")  # it goes on
    answers.cancel()
    asked.put(None)
    assert all(found[each] == [*map(str, range(20)), None] for each in others)
    assert found["0"] == [*map(str, range(len(found["0"])))]
    wait_until(lambda: num_open(channel) == 1)


def test_error_in_the_middle_is_an_answer_behind_the_parts(channel):
    requests = [
        request("once refuse:no", identifier="1"),
        request("once raise:no", identifier="2"),
        request("one two three", identifier="3"),
    ]
    found = {"1": [], "2": [], "3": []}
    for each in stream(channel, requests):
        found[each.infer_response.id].append(token_of(each))
    assert found["1"] == ["once", "error: no"]
    assert found["2"][0] == "once"
    assert found["2"][1].startswith("error: the handler failed on this request: id ")
    assert found["3"] == ["one", "two", "three"]


def test_crash_in_the_middle_is_an_error_behind_the_parts(channel):
    found = [token_of(each) for each in stream(channel, [request("once exit:3 upon")])]
    assert found == ["once", "error: the handler's process has ended on this request"]
    wait_until(lambda: num_open(channel) == 1)


def test_part_that_is_too_large_is_an_error(channel):
    answers = [*stream(channel, [request("once " + "x" * 1_100_000)])]
    assert token_of(answers[0]) == "once"
    assert "--max-response-bytes" in answers[1].error_message
    wait_until(lambda: num_open(channel) == 1)


def test_caller_that_leaves_or_is_late_ends_the_generator(channel):
    answers = stream(channel, [request("many:1000000000")])
    assert token_of(next(answers)) == "0"
    answers.cancel()
    late = stream(channel, [request("many:1000000000", identifier="9", timeout=100_000)])
    *parts, error = late
    assert parts
    assert "deadline" in error.error_message
    assert error.infer_response.id == "9"
    with pytest.raises(grpc.RpcError, match=r"DEADLINE_EXCEEDED|deadline"):
        read(stream(channel, [request("many:1000000000")], timeout=0.2))
    wait_until(lambda: num_open(channel) == 1)


def test_slow_reader_holds_back_his_own_alone(channel, told):
    with grpc.insecure_channel(told.address) as other:
        slow = stream(other, [request("long:400")], timeout=60)
        first = next(slow)
        answers = [*stream(channel, [request("many:300")])]
        assert [token_of(each) for each in answers] == [*map(str, range(300))]
        assert num_open(channel) == 2  # it has not run to its end: his parts would be 26 MB
        tokens = [token_of(each) for each in (first, *slow)]
    assert [each.rstrip("x") for each in tokens] == [*map(str, range(400))]


def test_calls_that_take_one_answer_are_refused(channel, told):
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda each: each.SerializeToString(),
    )
    with pytest.raises(grpc.RpcError) as caught:
        infer(request("once"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    words = "model story answers in parts: call ModelStreamInfer"
    assert caught.value.details().startswith(words)
    peer = HttpPeer(f"http://{told.http_address}")
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["once"]}
    paths = {
        "/v2/models/story/infer": {"inputs": [tensor]},
        "/v1/models/story:predict": {"instances": ["once"]},
    }
    for path, body in paths.items():
        answer = peer.post(path, json.dumps(body).encode())
        assert answer.status == 400
        assert answer.json["detail"].startswith("model story answers in parts: ")


def test_configuration_says_that_a_request_has_any_number_of_answers(channel):
    ask = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelConfig",
        request_serializer=lambda each: each.SerializeToString(),
        response_deserializer=pb.ModelConfigResponse.FromString,
    )
    assert ask(pb.ModelConfigRequest(name="story")).config.model_transaction_policy.decoupled
    found = ask(pb.ModelConfigRequest(name="behaviours")).config
    assert not found.HasField("model_transaction_policy")


@pytest.mark.parametrize("transport", ["h2", "grpcio"])
def test_drain_lets_streams_end(transport, gate, network):
    handlers = named(story="Story")
    server = serving.Server(network, handler=handlers, transport=transport, handler_processes=1)
    with grpc.insecure_channel(server.address) as channel:
        answers = stream_of_one(channel, request(f"once wait:{gate.path} upon a", **{END: True}))
        assert token_of(next(answers)) == "once"
        closing = threading.Thread(target=server.close)
        with gate.closed():
            closing.start()
            wait_until(lambda: is_draining(server))
        found = [token_of(each) for each in answers]
    closing.join()
    assert found == ["upon", "a", None]


def test_parts_of_a_model_in_process():
    with serving.Model.load(handler=named(story="Story")["story"]) as model:
        parts = [each["token"].tolist() for each in model.stream({"prompt": ["a b", "c"]})]
        assert parts == [["a", "a"], ["b", "b"]]
        first = model.stream({"prompt": ["a b"]})
        second = model.stream({"prompt": ["a b"]}, outputs=["open"])
        assert next(first)["open"] == 1
        assert [*map(dict, second)] == [{"open": np.array([2])}] * 2
        first.close()
        (part,) = model.stream({"prompt": ["a"]})
        assert part["open"] == 1
        with pytest.raises(serving.Unsupported, match="Story answers in parts: call"):
            model.infer({"prompt": ["a"]})
        with pytest.raises(serving.InvalidRequest, match="no"):
            [*model.stream({"prompt": ["refuse:no"]})]
        with pytest.raises(serving.InvalidRequest):
            model.stream({"other": ["a"]})


def test_handler_streams_another_model_in_process():
    with serving.Model.load(handler=named(story="Story")["story"]) as story:
        models = {"story": story, "behaviours": story}
        handler = named(teller="Teller")["teller"]
        with serving.Model.load(handler=handler, models=models) as teller:
            parts = teller.stream(["once upon stop a"])
            assert [part["token"].tolist() for part in parts] == [["ONCE"], ["UPON"]]
        (part,) = story.stream(["word"])
        assert part["open"] == 1


def test_model_of_one_answer_has_one_part_in_process(network):
    with serving.Model.load(network) as model:
        (part,) = model.stream(np.zeros((1, 4), np.float32))
        assert part["y"].shape == (1, 3)


async def test_parts_of_a_model_on_an_event_loop():
    async with serving.AsyncModel.load(handler=named(story="Story")["story"]) as model:
        parts = [each["token"].tolist() async for each in model.stream({"prompt": ["a b"]})]
        assert parts == [["a"], ["b"]]
        opened = model.stream({"prompt": ["a b"]})
        await anext(opened)
        await opened.aclose()
        (part,) = [each async for each in model.stream({"prompt": ["a"]})]
        assert part["open"] == 1
