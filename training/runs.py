"""The runs of an artifacts folder: each training has a folder of its own, named by its settings.

artifacts/runs/NAME/    what a training writes: the network, history.json, metrics.json, the report
artifacts/              the same files of the latest run, where export and report look for them
artifacts/failed.json   the latest training, if it failed: the files above are of the one before
artifacts/teachers/     the teachers of `best`, which all runs share

A name has the recipe and the settings that differ from it, such as seed_epochs=60_seed=1; a
second run of the same settings gets a number: seed_2.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from serving.publishing.files import write_atomically
from training.config import Recipe
from training.errors import ResumeError, UnusableInput

CHECKPOINT = "checkpoint.npz"
METRICS, HISTORY = "metrics.json", "history.json"
FAILED = "failed.json"
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Run:
    """A training that left its figures."""

    name: str
    """The name of its folder."""
    metrics: Mapping[str, Any]
    """The content of metrics.json."""
    history: Mapping[str, Sequence[float]]
    """The content of history.json: loss, accuracy and so on, each with a value per epoch."""
    written_s: float
    """When it ended, in seconds since 1970."""

    @property
    def settings(self) -> dict[str, str]:
        """Every setting of the training, as text; nested ones have names with a dot."""
        seed, extra = self.metrics["seed"], self.metrics.get("extra", {})
        own = {"images of your own": f"{extra['images']}"} if extra else {}
        return {"seed": f"{seed}", **_flat(self.metrics["settings"]), **own}

    @property
    def is_complete(self) -> bool:
        """Whether it trained for all of its epochs."""
        return bool(self.metrics["epochs"] >= self.metrics["settings"]["epochs"])


def base_name(recipe: Recipe, seed: int, *, extra: str | None = None) -> str:
    """Return the name of a run's settings: the recipe, and all that differs from it.

    Args:
        recipe: the recipe, with its changed settings.
        seed: of the random numbers.
        extra: a digest of a user's own images; None for none.
    """
    words = [recipe.name, *recipe.changes_in_words()]
    words += [f"seed {seed}"] if seed else []
    words += [f"extra {extra[:8]}"] if extra else []
    name = "_".join(words).replace(",", "-").replace(" ", "=")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def begin(artifacts: Path, base: str) -> Path:
    """Make the folder of a new run.

    Raises:
        OSError: it can't be made.
    """
    for name in _names(base):
        folder = artifacts / "runs" / name
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("numbers do not end")


def interrupted(artifacts: Path, base: str) -> Path:
    """Return the folder of the newest run of these settings that left a checkpoint.

    Raises:
        ResumeError: there is none.
    """
    pattern = re.compile(rf"{re.escape(base)}(_\d+)?")
    found = [
        path.parent
        for path in (artifacts / "runs").glob(f"*/{CHECKPOINT}")
        if pattern.fullmatch(path.parent.name)
    ]
    if not found:
        raise ResumeError(
            f"nothing to resume: no interrupted training of these settings in {artifacts / 'runs'};"
            " train without --resume"
        )
    return max(found, key=lambda folder: (folder / CHECKPOINT).stat().st_mtime_ns)


def discard_empty(folder: Path) -> None:
    """Remove the folder of a run that ended before its first epoch."""
    with suppress(OSError):
        folder.rmdir()


def publish(folder: Path, artifacts: Path) -> None:
    """Copy a run's files to where export and report look for the latest training.

    Raises:
        OSError: a file could not be written.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != CHECKPOINT:
            write_atomically(artifacts / path.name, path.read_bytes())
    (artifacts / FAILED).unlink(missing_ok=True)


def note_failure(artifacts: Path, name: str, reason: str) -> None:
    """Leave a note that the latest training failed, so that none before it is taken for it."""
    with suppress(OSError):  # the failure itself is reported
        text = json.dumps({"run": name, "reason": reason})
        write_atomically(artifacts / FAILED, text.encode())


def require_latest(artifacts: Path) -> None:
    """Check that the files of the latest training are those in the artifacts folder.

    Raises:
        UnusableInput: it failed, and they are another one's; the text names that one.
    """
    try:
        failed = json.loads((artifacts / FAILED).read_text("utf-8"))
        text = f"the latest training, {failed['run']}, failed: {failed['reason']}"
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before := published(artifacts):
        text += f"; `--artifacts {artifacts / 'runs' / before}` takes the one before it"
    raise UnusableInput(text)


def published(artifacts: Path) -> str | None:
    """Return the name of the run whose files an artifacts folder has; None if it is not known."""
    with suppress(OSError):
        content = (artifacts / METRICS).read_bytes()
        if artifacts.absolute().parent.name == "runs":
            return artifacts.absolute().name
        for path in (artifacts / "runs").glob(f"*/{METRICS}"):
            if path.read_bytes() == content:
                return path.parent.name
    return None


def all_runs(artifacts: Path) -> list[Run]:
    """Return the runs with figures, in the order in which they ended; others are left out."""
    folders = [path.parent for path in (artifacts / "runs").glob(f"*/{METRICS}")]
    runs = []
    for folder in folders:
        with suppress(UnusableInput):
            runs.append(load(artifacts, folder.name))
    return sorted(runs, key=lambda run: (run.written_s, run.name))


def load(artifacts: Path, name: str) -> Run:
    """Read one run.

    Raises:
        UnusableInput: there is none of this name, or its files can't be read.
    """
    folder = artifacts / "runs" / Path(name).name  # a path, as a shell completes it, is a name, too
    if not (folder / METRICS).is_file():
        known = sorted(path.parent.name for path in (artifacts / "runs").glob(f"*/{METRICS}"))
        there = f"there are {', '.join(known)}" if known else f"there are none in {artifacts}"
        raise UnusableInput(f"no run is called {name!r}: {there}")
    try:
        metrics, history = (json.loads((folder / n).read_text("utf-8")) for n in (METRICS, HISTORY))
        run = Run(folder.name, metrics, history, (folder / METRICS).stat().st_mtime)
        figures(run)  # raises if a figure is missing
        if not (run.settings and history["val_loss"] and history["val_accuracy"]):
            raise ValueError("no epochs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise UnusableInput(f"cannot read the run in {folder}: {err!r}") from err
    return run


def figures(run: Run) -> dict[str, str]:
    """Return the results of a run, as text by name."""
    metrics = run.metrics
    accuracy, loss = metrics["accuracy"], metrics["loss"]
    return {
        "test accuracy": f"{accuracy['test']:.2%}",
        "test errors": f"{metrics['errors']['test']:,}",
        "test loss": f"{loss['test']:.4f}",
        "validation accuracy": f"{accuracy['validation']:.2%}",
        "calibration error": f"{metrics['calibration']['ece']['after']:.2%}",
        "parameters": f"{metrics['parameters']:,}",
        "epochs trained": f"{metrics['epochs']}",
        "seconds": f"{metrics['train_seconds']:.0f}",
    }


def changed_settings(run: Run) -> str:
    """Return the settings in which a run differs from its recipe, in one line."""
    words = Recipe.of_json(run.metrics["settings"]).changes_in_words()
    if seed := run.metrics["seed"]:
        words.append(f"seed {seed}")
    if "extra" in run.metrics:
        words.append(f"{run.metrics['extra']['images']} images of your own")
    return ", ".join(words) or "-"


def listing(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Make a table of runs: a heading, and a row each."""
    heading = ("run", "test accuracy", "errors", "epochs", "seconds", "differs from its recipe in")
    rows: list[tuple[str, ...]] = [heading]
    for run in runs:
        found, epochs = figures(run), run.metrics["settings"]["epochs"]
        done = found["epochs trained"] + ("" if run.is_complete else f" of {epochs}")
        numbers = (found["test accuracy"], found["test errors"], done, found["seconds"])
        rows.append((run.name, *numbers, changed_settings(run)))
    return rows


def letters(runs: Sequence[Run]) -> dict[str, str]:
    """Return the runs' names by a letter each: names are too long for headings of columns."""
    return {letter: run.name for letter, run in zip(ascii_lowercase, runs, strict=False)}


def differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Make a table of the settings in which runs differ: a heading, and a row for each setting."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, *(run.settings.get(name, "-") for run in runs)) for name in names]
    return [("setting", *letters(runs)), *(r for r in rows if len({*r[1:]}) > 1)]


def results(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Make a table of the figures of runs: a heading, and a row for each figure."""
    found = [figures(run) for run in runs]
    rows = [(name, *(each[name] for each in found)) for name in found[0]]
    return [("figure", *letters(runs)), *rows]


def _names(base: str) -> Iterator[str]:
    yield base
    yield from (f"{base}_{number}" for number in count(2))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Write nested settings as texts, each name with those around it in front."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            flat[prefix + name] = ",".join(f"{each:g}" for each in value)
        else:
            flat[prefix + name] = "none" if value is None else f"{value}"
    return flat
