"""ONNX Runtime's exceptions as one line: why a model fails, and why an input does."""

import re

_MAX_REASON = 300
"""Characters of a message: it becomes part of a log line."""
_REFUSAL = re.compile(
    r".*Non-zero status code returned while running (\w+) node\. Name:'([^']*)' "
    r"Status Message: (.*)",
    re.DOTALL,
)
"""The operator that failed, of nested ones the innermost, and why."""
_PLACE = re.compile(r"^.* was false\. |^\S+\.(?:h|cc|cu):\d+ \S+ ")
"""Where in ONNX Runtime's source it was found, before the reason."""
_OURS = re.compile(r"alloc|memory|terminate|not implemented|cuda|cudnn|cublas", re.IGNORECASE)
"""Reasons that are no fault of the values."""


def reason_of(err: BaseException) -> str:
    """Return ONNX Runtime's message on one line, without its codes and C++ signatures."""
    line = str(err).strip().partition("\n")[0]
    if re.search("protobuf parsing failed|No graph was found", line, re.IGNORECASE):
        return "it is not an ONNX file, or it is incomplete"
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = re.sub(r"/onnxruntime_src/\S+ .*\)>? (?=[A-Z])", "", line)[:_MAX_REASON]
    return f"{line} (Debian: apt-get install locales-all)" if "locale" in line else line


def complaint_of(err: BaseException) -> str | None:
    """Return which operator refused a run's values and why, on one line; None for other failures.

    An operator fails on an index beyond its table, or on shapes that don't fit each other: that
    depends on the inputs, or loading would have shown it.
    """
    found = _REFUSAL.match(str(err))
    if found is None or _OURS.search(found[3]):
        return None
    operator, name, reason = found.groups()
    reason = _PLACE.sub("", reason.strip().partition("\n")[0])
    if "::" in reason or "_src/" in reason:
        reason = "it failed"
    named = f"{operator} {name}" if name else operator
    line = "".join(each if each.isprintable() else " " for each in f"{named}: {reason}")
    return line[:_MAX_REASON]
