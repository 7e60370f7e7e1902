"""HTTP/2 for gRPC without I/O, in pure Python (RFC 9113 and 7541): bytes in, events and bytes out.

It imports nothing of this project and knows nothing of gRPC's messages beyond their being bytes.

    bytes ──▶ known.py        calls that repeat others byte for byte, recognised without decoding
              connection.py   any other frame, one by one: settings, windows, pings, floods
              headers.py      header blocks, cached while they mean the same; hpack.py, huffman.py
              server.py       requests in, responses out       client.py   the other role
    bytes ◀── output.py       frames that are ready; data that the peer's windows keep back
"""
