"""Parameters of a request: texts, numbers and booleans by name; what the protocol means by some."""

from collections.abc import Mapping
from typing import Any

from serving.errors import InvalidRequest
from serving.oip.values import quoted

ASKS_FOR_END, IS_END = "triton_enable_empty_final_response", "triton_final_response"
"""A request's on a stream: whether an answer without outputs is wanted behind the last one. And an
answer's: whether it is the last one."""
REASON = "error_reason"
"""A refused request's answer's on a stream: the reason, as `google.rpc.ErrorInfo` has it."""
_OWN = ("timeout", "priority", "binary_data_output", ASKS_FOR_END)
"""Those that the protocol gives a meaning; a handler does not get them."""
_KINDS = {bool: "bool_param", float: "double_param", str: "string_param"}
"""The protocol's names of those that are no integers."""
NO_PARAMETERS: Mapping[str, Any] = {}


def check_parameter(name: str, value: object) -> None:
    """Check a parameter of a request.

    Raises:
        InvalidRequest: it is no text, number or boolean.
    """
    is_number = isinstance(value, bool | float)
    is_number |= isinstance(value, int) and -(2**63) <= value < 2**63
    is_text = isinstance(value, str) and value.isprintable()  # half of a surrogate pair is not
    if not is_number and not is_text:
        raise InvalidRequest(f"expected the parameter {quoted(name)} as text, number or boolean")


def set_parameter(parameters: Any, name: str, value: object) -> None:
    """Set a parameter of a message.

    Raises:
        InvalidRequest: it is no text, number or boolean.
    """
    check_parameter(name, value)
    if isinstance(value, bool):
        parameters[name].bool_param = value
    elif isinstance(value, int):
        parameters[name].int64_param = value
    elif isinstance(value, float):
        parameters[name].double_param = value
    else:
        parameters[name].string_param = value


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's parameters: texts, numbers and booleans by name; None for one without."""
    kinds = ((name, each, each.WhichOneof("parameter_choice")) for name, each in parameters.items())
    return {name: getattr(each, kind) if kind else None for name, each, kind in kinds}


def timeout_s_of(parameters: Mapping[str, Any]) -> float | None:
    """Return the parameter "timeout" in seconds; None if it is missing or 0.

    Raises:
        InvalidRequest: it is no number of microseconds.
    """
    if "timeout" not in parameters:
        return None
    timeout = parameters["timeout"]
    if type(timeout) is not int:
        kind = _KINDS.get(type(timeout))
        raise InvalidRequest(f"expected timeout as int64_param or uint64_param, got {kind}")
    if timeout < 0:
        raise InvalidRequest(f"expected a timeout of at least 0, got {timeout}")
    return timeout / 1e6 or None


def of_handler(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a handler gets."""
    return {
        name: value for name, value in parameters.items() if value is not None and name not in _OWN
    }
