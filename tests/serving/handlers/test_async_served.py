"""Handlers with `async def` behind a server, in their own processes."""

import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

import serving
from serving.oip import inference_pb as pb
from tests.serving.handlers import conftest
from tests.serving.handlers.conftest import at_once
from tests.serving.http.peer import HttpPeer
from tests.support.servers import wait_until

pytestmark = pytest.mark.process
FILE = Path(__file__).parent / "async_behaviours.py"
MODELS = {
    "tasks": "Tasks",
    "joined": "AsyncJoined",
    "asyncstory": "AsyncStory",
}


def named(*names):
    """The option `handler` for classes of both files of behaviours."""
    others = conftest.named(behaviours="Behaviours", story="Story")
    return others | {name: f"{FILE}:{MODELS[name]}" for name in names}


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def shared(request, network):
    """A server whose handlers have a process each."""
    around = str(network)
    handlers = named("tasks", "joined", "asyncstory") | {network.stem: f"{FILE}:AsyncAround"}
    options = {"transport": request.param, "handler_processes": 1}
    with serving.Server(around, handler=handlers, **options) as server:
        yield server


@pytest.fixture
def caller(shared):
    with serving.Client(shared.address, timeout_s=20) as client:
        yield client


def say(client, text="say it", **options):
    return client.infer("tasks", {"text": [text]}, **options)["answer"][0]


def pid_of(client):
    return client.infer("tasks", {"text": ["say it"]})["pid"][0]


def all_of(*calls):
    threads, outcomes = at_once(*calls)
    for thread in threads:
        thread.join()
    return outcomes


def test_calls_are_in_hand_at_a_time_and_each_gets_its_own(served):
    _, client = served(handler=named("tasks"), handler_processes=1)
    found = all_of(*[lambda: say(client, "meet 16")] * 16)
    assert found == ["MEET 16"] * 16
    words = [f"sleep {each % 7 / 1000}{each:03}" for each in range(100)]
    found = all_of(*[lambda each=each: say(client, each) for each in words])
    assert found == [each.upper() for each in words]


def test_methods_with_and_without_async_go_together(caller, network):
    text, bias = ["banana", "kiwi"], np.ones((2, 2), np.float32)
    found = caller.infer(network.stem, {"text": text, "bias": bias})
    assert found["text"].tolist() == ["banana!", "kiwi!"]
    assert found["y"].shape == (2, 3)


def test_rows_of_several_calls_go_together(caller):
    texts = [f"a{each}" for each in range(40)]
    found = all_of(
        *[lambda each=each: caller.infer("joined", {"text": [each]}) for each in [*texts, "bad"]]
    )
    assert [each["answer"][0] for each in found[:-1]] == [each.upper() for each in texts]
    assert str(found[-1]).endswith(": a bad text")


def test_errors_are_the_calls_own_with_the_traceback_in_the_log(caller, shared):
    before = pid_of(caller)
    outcomes = all_of(
        lambda: say(caller, "refuse no"),
        lambda: say(caller, "raise no good"),
        lambda: say(caller, "raise_cancelled"),
        lambda: say(caller, "cancel_itself"),
        lambda: say(caller, "sleep 0.01"),
    )
    refused, failed, cancelled, by_itself, answer = outcomes
    assert isinstance(refused, serving.InvalidRequest)
    assert str(refused).endswith(": no")
    for each in (failed, cancelled, by_itself):
        assert isinstance(each, serving.ModelError)
        assert "the handler failed on this request: id " in str(each)
    assert answer == "SLEEP 0.01"
    wait_until(lambda: "ValueError: no good" in shared.errors)
    assert 'async_behaviours.py", line' in shared.errors
    assert "instance.py" not in shared.errors.rpartition("ValueError: no good")[0][-400:]
    assert pid_of(caller) == before


def test_late_call_is_cancelled_and_the_process_goes_on(caller):
    before, pid = int(say(caller, "cancelled")), pid_of(caller)
    with pytest.raises(serving.DeadlineExceeded):
        say(caller, "hang", timeout_s=0.3)
    wait_until(lambda: int(say(caller, "cancelled")) == before + 1)
    assert pid_of(caller) == pid


def test_late_call_gives_up_the_model_that_it_waits_for(caller, gate):
    before, pid = int(say(caller, "cancelled")), pid_of(caller)
    threads, outcomes = at_once(lambda: say(caller, f"ask_long wait {gate.path}", timeout_s=0.3))
    with gate.closed():
        threads[0].join()
        wait_until(lambda: int(say(caller, "cancelled")) == before + 1)
    assert isinstance(outcomes[0], serving.DeadlineExceeded)
    assert say(caller, "ask say it") == "SAY IT"
    assert pid_of(caller) == pid


def test_calls_whose_callers_leave_are_cancelled(caller, shared):
    before = int(say(caller, "cancelled"))
    with grpc.insecure_channel(shared.address) as channel:
        begin = stub_of(channel)
        calls = [begin("hang") for _ in range(5)]
        wait_until(lambda: say(caller, "hanging") == "5")
        for call in calls:
            call.cancel()
        wait_until(lambda: say(caller, "hanging") == "0")
    assert int(say(caller, "cancelled")) == before + 5


def test_loop_that_is_blocked_is_named_and_ended(served):
    server, client = served(handler=named("tasks"), handler_processes=1, max_handler="0.5")
    (outcome,) = all_of(lambda: say(client, "block"))
    assert isinstance(outcome, serving.DeadlineExceeded)
    assert str(outcome).endswith(": the handler takes more than 0.5 s")
    wait_until(lambda: "blocks its event loop: async_behaviours.py:" in server.errors)
    assert " in do_block" in server.errors
    assert say(client) == "SAY IT"


def test_task_that_takes_too_long_is_cancelled_and_others_go_on(served):
    server, client = served(handler=named("tasks"), handler_processes=1, max_handler="0.3")
    pid = pid_of(client)
    (outcome,) = all_of(lambda: say(client, "hang"))
    assert isinstance(outcome, serving.DeadlineExceeded)
    wait_until(lambda: say(client, "cancelled") == "1")
    assert pid_of(client) == pid
    wait_until(lambda: "the handler takes more than 0.3 s: it is cancelled" in server.errors)


def test_crash_costs_its_call_alone(served):
    _, client = served(handler=named("tasks"), handler_processes=1)
    pid = pid_of(client)
    threads, outcomes = at_once(*[lambda: say(client, "sleep 0.5")] * 8)
    wait_until(lambda: say(client) == "SAY IT")
    (crash,) = all_of(lambda: say(client, "exit 3"))
    for thread in threads:
        thread.join()
    assert isinstance(crash, serving.ModelError)
    assert outcomes == ["SLEEP 0.5"] * 8
    assert pid_of(client) != pid


def test_other_models_are_asked_by_tasks_and_threads(caller):
    assert say(caller, "ask say hello") == "SAY HELLO"
    assert say(caller, "ask_at_once say hello") == "SAY HELLO"
    expected = [f"SAY {each}" for each in range(16)] + [f"SAY T{each}" for each in range(16)]
    assert say(caller, "asks") == " ".join(expected)
    found = all_of(*[lambda each=each: say(caller, f"ask say {each}") for each in range(40)])
    assert found == [f"SAY {each}" for each in range(40)]


def test_other_model_is_streamed_and_left(caller):
    assert say(caller, "tell once upon a time") == "once upon"
    wait_until(lambda: next(caller.stream("story", {"prompt": ["word"]}))["open"][0] == 1)


def test_task_that_outlives_its_call_is_refused(served):
    _, client = served(handler=named("tasks"), handler_processes=1)
    assert say(client, "leave") == "LEAVE"
    assert say(client, "left") == "models can be called while their call is answered"


def test_answers_in_parts(caller):
    parts = caller.stream("asyncstory", {"prompt": ["once upon many:3"]})
    assert [part["token"][0] for part in parts] == ["once", "upon", "0", "1", "2"]
    with pytest.raises(serving.InvalidRequest, match="no"):
        [*caller.stream("asyncstory", {"prompt": ["once refuse:no"]})]
    assert num_open(caller) == 1


def num_open(client):
    (part,) = client.stream("asyncstory", {"prompt": ["word"]})
    return part["open"][0]


@pytest.mark.parametrize("prompt", ["many:1000000000", "once hang:"])
def test_stream_that_is_left_ends_its_generator(caller, prompt):
    parts = caller.stream("asyncstory", {"prompt": [prompt]})
    next(parts)
    others = caller.stream("asyncstory", {"prompt": ["many:20"]})
    assert [part["token"][0] for part in others] == [*map(str, range(20))]
    parts.close()
    wait_until(lambda: num_open(caller) == 1)


def is_draining(server):
    try:
        return HttpPeer(f"http://{server.http_address}").get("/v2/health/ready").status != 200
    except OSError:
        return True


def test_drain_lets_tasks_end(gate):
    server = serving.Server(handler=named("tasks"), handler_processes=1)
    with serving.Client(server.address, timeout_s=20) as client:
        threads, outcomes = at_once(lambda: say(client, f"gate {gate.path}"))
        with gate.closed():
            closing = threading.Thread(target=server.close)
            closing.start()
            wait_until(lambda: is_draining(server))
        for thread in (*threads, closing):
            thread.join()
    assert outcomes == [f"GATE {str(gate.path).upper()}"]


def test_reload_lets_tasks_of_the_old_file_end(served, tmp_path, gate):
    file = tmp_path / "own.py"
    lines = "from tests.serving.handlers.async_behaviours import Tasks", "class Own(Tasks):"
    file.write_text("\n".join([*lines, "    uses = ()"]))
    handlers = {"tasks": str(file)}
    _, client = served(handler=handlers, handler_processes=1, reload_interval="0.1")
    pid = pid_of(client)
    threads, outcomes = at_once(lambda: say(client, f"gate {gate.path}"))
    with gate.closed():
        file.write_text("\n".join([*lines, "    uses = ()  # changed"]))
        wait_until(lambda: pid_of(client) != pid)
        assert outcomes == [None]
    threads[0].join()
    assert outcomes == [f"GATE {str(gate.path).upper()}"]


def stub_of(channel):
    """Begin a call of a text; returns its future."""
    method = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )

    def begin(text):
        request = pb.ModelInferRequest(model_name="tasks")
        request.inputs.add(name="text", datatype="BYTES", shape=[1])
        request.inputs[0].contents.bytes_contents.append(text.encode())
        return method.future(request, timeout=20)

    return begin
