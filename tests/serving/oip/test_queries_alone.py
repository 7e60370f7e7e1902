"""What a server says of its models, whole, without a server, and who may change it."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from serving.commandline import installation
from serving.errors import InvalidRequest, ModelNotFound, NotAllowed, Unsupported
from serving.oip import inference_pb
from serving.oip.methods import inference_methods
from serving.oip.queries import Queries
from serving.protocols.method import BatchedStream, BatchedUnary, Unary
from serving.telemetry.metrics import ModelCounts


def route(name, *served):
    def find(version):
        if version not in served:
            raise ModelNotFound(version)
        return SimpleNamespace(version=version)

    return SimpleNamespace(
        name=name, served=dict.fromkeys(served), versions=SimpleNamespace(find=find),
        model=SimpleNamespace(version=served[0]),
    )  # fmt: skip


class World:
    """Two models, a version that waits, one that is broken; and what a repository is asked."""

    def __init__(self):
        self.routes = {"m": route("m", "2", "1"), "n": route("n", "1")}
        self.asked: list[Any] = []
        counts = {("m", "2"): ModelCounts(), ("n", "1"): ModelCounts()}
        counts["m", "2"].runs.update({3: 2})
        self.router: Any = SimpleNamespace(
            routes=self.routes, find=self.find,
            metrics=SimpleNamespace(
                snapshot=lambda: SimpleNamespace(models=counts), last_ms={("m", "2"): 17}
            ),
        )  # fmt: skip
        self.catalog: Any = SimpleNamespace(
            models={"m": SimpleNamespace(waiting={"3": "it is corrupt"}),
                    "n": SimpleNamespace(waiting={})},
            failures={"broken": "/srv/models/broken/1/model.onnx: no ONNX file"},
            load=lambda name: self.asked.append(("load", name)),
            unload=lambda name: self.asked.append(("unload", name)),
        )  # fmt: skip
        self.health: Any = SimpleNamespace(
            is_serving=True, is_model_serving=lambda name: name == "m"
        )

    def find(self, name):
        if name not in self.routes:
            raise ModelNotFound(name)
        return self.routes[name]

    def queries(self, *, has_catalog=True, **options):
        return Queries(self.router, self.health, self.catalog if has_catalog else None, **options)


@pytest.fixture
def world():
    return World()


def row(name, version, reason=""):
    state = "UNAVAILABLE" if reason else "READY"
    return {"name": name, "version": version, "state": state, "reason": reason}


READY = [row("m", "2"), row("m", "1")]
SERVED = [*READY, row("n", "1", "not ready")]


def test_index_has_what_is_served_what_waits_and_what_is_broken(world):
    """Without the folders of the server's machine."""
    assert world.queries().index() == [
        *SERVED, row("m", "3", "it is corrupt"), row("broken", "", "model.onnx: no ONNX file"),
    ]  # fmt: skip
    assert world.queries().index(only_ready=True) == READY
    assert world.queries(has_catalog=False).index() == SERVED


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        ("/a/b.onnx: no", "b.onnx: no"), ("can't read /a/b/c.json", "can't read c.json"),
        ("a/b.onnx", "a/b.onnx"), ("1/2", "1/2"), ("/x", "x"), ("//a/b: no", "/b: no"),
        ("s3://a/b: no", "s3://a/b: no"), ("file:///a/b: no", "file://b: no"),
    ],
)  # fmt: skip
def test_folders_of_the_machine_are_left_out(trouble, expected, world):
    world.catalog.failures["broken"] = trouble
    assert world.queries().index()[-1]["reason"] == expected


@pytest.mark.parametrize("allow", [True, False])
def test_server_has_its_name_its_version_and_its_extensions(allow, world):
    extensions = ["model_configuration", "statistics", *["model_repository"] * allow]
    queries = world.queries(allow_control=allow)
    assert queries.server_metadata() == {
        "name": "digit-serving",
        "version": installation.version(),
        "extensions": extensions,
    }
    assert queries.is_control_slow is allow


@pytest.mark.parametrize(
    ("name", "version", "is_ready"),
    [("m", "", True), ("m", "1", True), ("m", "9", False), ("n", "", False), ("z", "", False)],
)
def test_model_is_ready_or_not(name, version, is_ready, world):
    assert world.queries().is_model_ready(name, version) is is_ready


def test_server_is_ready_or_not(world):
    assert world.queries().is_ready() is True
    world.health.is_serving = False
    assert world.queries().is_ready() is False


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("", ""), [("m", "2", 6, 2, 17), ("m", "1", 0, 0, 0), ("n", "1", 0, 0, 0)]),
        (("m", ""), [("m", "2", 6, 2, 17), ("m", "1", 0, 0, 0)]),
        (("m", "2"), [("m", "2", 6, 2, 17)]), (("n", "1"), [("n", "1", 0, 0, 0)]),
    ],
)  # fmt: skip
def test_statistics_are_those_of_the_versions_in_service(asked, expected, world):
    names = ("name", "version", "inference_count", "execution_count", "last_inference")
    found = world.queries().model_statistics(*asked)
    assert [tuple(each[name] for name in names) for each in found] == expected
    with pytest.raises(ModelNotFound):
        world.queries().model_statistics("z")
    with pytest.raises(ModelNotFound):
        world.queries().model_statistics("m", "9")


def test_models_are_loaded_and_unloaded_where_the_operator_allows_it(world):
    queries = world.queries(allow_control=True)
    assert (queries.load_model("m"), queries.unload_model("n", ["unload_dependents"])) == ({}, {})
    assert world.asked == [("load", "m"), ("unload", "n")]
    text = r"^expected no parameters: models are loaded as the repository has them$"
    with pytest.raises(InvalidRequest, match=text):
        queries.load_model("m", ["config"])
    forbidding = world.queries()
    text = (r"^models are not loaded or unloaded on request: the server was started without "
            "--allow-repository-control$")  # fmt: skip
    for change in (forbidding.load_model, forbidding.unload_model):
        with pytest.raises(NotAllowed, match=text):
            change("m")
    assert len(world.asked) == 2


# The same over gRPC

QUERIES = (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip
REFUSED = {
    "shared memory is not supported: tensors travel in the messages": (
        "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    "trace settings can't be changed by callers: the server's --otlp-endpoint sends traces": (
        "TraceSetting",),
    "log settings can't be changed by callers: the server has --log-level and --log-format": (
        "LogSettings",),
}  # fmt: skip


@pytest.mark.parametrize("allow", [True, False])
def test_methods_are_those_of_the_protocol(allow, world):
    methods = inference_methods(world.router, world.queries(allow_control=allow))
    found = {each.path.removeprefix("/inference.GRPCInferenceService/"): each for each in methods}
    refused = {name: text for text, names in REFUSED.items() for name in names}
    assert found.keys() == {"ModelInfer", "ModelStreamInfer", *QUERIES, *refused}
    assert Counter(type(each) for each in methods) == {BatchedUnary: 1, BatchedStream: 1, Unary: 18}
    assert {name: each.name for name, each in found.items()} == {
        name: "other" if name in refused else name for name in found}  # fmt: skip
    slow = {name for name, each in found.items() if getattr(each, "is_slow", False)}
    assert slow == ({"RepositoryModelLoad", "RepositoryModelUnload"} if allow else set())
    for name, text in refused.items():
        with pytest.raises(Unsupported) as caught:
            found[name].answer(b"")  # type: ignore[attr-defined]
        assert str(caught.value) == text
    assert found["ModelInfer"].known is not found["ModelStreamInfer"].known  # type: ignore[attr-defined]
    assert not any(each.is_open for each in methods), "each needs a token"


def answered(world, query, /, **fields):
    methods: Any = inference_methods(world.router, world.queries(allow_control=True))
    (method,) = (each for each in methods if each.path.endswith(f"/{query}"))
    request = getattr(inference_pb, f"{query}Request")(**fields).SerializeToString()
    return getattr(inference_pb, f"{query}Response").FromString(method.answer(request))


def test_queries_are_answered_by_the_fields_of_their_messages(world):
    assert answered(world, "ServerLive").live
    assert answered(world, "ServerReady").ready
    assert answered(world, "ServerMetadata").name == "digit-serving"
    assert answered(world, "ModelReady", name="m", version="1").ready
    assert not answered(world, "ModelReady", name="m", version="9").ready
    index = answered(world, "RepositoryIndex", ready=True)
    assert [(each.name, each.version, each.state) for each in index.models] == [
        ("m", "2", "READY"), ("m", "1", "READY")]  # fmt: skip
    assert len(answered(world, "RepositoryIndex").models) == 5
    stats = answered(world, "ModelStatistics", name="m", version="2")
    assert [(each.name, each.inference_count) for each in stats.model_stats] == [("m", 6)]
    answered(world, "RepositoryModelLoad", model_name="m")
    answered(world, "RepositoryModelUnload", model_name="n")
    assert world.asked == [("load", "m"), ("unload", "n")]
    with pytest.raises(InvalidRequest):
        answered(world, "RepositoryModelLoad", model_name="m",
                 parameters={"config": {"string_param": "{}"}})  # fmt: skip


def test_refusal_on_a_stream_is_an_answer(world):
    """Else one wrong message would end the stream of all others."""
    methods: Any = inference_methods(world.router, world.queries())
    (method,) = (each for each in methods if isinstance(each, BatchedStream))
    found = method.error_message(b"", InvalidRequest("it is bad"))
    assert inference_pb.ModelStreamInferResponse.FromString(found).error_message == "it is bad"
