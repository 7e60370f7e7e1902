"""MLServer with our model, as its documentation builds one: a peer to measure.

In an environment of its own (`pip install mlserver onnxruntime`):

    cd benchmarks/peers
    export MLSERVER_MODEL_NAME=digits MLSERVER_MODEL_IMPLEMENTATION=mlserver_digits.MLServerDigits
    export ORT_DISABLE_TELEMETRY=1
    export MLSERVER_MODEL_URI=../../models/digits/1/model.onnx MLSERVER_PARALLEL_WORKERS=0
    taskset -c 0 mlserver start .
"""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class MLServerDigits(MLModel):
    """One session on one thread, run for each request."""

    async def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        images = NumpyCodec.decode_input(payload.inputs[0]).astype(np.uint8)
        (probabilities,) = self.session.run(None, {"images": images})
        output = NumpyCodec.encode_output("probabilities", probabilities)
        return InferenceResponse(model_name=self.name, outputs=[output])
