"""The check of a model before it serves: right in every batch, and how long runs take.

A model can answer its golden samples correctly and still be unfit: one that answers one row for any
batch, or whose rows depend on their neighbours, gives wrong answers once requests are batched.

A version of any model may have golden calls with the answers that its writer got: they are compared
by what its manifest states, such as the gate that an optimised model passed.

Without golden samples drawn rows are run, alone and in batches: a second look at a proof, and
inputs to measure runs with. Samples can't show that rows are independent, only that they are not:
serving/proof proves it. Beside quiet rows the batches have loud ones: 1e30, infinities, NaN.
"""

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from serving.errors import InvalidRequest, ModelError
from serving.model.manifest import GOLDEN_TOLERANCE, Unfit
from serving.model.timing import Run, batch_sizes
from serving.tensors import Images, Probabilities, TensorSignature, as_feeds

if TYPE_CHECKING:
    from serving.model.golden import Golden

_NEIGHBOUR_TOLERANCE = 1e-2
"""Largest difference of a row's probability from the one it has alone: noise is near no class, so
rounding has more effect than on golden samples."""
_NUM_NOISE = 16
_ALONE_S, _BATCHES_S = 1.0, 2.0
"""Processor time for the runs of one row, and for those of batches: where a run takes long, the
later samples and the larger batches are left out."""
_MIN_ALONE = 4
"""Samples that are run alone, however long that takes; so is the smallest batch."""


def check(
    run: Callable[[Images], Probabilities],
    golden: Images,
    expected: Probabilities,
    max_batch_size: int,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Run golden samples and noise, alone and mixed in batches of every size.

    Where a run takes long, only as many samples and sizes as fit into some 3 s of `clock`.

    Returns:
        The largest difference of a row's probability from the one it has alone.

    Raises:
        Unfit: a run failed, or an answer is wrong.
    """
    generator = random.Random(0)  # numpy.random takes 5 ms to import
    noise = np.frombuffer(generator.randbytes(_NUM_NOISE * golden.shape[1]), np.uint8)
    probes = np.concatenate([golden, noise.reshape(_NUM_NOISE, -1)])
    begin_s = clock()
    alone = _alone(run, probes, expected.shape[1], clock)
    image_s = (clock() - begin_s) / len(alone)
    num_golden = min(len(golden), len(alone))
    difference = np.abs(alone[:num_golden] - expected[:num_golden]).max()
    if difference > GOLDEN_TOLERANCE:
        raise Unfit(
            f"answers its golden samples wrongly: a probability is off by {difference:.2g}, "
            f"at most {GOLDEN_TOLERANCE:g} expected"
        )
    worst = 0.0
    for size in batch_sizes(max_batch_size, image_s, _BATCHES_S):
        chosen = generator.choices(range(len(alone)), k=size)
        answers = _answers(run, probes[chosen], expected.shape[1])
        difference = float(np.abs(answers - alone[chosen]).max())
        worst = max(worst, difference)
        if difference > _NEIGHBOUR_TOLERANCE:
            raise Unfit(
                f"answers depending on the batch: of {size} images, a probability is off by "
                f"{difference:.2g}, at most {_NEIGHBOUR_TOLERANCE:g} expected"
            )
    return worst


def check_golden(model: Run, signature: TensorSignature, golden: "Golden") -> None:
    """Run the golden calls of any model, each alone, and compare its answers with the writer's.

    Args:
        model: runs it.
        signature: its inputs and outputs.
        golden: the calls, their answers, and how they are compared.

    Raises:
        Unfit: a run failed, or the answers differ; the text names the output, and the processor
            that they come from.
    """
    names = [each.name for each in signature.outputs]
    answers = []
    for number, call in enumerate(golden.calls):
        try:
            answers.append(dict(zip(names, model(as_feeds(signature, call)), strict=True)))
        except (InvalidRequest, ModelError) as err:
            raise Unfit(f"fails on golden call {number}: {err}") from err
    for each in golden.comparison.of_answers(golden.answers, answers):
        if excess := each.excess(golden.comparison.limits):
            where = f" than on {golden.gated_on}" if golden.gated_on else " than its writer's did"
            raise Unfit(
                f"answers its golden calls otherwise here{where}: output {each.output}: {excess}"
            )


def _alone(
    run: Callable[[Images], Probabilities],
    probes: Images,
    num_classes: int,
    clock: Callable[[], float],
) -> Probabilities:
    """Run images one by one, the first ones if that takes long; return their probabilities."""
    end_s = clock() + _ALONE_S
    rows: list[Probabilities] = []
    for probe in probes:
        if len(rows) >= _MIN_ALONE and clock() > end_s:
            break
        rows.append(_answers(run, probe[None], num_classes))
    return np.concatenate(rows)


def _answers(
    run: Callable[[Images], Probabilities], images: Images, num_classes: int
) -> Probabilities:
    try:
        probabilities = run(images)
    except (InvalidRequest, ModelError) as err:
        raise Unfit(f"fails on {len(images)} of its golden samples") from err
    if probabilities.shape != (len(images), num_classes):
        raise Unfit(f"answers {len(images)} images with shape {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        raise Unfit(f"answers {len(images)} images with numbers that are not finite")
    return probabilities
