"""Why a call has failed, as its answer says: the status with its trailers, or a broken protocol."""

from collections.abc import Sequence

from serving.errors import Unavailable
from serving.protocols import error_info
from serving.protocols.status import PUSHBACK, Failure, StatusCode


def malformed(address: str, answer: str) -> Unavailable:
    """Build the error for a server that breaks its protocol."""
    return Unavailable(f"{address}: the server is broken: it answered {answer}")


def trailers_failure(
    code: StatusCode, text: str, trailers: Sequence[tuple[str, str | bytes]]
) -> Failure:
    """Build the failure of a call that a server has answered.

    Args:
        code: its status.
        text: its text.
        trailers: binary ones as bytes, or as they are on the wire, in base64.
    """
    fields = dict(trailers)
    details, pushback = fields.get(error_info.TRAILER, ""), fields.get(PUSHBACK, "")
    read = error_info.reason_in if isinstance(details, bytes) else error_info.decode
    reason = read(details)  # type: ignore[arg-type]
    return Failure(code, text, PUSHBACK not in fields, reason, _pause_s(str(pushback)))


def _pause_s(milliseconds: str) -> float | None:
    """Read a pushback; a negative number, or none, asks for no attempt (gRFC A6)."""
    if not milliseconds:
        return None
    try:
        return int(milliseconds[:12]) / 1e3
    except ValueError:
        return -1.0
