"""A model in the format that servers take: one input of bytes, one output of probabilities.

Only this module and `samples` refuse a model because of that format; once servers take other
signatures, the refusals go, and the other modules stay.
"""

import keras
import numpy as np
import tensorflow as tf

from training.data.mnist import Images
from training.errors import UnusableInput, first_line
from training.fitting.evaluation import Probabilities

BATCH = 256

SUM_TOLERANCE = 1e-3
"""The largest distance from 1 of probabilities added up, as float32 or coarser rounds them."""


ONE = {
    "input": "join them in one, which the model splits; a model never called has none",
    "output": "save keras.Model(model.inputs, model.outputs[0])",
}
"""What a model must have one of, and how to get there."""


def check_ends(model: keras.Model) -> None:
    """Raise UnusableInput unless a model has one input, and one output of a row for each image."""
    for kind, advice in ONE.items():
        found = getattr(model, f"{kind}s", None) or []
        if len(found) != 1:
            raise UnusableInput(f"expected a model of one {kind}, got {len(found)}: {advice}")
    if len(model.output_shape) != 2 or not model.output_shape[1]:
        raise UnusableInput(
            f"expected an output of (N, classes), got {model.output_shape}: flatten or pool before "
            "the last Dense"
        )


def fixed_shape(
    model: keras.Model, sample_shape: tuple[int, ...]
) -> tuple[keras.Model, tuple[int, ...]]:
    """Return a model that takes images of a fixed shape, and this shape without a lone channel.

    Sizes that the model leaves open are those of the samples; a flat image has their shape.

    Raises:
        UnusableInput: the samples don't fit.
    """
    wanted = model.input_shape[1:]
    for shape in (sample_shape, (*sample_shape, 1)):
        open_sizes = [size for size, own in zip(wanted, shape, strict=False) if size != own]
        if len(shape) == len(wanted) and set(open_sizes) == {None}:
            model = _with_input(model, shape)
    shape = model.input_shape[1:]
    if None in shape or not shape or np.prod(sample_shape) != np.prod(shape):
        raise UnusableInput(
            f"expected images of shape {wanted}, as the model takes, got {sample_shape}"
        )
    full: tuple[int, ...] = max(shape, sample_shape, key=len)
    return model, full[:-1] if len(full) == 3 and full[-1] == 1 else full


def _with_input(model: keras.Model, shape: tuple[int, ...]) -> keras.Model:
    """Put an input of a fixed shape in front; of a model that can't take it, nothing."""
    try:
        images = keras.Input(shape, dtype=model.inputs[0].dtype)
        return keras.Model(images, model(images))
    except Exception:  # layers raise what they like
        return model


def classifier(model: keras.Model, images: Images) -> tuple[keras.Model, Probabilities]:
    """Return a model that gives probabilities, and those of (N, pixels) images, (N, classes).

    Raises:
        UnusableInput: the answers are neither logits nor probabilities of one class an image.
    """
    answers = _classify(model, images)
    if num_bad := int((~np.isfinite(answers)).any(axis=1).sum()):
        raise UnusableInput(f"the model answers {num_bad:,} of {len(images):,} samples with NaN or "
                            "infinity")  # fmt: skip
    is_logits = answers.min() < 0 or answers.max() > 1 + SUM_TOLERANCE
    if answers.shape[1] == 1:
        if is_logits:
            raise UnusableInput(
                "expected one probability or several numbers an image, got one number outside of "
                '0 to 1: put keras.layers.Activation("sigmoid") last'
            )
        both = keras.layers.Dense(2)  # of p: 1 - p, and p
        model = keras.Model(model.inputs, both(model.outputs[0]))
        both.set_weights([np.array([[-1, 1]]), np.array([1, 0])])
        return model, np.concatenate([1 - answers, answers], axis=1)
    if is_logits:
        model = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
        return model, np.asarray(keras.ops.softmax(answers))
    if np.abs(answers.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        raise UnusableInput(
            "the model is not a classifier: its answers lie from 0 to 1 but don't add up to 1; "
            "expected softmax, or logits"
        )
    return model, answers


def _classify(model: keras.Model, images: Images) -> Probabilities:
    """Run a model on (N, pixels) images, on the CPU; returns (N, classes) float32."""
    try:
        pixels = images.reshape(-1, *model.input_shape[1:]).astype(model.inputs[0].dtype)
        batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
        with tf.device("/CPU:0"):  # see evaluation.probabilities
            return np.concatenate(
                [np.asarray(model(batch, training=False), np.float32) for batch in batches]
            )
    except Exception as err:  # layers raise what they like
        raise UnusableInput(f"the model fails on the samples: {first_line(err)}") from err
