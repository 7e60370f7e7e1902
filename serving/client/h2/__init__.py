"""Calls over HTTP/2 of our own, on threads and on an event loop. No server code."""
