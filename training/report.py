"""The training report: figures, tables, and one page that holds them all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from serving.publishing.files import write_atomically
from training.data import augmentation
from training.data.mnist import SIDE, Images, Labels, Mnist, as_pixels
from training.fitting.artifacts import load_json, load_model, recipe_of
from training.fitting.evaluation import Probabilities, probabilities, reliability_bins
from training.page import (
    INK,
    MUTED,
    RULE,
    WIDTH,
    PageFigure,
    draw,
    page,
    scale_accuracy,
    scale_loss,
    section,
    tidy,
)
from training.tables import Table, as_text

TRAINING, VALIDATION = "#e08214", "#2166ac"
TILES = 18
"""Digits in a gallery."""
COLUMNS = 6
PIXELS = "none"
"""Interpolation of images: none in the file, and no smoothing on the screen."""
CAPTIONS = {
    "curves": (
        "Learning",
        "Loss and accuracy by epoch.",  # and how the recipe measures them
    ),
    "reliability": (
        "Reliability diagram",
        "Test images in bins by confidence, the probability of the answered digit; larger points "
        "are more images. On the line as many answers are right as their confidence says; below it "
        "the network is overconfident.",
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
_ROBUSTNESS = (
    "The test images, degraded in each of the ways that augmentation has. Recipes that train with "
    "these ways do better here than on others: compare docs/training.md, which has MNIST-C's."
)
Counts = npt.NDArray[np.int_]


def gallery(images: Images, titles: Sequence[str]) -> Figure:
    """Draw digits in rows of six, dark ink on white, each under its title."""
    shown = images[:TILES].reshape(-1, SIDE, SIDE)
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = Figure(figsize=(WIDTH, 1.5 * rows), layout="constrained")
    for place, (image, title) in enumerate(zip(shown, titles, strict=False), start=1):
        tile = figure.add_subplot(rows, COLUMNS, place)
        tile.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation=PIXELS)
        tile.set_title(title, fontsize=10, color=INK, pad=4)
        tile.set(xticks=[], yticks=[])
        tile.spines[:].set_color(RULE)
    if not len(shown):
        figure.text(0.5, 0.5, "none", ha="center", va="center", color=MUTED, fontsize=12)
    return figure


def layers(table: Sequence[Sequence[str]]) -> Figure:
    """Draw the layer table."""
    figure = Figure(figsize=(WIDTH, 0.3 * len(table) + 0.2))
    axes = figure.add_axes((0.03, 0.02, 0.94, 0.96))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(table), 0))
    columns = [(0.0, "left"), (0.42, "left"), (0.66, "left"), (1.0, "right")]
    for row, cells in enumerate(table):
        edge = row in (0, len(table) - 1)
        for cell, (x, align) in zip(cells, columns, strict=True):
            axes.text(
                x,
                row + 0.5,
                cell,
                ha=align,
                va="center",
                fontsize=10,
                color=INK,
                weight="bold" if edge else "normal",
            )
        axes.axhline(row + 1, color=INK if edge else RULE, linewidth=0.8)
    return figure


def curves(history: dict[str, list[float]]) -> Figure:
    """Draw loss and accuracy by epoch, for training and validation."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _curve(loss, history["loss"], history["val_loss"], "loss (cross-entropy)")
    _curve(accuracy, history["accuracy"], history["val_accuracy"], "accuracy")
    scale_loss(loss)
    scale_accuracy(accuracy, [*history["accuracy"], *history["val_accuracy"]])
    return figure


def _curve(axes: Axes, training: list[float], validation: list[float], title: str) -> None:
    epochs = np.arange(1, len(training) + 1)
    marker = "o" if len(epochs) <= 30 else ""
    axes.plot(epochs, training, color=TRAINING, label="training", marker=marker, markersize=3)
    axes.plot(epochs, validation, color=VALIDATION, label="validation", marker=marker, markersize=3)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("epoch", color=MUTED)
    axes.set_xlim(0, 1.02 * len(epochs))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    tidy(axes)
    axes.legend(frameon=False, labelcolor=INK)


def reliability(answers: Probabilities, labels: Labels) -> Figure:
    """Draw the share of right answers by confidence, in bins of equal width."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=RULE)
    for confidence, right, num in reliability_bins(answers, labels):
        axes.plot(confidence, right, "o", color=VALIDATION, markersize=3 * (1 + np.log10(num)))
    axes.set_xlabel("confidence", color=MUTED)
    axes.set_ylabel("answered correctly", color=MUTED)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    tidy(axes)
    return figure


def confusion(counts: npt.NDArray[np.int_]) -> Figure:
    """Draw the confusion matrix; only mistakes are coloured, so that they stand out."""
    right = np.eye(10, dtype=bool)
    mistakes = np.where(right, 0, counts)
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    axes = figure.subplots()
    most = 1.8 * max(1, mistakes.max())
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=most, interpolation=PIXELS)
    diagonal = np.ma.masked_array(right, ~right)
    axes.imshow(diagonal, cmap="Greys", vmin=0, vmax=12, interpolation=PIXELS)
    for (real, predicted), count in np.ndenumerate(counts):
        if count:
            axes.text(predicted, real, str(count), ha="center", va="center", fontsize=10, color=INK)
    axes.set_xlabel("predicted digit", color=MUTED)
    axes.set_ylabel("real digit", color=MUTED)
    axes.set(xticks=range(10), yticks=range(10))
    axes.set_xticks(np.arange(11) - 0.5, minor=True)
    axes.set_yticks(np.arange(11) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.spines[:].set_visible(False)
    return figure


def render(
    metrics: Mapping[str, Any], tables: Mapping[str, Table], pictures: Mapping[str, PageFigure]
) -> str:
    """Write the page; `tables` has "robustness", "digits" and "layers"."""
    curves, *others = CAPTIONS
    heading, caption = CAPTIONS[curves]
    lead = (
        f"{metrics['accuracy']['test']:.2%} of the test digits are classified correctly; "
        f"{metrics['errors']['test']:,} are not.",
        _training(metrics) + _own(metrics) + _calibration(metrics),
    )
    sections = (
        section("Loss and accuracy", "", _results(metrics)),
        section(heading, f"{caption} {_measured(metrics)}", pictures[curves]),
        *(section(*CAPTIONS[name], pictures[name]) for name in others),
        section("Robustness", _ROBUSTNESS, tables["robustness"]),
        section("Digit by digit", "", tables["digits"]),
        section("Layers", "", tables["layers"]),
    )
    return page("Digit classifier: training report", lead, sections)


def _results(metrics: Mapping[str, Any]) -> Table:
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


def _measured(metrics: Mapping[str, Any]) -> str:
    """Say how the recipe measures training and validation, so that the curves are not misread."""
    recipe = recipe_of(metrics)
    augmented = recipe.deformation is not None
    training = "with dropout on" + (", on augmented images" if augmented else "")
    if recipe.validation_split:
        return (
            f"Training is measured {training}; validation on images that were held out, without "
            "either, so it may look better."
        )
    return (
        f"Training is measured {training}. All images are trained on: validation has the last "
        "5,000 of them, augmented as in no epoch, and so lies below the accuracy on test images."
    )


def _validation_name(metrics: Mapping[str, Any]) -> str:
    """Name the images that were validated with: a recipe may hold none out."""
    return "validation" if recipe_of(metrics).validation_split else "augmented training"


def _training(metrics: Mapping[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in metrics["libraries"].items())
    how = (metrics["recipe"], *recipe_of(metrics).changes_in_words(), f"seed {metrics['seed']}")
    return (
        f"Recipe {', '.join(how)}: {metrics['epochs']} epochs in "
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
    facts = metrics.get("calibration")
    if facts is None or "least_confidence" not in facts["coverage"]:  # artifacts of an old version
        return ""
    coverage = facts["coverage"]
    return (
        f" Calibrated on the {_validation_name(metrics)} images: temperature "
        f"{facts['temperature']:.2f}, expected calibration error on the test images "
        f"{facts['ece']['after']:.2%} ({facts['ece']['before']:.2%} before). Of the "
        f"{coverage['share']:.0%} of the test images with the highest probabilities, "
        f"{coverage['accuracy']:.2%} are classified correctly; the lowest of these probabilities "
        f"is {coverage['least_confidence']:.2f}."
    )


def write(artifacts: Path, data: Mnist) -> None:
    """Write the report on the trained model beside it.

    Its files are samples.svg, layers.svg, layers.txt, curves.svg, reliability.svg, confusion.svg,
    mistakes.svg and report.html.

    Args:
        artifacts: holds model.keras, history.json and metrics.json, as training leaves them.
        data: MNIST; the mistakes shown are those on its test images.

    Raises:
        NotTrained: one of the three is missing or unreadable.
        OSError: a file could not be written.
    """
    model = load_model(artifacts)
    history, metrics = load_json(artifacts, "history.json"), load_json(artifacts, "metrics.json")
    answers = probabilities(model, data.test_images)
    table = layer_table(model)
    counts = confusion_counts(answers, data.test_labels)
    drawn = {
        "samples": draw(*samples(data)),
        "layers": draw(layers(table), "The layers, as in layers.txt"),
        "curves": draw(curves(history), curves_alt(history)),
        "reliability": draw(
            reliability(answers, data.test_labels),
            reliability_alt(answers, data.test_labels),
        ),
        "confusion": draw(confusion(counts), confusion_alt(counts)),
        "mistakes": draw(*mistakes(data, answers)),
    }
    tables = {
        "robustness": robustness_table(model, data),
        "digits": digit_table(counts),
        "layers": table,
    }
    html = render(metrics, tables, drawn)
    files = {f"{name}.svg": picture.svg for name, picture in drawn.items()}
    files |= {"layers.txt": as_text(table).encode(), "report.html": html.encode()}
    for name, content in files.items():
        write_atomically(artifacts / name, content)


def layer_table(model: keras.Model) -> Table:
    """List the layers: a heading, the input, each layer, and the total."""
    layers = [
        (layer.name, _kind(layer), str(layer.output.shape[1]), f"{layer.count_params():,}")
        for layer in model.layers
    ]
    return [
        ("layer", "kind", "outputs", "parameters"),
        ("images", "28 × 28 pixels", str(model.input_shape[1]), "0"),
        *layers,
        ("total", "", "", f"{model.count_params():,}"),
    ]


def _kind(layer: keras.Layer) -> str:
    """Name a layer's type, and its rate or activation."""
    if isinstance(layer, keras.layers.Dropout):
        return f"Dropout, {layer.rate:.2g}"
    return f"{type(layer).__name__}, {layer.activation.__name__}"


def confusion_counts(answers: Probabilities, labels: Labels) -> Counts:
    """Count images by real digit (rows) and predicted digit (columns); returns (10, 10)."""
    counts = np.zeros((10, 10), np.int_)
    np.add.at(counts, (labels, answers.argmax(axis=1)), 1)
    return counts


def digit_table(counts: Counts) -> Table:
    """Compute the accuracy of each digit, from (10, 10) counts by real and predicted digit."""
    rows = [("digit", "images", "wrong", "commonest mistake", "accuracy")]
    for digit, predicted in enumerate(counts):
        images, right = predicted.sum(), predicted[digit]
        wrong = np.where(np.arange(10) == digit, 0, predicted)
        mostly = f"{wrong.argmax()} ({wrong.max()} ×)" if wrong.any() else "–"
        accuracy = f"{right / images:.1%}" if images else "–"
        rows.append((str(digit), f"{images:,}", f"{wrong.sum()}", mostly, accuracy))
    return rows


def robustness_table(model: keras.Model, data: Mnist) -> Table:
    """Compute the accuracy on the test images, degraded in one way at a time."""
    rows = [("test images", "accuracy")]
    pixels = data.test_images.reshape(-1, SIDE, SIDE).astype(np.float32)
    for way in augmentation.WAYS:
        degraded = as_pixels(way(pixels, np.random.default_rng(0))).reshape(len(pixels), -1)
        right = probabilities(model, degraded).argmax(axis=1) == data.test_labels
        rows.append((way.__name__.replace("_", " "), f"{right.mean():.1%}"))
    return rows


def reliability_alt(answers: Probabilities, labels: Labels) -> str:
    """Describe the reliability diagram in words: its bins."""
    bins = [
        f"{confidence:.0%} confident, {right:.0%} right ({num:,})"
        for confidence, right, num in reliability_bins(answers, labels)
    ]
    return f"Points beside the diagonal: {'; '.join(bins)}."


def curves_alt(history: dict[str, list[float]]) -> str:
    """Describe the curves in words: where each begins and ends."""
    curves = {"training": "", "validation": "val_"}
    parts = [
        f"{images} {name} from {history[prefix + name][0]:.3f} to {history[prefix + name][-1]:.3f}"
        for name in ("loss", "accuracy")
        for images, prefix in curves.items()
    ]
    return f"Two line charts over {len(history['loss'])} epochs: {', '.join(parts)}."


def confusion_alt(counts: Counts) -> str:
    """Describe the confusion matrix in words: how many are right, and the commonest mistakes."""
    wrong = np.where(np.eye(10, dtype=bool), 0, counts)
    commonest = [divmod(int(cell), 10) for cell in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    listed = [
        f"{real} read as {predicted} ({wrong[real, predicted]} times)"
        for real, predicted in commonest
        if wrong[real, predicted]
    ]
    return (
        f"A grid of counts, ten digits by ten: {np.trace(counts):,} of {counts.sum():,} images lie "
        f"on the diagonal. The commonest mistakes: {', '.join(listed) or 'none'}."
    )


def samples(data: Mnist) -> tuple[Figure, str]:
    """Draw the first training images, and describe them in words."""
    labels = data.train_labels[:TILES]
    figure = gallery(data.train_images[:TILES], [f"label {label}" for label in labels])
    return figure, f"{len(labels)} handwritten digits: {', '.join(map(str, labels))}."


def mistakes(data: Mnist, answers: Probabilities) -> tuple[Figure, str]:
    """Draw the misread test images, the most confident first, and describe them in words."""
    digits, confidence = answers.argmax(axis=1), answers.max(axis=1)
    wrong = np.flatnonzero(digits != data.test_labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:TILES]
    titles = [f"predict {digits[i]}\nreal {data.test_labels[i]}" for i in shown]
    listed = [f"{data.test_labels[i]} read as {digits[i]}" for i in shown]
    alt = f"{len(shown)} misread digits: {', '.join(listed) or 'none'}."
    return gallery(data.test_images[shown], titles), alt
