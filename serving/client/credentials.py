"""Token, certificates and trace of a client's calls."""

import ssl
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from serving.errors import (
    ConfigurationError,
)
from serving.security.authorities import read_authorities
from serving.security.watched_files import read_bytes

_NO_SPAN = nullcontext()


def _is_token(value: object) -> bool:
    """Return whether a header can carry a value as a token: an empty one resets the call."""
    return isinstance(value, str) and value != "" and all("!" <= each <= "~" for each in value)


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
        for each in (tls_ca, tls_cert, tls_key):
            if not isinstance(each, str | Path | None):
                raise ConfigurationError(f"expected the path of a PEM file, got {each!r:.80}")
        if token is not None and not _is_token(token):
            raise ConfigurationError("a token must be printable ASCII without blanks")
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        if (tls_cert is None) != (tls_key is None):
            raise ConfigurationError("tls_cert and tls_key go together")
        if tls_ca is None and tls_cert is not None:
            raise ConfigurationError("tls_cert needs tls_ca, which makes the connection TLS")
        # Only the bytes: gRPC starts threads for credentials, which do not survive a fork.
        pair = (None if path is None else read_bytes(Path(path)) for path in (tls_key, tls_cert))
        self.files = None if tls_ca is None else (read_authorities(tls_ca), *pair)
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
    attributes = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "server.address": target,
    }
    tracer = trace.get_tracer("serving.client")
    return tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
