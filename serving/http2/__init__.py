"""HTTP/2 for gRPC without I/O, in pure Python (RFC 9113 and 7541): bytes in, events and bytes out.

It imports nothing else of this project, and messages are only bytes to it. README.md explains its
states and its windows. Beside these names, `frames` has the protocol's numbers, and `recogniser` a
faster way for calls that repeat others, which a server may leave out.
"""

from serving.http2 import events
from serving.http2.frames import ErrorCode, Http2Error
from serving.http2.limits import Limits
from serving.http2.pieces import Pieces, Written
from serving.http2.server import ServerConnection

__all__ = (
    "ErrorCode",
    "Http2Error",
    "Limits",
    "Pieces",
    "ServerConnection",
    "Written",
    "events",
)
