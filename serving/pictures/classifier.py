"""The steps beside a classifier: its input is made of a picture, and classes of its outputs.

    a file ──▶ decode ──▶ inputs, state ──▶ the model ──▶ outputs ──▶ finish ──▶ class, label, ...
               a process for strangers'     its batches               the caller's thread
               files

Both are functions of a module that get plain data, so that other processes import them by name.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from serving.commandline.installation import not_installed
from serving.model.preprocessing import Preprocessing, classes_of, treatment_of
from serving.tensors import Array

CLASS, LABEL, PROBABILITIES = "class", "label", "probabilities"


class Decoded(NamedTuple):
    """What a file becomes."""

    inputs: Sequence[Array]
    """The model's, in its order."""
    state: Any = None
    """For `finish`: plain values and small arrays."""


class Steps(NamedTuple):
    """What runs before a model, and behind it: functions of a module."""

    decode: Callable[[Any, bytes], Decoded]
    """Takes plain data and a file's bytes, in a process for strangers' files; may raise
    InvalidRequest."""
    finish: Callable[[Any, Sequence[Array], Any], Mapping[str, Array]]
    """Takes the same data, the model's outputs and the state; returns outputs by name."""


def decode(about: Preprocessing, content: bytes) -> Decoded:
    """Make a classifier's input of a picture's file.

    Raises:
        InvalidRequest: it can't be read.
        ConfigurationError: Pillow is not installed.
    """
    try:
        from serving.pictures import decoder  # late: the process that decodes has Pillow
    except ImportError as err:
        raise not_installed(err) from err
    source = io.BytesIO(content)
    image = decoder.read_pixels(
        source, about.size, about.channels, about.resize, invert=about.invert
    )
    return Decoded([about.row(image)])


def finish(about: Preprocessing, outputs: Sequence[Array], state: Any) -> dict[str, Array]:
    """Return the class of each row, its label, and the probabilities of all classes.

    Raises:
        ModelError: the outputs are no numbers, or others than the labels.
    """
    probabilities = classes_of(about, outputs)
    numbers, names = probabilities.argmax(1), about.labels
    labels = [names[at] if names else str(at) for at in numbers.tolist()]
    return {CLASS: numbers, LABEL: np.array(labels, object), PROBABILITIES: probabilities}


STEPS = Steps(decode, finish)


def steps_of(about: Preprocessing) -> Steps:
    """Return the steps of a classifier: an application's, if its description names that."""
    treatment = treatment_of(about.resize)
    if treatment is None:
        return STEPS
    module, _, name = treatment.STEPS.partition(":")
    steps: Steps = getattr(import_module(module), name)
    return steps
