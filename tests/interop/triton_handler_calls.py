"""Calls of models with handlers, by tritonclient over gRPC and HTTP: texts, files, errors.

Run as `python -m tests.interop.triton_handler_calls GRPC HTTP PICTURE`.
"""

import sys

import numpy as np
from tritonclient import grpc, http


def check(module, address, picture, *, binary):
    """Call by one of the clients, with tensors as bytes or as JSON."""
    client = module.InferenceServerClient(address)
    options = {} if module is grpc else {"binary_data": binary}

    def infer(model, **inputs):
        tensors = []
        for name, (datatype, array) in inputs.items():
            tensors.append(module.InferInput(name, array.shape, datatype))
            tensors[-1].set_data_from_numpy(array, **options)
        return client.infer(model, tensors)

    texts = np.array(["say grüße".encode(), b"again"], object)
    answer = infer("behaviours", text=("BYTES", texts))
    assert [each.decode() for each in answer.as_numpy("answer")] == ["SAY GRÜSSE", "AGAIN"]
    bias = np.zeros((1, 2), np.float32)
    answer = infer("model", text=("BYTES", np.array([b"ab"], object)), bias=("FP32", bias))
    assert answer.as_numpy("y").shape == (1, 3)
    if binary:  # JSON has bytes as base64, which tritonclient does not know
        data = np.array([b"\0\xff", b""], object)
        answer = infer("facts", data=("BYTES", data))
        with open(picture, "rb") as file:
            pixels = infer("sizes", picture=("BYTES", np.array([file.read()], object)))
        assert pixels.as_numpy("size").tolist() == [[3, 5]]
        if module is grpc:
            assert answer.as_numpy("data").tolist() == [b"\xff\0", b""]
    refusal = ""
    try:
        infer("behaviours", text=("BYTES", np.array([b"refuse because"], object)))
    except module.InferenceServerException as err:
        refusal = str(err)
    assert "because" in refusal
    assert client.get_model_metadata("sizes") is not None
    client.close()


if __name__ == "__main__":
    _, on_grpc, on_http, file = sys.argv
    check(grpc, on_grpc, file, binary=True)
    check(http, on_http, file, binary=True)
    check(http, on_http, file, binary=False)
    print("ok")
