"""ONNX Runtime without its telemetry: every module imports it from here.

Since 1.29 its wheels look up the maker's host, connect to it and write a device id to ~/.cache.
`disable_telemetry_events()` comes too late: this variable counts only before the first import.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
