"""Metadata, configuration and statistics over the inference protocol."""

import subprocess
import sys
from functools import partial

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.config import BatchingConfig
from serving.protocols.oip import methods
from serving.tensors import Tensor, TensorSignature
from tests.support.inference_peer import Peer, raw_request, typed_request
from tests.support.raw import TIMEOUT_S, status_of
from tests.support.servers import running_server


def test_server_and_model_are_live_and_ready(peer):
    assert peer.call("ServerLive").live
    assert peer.call("ServerReady").ready
    assert peer.call("ModelReady", name="digits").ready
    assert peer.call("ModelReady", name="digits", version="1").ready


def test_config_describes_tensors_without_the_batch_axis(peer, classifier):
    info = classifier.model_info()
    config = peer.call("ModelConfig", name=info.name).config
    found = config.name, config.platform, config.max_batch_size
    assert found == (info.name, "onnxruntime_onnx", 512)
    assert [(tensor.name, list(tensor.dims)) for tensor in (*config.input, *config.output)] == [
        ("images", [info.signature.image_bytes]),
        ("probabilities", [info.signature.num_classes]),
    ]
    assert config.HasField("dynamic_batching")
    assert config.parameters["max_request_images"].string_value == "4096"


def test_server_metadata_advertises_what_works(peer):
    described = peer.call("ServerMetadata")
    assert described.name == "digit-serving"
    assert described.version
    assert list(described.extensions) == ["model_configuration", "statistics"]


def test_repository_index_lists_the_served_version(peer):
    for fields in ({}, {"ready": True}):
        (model,) = peer.call("RepositoryIndex", **fields).models
        assert (model.name, model.version, model.state) == ("digits", "1", "READY")


def test_statistics_count_images_runs_failures_and_times(models, images):
    def statistics():
        (counts,) = peer.call("ModelStatistics", name="digits").model_stats
        return counts

    with (
        running_server(models, "--self-test-interval", "0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        peer = Peer(channel)
        before = statistics()
        peer.infer(raw_request(images[:100]))
        peer.infer(typed_request(images[:1]))
        status_of(lambda: peer.infer(raw_request(images[:1], id="x" * 513)))
        other = raw_request(images[:1], model_name="letters")
        status_of(lambda: peer.infer(other))  # not ours to count
        after = statistics()
    assert (after.name, after.version) == ("digits", "1")
    assert after.inference_count - before.inference_count == 101
    assert after.execution_count - before.execution_count == 2
    assert after.last_inference > 1_600_000_000_000
    for name, times in (("success", 2), ("fail", 1), ("queue", 2), ("compute_input", 2),
                        ("compute_infer", 2), ("compute_output", 2)):  # fmt: skip
        old, new = getattr(before.inference_stats, name), getattr(after.inference_stats, name)
        assert new.count - old.count == times
        assert new.ns > old.ns or name in ("fail", "compute_input")  # neither is timed here
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    stats = after.inference_stats
    assert sum(getattr(stats, name).ns for name in parts) <= stats.success.ns
    assert sum(size.compute_infer.count for size in after.batch_stats) == after.execution_count


@pytest.mark.parametrize(
    "method", ["CudaSharedMemoryStatus", "SystemSharedMemoryStatus", "TraceSetting", "LogSettings"]
)
def test_what_is_not_offered_is_unimplemented(peer, method):
    assert status_of(lambda: peer.send(method, b""))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_health_knows_the_service(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        response = stub.Check(request, timeout=TIMEOUT_S)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_messages_stay_out_of_the_default_pool():
    code = (
        "import serving.server.server\n"
        "from google.protobuf import descriptor_pool\n"
        "try:\n"
        "    descriptor_pool.Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError:\n"
        "    raise SystemExit(0)\n"
        "raise SystemExit('other clients of the protocol could not be imported')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ODD = TensorSignature(
    (Tensor("text", "BYTES", (-1, 1)), Tensor("state", "FP16", (2, -1, 64))),
    (Tensor("score", "FP64", ()),),
    is_batchable=False,
)


def test_model_that_does_not_batch_has_all_axes_and_no_batch_size():
    described = methods.model_metadata("odd", ("1", "3"), ODD)
    assert list(described.versions) == ["1", "3"]
    tensors = [*described.inputs, *described.outputs]
    assert [(tensor.name, tensor.datatype, [*tensor.shape]) for tensor in tensors] == [
        ("text", "BYTES", [-1, 1]),
        ("state", "FP16", [2, -1, 64]),
        ("score", "FP64", []),
    ]
    config = methods.model_config("odd", ODD, BatchingConfig(), {}).config
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    kinds = config.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"]
    names = kinds.enum_type.values_by_number
    assert [
        (tensor.name, names[tensor.data_type].name, [*tensor.dims])
        for tensor in (*config.input, *config.output)
    ] == [
        ("text", "TYPE_STRING", [-1, 1]),
        ("state", "TYPE_FP16", [2, -1, 64]),
        ("score", "TYPE_FP64", []),
    ]


def test_models_are_not_loaded_where_that_is_not_allowed(peer):
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        code, text = status_of(partial(peer.call, method, model_name="digits"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "without --allow-repository-control" in text
