"""Whether an engine gives the CPU's answers to the test images, in runs of every size."""

from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.load.cores import split_cores, worker
from benchmarks.run.result_file import Agreement
from benchmarks.targets.in_process import OPENERS
from benchmarks.targets.target import NotMeasured, Spec
from serving.errors import DigitsError
from serving.images import Images
from serving.predictions import Probabilities

Labels = npt.NDArray[np.uint8]


def compare(
    spec: Spec, models: Path, images: Images, labels: Labels, sizes: Sequence[int]
) -> list[Agreement]:
    """Run a target that is an engine, and the CPU's, in a process of their own.

    Args:
        spec: "engine", or an engine of another kind.
        models: the model repository's root.
        images: (N, 784) uint8.
        labels: (N,) uint8, the digits that they show.
        sizes: images a run; what remains for the last run is fewer.

    Raises:
        NotMeasured: the engine can't run here, or a run failed.
    """
    with worker(split_cores()[0]) as pool:
        try:
            return pool.submit(_compare, spec, models, images, labels, sizes).result()
        except BrokenProcessPool as err:
            raise NotMeasured("its process died") from err
        except DigitsError as err:
            raise NotMeasured(str(err)) from err


def _compare(
    spec: Spec, models: Path, images: Images, labels: Labels, sizes: Sequence[int]
) -> list[Agreement]:
    engine, on_cpu = (
        OPENERS[each.target](each, models, Path()) for each in (spec, Spec(target="engine"))
    )
    expected, found = _answers(on_cpu, images, max(sizes)), []
    for size in sizes:
        answers = _answers(engine, images, size)
        digits = answers.argmax(axis=1)
        agreement = Agreement(
            spec=spec, batch=size, num_images=len(images),
            num_other_digits=int((digits != expected.argmax(axis=1)).sum()),
            max_difference=float(np.abs(answers - expected).max()),
            accuracy=float((digits == labels).mean()),
        )  # fmt: skip
        found.append(agreement)
    return found


def _answers(engine: Any, images: Images, size: int) -> Probabilities:
    runs = (engine(images[first : first + size]) for first in range(0, len(images), size))
    return np.concatenate(list(runs))
