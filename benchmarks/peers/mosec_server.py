"""mosec with an ONNX model, as its documentation builds a server, its dynamic batching on.

PEER_MODEL=MODEL.onnx [PEER_CODEC=msgpack] python mosec_server.py --address 127.0.0.1 --port PORT
"""

import os

import numpy as np
import onnxruntime
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin


class MosecWorker(Worker):
    """A row a request; mosec joins requests that wait."""

    def __init__(self) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options)
        self.input = self.session.get_inputs()[0].name
        self.shape = self.session.get_inputs()[0].shape[1:]
        kind = self.session.get_inputs()[0].type
        self.dtype = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}.get(kind, np.float32)

    def forward(self, data):
        """Run a batch of requests."""
        rows = np.asarray([each["input"] for each in data], self.dtype)
        answers = self.session.run(None, {self.input: rows})[0]
        return [{"output": answer.tolist()} for answer in answers]


class PackedWorker(MsgpackMixin, MosecWorker):
    """The same, with bytes in msgpack."""

    def forward(self, data):
        """Run a batch of requests."""
        read = [np.frombuffer(each["input"], self.dtype).reshape(self.shape) for each in data]
        answers = self.session.run(None, {self.input: np.stack(read)})[0]
        return [{"output": answer.tobytes()} for answer in answers]


if __name__ == "__main__":
    kind = PackedWorker if os.environ.get("PEER_CODEC") == "msgpack" else MosecWorker
    server = Server()
    server.append_worker(kind, num=1, max_batch_size=64, max_wait_time=2)
    server.run()
