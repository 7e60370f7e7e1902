"""The command `health`: a probe of a server, for containers and scripts."""

import argparse

from serving.cli import target
from serving.commandline import values
from serving.config import ServerConfig
from serving.errors import Unavailable

HELP = "check the health of a server"
EXAMPLES = """\
  digit-serving health                                   exit code 0: SERVING, else 1
  digit-serving health --model iris                      of one model
  digit-serving health --target 10.0.0.7:50051 --tls-ca ca.pem --tls-server-name digits
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add(
        "--target",
        type=target.address,
        default=f"127.0.0.1:{ServerConfig().port}",
        metavar="HOST:PORT",
        help="the server",
    )
    add("--model", default="", metavar="NAME", help="the model (default: the server as a whole)")
    add("--timeout", type=values.seconds, default=5.0, metavar="SECONDS", help="time limit")
    add(
        "--tls-server-name",
        metavar="NAME",
        help="name that the certificate must have (default: the target's)",
    )
    target.add_access(parser)


def run(options: argparse.Namespace) -> int:
    """Print that the server, or its model, is SERVING.

    Raises:
        Unavailable: it is not; the text has the reason.
    """
    from serving.cli.probe import trouble  # late: a list of the commands needs no gRPC

    reason = trouble(
        options.target,
        options.timeout,
        service=options.model,
        token=target.token_of(options),
        tls=(options.tls_ca, options.tls_key, options.tls_cert),
        server_name=options.tls_server_name,
    )
    subject = f"{options.target}: model {options.model}" if options.model else options.target
    if reason is not None:
        raise Unavailable(f"{subject}: {reason}")
    print(f"{subject}: SERVING")
    return 0
