"""Training: fit the network by a recipe, calibrate it, and write the artifacts."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.config import Recipe
from training.data.augmentation import deform
from training.data.extra import Extra, join
from training.data.mnist import Examples, Mnist
from training.errors import Diverged, ResumeError
from training.fitting import artifacts, distillation, evaluation
from training.fitting.artifacts import Checkpoint, Progress
from training.fitting.epochs import Estimate, Log, Trainer, device, run_epochs
from training.fitting.evaluation import evaluate, probabilities
from training.fitting.networks import mix_in_bundled

VALIDATION = 5_000
"""The number of training images that validate where none are held out."""

UNSEEN = 2**33
"""Seeds their deformation: no seed and no view has this number."""


def train(
    recipe: Recipe,
    data: Mnist,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    extra: Extra | None = None,
    teachers: Path | None = None,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Train the network and write model.keras, history.json and metrics.json.

    A training that runs to its end keeps its last weights. One that is interrupted (Ctrl-C)
    keeps those of its best epoch, and can still be resumed: every epoch leaves a checkpoint.

    Args:
        recipe: how to train.
        data: the images.
        folder: the artifacts; a model already there stays until the new one is complete.
        seed: decides the first weights, the order of the images, deformation and dropout.
        resume: continue from the checkpoint in the folder.
        extra: a user's own images to train on, too; None for none.
        teachers: where the teachers of `best` are kept; None for a folder in `folder`.
        log: gets a line for each epoch, the teachers' included, with an estimate of the time left.

    Returns:
        The content of metrics.json.

    Raises:
        ResumeError: there is nothing to resume, or it is another training.
        Diverged: the loss is no longer a number: nothing was kept.
        UnusableInput: there are fewer images than a batch has.
        KeyboardInterrupt: interrupted before the first epoch was complete: nothing was kept.
        OSError: the artifacts could not be written.
    """
    training, validation = split(data, recipe)
    training = training if extra is None else join(training, extra)
    identity = {"seed": seed, "extra": extra and extra.digest, **asdict(recipe)}
    log = Estimate(recipe, log)
    cache = teachers or folder / "teachers"
    epochs = distillation.epoch_source(recipe, training, validation, cache, log)
    trainer = Trainer(recipe, len(training.labels), seed)
    checkpoint = Checkpoint(folder / "checkpoint.npz", identity)
    progress = _resumed(checkpoint, trainer) if resume else Progress()
    try:
        batches = epochs(seed, len(progress.rows))
        run_epochs(trainer, batches, validation, progress, checkpoint, log)
    except Diverged:
        checkpoint.path.unlink(missing_ok=True)  # the next epochs would be as those that failed
        raise
    except KeyboardInterrupt:
        if not progress.rows:
            raise
        trainer.ema.set_weights(progress.best)
    mix_in_bundled(trainer.ema, recipe.pretrained_share)
    metrics = {
        "recipe": recipe.name,
        "seed": seed,
        "settings": recipe.as_json(),
        "epochs": len(progress.rows),
        "train_seconds": round(progress.seconds, 1),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        **_calibrate_and_measure(trainer.ema, validation, data.test),
        **({} if extra is None else {"extra": _measure_extra(trainer.ema, extra)}),
    }
    artifacts.save(folder, trainer.ema, progress.rows, metrics)
    if len(progress.rows) == recipe.epochs:
        checkpoint.path.unlink(missing_ok=True)
    return metrics


def _resumed(checkpoint: Checkpoint, trainer: Trainer) -> Progress:
    try:
        return Progress.restore(checkpoint, trainer.variables)
    except ResumeError as err:
        raise ResumeError(f"nothing to resume: {err}; train without --resume") from err


def split(data: Mnist, recipe: Recipe) -> tuple[Examples, Examples]:
    """Split the training images into those to train on and those to validate with.

    Where all are trained on, the last VALIDATION of them validate, deformed as in no epoch: their
    accuracy chooses nothing, but the log and the calibration need images that were not learned.
    """
    training, validation = data.split(recipe.validation_split)
    if len(validation.labels):
        return training, validation
    last = Examples(training.images[-VALIDATION:], training.labels[-VALIDATION:])
    if not recipe.deformation:
        return training, last
    rng = np.random.default_rng(UNSEEN)
    return training, last._replace(images=deform(last.images, recipe.deformation, rng))


def _measure_extra(model: keras.Model, extra: Extra) -> dict[str, Any]:
    num_held_out = len(extra.held_out.labels)
    measured = {"images": len(extra.training.labels), "held_out": num_held_out}
    if not num_held_out:
        return measured
    loss, accuracy = evaluate(model, extra.held_out)
    errors = round((1 - accuracy) * num_held_out)
    return {**measured, "loss": loss, "accuracy": accuracy, "errors": errors}


def _calibrate_and_measure(
    model: keras.Model, validation: Examples, test: Examples
) -> dict[str, Any]:
    """Calibrate the network, in place, on the validation images; then measure it on the test set.

    Returns:
        The part of metrics.json that does not depend on how it was trained.
    """
    before = evaluation.expected_calibration_error(probabilities(model, test.images), test.labels)
    temperature = evaluation.calibrate(model, validation)
    answers = probabilities(model, test.images)
    after = evaluation.expected_calibration_error(answers, test.labels)
    kept, threshold = evaluation.accuracy_at_coverage(answers, test.labels)
    validation_loss, validation_accuracy = evaluate(model, validation)
    test_loss, test_accuracy = evaluate(model, test)
    return {
        "parameters": model.count_params(),
        "device": device(),
        "accuracy": {"validation": validation_accuracy, "test": test_accuracy},
        "loss": {"validation": validation_loss, "test": test_loss},
        "errors": {"test": round((1 - test_accuracy) * len(test.labels))},
        "calibration": {
            "temperature": temperature,
            "ece": {"before": before, "after": after},
            "coverage": {
                "share": evaluation.COVERAGE, "accuracy": kept, "least_confidence": threshold,
            },
        },
        "libraries": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
