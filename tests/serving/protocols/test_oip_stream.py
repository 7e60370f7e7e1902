"""ModelStreamInfer and its faults, proved by a gated engine's runs as in test_faults."""

import grpc
import numpy as np

from serving.protocols.oip.inference_pb import SERVICE, ModelStreamInferResponse
from tests.serving.transports import test_faults
from tests.support.fakes import images_of
from tests.support.inference_peer import probabilities_in, raw_request, typed_request

run = test_faults.run
STREAM = f"/{SERVICE}/ModelStreamInfer"


def test_stream_is_answered_in_order_and_errors_do_not_end_it(peer, classifier, images):
    requests = [raw_request(images[i : i + 1 + i % 7], id=str(i)) for i in range(300)]
    requests[50].inputs[0].datatype = "FP32"
    requests[51].model_name = "nobody"
    requests[299].raw_input_contents[0] = b""
    messages = [request.SerializeToString() for request in requests]
    messages[100] = b"\xff"
    responses = list(peer.stream(iter(messages)))
    assert len(responses) == 300
    errors = {i: r.error_message for i, r in enumerate(responses) if r.error_message}
    assert errors.keys() == {50, 51, 100, 299}
    assert "images UINT8" in errors[50]
    assert "'nobody'" in errors[51]
    assert "expected an inference.ModelInferRequest" in errors[100]
    for i, response in enumerate(responses):
        assert response.infer_response.id == ("" if i == 100 else str(i))
        if i not in errors:
            local = classifier.classify(images[i : i + 1 + i % 7]).probabilities
            np.testing.assert_array_equal(probabilities_in(response.infer_response), local)


def test_stream_answers_typed_and_raw_each_in_its_form(peer, images):
    messages = [request(images[:2]).SerializeToString() for request in (raw_request, typed_request)]
    raw, typed = (response.infer_response for response in peer.stream(iter(messages)))
    assert len(raw.raw_output_contents) == 1
    assert not typed.raw_output_contents
    np.testing.assert_array_equal(probabilities_in(raw), probabilities_in(typed))


def test_empty_stream_ends_well(peer):
    assert list(peer.stream(iter([]))) == []


def message(*values, **fields):
    data: bytes = raw_request(images_of(*values), **fields).SerializeToString()
    return data


def open_stream(channel):
    method = channel.stream_stream(
        STREAM,
        response_deserializer=ModelStreamInferResponse.FromString,
    )
    return method()


def test_failed_run_is_the_error_of_one_message(run):
    async def scenario(running):
        running.engine.open(1000)
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            call = open_stream(channel)
            for value in (12, 13, 14):
                await call.write(message(value, id=str(value)))
            await call.done_writing()
            good, bad, last = [response async for response in call]
        assert bad.error_message == "the model failed on this request"
        assert bad.infer_response.id == "13"
        assert probabilities_in(good.infer_response).argmax() == 2
        assert probabilities_in(last.infer_response).argmax() == 4

    run(scenario)


def test_full_queue_slows_a_stream_down_and_never_rejects_it(run):
    async def scenario(running):
        first = await running.occupy()
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            call = open_stream(channel)
            for _ in range(10):
                await call.write(message(*range(20, 80)))  # 600 images, and 100 may wait
            await call.done_writing()
            await running.until_waiting(60)
            running.engine.open(1000)
            responses = [response async for response in call]
        assert [response.error_message for response in responses] == [""] * 10
        assert await first == [0]

    run(scenario)


def test_stream_whose_caller_left_is_never_run(run):
    async def scenario(running):
        first = await running.occupy()
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            call = open_stream(channel)
            for _ in range(90):
                await call.write(message(41))
            await running.until(lambda report: report.num_waiting >= 50)
            call.cancel()
            await running.until_waiting(0)
        running.engine.open()
        assert await first == [0]
        await test_faults.ends_well(running)
        assert running.engine.ran == [[0], [1, 2, 3]]

    run(scenario)


def test_timeout_that_passes_in_the_queue_is_never_run(run):
    async def scenario(running):
        first = await running.occupy()
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            calls = [
                method(message(41, parameters={"timeout": {kind: 1000}}))
                for kind in ("int64_param", "uint64_param")
            ]
            for call in calls:
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            running.engine.open()
            assert await first == [0]
        await test_faults.ends_well(running)
        assert running.engine.ran == [[0], [1, 2, 3]]

    run(scenario)
