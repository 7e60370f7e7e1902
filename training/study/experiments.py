"""The study: train every recipe from several seeds, measure what each trick gives, save it.

Each row is saved as soon as it is complete, so an interrupted study resumes with what is missing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from training.config import RECIPES, Recipe
from training.data.mnist import Examples, Mnist
from training.fitting import artifacts, calibration, distillation
from training.fitting.evaluation import evaluate, probabilities
from training.fitting.loop import Log, add_prefix
from training.fitting.train import train
from training.fitting.trainer import Trainer
from training.study import corruptions, report
from training.study.comparison import chosen_run
from training.study.results import Results, Run

SEEDS = {"best": 3, "default": 5, "seed": 5}
"""The number of final models of each recipe; their seeds are 0, 1 and so on."""

ABLATION_EPOCHS = 40
ABLATION_SEEDS = 2


def run(data: Mnist, folder: Path, results: Path, log: Log) -> None:
    """Train what the results lack.

    Args:
        data: MNIST.
        folder: the artifacts: the cache of teachers, and each final model with its report, in
            study/<recipe>-<seed>.
        results: the results file; it gets each row as soon as that is complete.
        log: gets lines of progress.

    Raises:
        KeyboardInterrupt: interrupted; what was complete is in the results.
        OSError: a file could not be written.
    """
    found = Results.load(results)
    done = {(run["recipe"], run["seed"]) for run in found.runs}
    for name, seed in ((name, seed) for name, num in SEEDS.items() for seed in range(num)):
        if (name, seed) not in done:
            found.runs.append(_final_model(RECIPES[name], seed, data, folder, log))
            found.save(results)
    tried = {(row["trick"], row["seed"]) for row in found.ablation}
    for seed in range(ABLATION_SEEDS):
        for trick, recipe in tricks().items():
            if (trick, seed) not in tried:
                name_log = add_prefix(f"{trick}, seed {seed}", log)
                figures = _trial(recipe, seed, data, folder / "teachers", name_log)
                found.ablation.append({"trick": trick, "seed": seed, **figures})
                found.save(results)


def chosen_folder(folder: Path, results: Path) -> Path:
    """Return the folder of the `best` model with the highest validation accuracy."""
    run = chosen_run(Results.load(results).of("best"))
    return _model_folder(folder, run["recipe"], run["seed"])


def tricks() -> dict[str, Recipe]:
    """Return the ablation's recipes, each with one trick more, from the tutorial's to best."""
    best = RECIPES["best"]
    full, _ = best.views()
    tutorial = replace(RECIPES["seed"], validation_split=best.validation_split)
    adamw = replace(
        best, deformation=None, distillation=None, averaging=0, dropout=tutorial.dropout
    )
    averaged = replace(adamw, averaging=RECIPES["default"].averaging)
    affine = replace(
        averaged, dropout=best.dropout, deformation=replace(full, elastic_px=0, thickness=0)
    )
    elastic = replace(affine, deformation=replace(full, thickness=0))
    thickness = replace(elastic, deformation=full)
    steps = {
        "the tutorial's": tutorial,
        "AdamW, cosine": adamw,
        "averaged weights": averaged,
        "affine deformation": affine,
        "elastic deformation": elastic,
        "stroke thickness": thickness,
        "distillation": replace(thickness, distillation=best.distillation),
    }
    return {trick: replace(recipe, epochs=ABLATION_EPOCHS) for trick, recipe in steps.items()}


def _final_model(recipe: Recipe, seed: int, data: Mnist, folder: Path, log: Log) -> Run:
    """Train one final model, write its report, and measure it once."""
    own = _model_folder(folder, recipe.name, seed)
    metrics = train(
        recipe,
        data,
        own,
        seed=seed,
        resume=(own / "checkpoint.npz").exists(),
        teachers=folder / "teachers",
        log=add_prefix(f"{recipe.name}, seed {seed}", log),
    )
    if metrics["epochs"] < recipe.epochs:
        raise KeyboardInterrupt
    report.write(own, data)
    model = artifacts.load_model(own)
    wrong = np.flatnonzero(~_right(model, data.test))
    corrupted = {
        kind: float(_right(model, Examples(images, data.test_labels)).mean())
        for kind, images in corruptions.corrupt(data.test_images).items()
    }
    return {**metrics, "wrong": wrong.tolist(), "corrupted": corrupted}


def _model_folder(folder: Path, recipe: str, seed: int) -> Path:
    return folder / "study" / f"{recipe}-{seed}"


def _trial(recipe: Recipe, seed: int, data: Mnist, teachers: Path, log: Log) -> dict[str, Any]:
    """Train for the ablation and validate; the test images are not used."""
    training, validation = data.split(recipe.validation_split)
    epochs = distillation.epoch_source(recipe, training, validation, teachers, log)
    trainer = Trainer(recipe, len(training.labels), seed)
    for number, batches in enumerate(epochs(seed, 0), start=1):
        loss, _ = trainer.fit(batches)
        log(f"epoch {number:2}/{recipe.epochs}  loss {loss:.4f}")
    calibration.calibrate(trainer.average, validation)  # else soft targets would cost some loss
    loss, accuracy = evaluate(trainer.average, validation)
    errors = round((1 - accuracy) * len(validation.labels))
    return {"accuracy": accuracy, "loss": loss, "errors": errors}


def _right(model: keras.Model, examples: Examples) -> npt.NDArray[np.bool_]:
    """Classify the images; returns (N,), whether each digit is the label."""
    digits = probabilities(model, examples.images).argmax(axis=1)
    right: npt.NDArray[np.bool_] = digits == examples.labels
    return right
