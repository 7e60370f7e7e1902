"""The final models of the study, and their teachers: train what is missing, and measure it once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.config import Recipe
from training.data.mnist import Mnist
from training.errors import NotTrained
from training.fitting import artifacts, teachers
from training.fitting.loop import Log, add_prefix
from training.fitting.train import split, train
from training.lab.study.measures import Measures
from training.lab.study.results import TEACHER, Run
from training.report import report


def final_model(
    recipe: Recipe, seed: int, data: Mnist, folder: Path, measures: Measures, log: Log
) -> Run:
    """Train one final model unless it is there, write its report, and measure it once.

    Raises:
        KeyboardInterrupt: the training was interrupted; the next call resumes it.
        OSError: a file could not be written.
        ResumeError: its folder has the checkpoint of another training.
    """
    own = model_folder(folder, recipe.name, seed)
    log = add_prefix(f"{recipe.name}, seed {seed}", log)
    metrics = trained(own, recipe, seed)
    if metrics:
        log("is trained: measuring it")
    else:
        resume = (own / "checkpoint.npz").exists()
        cache = folder / "teachers"
        metrics = train(recipe, data, own, seed=seed, resume=resume, teachers=cache, log=log)
    if metrics["epochs"] < recipe.epochs:
        raise KeyboardInterrupt
    report.write(own, data)
    model = artifacts.load_model(own)
    return {**metrics, "examples": examples(data, recipe), **measures.of(model)}


def teacher_runs(
    best: Recipe, data: Mnist, folder: Path, measures: Measures, log: Log, done: int
) -> Iterator[Run]:
    """Measure the teachers of a recipe but for the first ones, and train those that are missing."""
    if not best.distillation or done >= best.distillation.teachers:
        return
    training, validation = split(data, best)
    models = teachers.train(best.distillation, training, validation, folder / "teachers", log)
    for seed, model in list(enumerate(models))[done:]:
        measured = measures.of(model)
        errors = len(measured["wrong"])
        yield {
            "recipe": TEACHER,
            "seed": seed,
            "parameters": model.count_params(),
            "accuracy": {"test": 1 - errors / len(data.test_labels)},
            "errors": {"test": errors},
            "examples": examples(data, best),
            **measured,
        }


def examples(data: Mnist, recipe: Recipe) -> dict[str, int]:
    """Count the images that a recipe trains on, and those that it holds out."""
    training, validation = data.split(recipe.validation_split)
    return {"training": len(training.labels), "validation": len(validation.labels)}


def trained(folder: Path, recipe: Recipe, seed: int) -> dict[str, Any] | None:
    """Find a final model that is complete, whoever trained it.

    Args:
        folder: may have the artifacts of a training.
        recipe: that it must be of: the same name and epochs.
        seed: that it must be of.

    Returns:
        Its metrics.json; None if there is none, or it is unfinished, or of another training.
    """
    if (folder / "checkpoint.npz").exists() or not (folder / "model.keras").exists():
        return None
    try:
        metrics = artifacts.load_json(folder, "metrics.json")
    except NotTrained:
        return None
    expected = {"recipe": recipe.name, "seed": seed, "epochs": recipe.epochs, "extra": None}
    return metrics if all(metrics.get(name) == value for name, value in expected.items()) else None


def model_folder(folder: Path, recipe: str, seed: int) -> Path:
    """Return the folder of a final model below the artifacts."""
    return folder / "study" / f"{recipe}-{seed}"
