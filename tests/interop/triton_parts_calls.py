"""Calls of a model that answers in parts, by tritonclient as its decoupled mode has it.

Run as `python -m tests.interop.triton_parts_calls GRPC`.
"""

import queue
import sys

import numpy as np
from tritonclient import grpc


def prompt(text):
    tensor = grpc.InferInput("prompt", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], object))
    return [tensor]


def check(address):
    client = grpc.InferenceServerClient(address)
    config = client.get_model_config("story", as_json=True)["config"]
    assert config["model_transaction_policy"] == {"decoupled": True}
    came = queue.Queue()
    client.start_stream(callback=lambda result, error: came.put((result, error)))

    def tokens(count):
        """The answers that come: id, token, and whether each is the last one."""
        found = []
        while len(found) < count:
            result, error = came.get(timeout=20)
            if error is not None:
                found.append(str(error))
                continue
            response = result.get_response()
            token = result.as_numpy("token")
            text = None if token is None else token[0].decode()
            is_end = response.parameters["triton_final_response"].bool_param
            found.append((response.id, text, is_end))
        return found

    options = {"enable_empty_final_response": True}
    client.async_stream_infer("story", prompt("once upon"), request_id="1", **options)
    assert tokens(3) == [("1", "once", False), ("1", "upon", False), ("1", None, True)]
    client.async_stream_infer("story", prompt("once upon"), request_id="2")
    assert tokens(2) == [("2", "once", False), ("2", "upon", False)]
    client.async_stream_infer("story", prompt("once refuse:no"), request_id="3", **options)
    first, error = tokens(2)
    assert first == ("3", "once", False)
    assert "no" in error
    for number in range(4):
        client.async_stream_infer("story", prompt("many:9"), request_id=f"{number}", **options)
    answers = tokens(40)
    for number in range(4):
        own = [token for identifier, token, _ in answers if identifier == f"{number}"]
        assert own == [*map(str, range(9)), None], own
    client.stop_stream()
    assert came.empty()
    refusal = ""
    try:
        client.infer("story", prompt("once"))
    except grpc.InferenceServerException as err:
        refusal = str(err)
    assert "ModelStreamInfer" in refusal
    client.close()


if __name__ == "__main__":
    check(sys.argv[1])
    print("ok")
