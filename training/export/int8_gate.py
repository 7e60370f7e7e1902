"""The int8 gate: as good as fp32 on images that did not make it, or it is not published."""

import statistics
import time
from dataclasses import dataclass

from training.data.mnist import Examples, Images
from training.export import parity
from training.export.onnx_runtime import onnxruntime

MOST_DIFFERENT_DIGITS = 5
"""How many test images, 10,000 in MNIST, may get another digit than from fp32."""

LARGEST_LOSS = 0.0005
"""Share of the validation images that fp32 may have right and int8 not; one image is always
allowed."""

BATCH_SIZES = (1, 32, 128)
ROUNDS = 40  # a third of a second in all, most of it for batches of one
IMAGES_PER_ROUND = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """What the int8 graph was measured to do."""

    validation_accuracy: float
    """Share of the validation images answered correctly, 0 to 1."""
    test_accuracy: float
    """Share of the test images answered correctly, 0 to 1."""
    different_digits: int
    """Test images to which fp32 gives another digit, at any batch size."""
    max_difference: float
    """The largest difference of any probability from fp32's, on the test images."""
    speedup: dict[str, float]
    """How many times as fast as fp32 on one core, by batch size."""


class Refused(Exception):
    """The int8 graph is too far from fp32; the text is one line and says how far."""


def measure(
    int8: onnxruntime.InferenceSession,
    fp32: onnxruntime.InferenceSession,
    validation: Examples,
    test: Examples,
) -> Int8:
    """Compare the int8 graph with the fp32 one, then time both.

    Raises:
        Refused: it gets too many images wrong, or too many other digits.
    """
    expected = parity.run(fp32, test.images, len(test.images))
    compared = parity.measure(int8, test.images, expected)
    if compared.different_digits > MOST_DIFFERENT_DIGITS:
        raise Refused(
            f"{compared.different_digits} of {len(test.images):,} test digits differ from fp32, "
            f"at most {MOST_DIFFERENT_DIGITS} may"
        )
    right, right_fp32 = (_right(session, validation) for session in (int8, fp32))
    allowed = max(1, LARGEST_LOSS * len(validation.labels))
    if right_fp32 - right > allowed:
        raise Refused(
            f"{right:,} of {len(validation.labels):,} validation digits are right, with fp32 "
            f"{right_fp32:,}: at most {allowed:.0f} fewer may be"
        )
    return Int8(
        validation_accuracy=right / len(validation.labels),
        test_accuracy=_right(int8, test) / len(test.labels),
        different_digits=compared.different_digits,
        max_difference=compared.max_difference,
        speedup={str(size): _speedup(int8, fp32, test.images[:size]) for size in BATCH_SIZES},
    )


def _right(session: onnxruntime.InferenceSession, examples: Examples) -> int:
    """Count the images that are answered correctly."""
    answers = parity.run(session, examples.images, len(examples.images))
    return int((answers.argmax(axis=1) == examples.labels).sum())


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
