"""Metadata, configuration and statistics over the inference protocol."""

import subprocess
import sys
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import Classifier
from serving.images import Images
from serving.protocols.oip.statistics import Answered, Run, Statistics
from tests.support.inference_peer import TIMEOUT_S, Peer, raw_request, status_of, typed_request
from tests.support.servers import RunningServer


def test_server_and_model_are_live_and_ready(peer: Peer) -> None:
    assert peer.call("ServerLive").live
    assert peer.call("ServerReady").ready
    assert peer.call("ModelReady", name="digits").ready
    assert peer.call("ModelReady", name="digits", version="1").ready


def test_metadata_describes_tensors_with_the_batch_axis(peer: Peer, classifier: Classifier) -> None:
    info = classifier.model_info()
    metadata = peer.call("ModelMetadata", name=info.name)
    assert (metadata.name, list(metadata.versions)) == (info.name, ["1"])
    assert metadata.platform == "onnxruntime_onnx"
    tensors = [*metadata.inputs, *metadata.outputs]
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in tensors] == [
        ("images", "UINT8", [-1, info.signature.image_bytes]),
        ("probabilities", "FP32", [-1, info.signature.num_classes]),
    ]


def test_config_describes_tensors_without_the_batch_axis(
    peer: Peer, classifier: Classifier
) -> None:
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


def test_server_metadata_advertises_what_works(peer: Peer) -> None:
    metadata = peer.call("ServerMetadata")
    assert metadata.name == "digit-serving"
    assert metadata.version
    assert list(metadata.extensions) == ["model_configuration", "statistics"]


def test_repository_index_lists_the_served_version(peer: Peer) -> None:
    for fields in ({}, {"ready": True}):
        (model,) = peer.call("RepositoryIndex", **fields).models
        assert (model.name, model.version, model.state) == ("digits", "1", "READY")


def test_statistics_count_images_runs_failures_and_times(peer: Peer, images: Images) -> None:
    def statistics() -> Any:
        (counts,) = peer.call("ModelStatistics", name="digits").model_stats
        return counts

    before = statistics()
    peer.infer(raw_request(images[:100]))
    peer.infer(typed_request(images[:1]))
    status_of(lambda: peer.infer(raw_request(images[:1], id="x" * 513)))
    status_of(
        lambda: peer.infer(raw_request(images[:1], model_name="letters"))
    )  # not ours to count
    after = statistics()
    assert (after.name, after.version) == ("digits", "1")
    assert after.inference_count - before.inference_count == 101
    assert after.execution_count - before.execution_count == 2
    assert after.last_inference > 1_600_000_000_000
    for name, times in (("success", 2), ("fail", 1), ("queue", 2), ("compute_input", 2),
                        ("compute_infer", 2), ("compute_output", 2)):  # fmt: skip
        old, new = getattr(before.inference_stats, name), getattr(after.inference_stats, name)
        assert new.count - old.count == times
        assert new.ns > old.ns
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    stats = after.inference_stats
    assert sum(getattr(stats, name).ns for name in parts) <= stats.success.ns
    assert sum(size.compute_infer.count for size in after.batch_stats) == after.execution_count


@pytest.mark.parametrize(
    "method", ["RepositoryModelLoad", "SystemSharedMemoryStatus", "TraceSetting", "LogSettings"]
)
def test_what_is_not_offered_is_unimplemented(peer: Peer, method: str) -> None:
    assert status_of(lambda: peer.send(method, b""))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_health_knows_the_service(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        response = stub.Check(request, timeout=TIMEOUT_S)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_messages_stay_out_of_the_default_pool() -> None:
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


def test_success_takes_what_its_parts_take_to_the_nanosecond() -> None:
    statistics = Statistics()
    run = Run(num_rows=1, started_s=0.6e-9, finished_s=1.2e-9)
    for _ in range(20):  # each rounds otherwise
        statistics.count_success("1", Answered(3, 3, arrived_s=0.0, decode_s=0.6e-9), run)
        stats = statistics.message("digits", "1").inference_stats
        parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
        assert sum(part.ns for part in parts) == stats.success.ns
        assert {part.count for part in parts} == {stats.success.count}
