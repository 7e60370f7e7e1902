"""The command line, run in this process."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from serving.__main__ import main


class Output(NamedTuple):
    """The exit code of a command, and its lines."""

    code: int
    out: list[str]
    err: list[str]


Run = Callable[..., Output]


@pytest.fixture
def run(capsys):
    """Run a command of `digit-serving`."""

    def run(*arguments):
        code = main([*map(str, arguments)])
        printed = capsys.readouterr()
        return Output(code, printed.out.splitlines(), printed.err.splitlines())

    return run
