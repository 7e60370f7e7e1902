"""Requests over HTTP that repeat an earlier one but for values: where these are in the text."""

import re
from typing import Any, NamedTuple

import orjson

_BRACKETS = re.compile(rb"\[+")
_NUMBERS = re.compile(rb"\[[][0-9eE.+\-, \t\r\n]*")
_MAX_AROUND_BYTES = 8 << 10
"""The longest text around values that a connection keeps: there may be thousands of these."""


class Values(NamedTuple):
    """Where a request's inputs stand: behind the JSON, or the values of its only one.

    A client's requests differ in them alone, most often. Then they are all that has to be read.
    """

    before: bytes
    after: bytes
    """The text around them."""
    datatype: str
    """Datatype of the values in JSON; "" if they are bytes behind it."""
    num_bytes: int
    """Length of the values as raw contents."""

    def behind(self, body: bytes) -> bytes | None:
        """Return the bytes behind the JSON of another request; None if that is different."""
        is_alike = len(body) == len(self.before) + self.num_bytes and body.startswith(self.before)
        return body[len(self.before) :] if is_alike else None

    def parts(self, body: bytes, num_bytes: int) -> list[bytes]:
        """Return the values' text in another request, cut into lists of some length.

        Args:
            body: the request.
            num_bytes: the least length of each but the last.

        Returns:
            None of them if more than the values may be different.
        """
        end = len(body) - len(self.after)
        begin, is_alike = len(self.before), body.startswith(self.before + b"[")
        if not is_alike or end - begin < 2 or not body.endswith(self.after):
            return []
        # "[[[1, 2], [3]], [[4]]]" is cut at "]],".
        found = _BRACKETS.match(body, begin, end)
        cut = b"]" * (0 if found is None else found.end() - begin - 1) + b","
        parts, begin = [], begin + 1
        while (at := body.find(cut, begin + num_bytes, end)) > 0:
            parts.append(b"[%b]" % body[begin : at + len(cut) - 1])
            begin = at + len(cut)
        return [*parts, b"[" + body[begin:end]]


def find_values(body: bytes, json_bytes: int | None, message: Any) -> Values | None:
    """Return where the values of a good request's inputs stand.

    Args:
        body: all of it.
        json_bytes: how many of them are JSON; None for all.
        message: its content.

    Returns:
        None if they are not the last bytes of the body, nor those of the only input, a list of
        numbers or of such lists, or if there is much text around them.
    """
    if json_bytes is not None:
        is_short = json_bytes <= _MAX_AROUND_BYTES
        return Values(body[:json_bytes], b"", "", len(body) - json_bytes) if is_short else None
    begin = body.find(b"[", body.find(b'"data"'))
    found = _NUMBERS.match(body, max(0, begin))
    if found is None or len(message.inputs) != 1:
        return None
    if len(body) - len(found[0]) > _MAX_AROUND_BYTES:
        return None
    num_bytes = len(message.raw_input_contents[0])
    end = begin + len(found[0].rstrip(b", \t\r\n"))
    values = Values(body[:begin], body[end:], message.inputs[0].datatype, num_bytes)
    try:  # the list there has to be the input's, wherever the search went wrong
        empty, other = (
            orjson.loads(values.before + text + values.after) for text in (b"[]", b"[0]")
        )
        tensor = empty["inputs"][0]
        is_there, tensor["data"] = tensor["data"] == [], [0]
    except (ValueError, LookupError, TypeError):
        return None
    return values if is_there and empty == other else None
