"""One line for a package that is not installed: the extra to install."""

from collections.abc import Mapping
from importlib.util import find_spec


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError for the first top-level module that is not installed.

    Called first, so that long work does not fail at its end, nor a server in its workers.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def advice(error: ModuleNotFoundError, extras: Mapping[str, str]) -> str:
    """Say what to install, in one line.

    Args:
        error: what an import raised; raised again if no extra has the module, since then the
            installation is not at fault.
        extras: top-level module to the extra that installs it.
    """
    module = (error.name or "").partition(".")[0]
    if module not in extras:
        raise error
    return f"{module} is not installed: pip install 'digit-serving[{extras[module]}]'"
