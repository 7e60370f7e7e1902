"""LitServe with an ONNX model, as its documentation builds a server, its batching on.

python litserve_server.py MODEL.onnx PORT
"""

import sys

import litserve as ls
import numpy as np
import onnxruntime


class OnnxAPI(ls.LitAPI):
    """A row a request; LitServe joins requests that wait."""

    def setup(self, device: str) -> None:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)
        self.input = self.session.get_inputs()[0].name
        kind = self.session.get_inputs()[0].type
        self.dtype = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}.get(kind, np.float32)

    def decode_request(self, request):
        """Read one row."""
        return np.asarray(request["input"], self.dtype)

    def batch(self, inputs):
        """Join rows."""
        return np.stack(inputs)

    def predict(self, x):
        """Run a batch."""
        return self.session.run(None, {self.input: x})[0]

    def unbatch(self, output):
        """Divide answers."""
        return list(output)

    def encode_response(self, output):
        """Write one row."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = OnnxAPI(max_batch_size=64, batch_timeout=0.002)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
