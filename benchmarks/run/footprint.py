"""What does not change from round to round: the size of an installation, the cost of a training."""

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

EXTRAS = {"client": "", "serve": "serve", "train": "train"}
"""What people install, and the extra that brings it."""


def install_bytes() -> dict[str, int]:
    """Add up the files of each extra's packages, as installed here; leaves out what isn't."""
    sizes = {}
    for name, extra in EXTRAS.items():
        found: dict[str, int] = {}
        try:
            _add("digit-serving", extra, found)
        except metadata.PackageNotFoundError:
            continue
        sizes[name] = sum(found.values())
    return sizes


def _add(name: str, extra: str, found: dict[str, int]) -> None:
    """Add a distribution and what it requires, each once."""
    from packaging.requirements import Requirement  # of an extra: `--help` works without it

    distribution = metadata.distribution(name)
    found.setdefault(name, sum(file.size or 0 for file in distribution.files or ()))
    for requirement in map(Requirement, distribution.requires or ()):
        marker = requirement.marker
        if (marker is None or marker.evaluate({"extra": extra})) and requirement.name not in found:
            _add(requirement.name, ",".join(requirement.extras), found)


def trainings(artifacts: Path) -> list[Mapping[str, Any]]:
    """Collect the figures that trainings left: of the last one, and of the study."""
    found: list[Mapping[str, Any]] = []
    for path in (artifacts / "metrics.json", Path("training/study/results.json")):
        try:
            document = json.loads(path.read_text("utf-8"))
            found += [
                {
                    "recipe": str(entry["recipe"]),
                    "seconds": float(entry["train_seconds"]),
                    "accuracy": float(entry["accuracy"]["test"]),
                    "device": str(entry.get("device", "unknown")),
                }
                for entry in document.get("runs", [document])
            ]
        except (AttributeError, OSError, KeyError, TypeError, ValueError):
            continue  # not trained here, or by another version
    return found
