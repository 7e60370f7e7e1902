"""Ray Serve with an ONNX model, as its documentation builds a deployment, its batching on.

python ray_server.py MODEL.onnx PORT
"""

import signal
import sys

import numpy as np
import onnxruntime
import ray
from ray import serve


@serve.deployment(max_ongoing_requests=256)
class OnnxDeployment:
    """A row a request; Ray Serve joins requests that wait."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options)
        self.input = self.session.get_inputs()[0].name
        kind = self.session.get_inputs()[0].type
        self.dtype = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}.get(kind, np.float32)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def run(self, rows):
        """Run a batch of requests."""
        answers = self.session.run(None, {self.input: np.asarray(rows, self.dtype)})[0]
        return [answer.tolist() for answer in answers]

    async def __call__(self, request):
        """Answer one request."""
        return {"output": await self.run((await request.json())["input"])}


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(OnnxDeployment.bind(sys.argv[1]))
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
