"""The page of the training report: its text, and the order of its sections."""

from collections.abc import Mapping
from typing import Any

from training.config import RECIPES
from training.report.page import Picture, Table, page, section

CAPTIONS = {
    "curves": (
        "Learning",
        "Loss and accuracy by epoch. Training is measured with dropout on, and on images deformed "
        "as the recipe says; validation without either, so it may look better. "
        "Training accuracies of the first epochs may lie below the axis.",
    ),
    "mistakes": (
        "Mistakes",
        "Misread test digits, the most confident mistakes first.",
    ),
    "confusion": (
        "Confusion matrix",
        "Test images by real digit (rows) and predicted digit (columns). The diagonal is right; "
        "beside it, a stronger colour is a more common mistake.",
    ),
    "samples": (
        "Training images",
        "The first training images and their labels.",
    ),
}
"""Heading and caption of each picture, in the order of the page."""


def render(
    metrics: Mapping[str, Any], layers: Table, digits: Table, pictures: Mapping[str, Picture]
) -> str:
    """Write the page."""
    return page(
        title="Digit classifier: training report",
        heading=f"{metrics['accuracy']['test']:.2%}",
        lead=[
            f"of the test digits are classified correctly; {metrics['errors']['test']:,} are not.",
            _training(metrics) + _own(metrics) + _calibration(metrics),
        ],
        sections=[
            section("Loss and accuracy", "", _results(metrics)),
            *(section(*CAPTIONS[name], pictures[name]) for name in CAPTIONS),
            section("Digit by digit", "", digits),
            section("Layers", "", layers),
        ],
    )


def _results(metrics: Mapping[str, Any]) -> Table:
    """Return the table of loss and accuracy."""
    names = {"test": "test", "validation": _validation_name(metrics)}
    sets = [
        (name, metrics["accuracy"][key], metrics["loss"][key])
        for key, name in names.items()
        if key in metrics["accuracy"]
    ]
    if "accuracy" in (own := metrics.get("extra", {})):
        name = f"your own, held out ({own['held_out']:,})"
        sets.append((name, own["accuracy"], own["loss"]))
    rows = [(name, f"{loss:.4f}", f"{accuracy:.2%}") for name, accuracy, loss in sets]
    return [("images", "loss", "accuracy"), *rows]


def _validation_name(metrics: Mapping[str, Any]) -> str:
    """Name the images that were validated with: a recipe may hold none out."""
    recipe = RECIPES.get(metrics["recipe"])
    return "validation" if recipe is None or recipe.validation_split else "deformed training"


def _training(metrics: Mapping[str, Any]) -> str:
    """Describe in one sentence how the network was trained."""
    libraries = ", ".join(f"{name} {version}" for name, version in metrics["libraries"].items())
    return (
        f"Recipe {metrics['recipe']}, seed {metrics['seed']}: {metrics['epochs']} epochs in "
        f"{metrics['train_seconds']:.0f} s on {metrics['device']}, {metrics['parameters']:,} "
        f"parameters ({libraries})."
    )


def _own(metrics: Mapping[str, Any]) -> str:
    """Describe in one sentence the part of a user's own images."""
    if "extra" not in metrics:
        return ""
    own = metrics["extra"]
    sentence = f" It was trained on {own['images']:,} images of your own, too; "
    if "accuracy" not in own:
        return f"{sentence}none was held out, which takes 5 of a digit."
    held_out = f"of {own['held_out']:,} others, held out, "
    return f"{sentence}{held_out}{own['accuracy']:.1%} are classified correctly."


def _calibration(metrics: Mapping[str, Any]) -> str:
    """Describe in two sentences how well its probabilities are calibrated."""
    if "calibration" not in metrics:  # artifacts of an old version
        return ""
    facts = metrics["calibration"]
    coverage = facts["coverage"]
    return (
        f" Calibrated on the {_validation_name(metrics)} images: temperature "
        f"{facts['temperature']:.2f}, expected calibration error on the test images "
        f"{facts['ece']['after']:.2%} ({facts['ece']['before']:.2%} before). Of the "
        f"{coverage['share']:.0%} of the test images with the highest probabilities, "
        f"{coverage['accuracy']:.2%} are classified correctly; the lowest of these probabilities "
        f"is {coverage['least_certainty']:.2f}."
    )
