"""A model with a handler, called by every way in which models are called."""

import base64
import io
import json
import re
import sys
from contextlib import closing

import grpc
import numpy as np
import pytest
from PIL import Image

import serving
from serving.oip import inference_pb
from tests.serving.handlers.conftest import at_once, named
from tests.serving.http.peer import HttpPeer
from tests.serving.http.test_wire import Wire, binary
from tests.support.servers import ended, wait_until

CLASSES = {
    "behaviours": "Behaviours", "facts": "Facts", "sizes": "Sizes", "cascade": "Cascade",
    "joined": "Joined", "doubles": "Doubles", "tenants": "Tenants", "documents": "Documents",
    "pairs": "Pairs",
}  # fmt: skip


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def handled(request, network):
    handlers = named(model="Around", **CLASSES)
    options = {"transport": request.param, "handler_processes": 1}
    with serving.Server(network, handler=handlers, **options) as handled:
        yield handled


@pytest.fixture(scope="module")
def caller(handled):
    with serving.Client(handled.address, timeout_s=20) as caller:
        yield caller


@pytest.fixture(scope="module")
def peer(handled):
    return HttpPeer(f"http://{handled.http_address}")


def picture_of(colour, size=(5, 3), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def test_model_runs_between_the_methods_of_its_handler(caller, network):
    bias = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    found = caller.infer("model", {"text": ["a", "bab", ""], "bias": bias})
    with serving.Model.load(network) as plain:
        rows = np.array([[1, 1, 1, 2], [3, 1, 3, 4], [0, 0, 5, 6]], np.float32)
        expected = plain.infer(rows)["y"]
    assert found["text"].tolist() == ["a!", "bab!", "!"]
    np.testing.assert_array_equal(found["y"], expected)
    assert found.model_version == "1"


def test_signature_is_the_handlers(caller, peer):
    info = caller.describe("model")
    assert str(info.tensors) == "text BYTES [N], bias FP32 [N, 2] -> text BYTES [N], y FP32 [N, 3]"
    assert "handler Around: each call alone; batching on" in info.batching
    metadata = peer.get("/v2/models/sizes").json
    assert metadata["inputs"] == [{"name": "picture", "datatype": "BYTES", "shape": [-1]}]
    assert caller.describe("sizes").inputs[0].content == "picture"
    paths = peer.get("/openapi.json").json["paths"]
    bodies = paths["/v2/models/sizes/infer"]["post"]["requestBody"]["content"]
    assert set(bodies) == {
        "application/json", "application/octet-stream", "image/*", "multipart/form-data",
    }  # fmt: skip
    bodies = paths["/v2/models/joined/infer"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"application/json", "text/plain"}
    listed = {each["name"]: each for each in peer.get("/v2/models").json["models"]}
    assert listed["joined"]["outputs"][1]["datatype"] == "INT64"
    assert listed["sizes"]["requests"]["curl"].startswith("curl -T picture.jpg http://")
    assert "-H 'content-type: text/plain' -d text" in listed["joined"]["requests"]["curl"]
    assert "picture=@picture.jpg" in listed["sizes"]["requests"]["digit-serving"]
    assert "[open('file.bin', 'rb').read()]" in listed["facts"]["requests"]["Python"]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGB", "JPEG")])
def test_largest_picture_that_is_promised_is_read(caller, mode, kind):
    """80 million pixels: the memory of the process that decodes it must be enough."""
    file = io.BytesIO()
    Image.new(mode, (10_000, 8_000)).save(file, kind)
    found = caller.infer("sizes", {"picture": [file.getvalue()]}, timeout_s=60)
    assert found["size"].tolist() == [[8_000, 10_000]]


VALUES = [{"a": [1, None, "ü"]}, "text", 2.5, [], True, np.float32(0.5), np.arange(2)]


def test_values_of_json_are_values_to_handlers_and_python_clients(caller, peer):
    found = caller.infer("documents", {"document": VALUES})
    plain = [*VALUES[:-2], 0.5, [0, 1]]
    assert found["document"].tolist() == [{"got": each} for each in plain]
    assert found["pair"].shape == (7, 2)
    assert found["pair"][1].tolist() == ["a", "text"]
    info = caller.describe("documents")
    assert str(info.tensors) == "document BYTES [N] -> document BYTES [N], pair BYTES [N, 2]"
    body = {"inputs": [{"name": "document", "datatype": "BYTES", "shape": [2, 1],
                        "data": [['{"a": "ü"}'], ["7"]]}]}  # fmt: skip
    answer = peer.ask("POST", "/v2/models/documents/infer", json.dumps(body).encode())
    outputs = {each["name"]: each for each in answer.json["outputs"]}
    assert outputs["document"]["data"] == ['{"got": {"a": "ü"}}', '{"got": 7}']
    assert outputs["document"]["shape"] == [2]
    answer = peer.ask("POST", "/v2/models/documents/infer", b"[1]", content_type="text/plain")
    assert answer.json["outputs"][0]["data"] == ['{"got": [1]}']


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["1", "{"], "document: row 1 is no JSON: Expecting property name"),
        (["NaN"], "document: row 0 is no JSON: NaN is no JSON"),
        (["[" * 65 + "]" * 65], "row 0 is no JSON: more than 64 lists and objects inside"),
        (["[" * 100_000], "row 0 is no JSON: "),
        (["1" * 5000], "row 0 is no JSON: "),
    ],
)
def test_text_that_is_no_json_is_refused_with_its_row(peer, texts, words):
    shape = [len(texts)]
    tensor = {"name": "document", "datatype": "BYTES", "shape": shape, "data": texts}
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = peer.ask("POST", "/v2/models/documents/infer", body)
    assert answer.status == 400
    assert words in answer.json["detail"]


def test_value_that_json_cannot_hold_is_refused_on_either_side(caller):
    with pytest.raises(serving.InvalidRequest, match="row 0 can't be JSON: set is no JSON"):
        caller.infer("documents", {"document": [{1, 2}]})
    with pytest.raises(serving.InvalidRequest, match="row 1 can't be JSON"):
        caller.infer("documents", [1, float("nan")])
    with pytest.raises(serving.InvalidRequest, match="a list with a value for each row, got dict"):
        caller.infer("documents", {"document": {"a": 1}})
    for text in ("nan", "strange"):
        with pytest.raises(serving.ModelError):
            caller.infer("documents", {"document": [text]})


def test_texts_have_a_shape_or_a_column(caller):
    found = caller.infer("pairs", {"pair": [["a", "b"], ["c", "d"]]})
    assert found["text"].tolist() == ["a-b", "c-d"]
    with pytest.raises(serving.InvalidRequest, match=r"expected pair BYTES \[N, 2\]"):
        caller.infer("pairs", {"pair": ["a", "b"]})
    found = caller.infer("behaviours", {"text": [["say it"], ["and"]]})
    assert found["answer"].tolist() == ["SAY IT", "AND"]


def test_column_of_texts_of_another_client_is_taken(handled):
    request = inference_pb.ModelInferRequest(model_name="behaviours")
    contents = request.inputs.add(name="text", datatype="BYTES", shape=[2, 1]).contents
    contents.bytes_contents.extend([b"say hi", b"x"])
    with grpc.insecure_channel(handled.address) as channel:
        call = channel.unary_unary(
            f"/{inference_pb.SERVICE}/ModelInfer",
            inference_pb.ModelInferRequest.SerializeToString,
            inference_pb.ModelInferResponse.FromString,
        )
        answer = call(request, timeout=20)
    assert answer.outputs[0].shape == [2]


def test_stub_of_grpcio_calls_it_unary_and_on_a_stream(handled):
    request = inference_pb.ModelInferRequest(model_name="behaviours")
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        b"say hi"
    )
    bad = inference_pb.ModelInferRequest(model_name="behaviours", id="bad")
    bad.CopyFrom(request)
    bad.inputs[0].contents.bytes_contents[0] = b"refuse because"
    bad.id = "2"
    with grpc.insecure_channel(handled.address) as channel:
        unary = channel.unary_unary(
            f"/{inference_pb.SERVICE}/ModelInfer",
            inference_pb.ModelInferRequest.SerializeToString,
            inference_pb.ModelInferResponse.FromString,
        )
        assert unary(request, timeout=20).outputs[0].contents.bytes_contents[0] == b"SAY HI"
        stream = channel.stream_stream(
            f"/{inference_pb.SERVICE}/ModelStreamInfer",
            inference_pb.ModelInferRequest.SerializeToString,
            inference_pb.ModelStreamInferResponse.FromString,
        )
        answers = list(stream(iter([request, bad, request]), timeout=20))
    texts = [each.infer_response.outputs[0].contents.bytes_contents[0] for each in answers[::2]]
    assert texts == [b"SAY HI", b"SAY HI"]
    assert answers[1].error_message == "because"
    assert answers[1].infer_response.id == "2"


def test_parameters_and_metadata_reach_a_handler_that_names_them(caller, peer):
    data = [b"\0\xff", b""]
    found = caller.infer(
        "facts", {"data": data}, metadata={"x-tenant": "a"}, parameters={"top": 3, "word": "x"}
    )
    assert found["data"].tolist() == [b"\xff\0", b""]
    assert found["parameters"].tolist() == ["top=3,word='x'"] * 2
    assert found["tenant"].tolist() == ["a None"] * 2
    answer = peer.ask(
        "POST",
        "/v2/models/facts/infer?top=5",
        b"\1\2",
        content_type="application/octet-stream",
        x_tenant="b",
        authorization="Bearer secret",
    )
    outputs = {each["name"]: each["data"][0] for each in answer.json["outputs"]}
    assert base64.b64decode(outputs["data"]) == b"\2\1"
    assert outputs["parameters"] == "top='5'"
    assert outputs["tenant"] == "b None"


def test_headers_of_requests_that_repeat_others_reach_a_handler(peer):
    with closing(Wire(peer.url)) as wire:
        for value in (1, 2, 3):
            rows = np.full((1, 2), value, np.float32)
            request = binary(rows, model="tenants", name="x", output="tenant")
            head, rest = request.split(b"\r\n\r\n", 1)
            status, headers, body = wire.ask(head + b"\r\nX-Tenant: b\r\n\r\n" + rest)
            assert status == 200, body
            assert body[int(headers["inference-header-content-length"]) + 4 :] == b"b %d" % (
                2 * value
            )


def test_bytes_are_base64_in_json(peer):
    item = {"name": "data", "datatype": "BYTES", "shape": [2], "data": ["AAH/", ""]}
    body = {"inputs": [item], "parameters": {"top": 1}}
    answer = peer.post("/v2/models/facts/infer", json.dumps(body).encode())
    outputs = {each["name"]: each["data"] for each in answer.json["outputs"]}
    assert outputs["data"] == ["/wEA", ""]
    assert outputs["parameters"] == ["top=1"] * 2
    rows = {"instances": [{"b64": "AAH/"}]}
    answer = peer.post("/v1/models/facts:predict", json.dumps(rows).encode())
    assert answer.json["predictions"][0]["data"] == "/wEA"
    item["data"] = ["no base64!", ""]
    answer = peer.post("/v2/models/facts/infer", json.dumps({"inputs": [item]}).encode())
    assert (answer.status, answer.json["reason"]) == (400, "INVALID_REQUEST")
    assert "base64" in answer.json["detail"]


def test_body_is_the_only_input(peer):
    path = "/v2/models/behaviours/infer"
    answer = peer.post(path, "say grüße".encode(), content_type="text/plain; charset=utf-8")
    assert answer.json["outputs"][0]["data"] == ["SAY GRÜSSE"]
    assert peer.ask("PUT", path, b"say put").json["outputs"][0]["data"] == ["SAY PUT"]
    wrong = peer.post(path, b"\xff", content_type="text/plain")
    assert (wrong.status, wrong.json["reason"]) == (400, "INVALID_REQUEST")
    unnamed = peer.post(path, b"say it", content_type="application/x-www-form-urlencoded")
    assert unnamed.status == 400
    assert (
        "to send text as it is, add the header content-type: text/plain" in (unnamed.json["detail"])
    )
    several = peer.ask("PUT", "/v2/models/model/infer", b"x")
    assert several.status == 400
    assert "one input" in several.json["detail"]


def test_pictures_are_decoded_before_the_handler(caller, peer):
    files = [picture_of((200, 10, 30)), picture_of((0, 0, 255), (2, 7), "GIF")]
    found = caller.infer("sizes", {"picture": files})
    assert found["size"].tolist() == [[3, 5], [7, 2]]
    assert found["colour"].tolist() == [[200, 10, 30], [0, 0, 255]]
    answer = peer.ask("PUT", "/v2/models/sizes/infer", files[0])
    assert answer.json["outputs"][0]["data"] == [3, 5]
    answer = peer.post("/v2/models/sizes/infer", files[1], content_type="image/gif")
    assert answer.json["outputs"][0]["data"] == [7, 2]
    with pytest.raises(serving.InvalidRequest, match="picture 1: expected a picture"):
        caller.infer("sizes", {"picture": [files[0], b"nothing"]})
    assert peer.ask("PUT", "/v2/models/sizes/infer", b"nothing").status == 400


def test_large_inputs_and_outputs_go_through(caller):
    data = [np.random.default_rng(0).bytes(9 << 20), b"x" * 70_000]
    assert caller.infer("facts", {"data": data})["data"].tolist() == [each[::-1] for each in data]


def test_command_sends_texts_and_files(handled, tmp_path):
    (tmp_path / "red.png").write_bytes(picture_of((255, 0, 0)))
    command = [sys.executable, "-m", "serving", "infer"]
    target = ["--target", handled.address, "--json"]
    answer = ended([*command, "sizes", *target, "@red.png"], cwd=tmp_path)
    assert json.loads(answer.stdout)["size"] == [[3, 5]]
    answer = ended([*command, "behaviours", *target, "text=say it"], cwd=tmp_path)
    assert json.loads(answer.stdout)["answer"] == ["SAY IT"]


def test_numbers_of_many_calls_at_once_are_each_ones_own(caller):
    def ask(number):
        x = np.full((2, 3), number, np.float32)
        return lambda: [caller.infer("doubles", x)["y"].tolist() for _ in range(10)]

    threads, outcomes = at_once(*map(ask, range(16)))
    for thread in threads:
        thread.join()
    assert outcomes == [[[[2.0 * number] * 3] * 2] * 10 for number in range(16)]


def test_errors_of_a_handler_are_the_callers_or_ours(handled, caller, peer):
    with pytest.raises(serving.InvalidRequest, match="this is why"):
        caller.infer("behaviours", {"text": ["refuse this is why"]})
    with pytest.raises(serving.ModelError, match="the handler failed on this request: id ") as err:
        caller.infer("behaviours", {"text": ["raise a secret"]})
    identifier = str(err.value).rpartition(" ")[2]
    assert "secret" not in str(err.value)
    wait_until(lambda: f"id {identifier}" in handled.errors)
    assert "ValueError: a secret" in handled.errors
    answer = peer.post("/v2/models/behaviours/infer", b"raise x", content_type="text/plain")
    assert (answer.status, answer.json["reason"]) == (500, "MODEL_ERROR")


def test_wrong_outputs_are_named_in_the_log(handled, caller):
    with pytest.raises(serving.ModelError, match="id "):
        caller.infer("behaviours", {"text": ["less"]})
    text = "Behaviours.predict: answer: expected 1 texts (str), one for each row, got 3"
    wait_until(lambda: text in handled.errors)


def test_log_of_a_handler_is_in_ours(handled, caller):
    caller.infer("behaviours", {"text": ["log a line"]})
    logged = "WARNING serving.handlers.process: behaviours: mine: logged a line"
    printed = "INFO    serving.handlers.process: behaviours: printed a line"
    wait_until(lambda: logged in handled.errors and printed in handled.errors)


def test_cascade_asks_another_model(caller):
    assert caller.infer("cascade", {"text": ["say it"]})["answer"].tolist() == ["SAY IT"]
    with pytest.raises(serving.InvalidRequest, match="why"):  # as it would be without the cascade
        caller.infer("cascade", {"text": ["refuse why"]})
    with pytest.raises(serving.ModelError):
        caller.infer("cascade", {"text": ["raise x"]})


def test_requests_that_do_not_fit_are_refused(caller):
    with pytest.raises(serving.InvalidRequest, match="expected the inputs text"):
        caller.infer("behaviours", {"nothing": ["x"]})
    with pytest.raises(serving.InvalidRequest, match=r"a list of 1 item is \['why'\]"):
        caller.infer("behaviours", {"text": "why"})
    with pytest.raises(serving.InvalidRequest, match="at least 1 row"):
        caller.infer("behaviours", {"text": []})
    with pytest.raises(serving.InvalidRequest, match="as many rows"):
        caller.infer("model", {"text": ["a"] * 2, "bias": np.zeros((3, 2), np.float32)})


def form_of(**files):
    """A form's body and its type."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n'
        % (name.encode(), content)
        for name, content in files.items()
    ]
    return b"".join([*parts, b"--edge--\r\n"]), "multipart/form-data; boundary=edge"


def test_files_of_a_form_are_answered_one_by_one(peer):
    body, kind = form_of(a=picture_of("red"), b=b"no picture", c=picture_of("blue", (7, 2)))
    answer = peer.ask("POST", "/v2/models/sizes/infer", body, content_type=kind)
    assert answer.status == 200
    first, second, third = answer.json["files"]
    assert [first["name"], second["name"], third["name"]] == ["a", "b", "c"]
    assert first["outputs"][0]["data"] == [3, 5]
    assert (first["model_name"], first["model_version"]) == ("sizes", "1")
    assert third["outputs"][0]["data"] == [2, 7]
    assert "outputs" not in second
    assert second["error"].startswith("expected a picture (PNG")
    body, kind = form_of(a=b"ab", b=b"cd")
    answer = peer.ask("POST", "/v2/models/facts/infer?top=1", body, content_type=kind)
    found = [each["outputs"] for each in answer.json["files"]]
    assert [base64.b64decode(outputs[0]["data"][0]) for outputs in found] == [b"ba", b"dc"]
    assert {outputs[1]["data"][0] for outputs in found} == {"top='1'"}
    for bad, words in ((b"nothing", "form"), (b"--edge--\r\n", "at least 1 file")):
        answer = peer.ask("POST", "/v2/models/sizes/infer", bad, content_type=kind)
        assert answer.status == 400
        assert words in answer.json["detail"]


def test_metrics_of_a_handlers_own_are_on_the_page(handled, caller):
    url = f"http://{handled.metrics_address}"

    def value(series):
        page = HttpPeer(url).get("/metrics").body.decode()
        found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.M)
        return float(found[1]) if found else 0.0

    counted = 'handler_calls_total{model="behaviours",version="1",word="say"}'
    noted = 'handler_letters_bucket{le="5.0",model="behaviours",version="1"}'
    before = value(counted), value(noted)
    caller.infer("behaviours", {"text": ["say"]})
    caller.infer("behaviours", {"text": ["say something"]})
    with pytest.raises(serving.InvalidRequest):
        caller.infer("behaviours", {"text": ["refuse"]})
    assert (value(counted), value(noted)) == (before[0] + 2, before[1] + 1)


def test_phases_and_processes_are_measured(handled, caller):
    caller.infer("model", {"text": ["a"], "bias": np.zeros((1, 2), np.float32)})
    page = HttpPeer(f"http://{handled.metrics_address}").get("/metrics").body.decode()
    label = '{model="model",version="1"}'
    for name in ("preprocess", "postprocess"):
        assert f"serving_{name}_seconds_count{label}" in page
    assert f"serving_handler_processes{label} 1.0" in page
    assert f"serving_handler_starts_total{label} 1.0" in page
    memory = next(line for line in page.splitlines() if f"handler_memory_bytes{label}" in line)
    assert float(memory.split()[-1]) > 1e6
