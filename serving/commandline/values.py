"""Values of options: ports, times, sizes, shares and numbers."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def port_or_off(text: str) -> int | Literal["auto"] | None:
    """Read a TCP port, or "auto"; "off" is None."""
    if text == "off":
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a port or off, got {text!r}")
    return int(text)


def duration(text: str) -> float:
    """Read a time such as 5ms, 0.5s or 0.005, in seconds; who takes it bounds it."""
    number, unit_s = (text[:-2], 1e-3) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    with suppress(ValueError):
        return float(number) * unit_s
    raise argparse.ArgumentTypeError(f"expected a time such as 5ms or 0.5s, got {text!r}")


def seconds(text: str) -> float:
    """Read a time of more than 0; see `duration`."""
    if 0 < duration(text) <= 1e6:
        return duration(text)
    raise argparse.ArgumentTypeError(f"expected a time such as 5ms or 0.5s, got {text!r}")


def size(text: str) -> int:
    """Read a number of bytes, such as 500M, 2G or 1048576."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    if number.isdecimal() and unit in _UNITS and 0 < int(number) * _UNITS[unit] < 1 << 50:
        return int(number) * _UNITS[unit]
    raise argparse.ArgumentTypeError(f"expected a size such as 500M or 2G, got {text!r}")


def share(text: str) -> float:
    """Read a share or a probability, such as 5% or 0.05."""
    with suppress(ValueError):
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 <= number <= 1:
            return number
    raise argparse.ArgumentTypeError(f"expected a share such as 5% or 0.05, got {text!r}")


def at_least(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are not smaller."""

    def number(text: str) -> int:
        with suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, got {text!r}")

    return number


count = at_least(1)
"""Reads a whole number that is at least 1."""
