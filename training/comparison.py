"""The comparison of runs: their curves over each other, with tables, as one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from serving.publishing.files import write_atomically
from training import runs
from training.page import (
    INK,
    MUTED,
    WIDTH,
    draw,
    page,
    scale_accuracy,
    scale_loss,
    section,
    tidy,
)
from training.runs import Run

COLOURS = ("#2166ac", "#e08214", "#1b7837", "#b2182b", "#762a83", "#8c6d31", "#01a0a8", "#c51b7d")
MOST_RUNS = len(COLOURS)
SAME = "The runs do not differ in any setting."
_CAPTION = (
    "Validation images solid, training dotted. Recipes differ in what they validate on; the test "
    "images are the same for all."
)


def write(chosen: Sequence[Run], folder: Path) -> Path:
    """Write compare.html and compare.svg, and return the page's path.

    Args:
        chosen: two runs or more, at most `MOST_RUNS`.
        folder: where; both files are replaced.

    Raises:
        OSError: a file could not be written.
    """
    picture = draw(curves(chosen), _described(chosen))
    differences = runs.differences(chosen)
    same = "" if len(differences) > 1 else SAME
    sections = (
        section("Trainings", "", [("", "run"), *runs.letters(chosen).items()]),
        section("Learning", _CAPTION, picture),
        section("Settings that differ", same, differences),
        section("Figures", "", runs.results(chosen)),
    )
    title = f"Comparison of {len(chosen)} trainings"
    html = page(title, [], sections)
    for name, content in (("compare.svg", picture.svg), ("compare.html", html.encode())):
        write_atomically(folder / name, content)
    return folder / "compare.html"


def curves(chosen: Sequence[Run]) -> Figure:
    """Draw loss and accuracy by epoch, the runs over each other, their letters beneath."""
    figure = Figure(figsize=(WIDTH, 6.0), layout="constrained")
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    for letter, run, colour in zip(runs.letters(chosen), chosen, COLOURS, strict=False):
        _curve(loss, run, "loss", colour, letter)
        _curve(accuracy, run, "accuracy", colour, letter)
        last = len(run.history["val_loss"]), run.history["val_loss"][-1]
        loss.annotate(letter, last, (4, 0), textcoords="offset points", va="center", color=colour)
    loss.set_title("loss (cross-entropy)", loc="left", fontsize=11, color=INK)
    accuracy.set_title("accuracy", loc="left", fontsize=11, color=INK)
    accuracy.set_xlabel("epoch", color=MUTED)
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    scale_loss(loss)
    both = ("accuracy", "val_accuracy")
    scale_accuracy(accuracy, [value for run in chosen for n in both for value in run.history[n]])
    figure.legend(
        *loss.get_legend_handles_labels(),
        loc="outside lower center",
        frameon=False,
        labelcolor=INK,
        ncols=len(chosen),
    )
    return figure


def _curve(axes: Axes, run: Run, name: str, colour: str, letter: str) -> None:
    epochs = np.arange(1, len(run.history[name]) + 1)
    marker = "o" if len(epochs) <= 30 else ""
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3}
    axes.plot(epochs, run.history[name], linestyle=":", alpha=0.7, **style)
    axes.plot(epochs, run.history[f"val_{name}"], label=letter, **style)
    tidy(axes)


def _described(chosen: Sequence[Run]) -> str:
    """Describe the picture in words: where each curve ends."""
    ends = [
        f"{run.name} ends at a validation loss of {run.history['val_loss'][-1]:.3f} and an accuracy"
        f" of {run.history['val_accuracy'][-1]:.3f}"
        for run in chosen
    ]
    return f"Two line charts, loss and accuracy by epoch: {'; '.join(ends)}."
