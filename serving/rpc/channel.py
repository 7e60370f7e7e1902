"""What a client's connection is made of: retries, limits, certificates, a token."""

import json
from pathlib import Path

import grpc

from serving.errors import ConfigurationError
from serving.rpc.watched import read_bytes

_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "digits.v1.DigitClassifier"}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        # Retries stop while more than half of the calls fail (gRFC A6), so that they can't feed
        # an overload.
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
)

OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_receive_message_length", 16 << 20),
)


class Access:
    """What a client shows to a server, and how it knows that it is the right one."""

    def __init__(
        self,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
    ) -> None:
        """Read the files.

        Args:
            token: sent with every call; in the clear, unless there is TLS.
            tls_ca: PEM file of the authorities that may have signed the server's certificate;
                None is plaintext.
            tls_cert: PEM file of the client's own certificate, for mTLS.
            tls_key: its key.

        Raises:
            ConfigurationError: a file can't be read, or one is missing beside the others.
        """
        self._credentials: grpc.ChannelCredentials | None = None
        self.metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        if (tls_cert is None) != (tls_key is None):
            raise ConfigurationError("tls_cert and tls_key go together")
        if tls_ca is not None:
            ca, key, cert = map(_read, (tls_ca, tls_key, tls_cert))
            self._credentials = grpc.ssl_channel_credentials(ca, key, cert)
        elif tls_cert is not None:
            raise ConfigurationError("tls_cert needs tls_ca, which makes the connection TLS")

    def channel(self, target: str) -> grpc.Channel:
        """Open a connection for threads."""
        if self._credentials is None:
            return grpc.insecure_channel(target, options=OPTIONS)
        return grpc.secure_channel(target, self._credentials, options=OPTIONS)

    def aio_channel(self, target: str) -> grpc.aio.Channel:
        """Open a connection for the running event loop."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(target, options=OPTIONS)
        return grpc.aio.secure_channel(target, self._credentials, options=OPTIONS)


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else read_bytes(Path(path))
