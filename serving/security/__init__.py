"""Tokens, certificates and TLS, and the files of them, which are read again when they change."""
