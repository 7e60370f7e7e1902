"""Values of options that are more than a number or a path."""

import argparse
from contextlib import suppress
from typing import Literal


def port_or_off(text: str) -> int | Literal["auto"] | None:
    """Read a TCP port, or "auto"; "off" is None."""
    if text == "off":
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a port or off, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Read a time in seconds that is more than 0."""
    with suppress(ValueError):
        if 0 < float(text) <= 1e6:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")


def probability(text: str) -> float:
    """Read a probability, 0 to 1."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a probability, 0 to 1, got {text!r}")


def count(text: str) -> int:
    """Read a whole number that is at least 1."""
    with suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text!r}")
