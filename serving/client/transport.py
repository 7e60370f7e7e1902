"""A client's transport: one interface for threads and event loops, ours and grpcio's."""

import ipaddress
import math
import os
import random
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serving.config import TransportName
from serving.credentials import read_bytes
from serving.errors import (
    ConfigurationError,
    Overloaded,
    ServerError,
    ServingError,
    Unavailable,
)
from serving.protocols import error_info
from serving.protocols.status import PUSHBACK, TABLE, Failure, StatusCode, error_from

Outcome = bytes | Failure
Metadata = tuple[tuple[str, str], ...]
KEEPALIVE_TIME_S = 1.5
"""How long nothing may come while a call waits; then a ping asks whether the server lives."""
KEEPALIVE_TIMEOUT_S = 1.25
"""How long its answer may take; then the connection is given up."""

CUT_OFF = Failure(StatusCode.CANCELLED, "the call was cut off")
LATE = Failure(StatusCode.DEADLINE_EXCEEDED, "no answer within the timeout")
_FIRST_CONTACT_S = 5.0
"""How long a client that never had an answer retries: long enough for a server that is starting,
but shorter than a long timeout, in case the address is wrong."""
_SHORTEST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.05, 0.5
_MAX_ATTEMPTS = 5
"""The most attempts of one call that servers answer by a failure; gRPC's own limit (gRFC A6)."""
_LONGEST_TIMEOUT_S = 1e9
"""Thirty years: locks, poll and grpcio take no infinity."""
_RETRYABLE = (
    StatusCode.UNAVAILABLE,
    StatusCode.CANCELLED,  # of calls pending at a grpcio server's stop (grpc #41785)
)
_NO_SPAN = nullcontext()
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables of the environment by which grpcio connects through a proxy."""


def malformed(address: str, answer: str) -> Unavailable:
    """Build the error for a server that breaks its protocol."""
    return Unavailable(f"{address}: the server is broken: it answered {answer}")


class PendingCall(Protocol):
    """A call that was sent."""

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""

    async def result(self) -> Outcome:
        """Wait for the end of the call."""


class EndedCall:
    """A call that could not be sent."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def cancel(self) -> None:
        """Do nothing: it has ended."""

    async def result(self) -> Outcome:
        """Return the reason."""
        return self._outcome


class Transport(Protocol):
    """Connects at the first call, and again when that is needed.

    For threads, too, these methods are coroutines: they block instead of suspending.
    """

    async def send(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> PendingCall:
        """Start a call; its metadata come after those of the credentials."""

    async def exchange(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> Outcome:
        """Start a call and wait for its end."""
        return await (await self.send(path, message, timeout_s, metadata)).result()

    async def close(self) -> None:
        """End all calls and connections."""


# Retries


class RetryBudget:
    """The retries of all calls of a client together, counted over some seconds.

    In each window there may be a few retries, and a share of as many as there were answers: a
    server that fails most calls gets each of them once, and recovers.
    """

    _WINDOW_S = 10
    _FREE = 50
    """Retries in a window that need no answers."""
    _SHARE = 0.1
    """Retries for each answer."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: time.monotonic())
        # No lock: threads that meet lose a count.
        self._answers = [0] * self._WINDOW_S
        self._retries = [0] * self._WINDOW_S
        self._second = int(self._clock())

    def put(self) -> None:
        """Note an answer."""
        self._answers[self._slot()] += 1

    def take(self) -> bool:
        """Note a failed attempt; return whether it may be made again."""
        slot = self._slot()
        if self.is_spent:
            return False
        self._retries[slot] += 1
        return True

    @property
    def is_spent(self) -> bool:
        """Whether there were as many retries in the window as there may be."""
        return sum(self._retries) >= self._FREE + int(self._SHARE * sum(self._answers))

    def _slot(self) -> int:
        """Return the place of this second, and forget those before the window."""
        second = int(self._clock())
        if second != self._second:
            for gone in range(self._second + 1, min(second, self._second + self._WINDOW_S) + 1):
                self._answers[gone % self._WINDOW_S] = self._retries[gone % self._WINDOW_S] = 0
            self._second = second
        return second % self._WINDOW_S


class RetryState:
    """One call's deadline, and how its attempts went."""

    def __init__(
        self,
        address: str,
        timeout_s: float,
        *,
        attempt_timeout_s: float | None = None,
        first_contact: bool = False,
        budget: RetryBudget | None = None,
    ) -> None:
        """Start the clock; see `BaseClient` for the timeouts.

        Args:
            address: named in errors.
            timeout_s: for all attempts together.
            attempt_timeout_s: for one.
            first_contact: whether the client has never had an answer.
            budget: of the client's calls; None is no limit.
        """
        self._address = address
        now_s = time.monotonic()
        timeout_s = min(timeout_s, _LONGEST_TIMEOUT_S)
        self._deadline_s = now_s + timeout_s
        self._attempt_timeout_s = math.inf if attempt_timeout_s is None else attempt_timeout_s
        self._until_s = now_s + (min(timeout_s, _FIRST_CONTACT_S) if first_contact else timeout_s)
        self._budget = budget
        self._backoff_s = _SHORTEST_BACKOFF_S
        self._was_late = False
        self._num_refused = 0
        self._reason: ServerError | None = None

    def timeout_s(self) -> float:
        """Return the seconds that the next attempt may take."""
        return min(self._attempt_timeout_s, max(0.0, self._deadline_s - time.monotonic()))

    def backoff_s(self, failure: Failure) -> float:
        """Return how long to wait before the call is sent again.

        Args:
            failure: how this attempt ended; where a server answered so, the retry is one of the
                budget's.

        Raises:
            ServingError: the call is not sent again; this is the reason why it failed.
        """
        error, is_answer = error_from(failure, self._address), failure.is_answer
        is_late = failure.code is StatusCode.DEADLINE_EXCEEDED
        if is_late and self._attempt_timeout_s < math.inf and time.monotonic() < self._until_s:
            # The attempt's time is over, not the call's: another server may answer. The first time
            # takes no token, since a server that stands still meets every caller once.
            is_answer, self._was_late = self._was_late, True
            self._spend(is_answer, error)
            return 0.0
        if isinstance(error, Overloaded):
            return self._pause_s(error)
        is_retried = failure.code in _RETRYABLE or TABLE[type(error)].is_retried
        if not is_retried or failure.is_permanent or (failure.pushback_s or 0) < 0:
            # No time was left for another attempt, so report why the last one failed.
            raise self._reason if is_late and self._reason else error
        assert isinstance(error, Unavailable)
        self._num_refused += is_answer
        if self._num_refused == _MAX_ATTEMPTS:
            raise error
        self._spend(is_answer, error)
        self._reason = error
        backoff_s = self._backoff_s * random.uniform(0.5, 1.5)  # spreads those that failed together
        if time.monotonic() + backoff_s >= self._until_s:
            raise error
        self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        return backoff_s

    def _pause_s(self, error: Overloaded) -> float:
        """Return how long to wait for a server whose queue is full: at least as long as it asks."""
        if error.retry_after_s is None or error.retry_after_s < 0:
            raise error
        least_s = max(error.retry_after_s, self._backoff_s)
        pause_s = least_s * random.uniform(1.0, 1.5)  # spreads those that were refused together
        if time.monotonic() + pause_s >= self._deadline_s:
            raise error
        self._spend(True, error)
        self._reason = error
        self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        return pause_s

    def _spend(self, is_charged: bool, error: ServingError) -> None:
        """Take a token for another attempt; raise the error if there are too few."""
        if is_charged and self._budget is not None and not self._budget.take():
            raise error


# Trailers


def trailers_failure(
    code: StatusCode, text: str, trailers: Sequence[tuple[str, str | bytes]]
) -> Failure:
    """Build the failure of a call that a server has answered.

    Args:
        code: its status.
        text: its text.
        trailers: binary ones as bytes, or as they are on the wire, in base64.
    """
    fields = dict(trailers)
    details, pushback = fields.get(error_info.TRAILER, ""), fields.get(PUSHBACK, "")
    read = error_info.reason_in if isinstance(details, bytes) else error_info.decode
    reason = read(details)  # type: ignore[arg-type]
    return Failure(code, text, PUSHBACK not in fields, reason, _pause_s(str(pushback)))


def _pause_s(milliseconds: str) -> float | None:
    """Read a pushback; a negative number, or none, asks for no attempt (gRFC A6)."""
    if not milliseconds:
        return None
    try:
        return int(milliseconds[:12]) / 1e3
    except ValueError:
        return -1.0


# Credentials


class Credentials:
    """A client's credentials, and the authorities that it trusts."""

    def __init__(
        self,
        token: str | None,
        tls_ca: str | Path | None,
        tls_cert: str | Path | None,
        tls_key: str | Path | None,
    ) -> None:
        """Read the files; see `BaseClient` for the arguments and errors."""
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigurationError("a token must be printable ASCII on one line")
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        if (tls_cert is None) != (tls_key is None):
            raise ConfigurationError("tls_cert and tls_key go together")
        if tls_ca is None and tls_cert is not None:
            raise ConfigurationError("tls_cert needs tls_ca, which makes the connection TLS")
        # Only the bytes: gRPC starts threads for credentials, which do not survive a fork.
        paths = (tls_ca, tls_key, tls_cert)
        files = (None if path is None else read_bytes(Path(path)) for path in paths)
        self.files = None if tls_ca is None else tuple(files)
        """Authorities, key and certificate, as PEM; None is plaintext."""
        self.scheme = "http" if tls_ca is None else "https"
        self._pair = None if tls_cert is None else (Path(tls_cert), tls_key and Path(tls_key))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call: the token, and the caller's span if it uses OpenTelemetry."""
        if not _makes_spans():
            return self._metadata
        from opentelemetry import propagate

        context: dict[str, str] = {}
        propagate.inject(context)
        return (*self._metadata, *context.items())

    def tls_context(self) -> ssl.SSLContext | None:
        """Make a context for HTTP/2; None is plaintext.

        Raises:
            ConfigurationError: a file is no certificate or key.
        """
        if self.files is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        try:
            context.load_verify_locations(cadata=(self.files[0] or b"").decode("ascii", "replace"))
            if self._pair is not None:
                context.load_cert_chain(*self._pair)  # it takes files only
        except (ssl.SSLError, OSError, ValueError) as err:
            raise ConfigurationError(f"can't use the certificates: {err}") from err
        return context


def _makes_spans() -> bool:
    return "opentelemetry.trace" in sys.modules


def client_span(path: str, target: str) -> AbstractContextManager[object]:
    """Return a span for a call and its retries, which becomes the active one; errors are noted.

    Args:
        path: of the method, such as "/grpc.health.v1.Health/Check".
        target: where the server is.
    """
    if not _makes_spans():
        return _NO_SPAN
    from opentelemetry import trace

    name = path.removeprefix("/")
    service, _, method = name.rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method,
                  "server.address": target}  # fmt: skip
    tracer = trace.get_tracer("serving.client")
    return tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)


# Addresses


@dataclass(frozen=True, slots=True)
class Address:
    """One server's address."""

    host: str
    port: int
    authority: str
    """As it was written: "host:port"."""


def address_for_h2(transport: TransportName, target: str) -> Address | None:
    """Return where h2 connects to, or None for grpcio.

    Args:
        transport: "h2", "grpcio", or "auto": h2 for one address that is not a name, without a
            proxy, except on Windows. A name may stand for several servers, among which grpcio
            takes turns.
        target: see `BaseClient`.

    Raises:
        ConfigurationError: h2 was requested, and is not for this target or this system.
    """
    if transport == "grpcio":
        return None
    address = _single(target)
    can_poll = hasattr(select, "poll")  # not on Windows
    if transport == "auto":
        is_for_grpcio = not can_poll or any(map(os.environ.get, _PROXIES))
        return None if is_for_grpcio or address is None or _is_name(address.host) else address
    if transport != "h2":
        raise ConfigurationError(f"transport must be auto, h2 or grpcio, got {transport!r}")
    if address is None:
        raise ConfigurationError(
            f"transport h2 takes one host:port, got {target!r}: use transport grpcio for several "
            "servers and gRPC's other targets"
        )
    if not can_poll:
        raise ConfigurationError("transport h2 does not run on Windows: use transport grpcio")
    return address


def grpc_target(target: str) -> tuple[str, str | None]:
    """Return gRPC's form of a target, and the authority to send, None for gRPC's own choice.

    Args:
        target: any target of gRPC's, such as "host:port" or "dns:///name:port", or several
            "host:port" with commas between them.

    Raises:
        ConfigurationError: one of several addresses has no port.
        Unavailable: a name of several has no address.
    """
    scheme, colon, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6") and colon:
        # Else the whole list is sent, which is not a valid :authority.
        return target, rest.partition(",")[0] if "," in rest else None
    if "," not in target or "/" in target:
        return target, None
    parts = [part.strip() for part in target.split(",") if part.strip()]
    wrong = [part for part in parts if _split(part) is None]
    if wrong:
        raise ConfigurationError(f"expected addresses such as host:port, got {wrong[0]!r}")
    found = [each for pair in map(_split, parts) if pair for each in _resolve(*pair)]
    if any(":" in host for host, _ in found):  # gRPC's lists are of one family
        mapped = ((host if ":" in host else f"::ffff:{host}", port) for host, port in found)
        return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in mapped), parts[0]
    return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found), parts[0]


def _split(text: str) -> tuple[str, int] | None:
    """Return host, without brackets, and port of "host:port"; None if it is not that."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    return (bare, int(port)) if bare and port.isdecimal() else None


def _single(target: str) -> Address | None:
    """Return the address of a target, or None for several and for gRPC's other targets."""
    parts = _split(target)
    if parts is None or set(target) & set("/,"):
        return None
    if ":" in parts[0] and not target.startswith("["):  # IPv6 without brackets
        return None
    return Address(*parts, target)


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as err:
        raise Unavailable(f"{host}:{port}: {err.strerror or err}") from err
    return [(str(each[4][0]), port) for each in found]
