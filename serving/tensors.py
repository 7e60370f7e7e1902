"""Named tensors: what any model takes and answers, as the Open Inference Protocol describes it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
"""An array for each input, by its name."""

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip
"""The protocol's data types, and numpy's; BYTES are texts or bytes of any length."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The name, type and shape of an input or an output."""

    name: str
    datatype: str
    """The protocol's name of its type, such as "FP32"; a key of DTYPES."""
    shape: tuple[int, ...]
    """All its axes; -1 for one of any size. Where rows can be batched, the first axis is the
    batch. () is a scalar, or an input of any shape: ONNX Runtime does not say which."""
    dtype: np.dtype = field(init=False, repr=False, compare=False)
    row_bytes: int = field(init=False, repr=False, compare=False)
    """The bytes of one row (all axes but the first); 0 if rows have no fixed size."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", DTYPES[self.datatype])
        is_fixed = self.datatype != "BYTES" and self.shape and min(self.shape[1:], default=1) > 0
        size = math.prod(self.shape[1:]) * self.dtype.itemsize if is_fixed else 0
        object.__setattr__(self, "row_bytes", size)

    def __str__(self) -> str:
        """Return text such as "images UINT8 [N, 784]"."""
        sizes = ", ".join("N" if size < 0 else str(size) for size in self.shape)
        return f"{self.name} {self.datatype} [{sizes}]"


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """What a model takes and answers."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_batchable: bool
    """Whether the first axis of all of them is the batch, and rows don't depend on one another."""
    row_bytes: int = field(init=False, repr=False, compare=False)
    """The bytes of a row where requests are rows of one input and can be batched; else 0.

    Such requests travel as bytes; all others as one array for each input.
    """

    def __post_init__(self) -> None:
        is_rows = self.is_batchable and len(self.inputs) == 1
        object.__setattr__(self, "row_bytes", self.inputs[0].row_bytes if is_rows else 0)

    def __str__(self) -> str:
        """Return text such as "images UINT8 [N, 784] -> probabilities FP32 [N, 10]"."""
        return " -> ".join(", ".join(map(str, side)) for side in (self.inputs, self.outputs))
