"""Accuracy, and the temperature that calibrates probabilities."""

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.data.mnist import Examples, Images, Labels

Probabilities = npt.NDArray[np.float32]
"""(N, classes): each row sums to 1."""

CHUNK = 1_000
"""Images that a network classifies at once: of convolutions, all 10,000 fill a gigabyte."""
BINS = 15
"""As in the paper."""
COVERAGE = 0.99
"""Share of the images that are answered; the least confident ones are rejected."""
_INVERSE_TEMPERATURES = (0.02, 50.0)
"""The search interval; if all images are classified correctly, no finite optimum exists."""
_TINY = np.finfo(np.float32).tiny


def probabilities(model: keras.Model, images: Images) -> Probabilities:
    """Classify images with Keras, in float32."""
    answers = []
    with tf.device("/CPU:0"):  # on a GPU, TensorFlow multiplies in TF32: three digits, not seven
        for start in range(0, max(len(images), 1), CHUNK):
            chunk = images[start : start + CHUNK].astype(np.float32) / 255
            answers.append(np.asarray(model(chunk, training=False)))
    return np.concatenate(answers)


def evaluate(model: keras.Model, examples: Examples) -> tuple[float, float]:
    """Compute the mean cross-entropy and the accuracy, 0 to 1."""
    answers = probabilities(model, examples.images)
    of_label = answers[np.arange(len(answers)), examples.labels]
    loss = -np.log(np.maximum(of_label, keras.config.epsilon())).mean()
    return float(loss), float((answers.argmax(axis=1) == examples.labels).mean())


def calibrate(model: keras.Model, validation: Examples) -> float:
    """Divide the network's logits by the temperature that fits the validation images best.

    The temperature goes into the last layer's weights: layers, number of parameters and predicted
    digits stay the same.

    Returns:
        The temperature; above 1 the network was overconfident.
    """
    temperature = fit_temperature(probabilities(model, validation.images), validation.labels)
    last = model.layers[-1]
    last.set_weights([weights / np.float32(temperature) for weights in last.get_weights()])
    return temperature


def fit_temperature(answers: Probabilities, labels: Labels) -> float:
    """Find the temperature with the least mean cross-entropy.

    Cross-entropy is convex in the inverse temperature, so its slope has one zero: bisect.
    """
    logits = np.log(np.maximum(answers.astype(np.float64), _TINY))
    of_label = logits[np.arange(len(labels)), labels]
    low, high = np.log(_INVERSE_TEMPERATURES)
    for _ in range(50):
        middle = (low + high) / 2
        scaled = np.exp(np.exp(middle) * (logits - logits.max(axis=1, keepdims=True)))
        expected = (scaled * logits).sum(axis=1) / scaled.sum(axis=1)
        if (expected - of_label).mean() < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-middle))


def expected_calibration_error(answers: Probabilities, labels: Labels) -> float:
    """Average the distance of confidence from accuracy over bins of equal width, by image count.

    Returns:
        0 to 1; 0 if of the images answered with confidence p, the share p is right.
    """
    gaps = [num * abs(mean - right) for mean, right, num in reliability_bins(answers, labels)]
    return sum(gaps) / len(labels)


def reliability_bins(answers: Probabilities, labels: Labels) -> list[tuple[float, float, int]]:
    """Sort the images by confidence into bins of equal width.

    Returns:
        Of each bin that is not empty the mean confidence, the share of right answers, and the
        number of images.
    """
    confidence, right = answers.max(axis=1), answers.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        (float(confidence[bins == bin_].mean()), float(right[bins == bin_].mean()), int(num))
        for bin_, num in enumerate(np.bincount(bins))
        if num
    ]


def accuracy_at_coverage(
    answers: Probabilities, labels: Labels, coverage: float = COVERAGE
) -> tuple[float, float]:
    """Compute the accuracy once the least confident images are rejected.

    Returns:
        The share of right answers among those kept, and the least confidence among them.
    """
    confidence, right = answers.max(axis=1), answers.argmax(axis=1) == labels
    kept = np.argsort(-confidence, kind="stable")[: max(1, round(coverage * len(labels)))]
    return float(right[kept].mean()), float(confidence[kept[-1]])
