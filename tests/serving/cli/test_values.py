"""Values of options, each at its bounds, and the lines about packages that are not installed."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from serving.commandline.fields import add_fields
from serving.commandline.installation import EXTRAS, missing
from serving.commandline.values import (
    at_least,
    count,
    duration,
    port_or_off,
    seconds,
    share,
    size,
)
from serving.config import BatchingConfig, ModelConfig, ServerConfig

TIME = "expected a time such as 5ms or 0.5s, got "
SIZE = "expected a size such as 500M or 2G, got "
SHARE = "expected a share such as 5% or 0.05, got "
PORT = "expected a port or off, got "
COUNT = "expected a whole number, at least 1, got "


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (duration, "5ms", 0.005), (duration, "0.5s", 0.5), (duration, "0.005", 0.005),
        (duration, "-2s", -2.0), (duration, "inf", float("inf")),
        (seconds, "1ms", 0.001), (seconds, "1e6", 1e6), (seconds, "2s", 2.0),
        (size, "1", 1), (size, "1k", 1 << 10), (size, "500M", 500 << 20), (size, "2G", 2 << 30),
        (size, "1048575G", 1_048_575 << 30), (size, f"{(1 << 50) - 1}", (1 << 50) - 1),
        (share, "5%", 0.05), (share, "0.05", 0.05), (share, "0", 0.0), (share, "100%", 1.0),
        (share, "1", 1.0), (port_or_off, "off", None), (port_or_off, "auto", "auto"),
        (port_or_off, "0", 0), (port_or_off, "8080", 8080), (count, "1", 1), (count, "12", 12),
        (at_least(0), "0", 0), (at_least(-1), "-1", -1),
    ],
)  # fmt: skip
def test_value_is_read(read, text, expected):
    found = read(text)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        *((duration, text, TIME) for text in ("", "s", "5 minutes", "5m", "ms")),
        *((seconds, text, TIME) for text in ("0", "0ms", "-1", "1000001", "nan", "inf")),
        *((size, text, SIZE) for text in (
            "", "0", "-1", "1.5G", "1T", "1GB", "G", str(1 << 50), "1048576G")),
        *((share, text, SHARE) for text in ("", "-0.1", "1.01", "101%", "%", "nan")),
        *((port_or_off, text, PORT) for text in ("", "-1", "http", "8080.0")),
        *((count, text, COUNT) for text in ("0", "-1", "", "1.0", "x")),
    ],
)  # fmt: skip
def test_value_that_is_none_is_shown(read, text, expected):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(expected + repr(text))}$"):
        read(text)


PACKAGES = {
    "onnxruntime": ("onnxruntime", "serve"),
    "grpc_health": ("grpcio-health-checking", "serve"),
    "grpc_reflection": ("grpcio-reflection", "serve"),
    "prometheus_client": ("prometheus-client", "serve"),
    "uvloop": ("uvloop", "serve"),
    "h11": ("h11", "serve"),
    "orjson": ("orjson", "serve"),
    "python_multipart": ("python-multipart", "serve"),
    "onnx": ("onnx", "optimize"),
    "onnx_ir": ("onnx_ir", "optimize"),
    "PIL": ("Pillow", "pictures"),
    "scipy": ("scipy", "pictures"),
    "opentelemetry": ("opentelemetry-sdk", "otel"),
    "pyarrow": ("pyarrow", "score"),
    "ray": ("ray", "ray"),
    "fsspec": ("fsspec", "remote"),
}
"""The package of each module that the base installation lacks, and its extra."""


def test_each_package_has_a_line_that_installs_it():
    assert EXTRAS.keys() == PACKAGES.keys()
    assert {module: missing(module) for module in PACKAGES} == {
        module: f"{package} is not installed: pip install '.[{extra}]' in the checkout of "
        "digit-serving"
        for module, (package, extra) in PACKAGES.items()
    }


OPTIONS = [
    ("--model-cache", "a/b", Path("a/b")),
    ("--input", "image", "image"),
    ("--handler", "x.py", ["x.py"]),
    ("--canary", "5%", 0.05),
    ("--access-log", "100%", 1.0),
    ("--max-model-bytes", "2G", 2 << 30),
    ("--max-json-bytes", "1M", 1 << 20),
    ("--max-response-bytes", "1K", 1 << 10),
    ("--max-buffered-bytes", "9", 9),
    ("--max-handler-bytes", "1G", 1 << 30),
    ("--slo", "5ms", 0.005),
    ("--metrics-port", "off", None),
    ("--http-port", "off", None),
    ("--drain", "2s", 2.0),
]


def field_of(flag):
    """The configuration that has the field of an option, and its name."""
    name = flag[2:].replace("-", "_")
    return next(
        (kind, each.name)
        for kind in (ModelConfig, ServerConfig, BatchingConfig)
        for each in fields(kind)
        if each.name in (name, f"{name}_s", f"{name}s")
    )


@pytest.mark.parametrize(("flag", "word", "expected"), OPTIONS)
def test_option_of_a_field_is_read_in_its_unit(flag, word, expected):
    parser = argparse.ArgumentParser()
    kind, name = field_of(flag)
    add_fields(parser, kind, name)
    assert getattr(parser.parse_args([flag, word]), name) == expected
    with pytest.raises(SystemExit):
        parser.parse_args([flag])
