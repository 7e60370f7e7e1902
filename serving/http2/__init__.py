"""HTTP/2 for gRPC without I/O, in pure Python (RFC 9113 and 7541): bytes in, events and bytes out.

It imports nothing else of this project, and messages are only bytes to it.

    bytes ──▶ connection.py   splits frames; header blocks by headers.py and hpack/
              known.py        calls that repeat others byte for byte, recognised without decoding
              data.py         DATA frames, within our windows
              control.py      settings, pings, windows, resets
    bytes ◀── outgoing.py     frames that are ready, and data that the peer's windows keep back

    server_side.py and client_side.py are the two roles, limits.py has every limit.
"""
