"""KServe's Python server with our model, as its documentation builds one: a peer to measure.

In an environment of its own (`pip install kserve onnxruntime`):

    export ORT_DISABLE_TELEMETRY=1
    taskset -c 0 python benchmarks/peers/kserve_digits.py models/digits/1/model.onnx
"""

import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class KServeDigits(Model):
    """One session on one thread, run for each request."""

    def __init__(self, path: str) -> None:
        super().__init__("digits")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.ready = True

    async def predict(self, request: InferRequest, headers=None, response_headers=None):
        """Answer one request."""
        images = request.inputs[0].as_numpy()
        (probabilities,) = self.session.run(None, {"images": images})
        output = InferOutput("probabilities", list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities, binary_data=True)
        return InferResponse(request.id, "digits", [output])


if __name__ == "__main__":
    ModelServer(http_port=8083, grpc_port=8084).start([KServeDigits(sys.argv[1])])
