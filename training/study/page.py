"""What the training report says, and in which order."""

from collections.abc import Mapping
from typing import Any

from reports.page import Picture, Table, page, section

CAPTIONS = {
    "curves": (
        "Learning",
        "Loss and accuracy by epoch. Training is measured with dropout on, and on images deformed "
        "as the recipe says; validation is measured without either, so it may well look better. "
        "Training's first epochs may lie below the accuracies shown.",
    ),
    "mistakes": (
        "Mistakes",
        "Misread test digits, the most confident mistakes first.",
    ),
    "confusion": (
        "What is taken for what",
        "Test images by real digit (rows) and predicted digit (columns). The diagonal is right; "
        "the stronger the colour beside it, the more common that mistake.",
    ),
    "samples": (
        "What it learned from",
        "The first training images and their labels.",
    ),
}
"""Heading and caption of each picture, in the order of the page."""


def render(
    metrics: Mapping[str, Any],
    layers: Table,
    digits: Table,
    pictures: Mapping[str, Picture],
    study: Mapping[str, Table],
) -> str:
    """Write the page.

    Args:
        metrics: metrics.json.
        layers: the layer table.
        digits: the accuracy of each digit.
        pictures: by the names in CAPTIONS.
        study: what is known of all recipes, by heading.
    """
    return page(
        title="Digit classifier: training report",
        heading=f"{metrics['accuracy']['test']:.2%}",
        lead=[
            f"of the test digits are read correctly: {metrics['errors']['test']:,} were not.",
            _training(metrics) + _calibration(metrics),
        ],
        sections=[
            section("Loss and accuracy", "", _results(metrics)),
            *(section(*CAPTIONS[name], pictures[name]) for name in CAPTIONS),
            section("Digit by digit", "", digits),
            section("Layers", "", layers),
            *(section(title, "", table) for title, table in study.items()),
        ],
    )


def _results(metrics: Mapping[str, Any]) -> Table:
    """Lay out what was measured."""
    sets = [
        (name, metrics["accuracy"][name], metrics["loss"][name]) for name in ("test", "validation")
    ]
    rows = [(name, f"{loss:.4f}", f"{accuracy:.2%}") for name, accuracy, loss in sets]
    return [("images", "loss", "accuracy"), *rows]


def _training(metrics: Mapping[str, Any]) -> str:
    """Tell in one sentence how the network was trained."""
    libraries = ", ".join(f"{name} {version}" for name, version in metrics["libraries"].items())
    return (
        f"Recipe {metrics['recipe']}, seed {metrics['seed']}: {metrics['epochs']} epochs in "
        f"{metrics['train_seconds']:.0f} s on {metrics['device']}, {metrics['parameters']:,} "
        f"parameters ({libraries})."
    )


def _calibration(metrics: Mapping[str, Any]) -> str:
    """Tell in one sentence what its probabilities are worth."""
    if "calibration" not in metrics:  # trained before it was measured
        return ""
    facts = metrics["calibration"]
    coverage = facts["coverage"]
    return (
        f" Calibrated on the validation images: temperature {facts['temperature']:.2f}, expected "
        f"calibration error on the test images {facts['ece']['after']:.2%} "
        f"({facts['ece']['before']:.2%} before). Of the {coverage['share']:.0%} of the test images "
        f"that it is surest of, {coverage['accuracy']:.2%} are read correctly; the least certain "
        f"has a probability of {coverage['least_certainty']:.2f}."
    )
