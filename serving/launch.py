"""A server from Python: `serve` blocks as the command does, `Server` runs beside your code.

The child process of a `Server` is this module, too: it drains when its parent ends, also by a kill.
"""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

from serving.cli.commands import options_of, parser_of
from serving.cli.serve import serve_until_stopped
from serving.commandline.parser import unknown_option
from serving.config import as_seconds
from serving.errors import ConfigurationError, ServingError, Unavailable
from serving.handlers.loading import HandlerSource, require_no_import
from serving.processes.child import SECRETS, Child, ChildCommand, Streams
from serving.system import signals

_READY = "serving "
_KEPT_LINES = 20
"""Lines of stderr that an error shows."""
_STOP_S = 10.0
"""How long a server may take to end beyond the time for its accepted calls."""
_POLL_S = 0.05
_HTTP = ("python_multipart", "h11")
"""Packages that HTTP needs."""
_COMMAND = ChildCommand(
    __name__,
    Streams(subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE),
    end_signal=signal.SIGTERM,  # it drains
)
_PORTS = ("http_port", "metrics_port")
"""Options of which None is no absence: it closes the port."""
_USAGE = 2
"""The exit code of a wrong option or file."""


def serve(*models: str | Path, **options: Any) -> None:
    """Serve models until SIGTERM or Ctrl-C, as `digit-serving serve` does.

    It returns once every accepted call was answered. Signals are handled as the command does, so it
    runs on the main thread.

    Args:
        models: ONNX files; without any, the repository of the option `models`.
        options: those of the command, by their names with underscores, such as
            `max_batch_size=64`, `reflection=True` or `http_port=None`; `handler` is a file, a
            subclass of `serving.Handler`, or a mapping of these by the models' names.

    Raises:
        ConfigurationError: an option is unknown or can't be used, or no model can be served.
        ServingError: the server can't start, or accepted calls took longer than `drain`.
    """
    from serving.model.onnx_runtime import runtime  # late: a `Server` sets how NumPy starts

    require_no_import("serving.serve(...)")
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            parsed = parser_of("serve").parse_args(["serve", *arguments(models, options)])
    except SystemExit as end:
        raise ConfigurationError(" ".join(complaint.getvalue().split())) from end
    handlers = {number: signal.getsignal(number) for number in signals.HANDLED}
    signals.install()
    try:
        runtime()  # a missing package is one line, with the extra that brings it
        if not serve_until_stopped(parsed):
            raise Unavailable("the server was stopped before every accepted call was answered")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def arguments(models: tuple[str | Path, ...], options: Mapping[str, Any]) -> list[str]:
    """Write models and options as the command line has them.

    Raises:
        ConfigurationError: the command has no option of such a name.
    """
    words: list[str] = []
    known = _option_names() if options else ()
    for name, value in options.items():
        if name not in known:
            raise ConfigurationError(unknown_option(name, known))
        option = f"--{name.replace('_', '-')}"
        if value is None and name in _PORTS:
            value = "off"  # as `ServerConfig` has it
        if value is None or value is False:
            continue
        if name == "handler":
            words += [word for text in _handlers(value) for word in (option, text)]
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, list | tuple):
            words += [option, *map(str, value)]
        else:
            words += [option, str(value)]
    # Before the options, of which some take several values.
    return [*map(str, models), *words]


def _option_names() -> list[str]:
    """Return the names of the command's options as keywords."""
    return [each.removeprefix("--").replace("-", "_") for each in options_of("serve")]


def _handlers(value: Any) -> list[str]:
    """Write handlers as the command line has them: classes as their file and name."""
    if isinstance(value, Mapping):
        return [f"{name}={HandlerSource.of(each)}" for name, each in value.items()]
    values = value if isinstance(value, list | tuple) else [value]
    return [str(HandlerSource.of(each) if isinstance(each, type) else each) for each in values]


class Server:
    """A server in a process of its own, beside your code: for tests and notebooks.

        with Server("model.onnx", port=0) as server:
            client = Client(server.address)

    The process ends with this one, whatever ends it. Ports that are not named are chosen by the
    kernel.
    """

    def __init__(self, *models: str | Path, start_timeout_s: float = 60.0, **options: Any) -> None:
        """Start the server, and wait until it is ready.

        Args:
            models: ONNX files; without any, the repository of the option `models`.
            start_timeout_s: seconds until it has to be ready.
            options: those of `digit-serving serve`; see `serve`.

        Raises:
            ConfigurationError: an option, a model or a port can't be used; the text has the end of
                the server's stderr.
            Unavailable: it is not ready in time, or has ended; likewise.
        """
        require_no_import("serving.Server(...)")
        start_timeout_s = as_seconds("start_timeout_s", start_timeout_s, ConfigurationError)
        has_http = all(map(find_spec, _HTTP))
        usual = {"port": 0, "metrics_port": 0, "http_port": 0 if has_http else "off"}
        secrets = {name: value for name, value in os.environ.items() if name in SECRETS}
        words = ["serve", *arguments(models, usual | options)]
        self._child = Child(_COMMAND, secrets, arguments=words)
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._facts: dict[str, str] = {}
        self._is_ready = threading.Event()
        self._threads = [
            threading.Thread(target=work, args=[stream], name="server-output", daemon=True)
            for work, stream in (
                (self._read_output, self._child.output),
                (self._read_errors, self._child.errors),
            )
        ]
        try:
            for thread in self._threads:
                thread.start()
            self._wait(time.monotonic() + start_timeout_s, start_timeout_s)
        except BaseException:
            self._end(kill=True)
            raise

    def _wait(self, until_s: float, timeout_s: float) -> None:
        while not self._is_ready.wait(_POLL_S):
            end = self._child.wait(0)
            if end is not None:
                for thread in self._threads:
                    thread.join(_STOP_S)
                if self._is_ready.is_set():  # it has served, and ended already
                    return
                is_usage = end.code == _USAGE
                error: type[ServingError] = ConfigurationError if is_usage else Unavailable
                raise error(f"the server ended with {end}{self._end_of_errors()}")
            if time.monotonic() >= until_s:
                text = f"the server was not ready within {timeout_s:g} s"
                raise Unavailable(f"{text}{self._end_of_errors()}")

    def _end_of_errors(self) -> str:
        return "".join(f"\n{line}" for line in list(self._errors))

    def _read_output(self, output: BinaryIO) -> None:
        for line in _lines_of(output):
            if not self._facts and (facts := _facts_in(line)):
                self._facts = facts
                self._is_ready.set()

    def _read_errors(self, errors: BinaryIO) -> None:
        for line in _lines_of(errors):
            self._errors.append(line.rstrip("\n"))

    @property
    def address(self) -> str:
        """Where gRPC is: "host:port"."""
        return self._facts.get("address", "")

    @property
    def http_address(self) -> str | None:
        """Where HTTP is: "host:port"; None if it is off."""
        url = self._facts.get("http", "")
        return url.partition("://")[2] or None

    @property
    def metrics_address(self) -> str | None:
        """Where the metrics are: "host:port"; None if they are off."""
        address = self._facts.get("metrics", "off")
        return None if address == "off" else address

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._child.pid

    @property
    def errors(self) -> str:
        """The last lines of its stderr: the log."""
        return "\n".join(self._errors)

    def close(self) -> None:
        """End the server, once accepted calls are answered. May be called again."""
        self._end(kill=False)

    def _end(self, *, kill: bool) -> None:
        self._child.release()  # it drains
        try:
            self._child.end(0.0 if kill else 30.0 + _STOP_S)
        finally:
            self._child.channel.close()
            for thread in self._threads:
                if thread.is_alive():
                    thread.join(_STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _lines_of(stream: BinaryIO) -> Iterator[str]:
    with io.TextIOWrapper(stream, "utf-8", "replace") as lines:
        yield from lines


def _facts_in(line: str) -> dict[str, str]:
    """Read the ready line, as text or JSON; empty for another line."""
    if line.startswith("{"):
        import json

        try:
            facts = json.loads(line)
        except ValueError:
            return {}
        is_ready = isinstance(facts, dict) and facts.get("message") == "serving"
        return {name: str(fact) for name, fact in facts.items()} if is_ready else {}
    if not line.startswith(_READY):
        return {}
    return dict(word.partition("=")[::2] for word in line.split()[1:])


def main(channel: socket.socket, secrets: Mapping[str, str]) -> NoReturn:
    """Run the child process of a `Server`."""
    signals.install()
    channel.close()
    os.environ.update(secrets)  # its own children get none
    from serving.__main__ import main as run  # late: it looks at the words of the command line

    sys.exit(run(sys.argv[1:]))
