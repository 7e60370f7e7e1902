"""Events of a connection, as tuples: kind, stream, value, whether the peer has ended the stream.

A tuple costs a tenth of an object with names, and there are two or three a call.
"""

from typing import Any

Event = tuple[int, bytes, Any, bool]

HEADERS = 0
"""A request or a response begins; the value is its `Block`."""
DATA = 1
"""Data, or a part of a long frame; the value is bytes."""
TRAILERS = 2
"""The message has ended with fields, the value."""
RESET = 3
"""The peer has reset the stream; the value is the error code and the stream's state."""
CALLS = 4
"""Whole calls were recognised: (block, token, messages without their prefixes by stream, values of
these that the block leaves out, in the same order, by the field's name)."""
MESSAGES = 5
"""Frames of a known layout on a stream: (layout, token, messages without their prefixes)."""
GOAWAY = 6
"""The peer opens or takes no more streams than the one named; the value is the error code."""
