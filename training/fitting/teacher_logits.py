"""The pool: deformed views of the training images, and what the teachers say of them.

The teachers are ten times slower than their student, so they answer once and every student cycles
through their answers. A view is made again from its number whenever it is needed; nothing but the
answers is stored, one file for each view. A file that is damaged, or of other teachers, images or
deformation, is made anew.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.config import Deformation, Recipe
from training.data import augmentation
from training.data.mnist import Examples, Images
from training.files import write_atomically
from training.fitting import teachers
from training.fitting.teachers import Say

Answers = npt.NDArray[np.float16]
"""(N, 10): the mean of the teachers' log probabilities."""

STREAM = 2**32
"""Keeps a view's random numbers apart from those of all seeds, which are smaller."""

LEAST = 1e-12
"""Probabilities below it count as it: their logarithms would have no bound."""

BATCH = 1_000


def answers(
    recipe: Recipe, training: Examples, validation: Examples, folder: Path, say: Say
) -> list[Answers]:
    """Read the teachers' answers to every view, after having the missing ones made.

    Args:
        recipe: says how many teachers and views there are, and how those are deformed.
        training: (N, 784) images and (N,) labels.
        validation: what to watch the teachers with.
        folder: the cache, for teachers and answers.
        say: told how the work goes.

    Returns:
        The answers by view.

    Raises:
        OSError: the cache could not be written.
    """
    deformation, distillation = recipe.taught
    identity = json.dumps(
        {
            "teachers": distillation.teachers,
            "teacher": teachers.identity(distillation.teacher, training),
            "deformation": asdict(deformation),
        }
    )
    paths = [folder / f"view-{number:03}.npz" for number in range(distillation.views)]
    found = [_read(path, identity, say) for path in paths]
    missing = [number for number, answer in enumerate(found) if answer is None]
    panel = teachers.train(distillation, training, validation, folder, say) if missing else []
    ask = _asking(list(panel))
    for number in missing:
        found[number] = ask(view(training.images, deformation, number))
        _write(paths[number], identity, found[number])
        say(f"teachers' answers  view {number + 1:{len(str(len(paths)))}}/{len(paths)}")
    return [answer for answer in found if answer is not None]


def view(images: Images, deformation: Deformation, number: int) -> Images:
    """Deform all images, the same number always alike.

    Args:
        images: (N, 784) uint8.
        deformation: how far.
        number: which view, from 0.

    Returns:
        (N, 784) uint8, in the order of the images.
    """
    rng = np.random.default_rng([STREAM, number])
    order = rng.permutation(len(images))  # in each view, others share a field
    deformed = np.empty_like(images)
    deformed[order] = augmentation.deform(images[order], deformation, rng)
    return deformed


def _asking(panel: Sequence[keras.Model]) -> Callable[[Images], Answers]:
    """Compile the teachers into one function from (N, 784) uint8 to their answers."""

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def log_probabilities(images: tf.Tensor) -> tf.Tensor:
        inputs = tf.cast(images, tf.float32) / 255
        said = [tf.math.log(teacher(inputs, training=False) + LEAST) for teacher in panel]
        return tf.cast(tf.reduce_mean(said, axis=0), tf.float16)

    def ask(images: Images) -> Answers:
        batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
        return np.concatenate([log_probabilities(tf.constant(batch)).numpy() for batch in batches])

    return ask


def _read(path: Path, identity: str, say: Say) -> Answers | None:
    """Read a view's answers; None if they must be made."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as saved:  # np.load leaves a bad file open
            if str(saved["identity"]) == identity:
                answers: Answers = saved["answers"]
                return answers
        say(f"{path} is made anew: it is of other teachers, images or deformation\n")
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        say(f"{path} is made anew: it cannot be read\n")
    return None


def _write(path: Path, identity: str, answers: Any) -> None:
    """Store a view's answers."""
    content = io.BytesIO()
    np.savez(content, identity=identity, answers=answers)
    write_atomically(path, content.getvalue())
