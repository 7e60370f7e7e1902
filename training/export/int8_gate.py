"""The int8 gate: as good as fp32 on images that did not shape it, or it is not published."""

import statistics
import time
from dataclasses import dataclass

from training.data.mnist import Images
from training.export import parity
from training.export.parity import onnxruntime
from training.export.quantization import Refused
from training.export.samples import Samples

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
        return f"{self.different_digits} answers differ from fp32; faster by batch size: {speedup}"


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
    """Compute the share of right answers; None without labels."""
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
