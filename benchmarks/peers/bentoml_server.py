"""BentoML with an ONNX model, as its documentation builds a service, its adaptive batching on.

PEER_MODEL=MODEL.onnx bentoml serve bentoml_server:OnnxService --host 127.0.0.1 --port PORT
"""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, traffic={"timeout": 60})
class OnnxService:
    """Rows of several requests share a batch."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)
        self.input = self.session.get_inputs()[0].name
        kind = self.session.get_inputs()[0].type
        self.dtype = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}.get(kind, np.float32)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Run a batch."""
        return self.session.run(None, {self.input: np.asarray(rows, self.dtype)})[0]
