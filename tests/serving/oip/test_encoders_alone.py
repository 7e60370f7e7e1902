"""How requests over gRPC are answered: what their encoders are told, and the end of parts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.batching.run import Result
from serving.config import BatchingConfig
from serving.errors import InvalidRequest
from serving.oip.encoder import VALUES, InferEncoder
from serving.oip.infer import Infer
from serving.oip.inference_pb import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from serving.oip.large_messages import as_raw
from serving.oip.methods import inference_methods
from serving.oip.parameters import ASKS_FOR_END
from serving.oip.queries import model_config, model_metadata
from serving.oip.request import InferAnswer, InferRequest
from serving.protocols.method import BatchedStream, BatchedUnary
from serving.tensors import Tensor, TensorSignature

X, Y = Tensor("x", "FP32", (-1, 2)), Tensor("y", "FP32", (-1, 2))


def target_of(*, in_parts=False) -> Any:
    tensors = TensorSignature((X,), (Y,), is_batchable=True, in_parts=in_parts)
    return SimpleNamespace(tensors=tensors, label=("m", "3"))


def router_of(target) -> Any:
    counted: list[Any] = []
    return SimpleNamespace(
        find=lambda name: SimpleNamespace(find=lambda version: target),
        batching=SimpleNamespace(max_request_rows=100),
        metrics=SimpleNamespace(count_failure=lambda *facts: counted.append(facts)),
        counted=counted,
    )


def message_of(values=(1.5, 2.5), *, is_typed=False, is_end_wanted=False, **more):
    request = ModelInferRequest(model_name="m", **more)
    item = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    if is_typed:
        item.contents.fp32_contents.extend(values)
    else:
        request.raw_input_contents.append(np.float32(values).tobytes())
    if is_end_wanted:
        request.parameters[ASKS_FOR_END].bool_param = True
    return request.SerializeToString()


RESULT = Result([np.array([[0.25, 0.5]], np.float32)], 1, "3", None, 1.0, 2.0)


@pytest.mark.parametrize("is_end_wanted", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
def test_answer_says_whether_it_is_the_last_one_of_a_stream_that_asks_for_it(
    is_stream, is_end_wanted
):
    infer = Infer(router_of(target_of()), is_stream=is_stream)
    rows, encoder = infer.read(message_of(is_end_wanted=is_end_wanted, id="7"))
    assert rows == np.float32([1.5, 2.5]).tobytes()
    assert (encoder.in_parts, encoder.num_rows) == (False, 1)
    assert encoder.method == (None if is_stream else "ModelInfer")
    (framed,) = encoder.encode(RESULT, 0, 1)
    kind = ModelStreamInferResponse if is_stream else ModelInferResponse
    found = kind.FromString(framed[5:])
    answer = found.infer_response if is_stream else found
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "7")
    assert [*answer.raw_output_contents] == [np.float32([0.25, 0.5]).tobytes()]
    ends = {name: each.bool_param for name, each in answer.parameters.items()}
    assert ends == ({"triton_final_response": True} if is_stream and is_end_wanted else {})


@pytest.mark.parametrize("is_end_wanted", [False, True])
def test_answers_in_parts_have_an_end_of_their_own_if_it_is_asked_for(is_end_wanted):
    infer = Infer(router_of(target_of(in_parts=True)), is_stream=True)
    message = message_of(is_end_wanted=is_end_wanted, id="7")
    for _ in range(2):
        _, encoder = infer.read(message)
        assert encoder.in_parts
        assert infer.known == {}, "each is read: it has a state"
    (framed,) = encoder.encode(RESULT, 0, 1)
    part = ModelStreamInferResponse.FromString(framed[5:]).infer_response
    assert not part.parameters["triton_final_response"].bool_param
    end = encoder.end_of_parts(RESULT)
    if not is_end_wanted:
        assert end is None
        return
    last = ModelStreamInferResponse.FromString(end[5:]).infer_response
    assert (last.model_name, last.model_version, last.id) == ("m", "3", "7")
    assert (len(last.outputs), len(last.raw_output_contents)) == (0, 0)
    assert last.parameters["triton_final_response"].bool_param


def test_call_of_one_answer_is_told_to_stream():
    with pytest.raises(Exception, match="answers in parts") as caught:
        Infer(router_of(target_of(in_parts=True))).read(message_of())
    assert type(caught.value).__name__ == "Unsupported"


def test_end_of_parts_is_an_answer_without_outputs():
    request = InferRequest("m", 1, (0,), (Y,), (True,), None, {}, True)
    encoder = InferEncoder(target_of(), None, request, VALUES, "7", in_parts=True, is_stream=True)
    (part,) = encoder.encode(RESULT, 0, 1)
    assert (part.request, part.version, part.id, part.is_end) == (request, "3", "7", False)
    assert encoder.end_of_parts(RESULT) == InferAnswer(
        InferRequest("m", 1, (), (), (), None, {}, True), [], "3", "7", True
    )


def test_encoder_of_one_call_has_these_defaults():
    request = InferRequest("m", 1, (0,), (Y,), (True,), None, {}, True)
    encoder = InferEncoder(target_of(), "ModelInfer", request, VALUES)
    assert (encoder.in_parts, encoder.method) == (False, "ModelInfer")
    (answer,) = encoder.encode(RESULT, 0, 1)
    assert (answer.request, answer.id, answer.is_end) == (request, "", None)


def test_typed_contents_that_a_process_has_read_are_answered_by_typed_ones():
    infer = Infer(router_of(target_of()))
    for is_typed in (True, False):
        rows, encoder = infer.read_raw(as_raw(message_of(is_typed=is_typed)))
        assert rows == np.float32([1.5, 2.5]).tobytes()
        (framed,) = encoder.encode(RESULT, 0, 1)
        found = ModelInferResponse.FromString(framed[5:])
        assert [*found.outputs[0].contents.fp32_contents] == [0.25, 0.5] * is_typed
        assert len(found.raw_output_contents) == (not is_typed)


def test_request_is_known_from_the_second_on_and_answered_by_kept_bytes():
    infer = Infer(router_of(target_of()))
    rows, _ = infer.read(message_of())
    ((_, known),) = infer.known.items()
    found, encoder = infer.read(message_of((3.5, 4.5)))
    assert encoder is known
    assert isinstance(encoder, InferEncoder)
    assert bytes(found) == np.float32([3.5, 4.5]).tobytes() != rows
    many = Result([np.array([[1, 2], [3, 4], [5, 6]], np.float32)], 3, "3", None, 1.0, 2.0)
    answers = encoder.encode(many, 0, 3)
    assert [np.frombuffer(each[-8:], "<f4").tolist() for each in answers] == [
        [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]  # fmt: skip
    assert encoder._known is not None, "their first bytes are kept"
    assert len({each[:-8] for each in answers}) == 1


def test_refused_request_counts_as_failed_of_its_model():
    router = router_of(target_of())
    with pytest.raises(InvalidRequest) as caught:
        Infer(router).read(message_of((1.5,)))
    assert caught.value.model == ("m", "3")
    assert router.counted == [(("m", "3"), 0.0, 1)]


def test_methods_of_requests_know_what_their_readers_learn():
    pool: Any = object()
    queries: Any = SimpleNamespace(is_control_slow=False)
    found = inference_methods(router_of(target_of()), queries, pool)
    for method in found[:2]:
        assert isinstance(method, BatchedUnary)
        assert method.known == {}
        method.read(message_of())
        assert len(method.known) == 1
        assert method.elsewhere is not None
        assert method.elsewhere.pool is pool
        assert method.elsewhere.is_needed(bytes(40_000))
        assert not method.elsewhere.is_needed(message_of())
    one, stream = found[:2]
    assert (type(one), one.name) == (BatchedUnary, "ModelInfer")
    assert (type(stream), stream.name) == (BatchedStream, "ModelStreamInfer")
    assert isinstance(stream, BatchedStream)
    _, encoder = stream.read(message_of(is_end_wanted=True, id="a"))
    (framed,) = encoder.encode(RESULT, 0, 1)
    answer = ModelStreamInferResponse.FromString(framed[5:]).infer_response
    assert answer.parameters["triton_final_response"].bool_param


def test_models_of_graphs_are_described_as_those_of_onnx_runtime():
    tensors = TensorSignature((X,), (Y,), is_batchable=False)
    assert model_metadata("m", ["2", "1"], tensors) == {
        "name": "m", "versions": ["2", "1"], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }  # fmt: skip
    assert model_config("m", tensors, BatchingConfig(), {"device": "cpu"}) == {
        "name": "m", "platform": "onnxruntime_onnx", "backend": "onnxruntime",
        "max_batch_size": 0, "parameters": {"device": {"string_value": "cpu"}},
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 2]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 2]}],
    }  # fmt: skip
