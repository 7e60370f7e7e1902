"""What does not change from round to round: the size of an installation, the cost of a training."""

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

_EXTRAS = {"client": "", "serve": "serve", "train": "train"}
"""What people install, and the extra that brings it."""


def install_bytes() -> dict[str, int]:
    """Add up the files of each extra's packages, as installed here; leaves out what isn't."""
    sizes = {}
    for name, extra in _EXTRAS.items():
        with suppress(metadata.PackageNotFoundError):
            sizes[name] = sum(_sizes("digit-serving", extra, {}).values())
    return sizes


def _sizes(name: str, extra: str, found: dict[str, int]) -> dict[str, int]:
    """Add a distribution and what it requires, each once, to what was found."""
    from packaging.requirements import Requirement  # of an extra: `--help` works without it

    distribution = metadata.distribution(name)
    found.setdefault(name, sum(file.size or 0 for file in distribution.files or ()))
    for each in map(Requirement, distribution.requires or ()):
        if each.name not in found and (not each.marker or each.marker.evaluate({"extra": extra})):
            _sizes(each.name, ",".join(each.extras), found)
    return found


def trainings(artifacts: Path) -> list[Mapping[str, Any]]:
    """Collect the figures that trainings left: of the last one, and of the study."""
    found: list[Mapping[str, Any]] = []
    for path in (artifacts / "metrics.json", Path("training/study/results.json")):
        with suppress(AttributeError, OSError, KeyError, TypeError, ValueError):  # none, or others
            document = json.loads(path.read_text("utf-8"))
            found += [
                {"recipe": run["recipe"], "seconds": float(run["train_seconds"]),
                 "accuracy": float(run["accuracy"]["test"]), "device": run.get("device", "unknown")}
                for run in document.get("runs", [document])
            ]  # fmt: skip
    return found
