"""The verbs of the four classes, and what `infer` takes beside its inputs."""

import asyncio
import math
from inspect import signature

import numpy as np
import pytest

from serving import AsyncClient, AsyncModel, Client, Model, Server
from serving.errors import ConfigurationError, InvalidRequest, ModelNotFound, TooLarge
from tests.serving.model.graphs import model, node, save, two_layers, value
from tests.support.servers import running_server

VERBS = {"infer", "describe", "models", "wait_ready", "close"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(two_layers(), folder, "rows.onnx")
    total = model(
        [node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [value("x", "FP32", ["N", 4])], [value("y", "FP32", [])],
    )  # fmt: skip
    save(total, folder, "total.onnx")
    return folder


@pytest.fixture(scope="module")
def two_models(folder):
    options = ("--max-request-rows", "10", "--queue-capacity", "1000")
    with running_server(folder, *options) as server:
        yield server


@pytest.fixture
def client(two_models):
    with Client(two_models.address) as client:
        yield client


def test_all_four_have_the_same_verbs():
    for kind in (Model, AsyncModel, Client, AsyncClient):
        assert set(dir(kind)) >= VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verbs_of_both_clients_have_the_same_defaults(verb):
    ours, theirs = (
        {each.name: each.default for each in signature(getattr(kind, verb)).parameters.values()}
        for kind in (Client, AsyncClient)
    )
    assert ours == theirs
    if verb == "wait_ready":
        assert ours["timeout_s"] == 30.0


@pytest.mark.usefixtures("each_loop")
def test_all_four_answer_and_describe_alike(two_models, folder, client):
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)

    async def awaited():
        async with (
            AsyncClient(two_models.address) as other,
            AsyncModel.load(folder / "rows.onnx", device="cpu") as near,
        ):
            answers = [
                await each.infer(*name, rows) for each, name in ((other, ["rows"]), (near, []))
            ]
            return answers, await other.describe("rows"), await near.describe(), await near.models()

    (far, near), described, near_described, names = asyncio.run(awaited())
    with Model.load(folder / "rows.onnx", device="cpu") as loaded:
        answers = [loaded.infer({"x": rows}), client.infer("rows", {"x": rows}), far, near]
        local = loaded.describe()
        assert (loaded.models(), names) == (["rows"], ["rows"])
    for answer in answers:
        assert (list(answer), answer.model_version) == (["y"], "1")
        np.testing.assert_allclose(answer["y"], answers[0]["y"], atol=1e-6)
    assert client.describe("rows") == described
    assert local == near_described
    alike = ("name", "version", "versions", "default_version", "inputs", "outputs", "is_batchable",
             "batching", "device", "precision", "max_batch_size")  # fmt: skip
    for name in alike:
        assert getattr(described, name) == getattr(local, name), name
    assert (described.max_request_rows, described.is_batchable) == (10, True)
    assert local.max_request_rows is None  # no server is there to refuse more
    assert described.max_message_bytes > 10 * 16
    with Model.load(folder / "total.onnx", device="cpu") as loaded:
        totals = client.describe("total"), loaded.describe()
    for total in totals:
        limits = total.is_batchable, total.max_batch_size, total.max_request_rows
        assert limits == (False, 0, None)


@pytest.mark.usefixtures("each_loop")
def test_rows_beyond_a_message_are_divided_and_put_together(client, two_models):
    rows = np.arange(4 * 995, dtype=np.float32).reshape(-1, 4)
    together = client.infer("rows", rows)["y"]
    assert together.shape == (995, 3)
    np.testing.assert_allclose(together[990:], client.infer("rows", rows[990:])["y"], rtol=1e-6)

    async def awaited():
        async with AsyncClient(two_models.address) as other:
            return (await other.infer("rows", rows))["y"]

    np.testing.assert_array_equal(asyncio.run(awaited()), together)


def test_model_that_is_not_batched_takes_what_fits_into_a_message(client):
    assert client.infer("total", np.ones((20, 4), np.float32))["y"] == 80
    limit = client.describe("total").max_message_bytes
    with pytest.raises(TooLarge, match=f"at most {limit}"):
        client.infer("total", np.ones((limit // 16 + 1, 4), np.float32))


def test_options_are_no_inputs(tmp_path):
    names = ("timeout_s", "metadata", "version", "outputs")
    graph = model(
        [node("Sum", list(names), ["y"])],
        [value(name, "FP32", ["N", 2]) for name in names], [value("y", "FP32", ["N", 2])],
    )  # fmt: skip
    save(graph, tmp_path, "odd.onnx")
    with running_server(tmp_path) as server, Client(server.address) as client:
        ones = {name: np.ones((1, 2), np.float32) for name in names}
        answer = client.infer("odd", ones, timeout_s=20, metadata={"x-tenant": "a"}, version=1)
        assert answer["y"].tolist() == [[4, 4]]
        with pytest.raises(InvalidRequest, match="by name, got one array"):
            client.infer("odd", ones["version"])


@pytest.mark.parametrize(
    "metadata", [{"a b": "x"}, {"grpc-timeout": "1"}, {"x": "ü"}, {"x-bin": "a"}]
)
def test_metadata_that_cannot_be_sent_are_refused(client, metadata):
    with pytest.raises(InvalidRequest, match="metadata"):
        client.infer("rows", np.ones((1, 4), np.float32), metadata=metadata)


def test_metadata_reach_the_server(folder):
    options = ("--access-log", "100%", "--log-format", "json")
    with running_server(folder, *options) as server:
        for transport in ("h2", "grpcio"):
            with Client(server.address, transport=transport) as client:
                rows = np.ones((1, 4), np.float32)
                client.infer("rows", rows, metadata={"X-Request-Id": f"by-{transport}"})
        server.stop()
        log = server.process.stderr.read()
    assert all(f'"request_id": "by-{transport}"' in log for transport in ("h2", "grpcio"))


def test_another_version_than_the_loaded_one_is_not_found(folder):
    with Model.load(folder / "rows.onnx", device="cpu") as loaded:
        assert loaded.describe(1).version == "1"
        with pytest.raises(ModelNotFound, match="version 1 is loaded, not '2'"):
            loaded.describe(2)


@pytest.mark.parametrize(
    ("given", "dtype"), [(np.float64, np.float32), (np.float32, np.float32), (">f4", np.float32)]
)
def test_floats_of_a_calculation_are_taken(client, given, dtype):
    rows = np.full((2, 4), 0.5).astype(given)
    assert client.infer("rows", rows)["y"].dtype == dtype


def test_integers_are_no_floats_and_the_error_has_the_cast(client):
    with pytest.raises(InvalidRequest, match=r"FP32 .* got int64: .* \.astype\(numpy\.float32\)"):
        client.infer("rows", np.ones((2, 4), np.int64))


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (lambda path: Model.load(path, batching=3), ConfigurationError, "batching: expected"),
        (lambda path: Model.load(3), ConfigurationError, "path: expected a file or a folder"),
        (lambda path: Model.load(path).infer([[1] * 4], outputs=3), InvalidRequest, "outputs"),
        (lambda path: Client("a:1", timeout_s="a"), ConfigurationError, "timeout_s: expected"),
        (lambda path: Client(3), ConfigurationError, "expected HOST:PORT"),
        (lambda path: Client("a:1", tls_ca=3), ConfigurationError, "path of a PEM file, got 3"),
        (lambda path: Client("a:1", token=3), ConfigurationError, "a token must be"),
        (lambda path: Server(path, start_timeout_s="a"), ConfigurationError, "start_timeout_s"),
    ],
)  # fmt: skip
def test_option_of_another_type_is_an_error_of_ours(use, error, words, folder):
    with pytest.raises(error, match=words):
        use(folder / "rows.onnx")


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": "a"}, {"timeout_s": math.nan}, {"timeout_s": True}, {"outputs": 3},
        {"metadata": 3}, {"metadata": {3: "a"}}, {"version": "\ud800"}, {"outputs": ["\ud800"]},
    ],
)  # fmt: skip
def test_option_of_a_call_that_cannot_be_used_is_named(options, client):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        client.infer("rows", np.ones((1, 4), np.float32), **options)
    with pytest.raises(InvalidRequest, match="model: expected a name"):
        client.infer(3, np.ones((1, 4), np.float32))
