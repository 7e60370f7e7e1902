"""Every call of tritonclient.http that we answer: run by test_tritonclient in a venv that has it.

    python -m tests.interop.triton_http_calls HOST:PORT SAMPLES

SAMPLES is as in triton_calls.
"""

import sys
from itertools import product

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

TOLERANCE = 1e-5


def main():
    address, samples = sys.argv[1:]
    with np.load(samples) as arrays, triton.InferenceServerClient(address) as client:
        images, expected = arrays["images"], arrays["probabilities"]
        describes_itself(client)
        infers(client, images, expected)
        refuses(client, images)
        counts(client, images)


def describes_itself(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("letters")
    assert "statistics" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 784]
    assert client.get_model_config("digits")["max_batch_size"] > 0
    assert [model["state"] for model in client.get_model_repository_index()] == ["READY"]


def infers(client, images, expected):
    for is_binary, wants_binary in product((True, False), repeat=2):
        tensor = tensor_of(images[:9], is_binary=is_binary)
        output = triton.InferRequestedOutput("probabilities", binary_data=wants_binary)
        answer = client.infer("digits", [tensor], outputs=[output], request_id="7")
        assert answer.get_response()["id"] == "7"
        np.testing.assert_allclose(answer.as_numpy("probabilities"), expected[:9], atol=TOLERANCE)
    answer = client.async_infer("digits", [tensor_of(images)]).get_result()
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected, atol=TOLERANCE)


def refuses(client, images):
    wrong = triton.InferInput("images", [1, 784], "FP32")
    wrong.set_data_from_numpy(images[:1].astype(np.float32))
    for model, tensor, words in (
        ("letters", tensor_of(images[:1]), "no model 'letters'"),
        ("digits", wrong, "expected images UINT8"),
    ):
        try:
            client.infer(model, [tensor])
            said = "nothing"
        except InferenceServerException as err:
            said = err.message()
        assert words in said


def counts(client, images):
    statistics = client.get_inference_statistics("digits")["model_stats"][0]
    assert statistics["inference_count"] >= 4 * 9 + len(images)


def tensor_of(images, *, is_binary=True):
    tensor = triton.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=is_binary)
    return tensor


if __name__ == "__main__":
    main()
