"""Every setting of serving, its unit and its default, written once."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from serving.errors import ConfigurationError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "int8"]
TransportName = Literal["auto", "h2", "grpcio"]
LogFormat = Literal["text", "json"]

_NAME = re.compile(r"[\x21-\x3c\x3e-\x7e]{1,128}")
"""ASCII without blanks and =, so that the line that says it is ready stays parseable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingConfig:
    """How requests wait and are put together into runs; sizes count images."""

    max_batch_size: int = 512
    """The most images in one run. An image's own cost no longer falls past 128, but a run's does:
    from 128 to 512, messages of 256 images gain a quarter (h2load, one core), and a run of 512
    takes 1.4 ms."""
    max_queue_delay_s: float = 0.0
    """How long an idle engine waits for more images; 0 starts at once and batches while busy."""
    queue_capacity: int = 16_384
    """The most images that wait; a request that would exceed it is rejected as Overloaded."""
    max_request_images: int = 4_096
    """The most images in one request: 3.2 MB, under every client's stock limit of 4 MiB."""

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "queue_capacity", "max_request_images"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(
            self.queue_capacity >= self.max_request_images,
            "queue_capacity",
            self.queue_capacity,
            f"at least max_request_images ({self.max_request_images})",
        )
        _require_seconds("max_queue_delay", self.max_queue_delay_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model is served, and on what."""

    models: Path = Path("models")
    """The repository's root; the model's versions lie in models/<model>/<version>/."""
    model: str = "digits"
    """The model's name."""
    version: str | None = None
    """The version to serve; None for the newest good one."""
    served_name: str | None = None
    """The name that callers know it by; None for the name that it was exported with."""
    device: Device = "auto"
    """"auto" takes CUDA where it works and the CPU elsewhere."""
    precision: Precision = "fp32"
    """Which of the version's variants runs."""

    def __post_init__(self) -> None:
        for name, kind in (("device", Device), ("precision", Precision)):
            value = getattr(self, name)
            _require(value in get_args(kind), name, value, "one of " + ", ".join(get_args(kind)))
        served_name = self.served_name
        is_name = served_name is None or _NAME.fullmatch(served_name) is not None
        _require(is_name, "served_name", served_name, "1 to 128 visible characters, no blank or =")


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityConfig:
    """Who may call; nothing set is plaintext for everyone who reaches the port."""

    tls_cert: Path | None = None
    """PEM file of the server's certificate chain; read again when it changes."""
    tls_key: Path | None = None
    """PEM file of its key."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities that sign clients' certificates; then each needs one (mTLS)."""
    token_file: Path | None = None
    """File of bearer tokens, one a line, all valid; read again when it changes."""
    tokens: str | None = field(default=None, repr=False)
    """The tokens themselves, one a line, where there is no file."""

    def __post_init__(self) -> None:
        is_whole = (self.tls_cert is None) == (self.tls_key is None)
        _require(is_whole, "tls_key", self.tls_key, "given together with tls_cert")
        ca = self.tls_client_ca
        _require(ca is None or self.has_tls, "tls_client_ca", ca, "given together with tls_cert")

    @property
    def has_tls(self) -> bool:
        """Whether the port speaks TLS."""
        return self.tls_cert is not None

    @property
    def has_tokens(self) -> bool:
        """Whether calls need a token."""
        return self.token_file is not None or self.tokens is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where the server listens and how it ends."""

    host: str = "127.0.0.1"
    """The address to bind; anything public wants TLS or a private network."""
    port: int = 50_051
    """The TCP port; 0 lets the kernel choose."""
    metrics_host: str = "127.0.0.1"
    """The address of metrics, liveness and readiness over HTTP, which have no TLS and no tokens."""
    metrics_port: int | None = 9_090
    """Their TCP port; 0 lets the kernel choose, None is off."""
    transport: TransportName = "auto"
    """What answers the port; "auto" takes h2 where ngh2 is installed."""
    workers: int = 1
    """Processes that share the port; each holds the model, and has its share of the cores."""
    drain_s: float = 30.0
    """Seconds that accepted requests get to finish after SIGTERM or SIGINT."""
    max_connection_age_s: float = 0.0
    """Seconds after which callers are asked to connect again (h2), so that load balancers spread
    them; 0 is never."""
    reload_interval_s: float = 0.0
    """Seconds between looks for a new version; 0 looks only at SIGHUP."""
    self_test_interval_s: float = 10.0
    """Seconds between golden samples sent through the batcher for health; 0 sends none."""
    access_log: float = 0.0
    """Share of the calls that get a line in the log, 0 to 1; where it is not 0, calls that fail get
    one, too."""
    reflection: bool = False
    """Whether callers may ask which services and messages there are."""
    log_format: LogFormat = "text"
    """Of log lines, and of the line that says that it is ready."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS and tokens."""

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65_535, "port", self.port, "0 to 65535")
        metrics_port = self.metrics_port or 0
        _require(0 <= metrics_port <= 65_535, "metrics_port", metrics_port, "0 to 65535")
        _require(self.workers >= 1, "workers", self.workers, "at least 1")
        _require(0 <= self.access_log <= 1, "access_log", self.access_log, "0 to 1")
        for name in ("drain", "max_connection_age", "reload_interval", "self_test_interval"):
            _require_seconds(name, getattr(self, f"{name}_s"))


def _require_seconds(name: str, value_s: float) -> None:
    _require(0 <= value_s <= 1e6, name, value_s, "0 to 1e6")  # what timers can wait for


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name} must be {expected}, got {value!r}")
