"""The study: train every recipe from several seeds, measure what each trick gives, write it down.

Rows are appended to the results as they finish, so an interrupted study goes on where it was.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from training.config import RECIPES, Deformation, Recipe
from training.data.mnist import Images, Mnist
from training.fitting import calibration, distillation
from training.fitting.artifacts import load_model, probabilities
from training.fitting.loop import OnEpoch, describe
from training.fitting.teachers import Say
from training.fitting.train import train
from training.fitting.trainer import Trainer, evaluate
from training.study import corruptions
from training.study.comparison import Results, Run, chosen_run

Digits = npt.NDArray[np.intp]

SEEDS = {"best": 3, "default": 5, "seed": 5}
"""How many final models of each recipe are trained; their seeds are 0, 1 and so on."""

ABLATION_EPOCHS = 40
ABLATION_SEEDS = 2


def run(data: Mnist, artifacts: Path, results: Path, say: Say) -> None:
    """Train what the results lack.

    Args:
        data: MNIST.
        artifacts: where the teachers are cached, and where each final model is left with its
            report, in study/<recipe>-<seed>.
        results: the results file; it gets a row more whenever one is there.
        say: told how the work goes.

    Raises:
        KeyboardInterrupt: interrupted; what was complete is in the results.
        OSError: a file could not be written.
    """
    found = Results.load(results)
    done = {(run["recipe"], run["seed"]) for run in found.runs}
    for name, seed in ((name, seed) for name, num in SEEDS.items() for seed in range(num)):
        if (name, seed) not in done:
            found.runs.append(_final_model(RECIPES[name], seed, data, artifacts, say))
            found.save(results)
    tried = {(row["trick"], row["seed"]) for row in found.ablation}
    for seed in range(ABLATION_SEEDS):
        for trick, recipe in tricks().items():
            if (trick, seed) not in tried:
                found.ablation.append(_trial(trick, recipe, seed, data, artifacts, say))
                found.save(results)


def chosen_folder(artifacts: Path, results: Path) -> Path:
    """Name the folder of the best recipe's model that reads the validation images best."""
    run = chosen_run(Results.load(results).of("best"))
    return _folder(artifacts, run["recipe"], run["seed"])


def tricks() -> dict[str, Recipe]:
    """List what the ablation adds, one on top of the other, from the tutorial's recipe to best."""
    best = RECIPES["best"]
    whole, _ = best.taught
    tutorial = replace(RECIPES["seed"], validation_split=best.validation_split)
    adamw = replace(
        best, deformation=None, distillation=None, averaging=0, dropout=tutorial.dropout
    )
    averaged = replace(adamw, averaging=RECIPES["default"].averaging)
    affine = replace(averaged, dropout=best.dropout, deformation=_only(whole, elastic=0))
    elastic = replace(affine, deformation=_only(whole, elastic=whole.elastic_px))
    thickness = replace(elastic, deformation=whole)
    taught = replace(thickness, distillation=best.distillation)
    steps = {
        "the tutorial's": tutorial,
        "AdamW, cosine": adamw,
        "averaged weights": averaged,
        "affine deformation": affine,
        "elastic deformation": elastic,
        "stroke thickness": thickness,
        "distillation": taught,
    }
    return {trick: replace(recipe, epochs=ABLATION_EPOCHS) for trick, recipe in steps.items()}


def _only(deformation: Deformation, *, elastic: float) -> Deformation:
    """Leave stroke thickness out, and as much of the elastic displacement as is asked for."""
    return replace(deformation, elastic_px=elastic, thickness=0)


def _final_model(recipe: Recipe, seed: int, data: Mnist, artifacts: Path, say: Say) -> Run:
    """Train one final model, and measure it once."""
    folder = _folder(artifacts, recipe.name, seed)
    metrics = train(
        recipe,
        data,
        folder,
        seed=seed,
        resume=(folder / "checkpoint.npz").exists(),
        on_epoch=_telling(f"{recipe.name}, seed {seed}", recipe, say),
        teachers=artifacts / "teachers",
        say=say,
    )
    if metrics["epochs"] < recipe.epochs:
        raise KeyboardInterrupt
    model = load_model(folder)
    wrong = np.flatnonzero(_digits(model, data.test_images) != data.test_labels)
    corrupted = {
        kind: float((_digits(model, images) == data.test_labels).mean())
        for kind, images in corruptions.corrupt(data.test_images).items()
    }
    return {**metrics, "wrong": wrong.tolist(), "corrupted": corrupted}


def _folder(artifacts: Path, recipe: str, seed: int) -> Path:
    return artifacts / "study" / f"{recipe}-{seed}"


def _trial(
    trick: str, recipe: Recipe, seed: int, data: Mnist, artifacts: Path, say: Say
) -> dict[str, Any]:
    """Train for the ablation; the test images are not looked at."""
    training, validation = data.split(recipe.validation_split)
    epochs_from = distillation.source(recipe, training, validation, artifacts / "teachers", say)
    trainer = Trainer(recipe, len(training.labels), seed)
    for number, batches in enumerate(epochs_from(seed, 0), start=1):
        loss, _ = trainer.fit(batches)
        say(f"{trick}, seed {seed}  epoch {number:2}/{recipe.epochs}  loss {loss:.4f}")
    calibration.calibrate(trainer.average, validation)  # softened answers are not worse ones
    loss, accuracy = evaluate(trainer.average, validation)
    errors = round((1 - accuracy) * len(validation.labels))
    return {"trick": trick, "seed": seed, "accuracy": accuracy, "loss": loss, "errors": errors}


def _digits(model: keras.Model, images: Images) -> Digits:
    """Read (N, 784) images; returns (N,)."""
    digits: Digits = probabilities(model, images).argmax(axis=1)
    return digits


def _telling(name: str, recipe: Recipe, say: Say) -> OnEpoch:
    """Say what is trained in front of every epoch's line."""
    return lambda epoch, row: say(f"{name}  {describe(epoch, recipe.epochs, row)}")
