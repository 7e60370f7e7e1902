"""What a client makes of a server's answers about models, however broken they are."""

from dataclasses import replace

import numpy as np
import pytest

from serving.client.infer_messages import infer_requests
from serving.client.model_messages import model_info, ready_models
from serving.errors import TooLarge, Unavailable
from serving.oip import inference_pb

TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
METADATA = inference_pb.ModelMetadataResponse(
    name="net", versions=["2", "1"], platform="onnx", inputs=[TENSOR], outputs=[TENSOR]
).SerializeToString()


def config(max_batch_size=8, **parameters):
    return inference_pb.ModelConfigResponse(
        config={
            "name": "net",
            "max_batch_size": max_batch_size,
            "parameters": {name: {"string_value": text} for name, text in parameters.items()},
        }
    ).SerializeToString()


CONFIG = config(labels='["a", "b"]', versions='["3"]')


def test_facts_of_a_model_are_those_of_both_answers():
    info = model_info(METADATA, CONFIG, "", "host:1")
    assert (info.name, info.versions, info.labels) == ("net", ("3",), ("a", "b"))
    assert [each.name for each in (*info.inputs, *info.outputs)] == ["x", "x"]
    assert model_info(METADATA, None, "", "host:1").versions == ("2", "1")


@pytest.mark.parametrize(
    "broken",
    [
        b"\xff",
        CONFIG[:-1],
        config(labels="no JSON"),
        config(labels="[" * 100_000),
        config(labels='"ab"'),
        config(labels="[1]"),
        config(versions="true"),
    ],
    ids=["bytes", "cut", "no JSON", "deep", "text", "numbers", "true"],
)
def test_broken_configuration_is_a_broken_server(broken):
    with pytest.raises(Unavailable, match=r"^host:1: the server is broken: it answered"):
        model_info(METADATA, broken, "", "host:1")


def test_mutated_answers_raise_nothing_else(generator):
    for _ in range(2_000):
        parts = [bytearray(METADATA), bytearray(CONFIG)]
        for part in parts:
            for _ in range(generator.randrange(3)):
                part[generator.randrange(len(part))] = generator.randrange(256)
            del part[generator.randrange(len(part) // 2, 2 * len(part)) :]
        try:
            model_info(bytes(parts[0]), bytes(parts[1]), "", "host:1")
            ready_models(bytes(parts[0]), "host:1")
        except Unavailable:
            continue


@pytest.mark.parametrize(
    ("max_batch_size", "words"), [(8, "a row of it takes"), (0, "it, which is not batched, so not")]
)
def test_row_that_no_message_takes_is_refused_by_its_size(max_batch_size, words):
    limited = config(max_batch_size, max_message_bytes="5000")
    info = model_info(METADATA, limited, "", "host:1")
    fits, large = (np.zeros((1, number), np.float32) for number in (4, 2_000))
    info = replace(info, inputs=(replace(info.inputs[0], shape=(-1, -1)),))
    assert len(infer_requests("net", "", info, {"x": fits}, ())) == 1
    with pytest.raises(TooLarge, match=words):
        infer_requests("net", "", info, {"x": large}, ())
