"""HTTP/1.1 without I/O, a server's side: bytes to requests by h11, and answers to bytes."""
