"""What does not change from round to round: what an installation takes, what a training cost."""

import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_DISTRIBUTION = "digit-serving"
EXTRAS = {"client": "", "serve": "serve", "train": "train"}
"""What people install, and the extra that brings it."""


def install_bytes() -> dict[str, int]:
    """Add up the files of each extra's packages, as installed here; leaves out what isn't."""
    sizes = {}
    for name, extra in EXTRAS.items():
        try:
            found: dict[str, int] = {}
            _add(_DISTRIBUTION, extra, found)
        except metadata.PackageNotFoundError:
            continue
        sizes[name] = sum(found.values())
    return sizes


def _add(name: str, extra: str, found: dict[str, int]) -> None:
    """Add a distribution and what it requires, each once."""
    from packaging.requirements import Requirement  # of an extra: `--help` works without it

    distribution = metadata.distribution(name)
    found.setdefault(name, sum(file.size or 0 for file in distribution.files or ()))
    for text in distribution.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if (marker is None or marker.evaluate({"extra": extra})) and requirement.name not in found:
            _add(requirement.name, ",".join(requirement.extras), found)


def trainings(artifacts: Path) -> list[Mapping[str, Any]]:
    """Collect the figures that trainings left: a metrics.json, or a list of results."""
    return list(_trainings(artifacts / "metrics.json", Path("training/study/results.json")))


def _trainings(*paths: Path) -> Iterator[Mapping[str, Any]]:
    for path in paths:
        try:
            document = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        entries = document if isinstance(document, list) else [document]
        for entry in entries:
            try:
                yield {
                    "recipe": str(entry["recipe"]),
                    "seconds": float(entry["train_seconds"]),
                    "accuracy": float(entry["accuracy"]["test"]),
                    "device": str(entry.get("device", "unknown")),
                }
            except (KeyError, TypeError, ValueError):
                continue
