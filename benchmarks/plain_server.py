"""The server that a tutorial ends with: grpcio, a pool of ten threads, one run for each request.

python -m benchmarks.plain_server --models models
"""

import argparse
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np

from digit_classifier.pb.digits.v1 import digits_pb2, digits_pb2_grpc
from serving.model.onnx_runtime import runtime


class Servicer(digits_pb2_grpc.DigitClassifierServicer):
    """Runs the model in the handler's thread."""

    def __init__(self, model: Path) -> None:
        options = runtime().SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self._session = runtime().InferenceSession(str(model), options, providers=providers)

    def Classify(  # noqa: N802 - gRPC's name
        self, request: digits_pb2.ClassifyRequest, context: object
    ) -> digits_pb2.ClassifyResponse:
        """Answer one request."""
        images = np.frombuffer(request.images, np.uint8).reshape(-1, 784)
        (probabilities,) = self._session.run(None, {"images": images})
        return digits_pb2.ClassifyResponse(
            digits=probabilities.argmax(axis=1).tolist(),
            probabilities=probabilities.ravel().tolist(),
            model_version="1",
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    models = parser.parse_args().models
    newest = max((models / "digits").glob("[1-9]*"), key=lambda folder: int(folder.name))
    server = grpc.server(futures.ThreadPoolExecutor(10))
    servicer = Servicer(newest / "model.onnx")
    digits_pb2_grpc.add_DigitClassifierServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving address=127.0.0.1:{port}", flush=True)
    server.wait_for_termination()
