"""The training report: figures, tables, and one page that holds them all."""

from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from training.data import augmentation
from training.data.mnist import SIDE, Labels, Mnist, as_pixels
from training.files import write_atomically
from training.fitting.artifacts import load_json, load_model
from training.fitting.evaluation import Probabilities, probabilities, reliability_bins
from training.report import page
from training.report.page import Table

Counts = npt.NDArray[np.int_]


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
    layers = layer_table(model)
    counts = confusion_counts(answers, data.test_labels)
    drawn = {
        "samples": page.draw(*samples(data)),
        "layers": page.draw(page.layers(layers), "The layers, as in layers.txt"),
        "curves": page.draw(page.curves(history), curves_alt(history)),
        "reliability": page.draw(
            page.reliability(answers, data.test_labels),
            reliability_alt(answers, data.test_labels),
        ),
        "confusion": page.draw(page.confusion(counts), confusion_alt(counts)),
        "mistakes": page.draw(*mistakes(data, answers)),
    }
    tables = {
        "robustness": robustness_table(model, data),
        "digits": digit_table(counts),
        "layers": layers,
    }
    html = page.render(metrics, tables, drawn)
    files = {f"{name}.svg": picture.svg for name, picture in drawn.items()}
    files |= {"layers.txt": _as_text(layers).encode(), "report.html": html.encode()}
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
    bins = [f"{confidence:.0%} confident, {right:.0%} right ({num:,})"
            for confidence, right, num in reliability_bins(answers, labels)]  # fmt: skip
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
    listed = [f"{real} read as {predicted} ({wrong[real, predicted]} times)"
              for real, predicted in commonest if wrong[real, predicted]]  # fmt: skip
    return (
        f"A grid of counts, ten digits by ten: {np.trace(counts):,} of {counts.sum():,} images lie "
        f"on the diagonal. The commonest mistakes: {', '.join(listed) or 'none'}."
    )


def samples(data: Mnist) -> tuple[Figure, str]:
    """Draw the first training images, and describe them in words."""
    labels = data.train_labels[: page.TILES]
    figure = page.gallery(data.train_images[: page.TILES], [f"label {label}" for label in labels])
    return figure, f"{len(labels)} handwritten digits: {', '.join(map(str, labels))}."


def mistakes(data: Mnist, answers: Probabilities) -> tuple[Figure, str]:
    """Draw the misread test images, the most confident first, and describe them in words."""
    digits, confidence = answers.argmax(axis=1), answers.max(axis=1)
    wrong = np.flatnonzero(digits != data.test_labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][: page.TILES]
    titles = [f"predict {digits[i]}\nreal {data.test_labels[i]}" for i in shown]
    listed = [f"{data.test_labels[i]} read as {digits[i]}" for i in shown]
    alt = f"{len(shown)} misread digits: {', '.join(listed) or 'none'}."
    return page.gallery(data.test_images[shown], titles), alt


def _as_text(table: Table) -> str:
    """Format a table in columns, for a terminal."""
    *widths, last = [max(map(len, column)) for column in zip(*table, strict=True)]
    form = "".join(f"{{:{width}}}  " for width in widths) + f"{{:>{last}}}\n"
    return "".join(form.format(*row) for row in table)
