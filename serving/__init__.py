"""Classify handwritten digits, in process or over gRPC."""
