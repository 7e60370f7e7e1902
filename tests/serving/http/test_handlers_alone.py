"""What each path answers and where it works: its handler alone, on requests that a test makes."""

import json
import resource
from types import SimpleNamespace
from typing import Any

import h11
import numpy as np
import pytest

from serving.batching.run import Result
from serving.config import ServerConfig
from serving.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    ModelError,
    NotAllowed,
    Unsupported,
)
from serving.http1.requests import Request
from serving.http_api import files_path, http_server, inference, pictures
from serving.http_api.files_path import Answered, Chosen, find_files, read_files
from serving.http_api.inference import Inference
from serving.http_api.openapi import openapi_document
from serving.http_api.pages import Pages, answered
from serving.http_api.queries import HttpQueries
from serving.oip import rest
from serving.pictures.classifier import PROBABILITIES
from serving.tensors import Tensor, TensorSignature
from serving.transports.http_routing import Answer, App, RoutedRequest, as_json
from serving.transports.port_limits import PortLimits

KIB = 1 << 10
TENSORS = TensorSignature(
    (Tensor("x", "FP32", (-1, 2)),),
    (Tensor("y", "FP32", (-1, 2)), Tensor("n", "INT64", (-1,))),
    is_batchable=True,
)
TEXT = TensorSignature(
    (Tensor("text", "BYTES", (-1,), content="text"),), (Tensor("y", "FP32", (-1,)),), True
)


class Call:
    """A request whose work and runs are done at once, and noted."""

    deadline_s = 50.0

    def __init__(self, plan: RoutedRequest, body: bytes = b"") -> None:
        self.plan, self.body = plan, body
        self.works: list[tuple[Any, int | None, int, Any]] = []
        self.runs: list[tuple[Any, Any, float]] = []
        self.repeats: list[Any] = []
        self.sent: list[tuple[bytes, str]] = []
        self.num_others = 0

    async def work(self, function, *args, size=None, few_bytes=4 * KIB, pool=None):
        self.works.append((function, size, few_bytes, pool))
        return function(*args)

    async def run(self, rows, encoder, deadline_s):
        self.runs.append((rows, encoder, deadline_s))
        return encoder.encode(self._result(encoder), 0, 1)[0]

    async def run_in_parts(self, rows, encoder, deadline_s):
        self.runs.append((rows, encoder, deadline_s))
        for _ in range(2):
            yield encoder.encode(self._result(encoder), 0, 1)[0]

    def _result(self, encoder):
        number, outputs = encoder.num_rows, encoder.target.tensors.outputs
        values = [np.full((number, *each.shape[1:]), 0.25 + at, each.dtype)
                  for at, each in enumerate(outputs)]  # fmt: skip
        return Result(values, number, "3", None, 1.0, 2.0)

    async def send(self, part, kind):
        self.sent.append((part, kind))

    async def others(self):
        self.num_others += 1

    def expect_repeats(self, *known):
        self.repeats.append(known)


def call_of(routes, method, target, body=b"", **headers):
    fields = [("Host", "localhost")]
    fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
    plan = RoutedRequest(Request(h11.Request(method=method, target=target, headers=fields)))
    App(routes, None, [], []).prepare(plan)
    return Call(plan, body)


def outcome(coroutine):
    """What a coroutine returns that never waits."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


def reply_of(call: Any) -> Answer:
    found: Answer = outcome(call.plan.handler(call))
    return found


def ask(routes, method, target, body=b"", **headers):
    answer = reply_of(call_of(routes, method, target, body, **headers))
    assert (answer.kind, answer.headers, answer.code) == ("application/json", (), "")
    return answer.status, json.loads(bytes(answer.body))


# Queries


class Asked:
    """Answers each query by its name and what it was asked."""

    def __init__(self, **facts):
        self._given = facts

    def __getattr__(self, query):
        def answer(*args, **named):
            found = self._given.get(query)
            return {query: [*args, named]} if found is None else found

        return answer


POOL = object()


def queries(**facts):
    router: Any = SimpleNamespace(
        routes={"a": 1, "b": 2}, find=lambda name: SimpleNamespace(find=lambda version: TARGET)
    )
    return HttpQueries(router, Asked(**facts), POOL).routes()


TARGET: Any = SimpleNamespace(tensors=TENSORS, label=("m", "3"))
ONE, NAMED = {"name": "m"}, {"name": "m", "version": "3"}


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/v2", {"server_metadata": [{}]}),
        ("GET", "/v2/health/live", {"live": True}),
        ("GET", "/v2/models/stats", {"model_stats": {"model_statistics": [{}]}}),
        ("GET", "/v2/models/m/stats", {"model_stats": {"model_statistics": [ONE]}}),
        ("GET", "/v2/models/m/versions/3/stats", {"model_stats": {"model_statistics": [NAMED]}}),
        ("GET", "/v2/models/m/config", {"model_config": [ONE]}),
        ("GET", "/v2/models/m/versions/3/config", {"model_config": [NAMED]}),
        ("GET", "/v2/models/m", {"model_metadata": [ONE], "parameters": {"facts": [ONE]}}),
        ("GET", "/v2/models/m/versions/3",
         {"model_metadata": [NAMED], "parameters": {"facts": [NAMED]}}),
        ("GET", "/v1/models", {"models": ["a", "b"]}),
        ("GET", "/v1/models/m", {"name": "m", "ready": True}),
        ("POST", "/v2/repository/models/m/load", {"load_model": ["m", [], {}]}),
        ("POST", "/v2/repository/models/m/unload", {"unload_model": ["m", [], {}]}),
        ("POST", "/v2/repository/index", {"index": [{"only_ready": False}]}),
    ],
)  # fmt: skip
def test_query_is_answered_by_what_the_server_says(method, target, expected):
    assert ask(queries(), method, target) == (200, expected)


def test_index_may_be_of_what_is_ready_alone():
    for ready in (True, False):
        body = json.dumps({"ready": ready}).encode()
        found = ask(queries(), "POST", "/v2/repository/index", body)
        assert found == (200, {"index": [{"only_ready": ready}]})


@pytest.mark.parametrize(
    ("target", "query"),
    [
        ("/v2/health/ready", "is_ready"), ("/v2/models/m/ready", "is_model_ready"),
        ("/v2/models/m/versions/3/ready", "is_model_ready"),
    ],
)  # fmt: skip
def test_readiness_is_a_status_too(target, query):
    assert ask(queries(**{query: True}), "GET", target) == (200, {"ready": True})
    assert ask(queries(**{query: False}), "GET", target) == (503, {"ready": False})


def test_models_are_changed_on_a_thread_of_their_own():
    """Loading takes seconds: neither the loop nor the processes for strangers' bytes do it."""
    for verb in ("load", "unload"):
        body = b'{"parameters": {"config": "{}"}}'
        call = call_of(queries(), "POST", f"/v2/repository/models/m/{verb}", body)
        assert json.loads(bytes(reply_of(call).body)) == {f"{verb}_model": ["m", ["config"], {}]}
        ((_, size, _, pool),) = call.works
        assert (size, pool) == (None, POOL)


MEMORY = "shared memory is not supported"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("GET", f"/v2/{kind}sharedmemory/status") for kind in ("system", "cuda")),
        ("GET", "/v2/systemsharedmemory/region/r/status"),
        ("POST", "/v2/systemsharedmemory/unregister"),
        ("POST", "/v2/systemsharedmemory/region/r/register"),
        *((method, target) for method in ("GET", "POST")
          for target in ("/v2/trace/setting", "/v2/models/m/trace/setting", "/v2/logging")),
    ],
)  # fmt: skip
def test_extensions_that_there_are_not_are_refused(method, target):
    with pytest.raises(Unsupported):
        reply_of(call_of(queries(), method, target))


# Inference


class Failures:
    def __init__(self):
        self.counted = []

    def count_failure(self, *facts):
        self.counted.append(facts)


def served(signature=TENSORS, max_json_bytes=1_000, max_request_rows=100_000):
    target = SimpleNamespace(tensors=signature, label=("m", "3"))
    router: Any = SimpleNamespace(
        find=lambda name: SimpleNamespace(find=lambda version: target),
        batching=SimpleNamespace(max_request_rows=max_request_rows, max_response_bytes=1 << 28),
        metrics=Failures(), routes={},
    )  # fmt: skip
    return Inference(router, max_json_bytes).routes()


def tensor(num_rows=1, **more):
    return {"name": "x", "datatype": "FP32", "shape": [num_rows, 2],
            "data": [[1.5, 2.5]] * num_rows, **more}  # fmt: skip


def request_of(**more):
    return json.dumps({"inputs": [tensor()], **more}).encode()


OUTPUTS = [
    {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.25]},
    {"name": "n", "datatype": "INT64", "shape": [1], "data": [1]},
]
VALUES = {"y": [[0.25, 0.25]], "n": 1}
READ, WRITE = 128 * KIB, 64 * KIB


@pytest.mark.parametrize("target", ["/v2/models/m/infer", "/v2/models/m/versions/3/infer"])
def test_inference_is_answered_whole(target):
    expected = {"model_name": "m", "model_version": "3", "outputs": OUTPUTS}
    assert ask(served(), "POST", target, request_of()) == (200, expected)
    found = ask(served(), "POST", target, request_of(id="7"))
    assert found == (200, expected | {"id": "7"})


def test_outputs_are_bytes_where_they_are_asked_for():
    body = request_of(parameters={"binary_data_output": True})
    answer = reply_of(call_of(served(), "POST", "/v2/models/m/infer", body))
    ((name, length),) = answer.headers
    assert (name, answer.kind) == ("inference-header-content-length", "application/octet-stream")
    content = bytes(answer.body)
    described = [{name: each[name] for name in ("name", "datatype", "shape")} for each in OUTPUTS]
    for each, size in zip(described, (8, 8), strict=True):
        each["parameters"] = {"binary_data_size": size}
    assert json.loads(content[: int(length)]) == {
        "model_name": "m", "model_version": "3", "outputs": described}  # fmt: skip
    values = np.full(2, 0.25, "<f4").tobytes() + np.full(1, 1, "<i8").tobytes()
    assert content[int(length) :] == values


def test_prediction_is_answered_whole():
    found = ask(served(), "POST", "/v1/models/m:predict", b'{"instances": [[1.5, 2.5]]}')
    assert found == (200, {"predictions": [{"y": [0.25, 0.25], "n": 1}]})
    with pytest.raises(Unsupported, match=r"^expected /v1/models/NAME:predict, got 'm:explain'$"):
        call_of(served(), "POST", "/v1/models/m:explain", b"{}")


def test_generation_is_answered_whole():
    body = b'{"x": [1.5, 2.5], "id": "7"}'
    found = ask(served(), "POST", "/v2/models/m/generate", body)
    assert found == (200, {"id": "7", "model_name": "m", "model_version": "3", **VALUES})


def test_parts_of_a_generation_are_events():
    call = call_of(served(), "POST", "/v2/models/m/generate_stream", b'{"x": [1.5, 2.5]}')
    assert reply_of(call) == Answer(b"", "text/event-stream")
    assert {kind for _, kind in call.sent} == {"text/event-stream"}
    for part, _ in call.sent:
        assert part[:6] + part[-2:] == b"data: \n\n"
        found = json.loads(part[6:])
        assert found == {"model_name": "m", "model_version": "3", **VALUES}
    assert len(call.sent) == 2


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v2/models/m/infer", request_of()), ("/v2/models/m/generate", b'{"x": [1.5, 2.5]}'),
        ("/v1/models/m:predict", b'{"instances": [[1.5, 2.5]]}'),
    ],
)  # fmt: skip
def test_long_requests_and_answers_are_read_and_written_elsewhere(target, body):
    """From 128 KiB of JSON on a request, from 64 KiB of outputs on an answer."""
    call = call_of(served(), "POST", target, body)
    reply_of(call)
    (_, read_bytes, few_read, _), (_, written_bytes, few_written, _) = call.works
    assert (read_bytes, few_read) == (len(body), 131_072)
    assert (written_bytes, few_written) == (2 * 4 + 8, 65_536)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"style": "short", "limit": "", "own": "query"}),
        ({"own": 3, "more": True}, {"style": "short", "limit": "", "own": 3, "more": True}),
    ],
)
@pytest.mark.parametrize("verb", ["infer", "generate"])
def test_options_of_the_url_are_parameters_and_the_requests_own_count_more(verb, own, expected):
    target = f"/v2/models/m/{verb}?style=long&style=short&limit=&own=query"
    values = {"x": [1.5, 2.5]} if verb == "generate" else {"inputs": [tensor()]}
    call = call_of(served(), "POST", target, json.dumps({**values, "parameters": own}).encode())
    reply_of(call)
    ((_, encoder, _),) = call.runs
    assert encoder.request.parameters == expected
    assert encoder.parameters == expected


@pytest.mark.parametrize(
    ("parameters", "expected_s"),
    [({}, 50.0), ({"timeout": 2_500_000}, 42.5), ({"timeout": 20_000_000}, 50.0)],
)
def test_timeout_of_a_request_is_in_microseconds_from_when_it_came(
    parameters, expected_s, monkeypatch
):
    monkeypatch.setattr(inference, "time", SimpleNamespace(monotonic=lambda: 40.0))
    body = request_of(parameters=parameters)
    call = call_of(served(), "POST", "/v2/models/m/infer", body)
    reply_of(call)
    ((_, _, deadline_s),) = call.runs
    assert deadline_s == expected_s


def test_what_is_known_of_a_request_is_read_in_turns():
    """Of at most a megabyte; other calls have their turn after 32 KiB each."""
    routes = served(max_json_bytes=4 << 20)
    for num_rows, num_others in ((1_000, 0), (10_000, 3)):
        body = json.dumps({"inputs": [tensor(num_rows)]}).encode()
        learning = call_of(routes, "POST", "/v2/models/m/infer", body)
        reply_of(learning)
        again = Call(learning.plan, body)
        assert learning.plan.known is not None
        answer = reply_of(again)
        assert again.num_others == num_others
        assert [function for function, *_ in again.works] == [rest.write]
        assert json.loads(bytes(answer.body))["outputs"][1]["shape"] == [num_rows]
        ((rows, _, _),) = again.runs
        assert np.frombuffer(rows, "<f4").tolist() == [1.5, 2.5] * num_rows


@pytest.mark.parametrize(("num_bytes", "is_known"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_only_requests_of_a_megabyte_are_known(num_bytes, is_known):
    before, after = request_of().split(b"2.5")
    more = num_bytes - len(request_of())
    body = before + b" " * more + b"2.5" + after
    call = call_of(served(max_json_bytes=4 << 20), "POST", "/v2/models/m/infer", body)
    reply_of(call)
    assert (call.plan.known is not None) == is_known


def test_version_that_is_asked_for_is_not_learned():
    call = call_of(served(), "POST", "/v2/models/m/versions/3/infer", request_of())
    reply_of(call)
    assert (call.plan.known, call.repeats) == (None, [])


@pytest.mark.parametrize(
    ("kind", "method", "body", "values"),
    [
        ("text/plain", "POST", "schön".encode(), ["schön"]),
        ("Text/Plain; charset=utf-8", "POST", b"a", ["a"]),
        ("application/octet-stream", "POST", b"a", ["a"]),
        ("image/png", "POST", b"a", ["a"]), ("audio/wav", "POST", b"a", ["a"]),
        ("video/mp4", "POST", b"a", ["a"]), ("", "PUT", b"a", ["a"]),
    ],
)  # fmt: skip
def test_body_is_the_value_of_a_handlers_only_input(kind, method, body, values):
    call = call_of(served(TEXT), method, "/v2/models/m/infer", body, content_type=kind)
    answer = reply_of(call)
    ((rows, _, _),) = call.runs
    assert [each.tolist() for each in rows] == [values]
    assert json.loads(bytes(answer.body)) == {
        "model_name": "m", "model_version": "3",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.25]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "kind", "body", "text"),
    [
        ("POST", "text/plain", b"\xff", "expected a text in UTF-8: invalid start byte"),
        ("POST", "", b"a good film", "expected a JSON object; to send text as it is, add the "
         "header content-type: text/plain"),
        ("POST", "application/json", b"   [1]", "expected a JSON object; to send text as it is, "
         "add the header content-type: text/plain"),
    ],
)  # fmt: skip
def test_body_that_is_no_value_is_refused(method, kind, body, text):
    with pytest.raises(InvalidRequest) as caught:
        reply_of(call_of(served(TEXT), method, "/v2/models/m/infer", body, content_type=kind))
    assert str(caught.value) == text


def test_body_as_it_is_needs_one_input_of_a_handler():
    text = r"^expected JSON by POST: a body as it is needs one input of a handler$"
    with pytest.raises(InvalidRequest, match=text):
        reply_of(call_of(served(), "PUT", "/v2/models/m/infer", b"a"))


@pytest.mark.parametrize("length", ["-1", "1001", "x", "１", "00000000001"])
def test_length_of_the_json_is_at_most_what_json_may_have(length):
    headers = {"inference_header_content_length": length.encode("utf-8")}
    with pytest.raises(InvalidRequest, match=r"^expected inference-header-content-length as bytes, "
                       "at most 1000, got "):  # fmt: skip
        call_of(served(), "POST", "/v2/models/m/infer", b"", **headers)


def test_paths_that_run_a_model_are_counted_and_refused_during_a_drain():
    found = {(each.method, each.path): (each.is_work, each.name) for each in served()}
    models = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    assert found == {
        **{(method, f"{model}/infer"): (True, "")
           for model in models for method in ("POST", "PUT")},
        **{("POST", f"{model}/{verb}"): (True, "HttpGenerate")
           for model in models for verb in ("generate", "generate_stream")},
        ("POST", "/v1/models/{name}"): (True, "HttpPredict"),
    }  # fmt: skip


# Pictures


def classes_of(**labels):
    router: Any = SimpleNamespace(find=lambda name: None)
    return pictures.Classes(router, SimpleNamespace())


def test_classes_of_pictures_are_answered_whole():
    path = classes_of()
    call: Any = call_of(path.routes(), "POST", "/v1/models/pets/classify?top=2&reject_below=0.75")
    parameters = outcome(path.parameters(call))
    assert parameters == {"reject_below": 0.75, "top": 2}
    shares = np.array([[0.2, 0.7000004, 0.1]], np.float32)
    about, model = SimpleNamespace(labels=("cat", "dog", "eel")), SimpleNamespace(version="4")
    chosen = Chosen(None, about, None, model)
    files = [("a.png", {PROBABILITIES: shares}), ("b", InvalidRequest("it is bad")),
             ("", {PROBABILITIES: shares[:, ::-1]})]  # fmt: skip
    answer = outcome(path.write(call, Answered(chosen, files, "4"), parameters))
    dog, cat, eel = (
        {"label": label, "probability": share}
        for label, share in (("dog", 0.7), ("cat", 0.2), ("eel", 0.1))
    )
    assert (answer.status, json.loads(answer.body)) == (200, {
        "model_name": "pets",
        "model_version": "4",
        "pictures": [
            {"name": "a.png", "class": 1, **dog, "probabilities": [dog, cat], "rejected": True},
            {"name": "b", "error": "it is bad"},
            {"class": 1, **dog, "probabilities": [dog, eel | {"label": "eel", "probability": 0.2}],
             "rejected": True},
        ],
    })  # fmt: skip


def test_classes_without_names_are_numbers_and_none_is_rejected_by_default():
    path = classes_of()
    call: Any = call_of(path.routes(), "POST", "/v1/models/pets/versions/4/classify")
    parameters = outcome(path.parameters(call))
    assert parameters == {"reject_below": 0.0, "top": 5}
    shares = np.array([[0.05, 0.1, 0.15, 0.2, 0.22, 0.28]], np.float32)
    chosen = Chosen(None, SimpleNamespace(labels=()), None, SimpleNamespace(version="4"))
    answer = outcome(
        path.write(call, Answered(chosen, [("", {PROBABILITIES: shares})], "4"), parameters)
    )
    first, *_ = found = [
        {"label": label, "probability": share}
        for label, share in (("5", 0.28), ("4", 0.22), ("3", 0.2), ("2", 0.15), ("1", 0.1))
    ]
    assert json.loads(answer.body)["pictures"] == [
        {"class": 5, **first, "probabilities": found, "rejected": False}
    ]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("top=0", "expected top as a number from 1, got '0'"),
        ("top=1000000", "expected top as a number from 1, got '1000000'"),
        ("top=-1", "expected top as a number from 1, got '-1'"),
        ("top=", "expected top as a number from 1, got ''"),
        ("reject_below=1.01", "expected reject_below from 0 to 1, got '1.01'"),
        ("reject_below=-0.1", "expected reject_below from 0 to 1, got '-0.1'"),
        ("reject_below=nan", "expected reject_below from 0 to 1, got 'nan'"),
        ("reject_below=x", "expected reject_below from 0 to 1, got 'x'"),
    ],
)
def test_options_of_pictures_that_are_wrong_are_named(query, text):
    path = classes_of()
    call: Any = call_of(path.routes(), "POST", f"/v1/models/pets/classify?{query}")
    with pytest.raises(InvalidRequest) as caught:
        outcome(path.parameters(call))
    assert str(caught.value) == text


def test_options_of_pictures_may_be_at_their_bounds():
    path = classes_of()
    for query, expected in (
        ("top=1&reject_below=0", {"reject_below": 0.0, "top": 1}),
        ("top=999999&reject_below=1", {"reject_below": 1.0, "top": 999_999}),
    ):
        call: Any = call_of(path.routes(), "POST", f"/v1/models/pets/classify?{query}")
        assert outcome(path.parameters(call)) == expected


def test_paths_of_pictures_take_32_mib_and_are_counted():
    assert [(*each[:2], *each[3:]) for each in classes_of().routes()] == [
        ("POST", path, 33_554_432, True, "HttpClassify")
        for path in ("/v1/models/{name}/classify", "/v1/models/{name}/versions/{version}/classify")
    ]


def test_pictures_of_a_model_of_texts_are_refused_before_it_is_served():
    model = SimpleNamespace(
        tensors=TEXT, pictures=None, manifest=SimpleNamespace(signature=None)
    )  # fmt: skip
    router: Any = SimpleNamespace(routes={"m": SimpleNamespace(name="m", model=model)})
    with pytest.raises(ConfigurationError, match=r"^--input image: model m: "):
        [*pictures.routes(router, ServerConfig(input="image"))]
    assert len([*pictures.routes(router, ServerConfig())]) == 2


# Files of a form


def form_of(*contents):
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="p"; filename="%d"\r\n\r\n%b\r\n' % each
        for each in enumerate(contents)
    )
    return b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"


def test_form_has_a_hundred_files_at_most():
    body, kind = form_of(*[b"x"] * 100)
    found = find_files(body, kind)
    assert [name for name, _, _ in found] == [str(number) for number in range(100)]
    assert {body[begin:end] for _, begin, end in found} == {b"x"}
    with pytest.raises(
        InvalidRequest, match=r"^expected a form with pictures: more than 100 parts$"
    ):
        find_files(*form_of(*[b"x"] * 101))


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"--b--\r\n", "multipart/form-data; boundary=b", "expected a form with at least 1 file, "
         "got none"),
        (b'--b\r\nContent-Disposition: form-data; name="p"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b", "expected a form with at least 1 file, got none"),
    ],
)  # fmt: skip
def test_form_without_files_is_refused(body, kind, text):
    with pytest.raises(InvalidRequest) as caught:
        find_files(body, kind)
    assert str(caught.value) == text


@pytest.mark.parametrize(("spent_s", "is_late"), [(20.0, False), (20.1, True)])
def test_files_of_a_form_have_20_seconds(spent_s, is_late, monkeypatch):
    now = SimpleNamespace(s=5.0)
    monkeypatch.setattr(files_path, "time", SimpleNamespace(monotonic=lambda: now.s))
    body, kind = form_of(b"a", b"b")
    call: Any = SimpleNamespace(
        body=body, plan=SimpleNamespace(get=lambda name: kind), work=Call.work, works=[]
    )
    call.work = lambda function, *args: Call.work(call, function, *args)

    async def all_files():
        found = []
        async for name, read in read_files(call, lambda about, content: content.decode()):
            found.append((name, read))
            now.s += spent_s
        return found

    if is_late:
        with pytest.raises(DeadlineExceeded, match=r"^the pictures of a form take more than 20 s$"):
            all_files().send(None)
    else:
        assert outcome(all_files()) == [("0", "a"), ("1", "b")]


def test_empty_body_is_no_picture():
    call: Any = SimpleNamespace(body=b"", plan=SimpleNamespace(get=lambda name: "image/png"))
    with pytest.raises(InvalidRequest, match=r"^expected a picture, got an empty body$"):
        outcome(read_files(call, len).__anext__())


def test_form_of_values_is_answered_file_by_file_and_says_which_is_wrong():
    signature = TensorSignature((Tensor("x", "BYTES", (-1,), content="bytes"),), TEXT.outputs, True)
    body, kind = form_of(b"good", b"bad", b"good")
    call = call_of(served(signature), "POST", "/v2/models/m/infer", body, content_type=kind)
    run = call.run

    async def run_some(rows, encoder, deadline_s):
        if rows[0].tolist() == [b"bad"]:
            raise ModelError("it can't be read")
        return await run(rows, encoder, deadline_s)

    call.run = run_some
    outputs = [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.25]}]
    good = {"model_name": "m", "model_version": "3", "outputs": outputs}
    assert json.loads(bytes(reply_of(call).body)) == {"files": [
        {"name": "0", **good}, {"name": "1", "error": "it can't be read"}, {"name": "2", **good},
    ]}  # fmt: skip


# Pages


class Application:
    def __init__(self, folder, pages):
        self.FILES, self.PAGES = folder, pages


def pages_of(paths, *applications):
    pages = Pages()
    for each in applications:
        pages.add(each)
    routes = pages.routes({"paths": dict.fromkeys(paths)})
    return {each.path: ended_page(each) for each in routes}


def ended_page(route):
    assert (route.method, route.is_work, route.name) == ("GET", False, "")
    return outcome(route.handler(None))


OWN = {
    "/models.js": "text/javascript; charset=utf-8", "/style.css": "text/css; charset=utf-8",
    "/icon.svg": "image/svg+xml", "/models": "text/html; charset=utf-8",
}  # fmt: skip
MODELS, DRAW = "/v2/models", "/v1/draw"


def test_pages_are_those_of_the_paths_that_there_are(tmp_path):
    (tmp_path / "draw.html").write_text("<footer><!-- links --></footer>")
    (tmp_path / "draw.js").write_text("own")
    (tmp_path / "notes.txt").write_text("of nobody")
    application = Application(tmp_path, {"/draw": ("draw.html", "Draw")})
    with_draw = {**OWN, "/draw": OWN["/models"], "/draw.js": OWN["/models.js"]}
    one = pages_of([MODELS, DRAW, "/v2/models/a/infer"], application)
    assert {path: each.kind for path, each in one.items()} == {
        **with_draw, "/": OWN["/models"], "/docs": OWN["/models"]}  # fmt: skip
    assert one["/"] == one["/draw"]
    links = b"<a href='models'>Models</a> \xc2\xb7 <a href='draw'>Draw</a> \xc2\xb7 "
    assert one["/draw"].body == b"<footer>" + links + b"</footer>"
    assert links in one["/models"].body
    assert one["/docs"] == Answer(b"", OWN["/models"], 308, [("location", "/models")])
    cached = [each for path, each in one.items() if path != "/docs"]
    assert all((each.status, each.headers) == (200, [("cache-control", "no-cache")])
               for each in cached)  # fmt: skip
    several = pages_of([MODELS, DRAW, "/v2/models/a/infer", "/v2/models/b/infer"], application)
    assert several["/"] == several["/models"]
    none = pages_of([MODELS, "/v2/models/a/infer"], application)
    assert none.keys() == {*OWN, "/", "/docs", "/draw.js"}
    assert none["/"] == none["/models"]


def test_application_without_pages_needs_no_folder(tmp_path):
    found = pages_of([MODELS], Application(tmp_path / "none", {}))
    assert found.keys() == {*OWN, "/", "/docs"}


def test_route_that_always_has_the_same_answer():
    route = answered("/openapi.json", as_json({"a": 1}))
    assert (route.path, ended_page(route)) == ("/openapi.json", as_json({"a": 1}))


# The port


@pytest.mark.parametrize(
    ("limit", "expected"), [(1000, 250), (4096, 1024), (4092, 1023), (100_000, 1024), (3, 1)]
)
def test_http_has_a_quarter_of_the_descriptors_and_at_most_1024(limit, expected, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert http_server._max_connections() == expected


def test_http_has_1024_connections_where_nothing_limits_descriptors(monkeypatch):
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (unlimited, unlimited))
    assert http_server._max_connections() == 1024


def test_control_that_is_not_allowed_is_an_error_of_the_query():
    def refuse(name, parameters):
        raise NotAllowed("no")

    routes = HttpQueries(
        SimpleNamespace(routes={}), SimpleNamespace(load_model=refuse, unload_model=refuse,
        server_metadata=dict, is_ready=bool, is_model_ready=bool, model_config=dict), POOL,
    ).routes()  # fmt: skip
    with pytest.raises(NotAllowed):
        reply_of(call_of(routes, "POST", "/v2/repository/models/m/load"))


def test_known_request_of_more_than_a_megabyte_is_read_elsewhere():
    routes = served(max_json_bytes=4 << 20)
    learning = call_of(routes, "POST", "/v2/models/m/infer", request_of())
    reply_of(learning)
    place = learning.plan.known.place
    body = place.before + b"[" + b"[1.5,2.5]," * (1 << 17) + b"[1.5,2.5]]" + place.after
    again = Call(learning.plan, body)
    with pytest.raises(InvalidRequest):  # its shape is that of one row
        reply_of(again)
    ((_, size, few_bytes, _),) = again.works
    assert (size, few_bytes, again.num_others) == (len(body), 131_072, 0)


# What later requests need no handler for


def result_of(num_rows):
    values = [np.full((num_rows, 2), 0.25, np.float32), np.full(num_rows, 1)]
    return Result(values, num_rows, "3", None, 1.0, 2.0)


@pytest.mark.parametrize("is_binary", [False, True], ids=["JSON", "bytes"])
def test_repeated_requests_are_answered_as_the_first(is_binary):
    """But for the first lines of the answer, which the port adds."""
    raw = np.array([[1.5, 2.5]], "<f4").tobytes()
    head, headers = request_of(), {}
    if is_binary:
        item = tensor(parameters={"binary_data_size": 8})
        del item["data"]
        document = {"inputs": [item], "parameters": {"binary_data_output": True}}
        head = json.dumps(document).encode()
        headers = {"inference_header_content_length": str(len(head))}
    body = head + raw * is_binary
    call = call_of(served(), "POST", "/v2/models/m/infer", body, **headers)
    first = reply_of(call)
    ((place, encoder, *read),) = call.repeats
    assert read == ([] if is_binary else [rest.read_rows])
    assert (place.before, place.num_bytes) == (head[: len(place.before)], 8)
    (written,) = encoder.encode(result_of(1), 0, 1)
    lines, _, content = bytes(written).partition(b"\r\n\r\n")
    assert content == bytes(first.body)
    found = dict(line.split(": ") for line in lines.decode().split("\r\n"))
    assert found.pop("content-length") == str(len(content))
    for name, value in first.headers:
        assert found.pop(name) == value
    assert found == {
        "content-type": first.kind,
        "content-security-policy":
            "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }  # fmt: skip
    known = call.plan.known
    assert known is not None
    assert known.place == place


def test_inputs_of_repeated_requests_are_found_in_their_bytes():
    x, n = np.array([[1.5, 2.5], [3.5, 4.5]], "<f4"), np.array([7, 8], "<i8")
    inputs = [
        {"name": name, "datatype": datatype, "shape": [*values.shape],
         "parameters": {"binary_data_size": values.nbytes}}
        for name, datatype, values in (("n", "INT64", n), ("x", "FP32", x))
    ]  # fmt: skip
    document = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    signature = TensorSignature(
        (Tensor("x", "FP32", (-1, 2)), Tensor("n", "INT64", (-1,))), TENSORS.outputs, True
    )
    body = head + n.tobytes() + x.tobytes()
    headers = {"inference_header_content_length": str(len(head))}
    call = call_of(served(signature), "POST", "/v2/models/m/infer", body, **headers)
    reply_of(call)
    ((place, encoder),) = call.repeats
    assert call.plan.known is not None
    for each in (encoder, call.plan.known.encoder):
        found = each.layout.arrays([place.rows(body)])
        assert [array.tolist() for array in found] == [x.tolist(), n.tolist()]


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        ("", {"application/json"}), ("text", {"application/json", "text/plain"}),
        ("json", {"application/json", "text/plain"}),
        ("bytes", {"application/json", "application/octet-stream", "multipart/form-data"}),
        ("picture", {"application/json", "application/octet-stream", "image/*",
                     "multipart/form-data"}),
    ],
)  # fmt: skip
def test_document_has_the_bodies_that_a_model_takes(content, kinds):
    signature = TensorSignature((Tensor("x", "BYTES", (-1,), content=content),), TEXT.outputs, True)
    model = SimpleNamespace(tensors=signature, sample_shapes={})
    router: Any = SimpleNamespace(routes={"m": SimpleNamespace(model=model)})
    document = openapi_document(router, {}, {})
    body = document["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"]
    assert body.keys() == kinds
    assert ("example" in body["application/json"]) is True


# What is done where


async def test_outputs_of_pictures_are_finished_elsewhere_if_they_are_large():
    def finish(about, outputs, state):
        return {"found": (about, [each.tolist() for each in outputs], state)}

    chosen: Any = SimpleNamespace(steps=SimpleNamespace(finish=finish), about="about")

    class Path(files_path.FilesPath):
        async def _run(self, call, chosen, inputs):
            return [np.zeros(3, np.float32), np.zeros(2, np.int8)], "3"

    call: Any = call_of(queries(), "GET", "/v2")
    decoded: Any = SimpleNamespace(inputs=(), state="state")
    found: Any = await Path(SimpleNamespace()).finished(call, chosen, decoded)
    assert found == ({"found": ("about", [[0.0] * 3, [0, 0]], "state")}, "3")
    assert [each[1:] for each in call.works] == [(14, 32_768, None)]


def test_values_of_a_long_answer_are_written_in_turns_or_elsewhere():
    """Texts part by part, with other calls between; numbers at once, where they are many."""
    call: Any = call_of(queries(), "GET", "/v2")
    numbers = rest.Unwritten(Tensor("n", "INT64", (-1,)), np.arange(3))
    texts = rest.Unwritten(
        Tensor("t", "BYTES", (-1,)), np.array(["x" * 100_000, "y" * 100_000], object)
    )
    found = outcome(inference._write_values(call, [b"<", numbers, b"|", texts, b">"]))
    assert b"".join(map(bytes, found)) == b'<[0,1,2]|["%b","%b"]>' % (
        b"x" * 100_000, b"y" * 100_000)  # fmt: skip
    assert [(each, size, few) for each, size, few, _ in call.works] == [
        (rest.write_numbers, 24, 65_536)]  # fmt: skip
    assert call.num_others == len(found) - 4 > 1


def test_parts_are_asked_for_of_models_that_answer_in_parts():
    for in_parts in (True, False):
        signature = TensorSignature(TENSORS.inputs, TENSORS.outputs, True, in_parts)
        target = "/v2/models/m/generate_stream"
        call = call_of(served(signature), "POST", target, b'{"x": [1.5, 2.5], "id": "7"}')
        reply_of(call)
        ((_, encoder, _),) = call.runs
        assert (encoder.in_parts, encoder.request.name) == (in_parts, "m")
        assert [json.loads(part[6:])["id"] for part, _ in call.sent] == ["7", "7"]


@pytest.mark.parametrize("in_parts", [True, False])
def test_model_that_answers_in_parts_has_one_path(in_parts):
    signature = TensorSignature(TENSORS.inputs, TENSORS.outputs, True, in_parts)
    text = ("model m answers in parts: POST /v2/models/m/generate_stream, or call "
            "ModelStreamInfer over gRPC")  # fmt: skip
    for target, body in (
        ("/v2/models/m/infer", request_of()), ("/v2/models/m/generate", b'{"x": [1.5, 2.5]}'),
        ("/v1/models/m:predict", b'{"instances": [[1.5, 2.5]]}'),
    ):  # fmt: skip
        call = call_of(served(signature), "POST", target, body)
        if in_parts:
            with pytest.raises(InvalidRequest) as caught:
                reply_of(call)
            assert str(caught.value) == text
        else:
            assert reply_of(call).status == 200
    router: Any = SimpleNamespace(
        routes={"m": SimpleNamespace(model=SimpleNamespace(tensors=signature, sample_shapes={}))}
    )
    verbs = {path.rpartition("/")[2] for path in openapi_document(router, {}, {})["paths"]
             if path.startswith("/v2/models/m/")}  # fmt: skip
    assert {"infer", "generate"} & verbs == (set() if in_parts else {"infer", "generate"})
    assert "generate_stream" in verbs


def test_request_that_is_not_the_known_one_is_read_whole():
    routes = served()
    learning = call_of(routes, "POST", "/v2/models/m/infer", request_of())
    reply_of(learning)
    assert learning.plan.known is not None
    again = Call(learning.plan, request_of(id="7"))
    assert json.loads(bytes(reply_of(again).body))["id"] == "7"
    assert [function for function, *_ in again.works] == [inference.read_sent, rest.write]


@pytest.mark.parametrize("is_binary", [False, True], ids=["JSON", "bytes"])
def test_repeated_requests_have_kept_bytes_if_their_outputs_are_bytes(is_binary):
    body = request_of(parameters={"binary_data_output": is_binary})
    call = call_of(served(), "POST", "/v2/models/m/infer", body)
    reply_of(call)
    assert call.plan.known is not None
    assert call.plan.known.encoder._is_repeated is is_binary
    again = Call(call.plan, body)
    answer = reply_of(again)
    assert answer.kind == ("" if is_binary else "application/json"), "its headers are written, too"
    assert (b"content-type" in bytes(answer.body)) is is_binary


FILES = {"type": "object", "properties": {"file": {"type": "array", "items": {
    "type": "string", "format": "binary"}}}}  # fmt: skip
VALUES_OF = {
    "text": {"text/plain": {"schema": {"type": "string"}}},
    "json": {"text/plain": {"schema": {"type": "string"}}},
    "bytes": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": FILES},
    },
    "picture": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": FILES},
    },
}


@pytest.mark.parametrize("content", VALUES_OF)
def test_document_says_what_a_body_is_that_is_a_value(content):
    signature = TensorSignature((Tensor("x", "BYTES", (-1,), content=content),), TEXT.outputs, True)
    model = SimpleNamespace(tensors=signature, sample_shapes={})
    router: Any = SimpleNamespace(routes={"m": SimpleNamespace(model=model)})
    document = openapi_document(router, {}, {})
    body = dict(document["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"])
    own = body.pop("application/json")
    assert own["schema"] == {"$ref": "#/components/schemas/InferRequest"}
    assert own["example"]["inputs"][0]["name"] == "x"
    assert body == VALUES_OF[content]


# The server of the port


class Bound:
    """A socket that listens."""

    is_closed = False

    def getsockname(self):
        return "127.0.0.1", 8123

    def close(self):
        self.is_closed = True


class Processes:
    """A pool that notes what it is asked for."""

    def __init__(self):
        self.asked: list[Any] = []

    def submit(self, owner, function, *args):
        self.asked.append((owner, function, args))


@pytest.fixture
def made(monkeypatch):
    """What an `HttpServer` is made of; each part of it is the test's."""
    parts: Any = SimpleNamespace(socket=Bound(), pool=Processes(), opened=[], is_activated=True)

    def first_free(listen, ports, option):
        parts.listening = (listen.args, listen.keywords, [*ports], option)
        return parts.socket

    def open_port(*args, **named):
        parts.opened.append((args, named))
        return "port"

    def decoders(router, modules):
        parts.modules = modules
        return parts.pool

    fakes: dict[str, Any] = {
        "activated": lambda name: parts.socket if parts.is_activated else None,
        "first_free": first_free, "open_port": open_port, "decoders": decoders,
        "max_message_bytes": lambda router: 11, "max_buffered_bytes": lambda router, config: 22,
        "_max_connections": lambda: 33, "_routes": lambda *_: [], "token_check": lambda _: "tokens",
        "open_access_log": lambda config: parts.log, "server_tls": lambda security, name: parts.tls,
        "App": lambda *args: ("app", *args[1:]),
    }  # fmt: skip
    parts.log, parts.tls = SimpleNamespace(close=lambda: parts.opened.append("log closed")), None
    for name, fake in fakes.items():
        monkeypatch.setattr(http_server, name, fake)
    parts.router = SimpleNamespace(routes={})
    return parts


def server_of(made, *applications, **options):
    config = ServerConfig(http_port=0, **options)
    return http_server.HttpServer(made.router, Asked(), config, applications)


def test_port_has_its_own_times_and_the_limits_of_its_models(made):
    server = server_of(made, SimpleNamespace(MODULES=("own.module",)))
    assert server._limits == PortLimits(
        max_message_bytes=11, max_connections=33, max_buffered_bytes=22, message_s=30.0, idle_s=30.0
    )
    assert made.modules == (
        "serving.http_api.inference", "serving.http_api.files_path", "serving.oip.large_messages",
        "own.module",
    )  # fmt: skip
    assert made.pool.asked == [("", int, ())], "its first process starts at once"
    assert (server.address, server.url) == ("127.0.0.1:8123", "http://127.0.0.1:8123")


def test_port_lets_callers_wait_until_it_begins(made):
    made.is_activated = False
    server_of(made, http_host="127.0.0.1")
    assert made.listening == (("127.0.0.1",), {"backlog": 256}, [0], "--http-port")


@pytest.mark.parametrize("has_tls", [True, False])
def test_port_is_opened_with_its_encryption_and_its_log(has_tls, made):
    made.tls = (lambda: "tls") if has_tls else None
    server, loop = server_of(made), SimpleNamespace()
    assert server.url == f"http{'s' * has_tls}://127.0.0.1:8123"
    assert server._port(loop) == "port"
    ((args, named),) = made.opened
    app = ("app", "tokens", ("127.0.0.1",), ())
    assert args == (loop, made.socket, app, made.router, server._limits, made.pool)
    assert named == {"tls": made.tls, "log": made.log}


def test_server_closes_what_it_has_opened_and_its_socket_only_if_no_loop_has_it(made):
    server = server_of(made)
    server.stop()
    assert (made.socket.is_closed, made.opened) == (True, ["log closed"])
    made.socket.is_closed = False
    made.opened.clear()
    server = server_of(made)
    server._port(SimpleNamespace())
    control = server._pools[0]
    server.stop()
    assert not made.socket.is_closed, "the port has closed it"
    assert made.opened[-1] == "log closed"
    with pytest.raises(RuntimeError):
        control.submit("", int)
