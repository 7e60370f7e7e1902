"""How this project is installed: its version, its extras, `make`."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from serving.errors import ConfigurationError

DISTRIBUTION = "digit-serving"

EXTRAS = {
    "onnxruntime": "serve",
    "grpc_health": "serve",
    "grpc_reflection": "serve",
    "prometheus_client": "serve",
    "uvloop": "serve",
    "h11": "serve",
    "orjson": "serve",
    "python_multipart": "serve",
    "onnx": "optimize",
    "onnx_ir": "optimize",
    "PIL": "pictures",
    "scipy": "pictures",
    "opentelemetry": "otel",
    "pyarrow": "score",
    "ray": "ray",
    "fsspec": "remote",
}
"""Modules that the base installation lacks, and the extra that installs each."""
_PACKAGES = {
    "PIL": "Pillow", "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection", "opentelemetry": "opentelemetry-sdk",
    "prometheus_client": "prometheus-client", "python_multipart": "python-multipart",
}  # fmt: skip
"""The names of packages whose modules have others."""

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
    return " and ".join(f"`digit-serving {step}`" for step in steps)


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


def missing(module: str, extras: Mapping[str, str] = EXTRAS) -> str:
    """Say in one line that a package is not installed, and how to install its extra."""
    return f"{_PACKAGES.get(module, module)} is not installed: {install(extras[module])}"


def advice(error: ImportError, extras: Mapping[str, str] = EXTRAS) -> str:
    """Return the line about a failed import; see `missing`.

    Args:
        error: an import's exception; raised again if no extra has the module, since then the
            installation is not at fault.
        extras: top-level module to the extra that installs it.
    """
    module = (error.name or "").partition(".")[0]
    if module not in extras:
        raise error
    return missing(module, extras)


def not_installed(error: ImportError) -> ConfigurationError:
    """Return the error for a failed import of a package of an extra; see `advice`."""
    return ConfigurationError(advice(error))
