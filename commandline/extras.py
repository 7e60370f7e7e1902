"""A package that is not installed: one line that names the extra which brings it."""

from collections.abc import Mapping
from importlib.util import find_spec


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError for the first top-level module that is not installed.

    So that long work doesn't fail at its end, and a server not in its workers.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def advice(error: ModuleNotFoundError, extras: Mapping[str, str]) -> str:
    """Say what to install, in one line.

    Args:
        error: what an import raised; raised again if none of the extras brings the module, since
            that is no fault of the installation.
        extras: top-level module to the extra that brings it.
    """
    module = (error.name or "").partition(".")[0]
    if module not in extras:
        raise error
    return f"{module} is not installed: pip install 'digit-serving[{extras[module]}]'"
