"""How a picture becomes the input of a classifier, and its outputs become probabilities."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from serving.applications import PICTURES, PictureTreatment, installed
from serving.errors import ModelError
from serving.tensors import (
    MAX_LABEL,
    Array,
    Images,
    Probabilities,
    Signature,
    TensorSignature,
    is_label,
)

LAYOUTS = {"flat": "P", "NHW": "HW", "NHWC": "HWC", "NCHW": "CHW"}
"""Orders of the axes: N the batch, H height, W width, C channels. "flat" is NHWC in one row."""
RESIZES = ("stretch", "pad", "crop")
"""The treatment of pictures of other proportions: stretched; made to fit, between black bars; cut
to their middle. Applications add others: see `PictureTreatment`."""
_DTYPES = {"UINT8": "uint8", "FP32": "float32"}
_MAX_SIDE = 4096
_SUM_TOLERANCE, _STEPS_TOLERANCE = 1e-3, 0.01
"""The largest distance from 1 of probabilities added up: as float16 rounds them, and in 256 steps,
as a quantised Softmax answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """The preparation of pictures for a classifier, and the names of its classes.

    Raises:
        ValueError: a field is wrong.
    """

    size: tuple[int, int]
    """Height and width."""
    channels: int = 1
    """1: grey levels; 3: red, green, blue."""
    layout: str = "flat"
    """One of LAYOUTS."""
    dtype: str = "uint8"
    """"uint8" or "float32"."""
    scale: float = 1.0
    """The factor for levels of 0 to 255; of float32 only, as the next two."""
    mean: tuple[float, ...] = ()
    """Then subtracted, of each channel."""
    std: tuple[float, ...] = ()
    """Then divided by, of each channel."""
    resize: str = "stretch"
    """One of RESIZES, or the name of an application's `PictureTreatment`."""
    invert: bool = False
    """Whether pictures that are mostly light are inverted: the model knows light ink on dark."""
    labels: tuple[str, ...] = ()
    """The name of each class; none: its number."""

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, expected: str) -> None:
            _require(holds, name, getattr(self, name), expected)

        sides, one_each = range(1, _MAX_SIDE + 1), f"a number for each channel ({self.channels})"
        is_size = isinstance(self.size, tuple) and len(self.size) == 2
        is_size = is_size and all(type(n) is int and n in sides for n in self.size)
        check("size", is_size, f"height and width, 1 to {_MAX_SIDE}")
        check("channels", self.channels in (1, 3), "1 or 3")
        check("layout", self.layout in LAYOUTS, _any_of(LAYOUTS))
        check("channels", self.channels == 1 or self.layout != "NHW", "1 where the layout is NHW")
        check("dtype", self.dtype in _DTYPES.values(), _any_of(_DTYPES.values()))
        check("scale", _are_numbers((self.scale,)) and self.scale > 0, "a number above 0")
        for name, each in (("mean", self.mean), ("std", self.std)):
            check(name, _are_numbers(each) and len(each) in (0, self.channels), one_each)
        check("std", 0 not in self.std, "numbers other than 0")
        is_raw = self.scale == 1 and not self.mean and not self.std
        check("dtype", is_raw or self.dtype == "float32", "float32 where levels are scaled")
        own = treatment_of(self.resize)
        known = self.resize in RESIZES or own is not None
        if not known:
            check("resize", known, _any_of((*RESIZES, *installed(PICTURES))))
        if own is not None:
            check("size", self.size == tuple(own.SIZE), f"that of {self.resize}, {own.SIZE},")
            check("channels", self.channels == own.CHANNELS, f"{own.CHANNELS}")
        check("invert", type(self.invert) is bool, "true or false")
        are_labels = isinstance(self.labels, tuple) and all(map(is_label, self.labels))
        check("labels", are_labels, f"texts of 1 to {MAX_LABEL} printable characters")

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Parse a JSON file.

        Raises:
            ValueError: a field is unknown, missing or wrong.
        """
        known = [field.name for field in fields(cls)]
        for name in document:
            _require(name in known, "field", name, _any_of(known))
        _require("size" in document, "size", None, "[height, width]")
        facts: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in document.items()
        }
        return cls(**facts)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one picture's row."""
        height, width = self.size
        pixels = height * width * self.channels
        sizes = {"H": height, "W": width, "C": self.channels, "P": pixels}
        return tuple(sizes[axis] for axis in LAYOUTS[self.layout])

    def row(self, pixels: Images) -> Array:
        """Make the input of a picture's pixels.

        Args:
            pixels: (height, width, channels) uint8.

        Returns:
            (1, *row_shape) of `dtype`.
        """
        values: Array = pixels
        if self.dtype != "uint8":
            values = pixels * np.float32(self.scale)
            if self.mean:
                values = values - np.array(self.mean, np.float32)
            if self.std:
                values = values / np.array(self.std, np.float32)
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values.reshape(1, *self.row_shape))


def treatment_of(resize: str) -> PictureTreatment | None:
    """Return an application's way to make pictures fit; None for one of RESIZES, or an unknown."""
    own: PictureTreatment | None = None
    if resize not in RESIZES:
        own = installed(PICTURES).get(str(resize))
    return own


def is_known(document: Mapping[str, Any]) -> bool:
    """Return whether a description's way to make pictures fit is known here, or malformed."""
    resize = document.get("resize", RESIZES[0])
    return not isinstance(resize, str) or resize in RESIZES or resize in installed(PICTURES)


def of_signature(
    signature: Signature, document: Mapping[str, Any] | None = None
) -> Preprocessing | None:
    """Return how pictures become a signature's images, as a manifest says it.

    Returns:
        None if images of this shape are no pictures, or a manifest names a treatment that no
        application has here.

    Raises:
        ValueError: a field is wrong, or doesn't fit the signature.
    """
    shape = signature.input_shape
    full = shape if len(shape) == 3 else (*shape, 1)
    if len(full) != 3 or full[2] not in (1, 3) or max(full) > _MAX_SIDE:
        _require(document is None, "preprocessing", shape, "that of [height, width, 1 or 3] images")
        return None
    facts = {
        "size": full[:2],
        "channels": full[2],
        "layout": "flat",
        "dtype": "uint8",
        "labels": signature.labels,
    }
    if not is_known(document or {}):
        return None
    found = Preprocessing.of({**facts, **(document or {})})
    for name, fact in facts.items():
        _require(
            getattr(found, name) == fact, name, getattr(found, name), f"the signature's {fact}"
        )
    return found


def of_graph(tensors: TensorSignature, document: Mapping[str, Any]) -> Preprocessing:
    """Return how pictures become the input of a graph: its own description, unless one is given.

    Raises:
        ValueError: a field is wrong or missing, or the graph takes or answers something else.
    """
    image, *others = tensors.inputs
    shape, expected = image.shape[1:], "one such as FP32 [N, 3, 224, 224]"
    is_input = not others and image.datatype in _DTYPES
    _require(is_input, "input", "; ".join(map(str, tensors.inputs)), expected)
    found: dict[str, Any] = {"dtype": _DTYPES[image.datatype]}
    if image.datatype == "FP32":
        found["scale"] = 1 / 255
    for layout in [document["layout"]] if "layout" in document else LAYOUTS:
        axes = LAYOUTS.get(str(layout), "")
        sizes = dict(zip(axes, shape, strict=False))
        if len(axes) == len(shape) and sizes.get("C", 1) in (1, 3):
            found |= {"layout": layout, "channels": sizes.get("C", 1)}
            if sizes.get("H", -1) > 0 < sizes["W"]:
                found["size"] = (sizes["H"], sizes["W"])
            break
    _require("layout" in found, "input", image, expected)
    known = Preprocessing.of(found | dict(document))
    fits = all(own in (-1, size) for own, size in zip(shape, known.row_shape, strict=True))
    _require(fits, "input", image, f"one of {' x '.join(map(str, known.row_shape))}")
    output = tensors.outputs[_class_output(tensors)]
    number = math.prod(output.shape[1:]) if len(output.shape) > 1 else -1
    is_fit = not known.labels or number < 1 or max(2, number) == len(known.labels)
    _require(is_fit, "labels", len(known.labels), f"{max(2, number)} (one for each class)")
    return known


def classes_of(known: Preprocessing, outputs: Sequence[Array]) -> Probabilities:
    """Return the probabilities of the classes, (N, classes), in a model's outputs.

    Raises:
        ModelError: they are no numbers, or others than the labels.
    """
    probabilities = as_probabilities(next(each for each in outputs if each.dtype.kind == "f"))
    if known.labels and len(known.labels) != probabilities.shape[1]:
        raise ModelError(f"{len(known.labels)} labels, but {probabilities.shape[1]} classes")
    return probabilities


def as_probabilities(answers: Array) -> Probabilities:
    """Return (N, classes) float32 of the answers to N pictures.

    A row of numbers from 0 to 1 that add up to 1 is used as it is, or divided by its sum if that is
    within 0.01 of 1; others are logits. A single number is the probability of the second of two
    classes, or its logit.

    Raises:
        ModelError: a number is not finite.
    """
    rows = answers.astype(np.float64).reshape(len(answers), -1)
    if not np.isfinite(rows).all():
        raise ModelError("the model answers with NaN or infinity")
    if rows.shape[1] == 1:
        is_share = ((rows >= 0) & (rows <= 1)).all()
        rows = np.hstack([1 - rows, rows] if is_share else [np.zeros_like(rows), rows])
    sums = rows.sum(axis=1)
    are_logits = (abs(sums - 1) > _STEPS_TOLERANCE) | (rows < 0).any(axis=1)
    is_coarse = ~are_logits & (abs(sums - 1) > _SUM_TOLERANCE)
    if is_coarse.any():
        rows[is_coarse] /= sums[is_coarse, None]
    if are_logits.any():
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        rows = np.where(are_logits[:, None], powers / powers.sum(axis=1, keepdims=True), rows)
    return rows.astype(np.float32)


def _class_output(tensors: TensorSignature) -> int:
    """Return the number of the output that has the classes: the first of floats."""
    for number, output in enumerate(tensors.outputs):
        if output.datatype in ("FP16", "FP32", "FP64"):
            return number
    listed = "; ".join(map(str, tensors.outputs))
    raise ValueError(f"output: one of floats expected, got {listed}")


def _are_numbers(values: object) -> bool:
    return isinstance(values, tuple) and all(
        type(each) in (int, float) and math.isfinite(each) for each in values
    )


def _any_of(names: Any) -> str:
    return "one of " + ", ".join(names)


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: {expected} expected, got {str(value)[:200]}")
