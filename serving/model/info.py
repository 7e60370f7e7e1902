"""The description of the served model, in process and over the network."""

from dataclasses import dataclass

from serving.signature import DIGITS, Signature


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """The served model and its limits; see `Classifier.model_info` and `Client.model_info`."""

    name: str
    version: str
    device: str
    """The device that it runs on: "cpu" or "cuda"."""
    precision: str
    """The variant that runs: "fp32" or "int8"."""
    transport: str
    """The transport that answers: "h2", "grpcio" or "in process"."""
    max_request_images: int
    """The most images in one message; clients split larger requests."""
    max_batch_size: int
    """The most images in one run."""
    test_accuracy: float | None
    """Share of the test images answered correctly, 0 to 1: for digits, MNIST's 10,000. None if
    unknown."""
    signature: Signature = DIGITS
    """The shape of its images, and its classes."""
