"""Every call of tritonclient that we answer: run by test_tritonclient in a venv that has it.

    python triton_calls.py HOST:PORT SAMPLES

SAMPLES is an .npz of `images` (N, 784) uint8 and the `probabilities` (N, 10) expected for them.
"""

import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

TIMEOUT_S = 20.0
TOLERANCE = 1e-5
"""Batches of other sizes add up in another order."""


def main():
    address, samples = sys.argv[1:]
    with np.load(samples) as arrays, triton.InferenceServerClient(address) as client:
        images, expected = arrays["images"], arrays["probabilities"]
        describes_itself(client)
        infers(client, images, expected)
        infers_asynchronously(client, images, expected)
        streams(client, images, expected)
        refuses(client, images)
        counts(client)


def describes_itself(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("letters")
    assert "statistics" in client.get_server_metadata(as_json=True)["extensions"]
    metadata = client.get_model_metadata("digits")
    assert [(i.name, i.datatype, [*i.shape]) for i in metadata.inputs] == [
        ("images", "UINT8", [-1, 784])
    ]
    assert metadata.platform == "onnxruntime_onnx"
    config = client.get_model_config("digits").config
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.max_batch_size > 0
    (model,) = client.get_model_repository_index().models
    assert (model.name, model.state) == ("digits", "READY")


def question(images):
    tensor = triton.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return [tensor]


def check(result, expected):
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=TOLERANCE)


def infers(client, images, expected):
    outputs = [triton.InferRequestedOutput("probabilities")]
    result = client.infer("digits", question(images))
    check(result, expected)
    result = client.infer(
        "digits", question(images[:1]), model_version="1", outputs=outputs, request_id="a",
        priority=1, timeout=10_000_000, client_timeout=TIMEOUT_S,
    )  # fmt: skip
    assert result.get_response().id == "a"
    check(result, expected[:1])


def infers_asynchronously(client, images, expected):
    outcomes: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for i in range(50):

        def keep(result, error, i=i):
            outcomes.put((i, result, error))

        client.async_infer("digits", question(images[i : i + 1]), callback=keep)
    for _ in range(50):
        i, result, error = outcomes.get(timeout=TIMEOUT_S)
        assert error is None, error
        check(result, expected[i : i + 1])


def streams(client, images, expected):
    outcomes: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: outcomes.put((result, error)))
    for i in range(50):
        name = "letters" if i == 20 else "digits"
        client.async_stream_infer(name, question(images[i : i + 2]), request_id=str(i))
    for i in range(50):
        result, error = outcomes.get(timeout=TIMEOUT_S)
        if i == 20:
            assert "letters" in str(error)
            continue
        assert error is None, error
        assert result.get_response().id == str(i)
        check(result, expected[i : i + 2])
    client.stop_stream()


def refuses(client, images):
    floats = triton.InferInput("images", [1, 784], "FP32")
    floats.set_data_from_numpy(images[:1].astype(np.float32))
    refused: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: client.infer("digits", [floats]), "INVALID_ARGUMENT"),
        (lambda: client.infer("letters", question(images)), "NOT_FOUND"),
        (lambda: client.get_trace_settings(), "UNIMPLEMENTED"),
        (lambda: client.get_system_shared_memory_status(), "UNIMPLEMENTED"),
        (lambda: client.load_model("digits"), "FAILED_PRECONDITION"),
    )
    for call, status in refused:
        assert status in str(status_of(call))


def status_of(call):
    try:
        call()
    except InferenceServerException as err:
        return err.status()
    return "OK"


def counts(client):
    (stats,) = client.get_inference_statistics("digits").model_stats
    assert stats.inference_stats.success.count >= 100
    assert stats.inference_stats.fail.count >= 1
    assert stats.inference_count > stats.execution_count > 0


def fields_of(messages):
    for message in messages:
        yield from message.fields
        yield from fields_of(message.nested_types)


def compare_descriptors():
    """Compare the names, numbers and types of our fields with those of the client."""
    from tritonclient.grpc import service_pb2

    from serving.oip import inference_pb

    theirs = service_pb2.DESCRIPTOR.pool
    ours = inference_pb.pool.FindFileByName("inference/inference.proto")
    for field in fields_of(ours.message_types_by_name.values()):
        other = theirs.FindFieldByName(field.full_name)
        assert (other.number, other.type) == (field.number, field.type), field.full_name
        assert other.is_repeated == field.is_repeated, field.full_name
    for method in ours.services_by_name["GRPCInferenceService"].methods:
        other = theirs.FindMethodByName(method.full_name)
        assert other.input_type.full_name == method.input_type.full_name
        assert other.output_type.full_name == method.output_type.full_name
        assert other.client_streaming == method.client_streaming


if __name__ == "__main__":
    main()
