"""Tokens, certificates and TLS, and the files of them, which are read again when they change.

Clients import from here, too: no module knows a server, and none here is imported by all.
"""
