"""Why models can't be served, and whether the reason may pass by itself."""

import errno

from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeviceError,
    ModelNotFound,
    ServingError,
    Unavailable,
)

_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM,
            errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EFBIG)  # fmt: skip
"""What the system says of a file that stays as it is, or of who may read it."""
_IN_USE = ("out of memory", "in use", "busy", "failed to allocate", "bad_alloc", "bad allocation")
"""What libraries say when others have the device, or the memory."""


def text_of(err: Exception) -> str:
    """Return an error's text; of one that is not ours, its type as well."""
    return str(err) if isinstance(err, ServingError) else f"{type(err).__name__}: {err}"


def may_pass(error: BaseException | None) -> bool:
    """Return whether the reason of an error may go away by itself: network, I/O, memory, a device.

    What a file or a setting says stays until somebody changes it.
    """
    while error is not None:
        if isinstance(error, MemoryError | Unavailable):
            return True
        is_of_file = isinstance(error, FileNotFoundError | PermissionError)
        if isinstance(error, OSError) and not is_of_file and error.errno not in _LASTING:
            return True
        is_of_library = isinstance(error, DeviceError) or not isinstance(error, ServingError)
        if is_of_library and any(each in str(error).lower() for each in _IN_USE):
            return True
        error = error.__cause__
    return False


def at_start(text: str, *errors: Exception | None) -> ServingError:
    """Build the error that ends a start, by the reasons of its models.

    What may pass is `Unavailable`, exit code 1: a supervisor may try again.
    """
    known = [each for each in errors if each is not None]
    if known and all(map(may_pass, known)):
        return Unavailable(text)
    first = known[0] if len(known) == 1 else None
    if isinstance(first, ConfigurationError | DeviceError | ModelNotFound):
        return type(first)(text)
    return CorruptModel(text)


def others_than(name: str, models: list[str]) -> str:
    """Say that no model has a name, and which one was meant, or which there are."""
    from difflib import get_close_matches  # here: few starts fail

    if near := get_close_matches(name, models, 1):
        return f", and none is named {name}: did you mean {near[0]}?"
    return f", and none is named {name}, only {', '.join(models[:8])}" if models else ""
