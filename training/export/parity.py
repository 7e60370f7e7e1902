"""The parity gate: ONNX Runtime must answer as Keras does, on every image, alone or in a batch."""

import os
from dataclasses import dataclass

import numpy as np
import onnx

# Since 1.29 ONNX Runtime's wheels look up the maker's host, connect to it and write a device id to
# ~/.cache. This counts before the first import only, and `disable_telemetry_events()` comes too
# late: all modules import it from here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from training.data.mnist import Images
from training.fitting.evaluation import Probabilities

__all__ = ["Parity", "measure", "onnxruntime", "open_session", "run"]

LARGEST_BATCH = 1_024
"""A larger one may fill the memory with a convolutional network's intermediate results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The distance of ONNX Runtime's answers from Keras's."""

    images: int
    """The number of images compared."""
    different_digits: int
    """Images whose most probable class differs, at any batch size."""
    max_difference: float
    """The largest difference of any probability, at any batch size."""
    tolerance: float
    """The largest difference that is accepted."""
    batch_sizes: tuple[int, ...]
    """The batch sizes compared."""

    @property
    def holds(self) -> bool:
        """Whether the graph may be published; a NaN never may."""
        return self.different_digits == 0 and self.max_difference <= self.tolerance

    def __str__(self) -> str:
        batches = " and ".join(f"{size:,}" for size in self.batch_sizes)
        return (
            f"{self.different_digits} of {self.images:,} answers differ at batch {batches}, "
            f"largest difference of a probability {self.max_difference:.1e} "
            f"(allowed: 0 and {self.tolerance:.0e})"
        )


def open_session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a graph; see `open_bytes`."""
    return open_bytes(proto.SerializeToString())


def open_bytes(data: bytes) -> onnxruntime.InferenceSession:
    """Open a graph's file as serving does: on the CPU, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def measure(
    session: onnxruntime.InferenceSession,
    images: Images,
    expected: Probabilities,
    tolerance: float = 0,
) -> Parity:
    """Compare a session's answers, image by image and in large batches, with those expected."""
    batch_sizes = (1, min(len(images), LARGEST_BATCH))
    answers = np.stack([run(session, images, size) for size in batch_sizes])
    different = answers.argmax(axis=-1) != expected.argmax(axis=-1)
    return Parity(
        images=len(images),
        different_digits=int(different.any(axis=0).sum()),
        max_difference=float(np.abs(answers - expected).max()),
        tolerance=tolerance,
        batch_sizes=batch_sizes,
    )


def run(
    session: onnxruntime.InferenceSession, images: Images, batch_size: int = LARGEST_BATCH
) -> Probabilities:
    """Classify (N, pixels) images in batches; returns (N, classes) float32."""
    batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    return np.concatenate(
        [session.run(["probabilities"], {"images": batch})[0] for batch in batches]
    )
