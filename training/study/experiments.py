"""The study: train every recipe from several seeds, measure what each trick gives, save it.

Each row is saved as soon as it is complete, so an interrupted study resumes with what is missing. A
final model that is trained already is only measured.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import RECIPES, SIZES, Recipe
from training.data.mnist import Mnist
from training.fitting import calibration, distillation
from training.fitting.evaluation import evaluate
from training.fitting.loop import Log, add_prefix
from training.fitting.trainer import Trainer
from training.study.final_models import final_model, model_folder, teacher_runs, teachers_folder
from training.study.measures import Measures
from training.study.results import Results, Run, chosen_run

SEEDS = 5
"""The number of final models of each recipe; their seeds are 0, 1 and so on."""

SIZE_SEEDS = 1

ABLATION_EPOCHS = 40
ABLATION_SEEDS = 2
ABLATION_SPLIT = 1 / 12
"""The share of the training images that validate the ablation, where `best` holds none out."""


def run(data: Mnist, folder: Path, results: Path, log: Log) -> None:
    """Train and measure what the results lack.

    Args:
        data: MNIST.
        folder: the artifacts: the cache of teachers, and each final model with its report, in
            study/<recipe>-<seed>.
        results: the results file; it gets each row as soon as that is complete.
        log: gets lines of progress.

    Raises:
        KeyboardInterrupt: interrupted; what was complete is in the results.
        OSError: a file could not be written.
        ResumeError: the folder of a final model has the checkpoint of another training.
    """
    found, measures = Results.load(results), Measures(data)

    def complete(rows: list[Run], recipes: dict[str, Recipe], seeds: int) -> None:
        done = {(row["recipe"], row["seed"]) for row in rows}
        for name, seed in ((name, seed) for name in recipes for seed in range(seeds)):
            if (name, seed) not in done:
                rows.append(final_model(recipes[name], seed, data, folder, measures, log))
                found.save(results)

    complete(found.runs, RECIPES, SEEDS)
    complete(found.sizes, SIZES, SIZE_SEEDS)
    for row in teacher_runs(RECIPES["best"], data, folder, measures, log, len(found.teachers)):
        found.teachers.append(row)
        found.save(results)
    tried = {(row["trick"], row["seed"]) for row in found.ablation}
    for seed in range(ABLATION_SEEDS):
        for trick, recipe in tricks().items():
            if (trick, seed) not in tried:
                name_log = add_prefix(f"{trick}, seed {seed}", log)
                figures = _trial(recipe, seed, data, teachers_folder(recipe, folder), name_log)
                found.ablation.append({"trick": trick, "seed": seed, **figures})
                found.save(results)


def chosen_folder(folder: Path, results: Path) -> Path:
    """Return the folder of the model that stands for `best`: see `chosen_run`."""
    run = chosen_run(Results.load(results).of("best"))
    return model_folder(folder, run["recipe"], run["seed"])


def tricks() -> dict[str, Recipe]:
    """Return the ablation's recipes, each with one trick more, from the tutorial's to best."""
    best, default = RECIPES["best"], RECIPES["default"]
    best = replace(best, validation_split=best.validation_split or ABLATION_SPLIT)
    full, _ = best.views()
    tutorial = replace(RECIPES["seed"], validation_split=best.validation_split)
    adamw = replace(
        best, deformation=None, mild=0, distillation=None, degraded=0, outliers=0, averaging=0,
        dropout=tutorial.dropout, optimizer=default.optimizer, learning_rate=default.learning_rate,
    )  # fmt: skip
    averaged = replace(adamw, averaging=default.averaging)
    affine = replace(
        averaged, dropout=best.dropout, deformation=replace(full, elastic_px=0, thickness=0)
    )
    elastic = replace(affine, deformation=replace(full, thickness=0))
    thickness = replace(elastic, deformation=full)
    degraded = replace(thickness, degraded=best.degraded, outliers=best.outliers)
    distilled = replace(degraded, distillation=best.distillation)
    mild = replace(distilled, mild=best.mild)
    muon = replace(mild, optimizer=best.optimizer, learning_rate=best.learning_rate)
    steps = {
        "the tutorial's": tutorial,
        "AdamW, cosine": adamw,
        "averaged weights": averaged,
        "affine deformation": affine,
        "elastic deformation": elastic,
        "stroke thickness": thickness,
        "degraded images, outliers": degraded,
        "distillation": distilled,
        "mild last epochs": mild,
        "Muon": muon,
    }
    return {trick: replace(recipe, epochs=ABLATION_EPOCHS) for trick, recipe in steps.items()}


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
