"""The int8 graph: its first layer multiplies the raw pixels with weights of 7 bits; and its gate.

    fp32   images ─ Cast ─ MatMul ─ Add ─ Relu ─ ...
    int8   images ─ MatMulInteger ─ Cast ─ Add ─ Relu ─ ...   (the same from here on)

The first layer of digits is 83 % of the arithmetic, and a pixel already is an integer: only the
weights are rounded. The later layers stay float32, because their inputs would need a scale that
depends on the whole batch, and an answer must not depend on the images it is batched with.

Each column of weights is `integers * scale`. As relu(scale * y) = scale * relu(y), the scales pass
through Relu into the next layer's weights, which saves a pass over the activations: 5 to 9 % of
a run of 32 images or more.

It is as good as fp32 on images that did not shape it, or it is not published.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from training.data.mnist import Images
from training.export import parity
from training.export.parity import onnxruntime
from training.export.samples import Samples

Matrix = npt.NDArray[np.float64]

LARGEST = 63
"""The largest integer weight: 2 * 255 * 63 = 32,130 fits into 16 bits, where x86 without VNNI adds
two products of a uint8 and an int8, and saturates silently (VPMADDUBSW)."""

REPLACEABLE = ["Cast", "MatMul", "Add", "Relu", "MatMul"]
"""The operators that a graph must begin with."""

MOST_PIXELS = 4_096
"""Rounding takes memory for the square of the pixels, and time for the square times the units."""

SAMPLE_IMAGES = 5_000
DAMPING = 0.01  # times the mean moment: keeps the weights of pixels that are rarely ink near theirs
MOST_DIFFERENT_DIGITS = 5
"""The number of test images, 10,000 in MNIST, that may get another answer than from fp32."""
LEAST_TEST_IMAGES = 200
"""Fewer would let too large a share of other answers pass."""
LARGEST_LOSS = 0.0005
"""Share of the validation images that fp32 may have right and int8 not; one image is always
allowed."""
BATCH_SIZES = (1, 32, 128)
ROUNDS = 40  # a third of a second in all, most of it for batches of one
IMAGES_PER_ROUND = 128


class Refused(Exception):
    """There is no int8 graph, or it is too far from fp32; the text is one line and says why."""


def quantize(fp32: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    """Derive the int8 graph from the fp32 one.

    Args:
        fp32: as graph.convert makes it; not changed.
        images: (N, pixels) uint8, images to weigh the rounding errors with, not those to test with.

    Returns:
        A checked graph of the same inputs, outputs, metadata and versions.

    Raises:
        Refused: the graph does not begin with two dense layers, or has too many pixels.
    """
    if [node.op_type for node in fp32.graph.node[:5]] != REPLACEABLE:
        raise Refused("expected a network that begins with Dense, relu and Dense")
    if images.shape[1] > MOST_PIXELS:
        raise Refused(f"expected at most {MOST_PIXELS:,} pixels, got {images.shape[1]:,}")
    int8 = onnx.ModelProto()
    int8.CopyFrom(fp32)
    weights = {tensor.name: tensor for tensor in int8.graph.initializer}
    _, matmul, add, _, following = int8.graph.node[:5]
    kernel, bias, next_kernel = (
        numpy_helper.to_array(weights[node.input[1]]) for node in (matmul, add, following)
    )
    integers, scale = round_weights(kernel, _moments(images))
    replacements: dict[str, npt.NDArray[Any]] = {
        matmul.input[1]: integers,
        add.input[1]: bias / scale,
        following.input[1]: next_kernel * scale[:, np.newaxis],
    }
    for name, array in replacements.items():
        weights[name].CopyFrom(numpy_helper.from_array(array, name))

    _rewire(int8.graph)
    onnx.checker.check_model(int8, full_check=True)
    return int8


def round_weights(
    kernel: npt.NDArray[np.float32], moments: Matrix
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round each column to integers times a scale, with the least error of its sums.

    Rows are rounded one after the other, those of the heaviest pixels first; the rows that remain
    compensate for the error as far as their pixels correlate with this row's: GPTQ (Frantar et
    al., 2022, arXiv:2210.17323). It leaves a third of the error of rounding to nearest, and less
    than that would leave in 8 bits.

    Args:
        kernel: (pixels, units).
        moments: (pixels, pixels), the mean product of any two pixels.

    Returns:
        (pixels, units) within ±LARGEST, and (units,) scales above 0.
    """
    scale = (np.abs(kernel).max(axis=0) / np.float32(LARGEST)).astype(np.float32)
    scale[scale == 0] = 1
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments + np.eye(len(moments)) * (DAMPING * np.diag(moments).mean())
    factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    remaining = kernel[order].astype(np.float64) / scale
    for row in range(len(remaining)):
        wanted = remaining[row].copy()
        remaining[row] = np.clip(np.rint(wanted), -LARGEST, LARGEST)
        error = (wanted - remaining[row]) / factor[row, row]
        remaining[row + 1 :] -= np.outer(factor[row, row + 1 :], error)
    return remaining[np.argsort(order)].astype(np.int8), scale


def _moments(images: Images) -> Matrix:
    """Compute the mean product of any two pixels from a sample of (N, pixels) images."""
    pixels = images[:: max(1, len(images) // SAMPLE_IMAGES)].astype(np.float32) / 255
    return (pixels.T @ pixels).astype(np.float64) / len(pixels)


def _rewire(graph: onnx.GraphProto) -> None:
    """Multiply first, then convert to float32; changed in place.

    Up to 1,044 pixels the conversion is exact: a sum is at most 1,044 * 255 * 63 < 2**24 from 0.
    """
    cast, matmul, add, *others = graph.node
    layer = matmul.name.removesuffix("/MatMul")
    product, converted = f"{layer}/MatMulInteger", f"{layer}/Cast"
    matmul.op_type = "MatMulInteger"
    matmul.name, matmul.input[0], matmul.output[0] = product, cast.input[0], product
    cast.name, cast.input[0], cast.output[0] = converted, product, converted
    add.input[0] = converted
    del graph.node[:]
    graph.node.extend([matmul, cast, add, *others])


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """The figures of the int8 graph."""

    validation_accuracy: float | None
    """Share of the validation images answered correctly, 0 to 1; None without such images."""
    test_accuracy: float | None
    """Share of the test images answered correctly, 0 to 1; None without labels."""
    different_digits: int
    """Test images to which fp32 gives another answer, at any batch size."""
    max_difference: float
    """The largest difference of any probability from fp32's, on the test images."""
    speedup: dict[str, float]
    """Time of fp32 over time of int8 on one core, by batch size."""

    def __str__(self) -> str:
        speedup = ", ".join(f"{ratio:.1f}x at {size}" for size, ratio in self.speedup.items())
        number = self.different_digits
        differ = "1 answer differs" if number == 1 else f"{number} answers differ"
        return f"{differ} from fp32; faster by batch size: {speedup}"


def measure(
    int8: onnxruntime.InferenceSession,
    fp32: onnxruntime.InferenceSession,
    test: Samples,
    validation: Samples | None,
) -> Int8:
    """Compare the int8 graph with the fp32 one, then time both.

    Raises:
        Refused: the test images are too few, too many answers differ, or too many are wrong.
    """
    num = len(test.images)
    if num < LEAST_TEST_IMAGES:
        raise Refused(f"expected at least {LEAST_TEST_IMAGES} images to test it with, got {num}")
    compared = parity.measure(int8, test.images, parity.run(fp32, test.images))
    if compared.different_digits > MOST_DIFFERENT_DIGITS:
        raise Refused(
            f"{compared.different_digits} of {num:,} test answers differ from fp32, "
            f"at most {MOST_DIFFERENT_DIGITS} may"
        )
    if validation is not None:
        _check_loss(int8, fp32, validation)
    return Int8(
        validation_accuracy=_accuracy(int8, validation),
        test_accuracy=_accuracy(int8, test),
        different_digits=compared.different_digits,
        max_difference=compared.max_difference,
        speedup={str(size): _speedup(int8, fp32, test.images[:size]) for size in BATCH_SIZES},
    )


def _check_loss(
    int8: onnxruntime.InferenceSession, fp32: onnxruntime.InferenceSession, validation: Samples
) -> None:
    """Raise Refused if int8 has too many fewer validation images right than fp32."""
    num = len(validation.images)
    right, right_fp32 = (round((_accuracy(s, validation) or 0) * num) for s in (int8, fp32))
    allowed = max(1, LARGEST_LOSS * num)
    if right_fp32 - right > allowed:
        raise Refused(
            f"{right:,} of {num:,} validation answers are right, with fp32 {right_fp32:,}: at most "
            f"{allowed:.0f} fewer may be"
        )


def _accuracy(session: onnxruntime.InferenceSession, samples: Samples | None) -> float | None:
    if samples is None or samples.labels is None:
        return None
    answers = parity.run(session, samples.images).argmax(axis=1)
    return float((answers == samples.labels).mean())


def _speedup(
    int8: onnxruntime.InferenceSession, fp32: onnxruntime.InferenceSession, batch: Images
) -> float:
    """Time both graphs on one batch, in turns so that a busy machine slows both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for session, taken in zip((int8, fp32), seconds, strict=True):
            start = time.perf_counter()
            for _ in range(IMAGES_PER_ROUND // len(batch)):
                session.run(["probabilities"], {"images": batch})
            taken.append(time.perf_counter() - start)
    return round(statistics.median(seconds[1]) / statistics.median(seconds[0]), 2)
