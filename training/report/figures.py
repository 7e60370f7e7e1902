"""The report's figures: each function draws one, without pyplot's global state."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from training.data.mnist import SIDE, Images
from training.report.page import Picture

INK, MUTED, RULE = "#1f2933", "#697586", "#d9dee5"
WIDTH = 6.0
"""Of every figure, in inches: on a phone, 346 pixels wide, labels of 10 points have 8 pixels."""
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

TRAINING, VALIDATION = "#e08214", "#2166ac"

TILES = 18
"""Digits in a gallery."""
COLUMNS = 6

PIXELS = "none"
"""Interpolation of images: none in the file, and no smoothing on the screen."""


def draw(figure: Figure, alt: str) -> Picture:
    """Render a figure as an SVG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # Text stays text: smaller and searchable. The salt makes ids repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "digits"}):
        figure.savefig(buffer, format="svg", metadata=_METADATA)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return Picture(b"\n".join(lines) + b"\n", alt)


def tidy(axes: Axes) -> None:
    """Give axes a light grid, and two thin lines instead of a frame."""
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED)


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
                x, row + 0.5, cell, ha=align, va="center", fontsize=10,
                color=INK, weight="bold" if edge else "normal",
            )  # fmt: skip
        axes.axhline(row + 1, color=INK if edge else RULE, linewidth=0.8)
    return figure


def curves(history: dict[str, list[float]]) -> Figure:
    """Draw loss and accuracy by epoch, for training and validation."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _curve(loss, history["loss"], history["val_loss"], "loss (cross-entropy)")
    _curve(accuracy, history["accuracy"], history["val_accuracy"], "accuracy")
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_minor_locator(NullLocator())
    loss.yaxis.set_major_formatter("{x:g}")
    worst = min(*history["val_accuracy"], history["accuracy"][-1])
    accuracy.set_ylim(1 - 1.2 * max(0.01, 1 - worst), 1)  # training's first epochs lie far below
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _curve(axes: Axes, training: list[float], validation: list[float], title: str) -> None:
    """Draw one quantity by epoch."""
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
