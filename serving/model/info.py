"""What a classifier, near or far, says of the model that it serves."""

from dataclasses import dataclass

from serving.signature import DIGITS, Signature


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """The answer of `Classifier.model_info` and `Client.model_info`."""

    name: str
    version: str
    device: str
    """Where it runs: "cpu" or "cuda"."""
    precision: str
    """Which variant runs: "fp32" or "int8"."""
    transport: str
    """What answers: "h2" or "grpcio", or "in process"."""
    max_request_images: int
    """The most images in one message; clients split what is larger."""
    max_batch_size: int
    """The most images in one run."""
    test_accuracy: float | None
    """Share of the test images answered correctly, 0 to 1: of digits, MNIST's 10,000. None where it
    is unknown."""
    signature: Signature = DIGITS
    """The shape of its images, and its classes."""
