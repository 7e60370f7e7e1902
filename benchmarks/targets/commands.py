"""The command lines of the servers that are measured."""

import subprocess
import sys
from pathlib import Path

from benchmarks.targets.http_methods import INFER_BINARY, INFER_JSON, PICTURES
from benchmarks.targets.methods import (
    CLASSIFY,
    CLASSIFY_STREAM,
    MODEL_INFER,
    MODEL_STREAM_INFER,
    Method,
)
from benchmarks.targets.target import NotMeasured, Setting, Spec

OURS = ("h2", "grpcio")
"""Our server, by its transport; a target's name may go on with one of VARIANTS."""
VARIANTS = {
    "": (CLASSIFY, "our server, {} transport"),
    "-stream": (CLASSIFY_STREAM, "the same, messages of ClassifyStream"),
    "-infer": (MODEL_INFER, "the same, calls of ModelInfer"),
    "-infer-stream": (MODEL_STREAM_INFER, "the same, messages of ModelStreamInfer"),
    "-tls": (CLASSIFY, "the same, over TLS"),
    "-token": (CLASSIFY, "the same, each call with a token"),
}
"""By the end of the target's name: how our server is called, and what that is."""
HTTP = {
    "http-json": (INFER_JSON, "our server over HTTP, numbers as JSON"),
    "http-binary": (INFER_BINARY, "the same, images and probabilities as bytes"),
    "http-picture": (PICTURES, "the same, PNG files of 280 x 280 pixels"),
}
"""Our server over HTTP: how it is called, and what that is."""
ENGINE_KINDS = {
    "bound": "buffers that stay on the device",
    "locked": "the same, page-locked on the host",
    "graphs": "the same, as CUDA graphs",
    "tf32": "products in TF32",
    "fp16": "weights and activations in FP16",
}
"""Kinds of engine that serving does not have (engine_kinds.py): "engine-bound", "h2-bound" ..."""
OTHERS = {
    "plain": "plain_server --models {models}",
    "bare": "bare_server --models {models} --precision {precision}",
    "echo": "bare_server --echo",
    "echo-grpcio": "echo_server",
}
"""Other servers: a module of this folder, and its options."""
TOKEN = "a-token-of-the-benchmarks"


def method_of(target: str, setting: Setting) -> Method:
    """Return how a target is called."""
    method, _ = HTTP.get(target) or VARIANTS[variant_of(target, setting)]
    return method


def variant_of(target: str, setting: Setting) -> str:
    """Return the end of a target's name, one of VARIANTS."""
    if target in setting.addresses:
        return "-infer"
    ends = (end for end in VARIANTS if target.endswith(end) and target not in OTHERS | HTTP)
    return max(ends, key=len, default="")


def command_of(spec: Spec, variant: str, setting: Setting, folder: Path) -> list[str]:
    """Return what to start; certificate and tokens are written into a folder."""
    models = str(setting.models.absolute())
    if spec.target in OTHERS:
        words = f"benchmarks.targets.{OTHERS[spec.target]}".split()
        settings = {"models": models, "precision": spec.precision}
        return [sys.executable, "-m", *(word.format_map(settings) for word in words)]
    is_elsewhere = spec.target in setting.checkouts
    is_http = spec.target in HTTP
    transport, _, kind = spec.target.removesuffix(variant).partition("-")
    program = ["benchmarks.targets.engine_server", kind] if kind in ENGINE_KINDS else ["serving"]
    if is_elsewhere or is_http:
        transport, program = "auto", ["serving"]
    options = ["--device", spec.device, "--precision", spec.precision, "--transport", transport]
    if is_http:
        options += ["--http-port", "0"]
    if spec.workers > 1:
        options += ["--workers", str(spec.workers)]
    if variant == "-tls":
        options += _certificate(folder)
    if variant == "-token":
        (folder / "tokens").write_text(TOKEN + "\n")
        options += ["--token-file", str(folder / "tokens")]
    return [
        sys.executable, "-m", *program, "serve", "--models", models, "--port", "0",
        "--metrics-port", "0", *options,
    ]  # fmt: skip


def _certificate(folder: Path) -> list[str]:
    """Make a certificate for 127.0.0.1; return the options that have the server use it."""
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = (
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key,
    )  # fmt: skip
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError) as err:
        raise NotMeasured("needs openssl, to make a certificate") from err
    return ["--tls-cert", cert, "--tls-key", key]
