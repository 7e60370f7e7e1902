"""MLServer with an ONNX model, as its documentation builds a runtime, its adaptive batching on.

`mlserver start .` in this folder, with the variables that benchmarks/others.py sets.
"""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """Rows of several requests share a batch."""

    async def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        kind = self.session.get_inputs()[0].type
        self.dtype = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}.get(kind, np.float32)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run a batch."""
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(self.dtype)
        answer = self.session.run(None, {payload.inputs[0].name: rows})[0]
        output = NumpyCodec.encode_output(self.session.get_outputs()[0].name, answer)
        return InferenceResponse(model_name=self.name, outputs=[output])
