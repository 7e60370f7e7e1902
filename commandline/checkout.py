"""What differs between a checkout and an installation: where the version is, and what `make` is."""

from pathlib import Path

DISTRIBUTION = "digit-serving"

_ROOT = Path(__file__).parents[1]
_PROGRAMS = {"train": "training", "export": "training", "serve": "serving"}


def version() -> str:
    """Return the project's version: that of the checkout, else of the installed distribution."""
    import tomllib  # here, as they take longer to import than a probe takes
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
    """Name the command for "train", "export" or "serve": `make` only where it can work."""
    if Path("Makefile").is_file() and Path("training/__main__.py").is_file():
        return f"`make {' '.join(steps)}`"
    return " and ".join(f"`python -m {_PROGRAMS[step]} {step}`" for step in steps)
