"""How this project is installed: its version, its extras, `make`."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "digit-serving"
_ROOT = Path(__file__).parents[2]


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
    """Return the command for "train" and "export": `make` only in a checkout."""
    if in_checkout():
        return f"`make {' '.join(steps)}`"
    return " and ".join(f"`python -m training {step}`" for step in steps)


def in_checkout() -> bool:
    """Return whether the current directory is a checkout of this project."""
    return Path("Makefile").is_file() and Path("training/__main__.py").is_file()


def install(extra: str, *folders: str) -> str:
    """Return how to install an extra, and distributions in other folders of the checkout.

    The distribution is on no index, and anybody could register its name there: a command with that
    name would install a stranger's package.
    """
    words = " ".join((f"'.[{extra}]'", *folders))
    return f"pip install {words} in the checkout of {DISTRIBUTION}"


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError for the first top-level module that is not installed.

    Called first, so that long work does not fail at its end, nor a server in its workers.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def advice(error: ModuleNotFoundError, extras: Mapping[str, str]) -> str:
    """Return the command that installs a missing extra, in one line.

    Args:
        error: an import's exception; raised again if no extra has the module, since then the
            installation is not at fault.
        extras: top-level module to the extra that installs it.
    """
    module = (error.name or "").partition(".")[0]
    if module not in extras:
        raise error
    return f"{module} is not installed: {install(extras[module])}"
