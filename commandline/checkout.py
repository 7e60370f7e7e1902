"""Differences between a checkout and an installation: the version's source, and `make`."""

from pathlib import Path

DISTRIBUTION = "digit-serving"

_ROOT = Path(__file__).parents[1]
_PROGRAMS = {"train": "training", "export": "training", "serve": "serving"}


def version() -> str:
    """Return the project's version: that of the checkout, else of the installed distribution."""
    import tomllib  # here: these imports take longer than a whole probe
    from importlib import metadata

    try:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        if project["name"] == DISTRIBUTION:
            return str(project["version"])
    except (OSError, ValueError, KeyError):
        pass
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def run(*steps: str) -> str:
    """Return the command for "train", "export" or "serve": `make` only in a checkout."""
    if Path("Makefile").is_file() and Path("training/__main__.py").is_file():
        return f"`make {' '.join(steps)}`"
    return " and ".join(f"`python -m {_PROGRAMS[step]} {step}`" for step in steps)
