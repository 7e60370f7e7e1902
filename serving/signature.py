"""A model's description: its signature, which is the shape of its images and its classes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from serving.tensors import Tensor, TensorSignature

MAX_LABEL = 100
"""The longest label: it is sent to every client, and printed."""
INPUT, OUTPUT = "images", "probabilities"
"""The names in graphs of classifiers."""
_PIXELS = "uint8"
"""The type of pixels."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The shape of an image and the classes; pixels are uint8.

    Raises:
        ValueError: a size is less than 1, or there is not one short label for each class.
    """

    input_shape: tuple[int, ...]
    """The shape of one image, such as (28, 28); its bytes are row-major."""
    num_classes: int
    """The number of classes."""
    labels: tuple[str, ...] = ()
    """The label of each class, in order; empty if the labels are the numbers from 0."""
    image_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of one image: 784 for 28 x 28."""
    row_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of one image's probabilities, as float32."""

    def __post_init__(self) -> None:
        sizes = (*self.input_shape, self.num_classes)
        if len(sizes) < 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"sizes of at least 1 expected, got {sizes}")
        if self.labels and len(self.labels) != self.num_classes:
            raise ValueError(f"{self.num_classes} labels expected, got {len(self.labels)}")
        if not all(map(is_label, self.labels)):
            raise ValueError(f"a label must be 1 to {MAX_LABEL} printable characters")
        if self.labels == tuple(map(str, range(self.num_classes))):
            object.__setattr__(self, "labels", ())
        object.__setattr__(self, "image_bytes", math.prod(self.input_shape))
        object.__setattr__(self, "row_bytes", 4 * self.num_classes)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Parse a manifest's `signature`.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or wrong.
        """
        if document["dtype"] != _PIXELS:
            raise ValueError(f"dtype {_PIXELS} expected, got {document['dtype']!r}")
        labels = tuple(document.get("labels") or ())
        return cls(tuple(document["input_shape"]), document["classes"], labels)

    @property
    def tensors(self) -> TensorSignature:
        """The tensors of a graph with this signature, as the exporter names them."""
        images = Tensor(INPUT, "UINT8", (-1, self.image_bytes))
        probabilities = Tensor(OUTPUT, "FP32", (-1, self.num_classes))
        return TensorSignature((images,), (probabilities,), is_batchable=True)

    def document(self) -> dict[str, Any]:
        """Return it as in a manifest."""
        labels = {"labels": list(self.labels)} if self.labels else {}
        shape = list(self.input_shape)
        return {"input_shape": shape, "dtype": _PIXELS, "classes": self.num_classes, **labels}

    def __str__(self) -> str:
        """Return text such as "28 x 28 uint8 -> 10 classes"."""
        shape = " x ".join(map(str, self.input_shape))
        return f"{shape} {_PIXELS} -> {self.num_classes} classes"


def is_label(label: object) -> bool:
    """Return whether it is a text that can be sent to clients and printed."""
    return isinstance(label, str) and 0 < len(label) <= MAX_LABEL and label.isprintable()


DIGITS = Signature((28, 28), 10)
"""The signature of digits, and of manifests and servers without one."""


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
