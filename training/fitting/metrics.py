"""The metrics of a finished network: accuracy, loss, calibration."""

import platform
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.data.mnist import Examples, Mnist
from training.fitting import calibration
from training.fitting.evaluation import evaluate, probabilities
from training.fitting.trainer import device


def calibrate_and_measure(model: keras.Model, validation: Examples, data: Mnist) -> dict[str, Any]:
    """Calibrate the network on the validation images, then measure it on the test images, once.

    Args:
        model: changed in place, by its temperature.
        validation: images that it was not trained on.
        data: MNIST.

    Returns:
        The part of metrics.json that does not depend on how it was trained.
    """
    before = calibration.expected_calibration_error(
        probabilities(model, data.test_images), data.test_labels
    )
    temperature = calibration.calibrate(model, validation)
    answers = probabilities(model, data.test_images)
    after = calibration.expected_calibration_error(answers, data.test_labels)
    kept, threshold = calibration.accuracy_at_coverage(answers, data.test_labels)
    validation_loss, validation_accuracy = evaluate(model, validation)
    test_loss, test_accuracy = evaluate(model, data.test)
    return {
        "parameters": model.count_params(),
        "device": device(),
        "accuracy": {"validation": validation_accuracy, "test": test_accuracy},
        "loss": {"validation": validation_loss, "test": test_loss},
        "errors": {"test": round((1 - test_accuracy) * len(data.test_labels))},
        "calibration": {
            "temperature": temperature,
            "ece": {"before": before, "after": after},
            "coverage": {
                "share": calibration.COVERAGE, "accuracy": kept, "least_certainty": threshold,
            },
        },
        "libraries": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
