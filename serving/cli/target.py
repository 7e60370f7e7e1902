"""The server that a command's options name: `--target`, its certificates and its token."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commandline import values
from serving.errors import ConfigurationError
from serving.security.tokens import parse_tokens
from serving.security.watched_files import read_bytes
from serving.system.addresses import is_target

if TYPE_CHECKING:
    from serving.client import Client


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that may call a server, and print JSON."""
    parser.add_argument(
        "--target",
        type=address,
        metavar="HOST:PORT",
        help="call a running server instead of loading the model here",
    )
    parser.add_argument(
        "--timeout",
        type=values.seconds,
        default=10.0,
        metavar="SECONDS",
        help="time limit of each call to the server; one that nobody answers is given up after 5",
    )
    add_access(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def address(text: str) -> str:
    """Read a server's address; see `is_target`."""
    if not is_target(text):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}")
    return text


def add_access(parser: argparse.ArgumentParser) -> None:
    """Add the options of a caller of servers: its authorities, certificate and token."""
    add = parser.add_argument
    add(
        "--tls-ca",
        type=Path,
        metavar="FILE",
        help="PEM authorities that sign servers' certificates, or `system` for those that this "
        "machine trusts: enables TLS",
    )
    add("--tls-cert", type=Path, metavar="FILE", help="PEM certificate of the caller, for mTLS")
    add("--tls-key", type=Path, metavar="FILE", help="PEM key of that certificate")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file of the bearer token: its first line that is no comment; or set SERVING_TOKEN",
    )


def require_here(options: argparse.Namespace) -> None:
    """Check that no server is called where an option is about a model that is loaded here.

    Raises:
        ConfigurationError: one is.
    """
    if options.target and options.around:
        raise ConfigurationError(
            "--handler is for a model that is loaded here: leave out --target, or give it to serve"
        )


def client_of(options: argparse.Namespace) -> "Client":
    """Connect to the server of `--target`."""
    from serving.client import Client  # late: `serve` has no client

    return Client(
        options.target,
        timeout_s=options.timeout,
        token=token_of(options),
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
    )


def token_of(options: argparse.Namespace) -> str | None:
    """Return the first token of the file or of SERVING_TOKEN."""
    if options.token_file is not None:
        return parse_tokens(read_bytes(options.token_file), options.token_file)[0].decode()
    text = os.environ.get("SERVING_TOKEN")
    return None if text is None else parse_tokens(text.encode(), "SERVING_TOKEN")[0].decode()
