"""Triton's generate extension: one answer as an object, or parts as events."""

import json
import shlex
import socket
import sys
from contextlib import closing, contextmanager

import pytest

import serving
from tests.serving.handlers.conftest import Gate, named
from tests.serving.http.peer import HttpPeer
from tests.support.servers import ended, wait_until

PATH = "/v2/models/story/generate_stream"


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def told(request):
    handlers = named(
        story="Story", behaviours="Behaviours", doubles="Doubles", documents="Documents"
    )
    options = {"transport": request.param, "handler_processes": 1}
    with serving.Server(handler=handlers, **options) as told:
        yield told


@pytest.fixture
def peer(told):
    return HttpPeer(f"http://{told.http_address}")


def events_in(body):
    """The events of a whole answer."""
    parts = body.split(b"\n\n")
    assert parts.pop() == b""
    assert all(part.startswith(b"data: ") for part in parts)
    return [json.loads(part[6:]) for part in parts]


def ask(peer, prompt, **more):
    reply = peer.post(PATH, json.dumps({"prompt": prompt, **more}).encode())
    return reply, [each.get("token", each.get("error")) for each in events_in(reply.body)]


@contextmanager
def asked(told, prompt, version="1.1"):
    """A socket on which the events of a prompt come."""
    host, port = told.http_address.split(":")
    body = json.dumps({"prompt": prompt}).encode()
    head = f"POST {PATH} HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with closing(socket.create_connection((host, int(port)), 20)) as sock:
        sock.sendall(head.replace("Host: x", f"Host: {host}").encode() + body)
        yield sock


def read_until(sock, end):
    data = b""
    while not data.endswith(end):
        got = sock.recv(1 << 16)
        assert got, data
        data += got
    return data


def num_open(peer):
    """How many generators are open, as the one that is begun to ask says."""
    (event,) = events_in(peer.post(PATH, b'{"prompt": "word"}').body)
    return event["open"]


def test_each_part_is_an_event(peer):
    reply, tokens = ask(peer, "once upon a", id="7")
    assert tokens == ["once", "upon", "a"]
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["transfer-encoding"] == "chunked"
    first = events_in(reply.body)[0]
    assert first == {
        "id": "7", "model_name": "story", "model_version": "1", "token": "once", "open": 1,
    }  # fmt: skip


def test_rows_are_lists(peer):
    _, tokens = ask(peer, ["once upon", "b"])
    assert tokens == [["once", "once"], ["upon", "upon"]]


def test_no_part_at_all_is_no_event(peer):
    reply, tokens = ask(peer, "")
    assert (reply.status, tokens) == (200, [])


def test_connection_is_used_again_behind_the_last_chunk(told):
    with asked(told, "once upon") as sock:
        first = read_until(sock, b"0\r\n\r\n")
        assert first.count(b"data: ") == 2
        body = b'{"prompt": "again"}'
        host = told.http_address.encode()
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (PATH.encode(), host, len(body), body)
        )
        assert b'"token":"again"' in read_until(sock, b"0\r\n\r\n")


def test_caller_of_http_1_0_reads_until_the_end(told):
    with asked(told, "once upon", "1.0") as sock:
        data = b""
        while got := sock.recv(1 << 16):
            data += got
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"chunked" not in head
    assert [each["token"] for each in events_in(body)] == ["once", "upon"]


def test_part_comes_as_soon_as_it_is_made(told, tmp_path):
    gate = Gate(tmp_path)
    with asked(told, f"once wait:{gate.path} upon") as sock:
        data = read_until(sock, b"}\n\n\r\n")
        with gate.closed():
            assert data.count(b"data: ") == 1
        assert b'"token":"upon"' in read_until(sock, b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("words", "error", "reason"),
    [
        ("refuse:because", "because", "INVALID_REQUEST"),
        ("raise:no", "the handler failed on this request: id ", "MODEL_ERROR"),
        ("exit:3", "the handler's process has ended on this request", "MODEL_ERROR"),
    ],
)
def test_error_in_the_middle_is_an_event_and_then_the_end(peer, words, error, reason):
    reply, tokens = ask(peer, f"once {words} upon")
    assert reply.status == 200
    assert tokens[0] == "once"
    assert tokens[1].startswith(error)
    assert events_in(reply.body)[-1]["reason"] == reason


def test_error_before_the_first_part_has_its_status(peer):
    for body, status, words in (
        (b'{"prompt": "refuse:because"}', 400, "because"),
        (b'{"text": "once"}', 400, "expected members of prompt, id, parameters, got 'text'"),
        (b'{"id": "1"}', 400, "expected the input prompt"),
        (b"once", 400, "expected JSON"),
    ):
        reply = peer.post(PATH, body)
        assert reply.status == status
        assert reply.json["detail"].startswith(words)
    assert peer.post("/v2/models/nothing/generate_stream", b"{}").status == 404
    assert peer.get(PATH).status == 405


def test_late_request_ends_with_an_event(peer):
    body = b'{"prompt": "many:1000000000"}'
    reply = peer.post(PATH, body, request_timeout="0.3")
    *parts, last = events_in(reply.body)
    assert [each["token"] for each in parts] == [f"{number}" for number in range(len(parts))]
    assert last["reason"] == "DEADLINE_EXCEEDED"
    wait_until(lambda: num_open(peer) == 1)


def test_caller_that_leaves_ends_the_generator(told, peer):
    with asked(told, "many:1000000000") as sock:
        assert b"data: " in sock.recv(1 << 16)
    wait_until(lambda: num_open(peer) == 1)


def test_slow_reader_holds_back_his_own_alone(told, peer):
    with asked(told, "long:400") as sock:
        sock.recv(1)
        _, tokens = ask(peer, "many:300")
        assert tokens == [f"{number}" for number in range(300)]
        assert num_open(peer) == 2  # his 26 MB are not made ahead
        data = bytearray()
        while not data.endswith(b"0\r\n\r\n"):
            data += sock.recv(1 << 20)
    assert data.count(b"data: ") == 400


def test_model_of_one_answer_has_one_event_or_is_asked_for_one_answer(peer):
    reply = peer.post("/v2/models/doubles/generate", b'{"x": [[1, 2, 3], [4, 5, 6]]}')
    assert reply.json["y"] == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    assert peer.post("/v2/models/doubles/generate", b'{"x": [1, 2, 3]}').json["y"] == [[2, 4, 6]]
    body = b'{"text": "say hi", "id": "9", "parameters": {"a": 1}}'
    reply = peer.post("/v2/models/behaviours/generate", body)
    facts = {"id": "9", "model_name": "behaviours", "model_version": "1", "answer": "SAY HI"}
    assert {name: reply.json[name] for name in facts} == facts
    (event,) = events_in(peer.post("/v2/models/behaviours/generate_stream", body).body)
    assert event["answer"] == "SAY HI"


def test_one_answer_of_parts_is_refused_and_names_the_other_path(peer):
    for path, body in (("generate", {"prompt": "once"}), ("infer", {"inputs": []})):
        reply = peer.post(f"/v2/models/story/{path}", json.dumps(body).encode())
        assert reply.status == 400
        words = "model story answers in parts: POST /v2/models/story/generate_stream, or "
        assert reply.json["detail"].startswith(words)


def test_lines_of_the_models_page_show_the_parts(peer, tmp_path):
    described = {each["name"]: each for each in peer.get("/v2/models").json["models"]}
    assert described["story"]["in_parts"]
    assert not described["doubles"]["in_parts"]
    lines = described["story"]["requests"]
    curl = ended(["bash", "-c", lines["curl"].replace("curl ", "curl -sS ", 1)])
    assert [each["token"] for each in events_in(curl.stdout.encode())] == ["text"]
    python = ended([sys.executable, "-c", lines["Python"]], cwd=tmp_path)
    assert "'token': array(['text']" in python.stdout
    words = shlex.split(lines["digit-serving"].replace("text", "once upon"))
    shell = ended([sys.executable, "-m", "serving", *words[1:], "--json"], cwd=tmp_path)
    tokens = [json.loads(line)["token"] for line in shell.stdout.splitlines()]
    assert tokens == [["once"], ["upon"]], shell.stderr


def test_document_has_the_path_of_parts(peer):
    paths = peer.get("/openapi.json").json["paths"]
    (answer,) = paths[PATH]["post"]["responses"]["200"]["content"]
    assert answer == "text/event-stream"
    assert "/v2/models/story/infer" not in paths
    assert {"/v2/models/doubles/generate", "/v2/models/doubles/infer"} < {*paths}


def test_command_line_prints_the_parts_of_a_handler_of_its_own(tmp_path):
    (tmp_path / "story.py").write_text(
        "import serving\n\n\nclass Story(serving.Handler):\n"
        "    inputs, outputs = {'prompt': serving.Text()}, {'token': serving.Text()}\n\n"
        "    def predict(self, prompt):\n"
        "        yield prompt\n        yield [each.upper() for each in prompt]\n"
    )
    words = ["infer", "story.py", "prompt=once", "--json"]
    result = ended([sys.executable, "-m", "serving", *words], cwd=tmp_path)
    tokens = [json.loads(line)["token"] for line in result.stdout.splitlines()]
    assert tokens == [["once"], ["ONCE"]], result.stderr
