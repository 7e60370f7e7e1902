"""The check of a model before it serves: correct answers in every batch.

A model can answer its golden samples correctly and still be unfit: one that answers one row for any
batch, or whose rows depend on their neighbours, gives wrong answers once requests are batched.
"""

from collections.abc import Callable

import numpy as np

from serving.errors import ModelError
from serving.images import Images
from serving.predictions import Probabilities

GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a probability from the manifest's: processors add in different orders."""
_NEIGHBOUR_TOLERANCE = 1e-2
"""Largest difference of a row's probability from the one it has alone: noise is near no class, so
rounding has more effect than on golden samples."""
_NUM_NOISE = 16


class Unfit(Exception):
    """The model is unfit to serve; the text completes a line that begins with its version."""


def check(
    run: Callable[[Images], Probabilities],
    golden: Images,
    expected: Probabilities,
    max_batch_size: int,
) -> None:
    """Run golden samples and noise, alone and mixed in batches of every size.

    Args:
        run: the model; see `Engine.run`.
        golden: (N, pixels) uint8, N >= 1.
        expected: (N, classes) float32, the manifest's probabilities for them.
        max_batch_size: the largest batch.

    Raises:
        Unfit: a run failed, or an answer is wrong.
    """
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (_NUM_NOISE, golden.shape[1]), np.uint8)
    probes = np.concatenate([golden, noise])
    num_classes = expected.shape[1]
    alone = np.concatenate([_answers(run, probe[None], num_classes) for probe in probes])
    difference = np.abs(alone[: len(golden)] - expected).max()
    if difference > GOLDEN_TOLERANCE:
        raise Unfit(
            f"answers its golden samples wrongly: a probability is off by {difference:.2g}, "
            f"at most {GOLDEN_TOLERANCE:g} expected"
        )
    for size in _sizes(max_batch_size):
        rows = generator.integers(0, len(probes), size)
        difference = np.abs(_answers(run, probes[rows], num_classes) - alone[rows]).max()
        if difference > _NEIGHBOUR_TOLERANCE:
            raise Unfit(
                f"answers depending on the batch: of {size} images, a probability is off by "
                f"{difference:.2g}, at most {_NEIGHBOUR_TOLERANCE:g} expected"
            )


def _sizes(max_batch_size: int) -> list[int]:
    """Return every power of two, which a GPU runs unpadded, and one less, which is padded."""
    full = [*(1 << power for power in range((max_batch_size - 1).bit_length())), max_batch_size]
    return sorted({*full, *(size - 1 for size in full if size > 1)})


def _answers(
    run: Callable[[Images], Probabilities], images: Images, num_classes: int
) -> Probabilities:
    try:
        probabilities = run(images)
    except ModelError as err:
        raise Unfit(f"fails on {len(images)} of its golden samples") from err
    if probabilities.shape != (len(images), num_classes):
        raise Unfit(f"answers {len(images)} images with shape {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        raise Unfit(f"answers {len(images)} images with numbers that are not finite")
    return probabilities
