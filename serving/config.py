"""Every setting of serving with its unit and its default."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Literal, cast, get_args

from serving.errors import ConfigurationError, InvalidRequest

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "int8"]
TransportName = Literal["auto", "h2", "grpcio"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
BatchingMode = Literal["auto", "always", "never"]
SpotChecking = Literal["on", "off"]

MOST_ROWS = 16_384
"""The largest batch: the largest that a proof is about (serving/proof/sizes.py)."""

MOST_RESPONSE_BYTES = (2 << 30) - (1 << 20)
"""The longest answer that can be allowed: a message of gRPC has less than 2 GiB, names included."""

_NAME = re.compile(r"[\x21-\x3c\x3e-\x7e]{1,128}")
"""ASCII without blanks and =, so that the ready line stays parseable."""
_VERSIONS = re.compile(r"latest|all|[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*")
_MAX_THREADS = 1024
_NUM_NEAR_PORTS = 100
"""Ports to try from a usual one on."""
_UNIX = "unix:"
"""A host that begins so is the path of a socket."""
_EVERY = {"", "0.0.0.0", "::"}
"""Hosts that are all addresses of the machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingConfig:
    """How requests are queued and batched; sizes count rows."""

    max_batch_size: int = 512
    """The most rows in one batch."""
    # Of the bundled model: past 128 its time a row is constant; only the overhead of runs is still
    # spread over more: from 128 to 512, messages of 256 rows gain a quarter. A run of 512 takes
    # some 2 ms.
    max_queue_delay_s: float = 0.0
    """Seconds to wait for more rows of a batch; with 0, batches grow only while it is busy."""
    queue_capacity: int = 16_384
    """The most rows that wait in each of a version's three queues, at least those of one request.
    Further requests are rejected; those of callers with few rows once there are twice as many."""
    slo_s: float = math.inf
    """Time such as 5ms within which accepted requests are to be answered, in seconds; requests that
    would wait longer are rejected at once."""
    max_run_s: float = 60.0
    """Seconds that an offloaded batch may take; it is ended then, with DEADLINE_EXCEEDED."""
    max_request_rows: int = 4_096
    """The most rows in one request, of models whose rows are batched."""
    # Of 784 bytes each 3.2 MB, under every client's default limit of 4 MiB.
    max_response_bytes: int = 256 << 20
    """The most bytes of a call's outputs, such as 64M; a larger answer is an error that names the
    output. It is checked after the run: what a run itself allocates is not bounded."""
    spot_checks: SpotChecking = "on"
    """Whether a call of a shared batch is run alone once more now and then, before it is answered:
    rows that are found to depend on others end batching. A model's config.pbtxt takes
    precedence."""
    handler_processes: int = 0
    """Processes of each handler. With 0 there are as many as cores but one, at least one, and two
    on two cores if one takes at most 256 MiB after `setup`. With workers each has its part."""
    max_handler_s: float = 60.0
    """Seconds that a method of a handler may take; its process is ended then."""
    max_handler_bytes: int = 0
    """Memory of a handler's process, such as 2G, past which it is ended; 0: any."""

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "queue_capacity", "max_request_rows"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        most = self.max_batch_size
        _require(most <= MOST_ROWS, "max_batch_size", most, f"at most {MOST_ROWS}")
        _require(
            self.queue_capacity >= self.max_request_rows,
            "queue_capacity",
            self.queue_capacity,
            f"at least max_request_rows ({self.max_request_rows})",
        )
        _require_seconds("max_queue_delay", self.max_queue_delay_s)
        most = self.max_response_bytes
        is_message = 1 <= most <= MOST_RESPONSE_BYTES
        _require(is_message, "max_response_bytes", most, f"1 to {MOST_RESPONSE_BYTES}")
        _require(self.slo_s > 0, "slo", self.slo_s, "more than 0")
        _require(0 < self.max_run_s <= 1e6, "max_run", self.max_run_s, "more than 0, up to 1e6")
        most_s = self.max_handler_s
        _require(0 < most_s <= 1e6, "max_handler", most_s, "more than 0, up to 1e6")
        for name in ("handler_processes", "max_handler_bytes"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model to run, or the models to serve, and their device."""

    models: Path = Path("models")
    """The root of the repository; a model's versions are in models/<model>/<version>/."""
    url: str | None = None
    """The repository that is copied and followed instead, such as "s3://bucket/models"."""
    model_cache: Path | None = None
    """Folder of copies from URLs; without one, ~/.cache/digit-serving/models."""
    model: str = ""
    """The model's name, where one is run."""
    names: tuple[str, ...] | None = None
    """The models of the repository to serve; None for all."""
    files: tuple[Path, ...] = ()
    """ONNX files to serve besides, each as a model of its name."""
    version: str | None = None
    """The version to use; without one, the one labelled stable, else the newest good one that takes
    and answers what callers of the one below expect."""
    versions: str = "latest"
    """The versions of each model to serve: latest, all, or numbers such as 3,4."""
    canary: float = 0.0
    """Share of the calls for the newest version, such as 5%. The one before answers the others. A
    model's labels.json takes precedence."""
    served_name: str | None = None
    """The only model's name for callers; without one, the name that it was exported with."""
    device: Device = "auto"
    """Device of inference; auto takes CUDA if it works, else the CPU."""
    precision: Precision = "fp32"
    """Variant of the model."""
    threads: int = 0
    """Threads of one run of a model; a model's config.pbtxt takes precedence. 0 is one, but as many
    as cores where a call is alone, if that was measured to be faster: it takes a second copy of
    the model's weights, which 1 saves."""
    max_model_bytes: int = 2 << 30
    """The most bytes of a model's files, such as 500M or 2G."""
    batch: tuple[str, ...] = ()
    """Batching of a model, such as cnn=never. auto: batch if its graph proves that rows don't
    depend on one another. always: batch unproved, at your risk. never: run each call alone."""

    handler: tuple[str, ...] = ()
    """Code around a model, in Python: FILE.py, FILE.py:CLASS or NAME=FILE.py; a handler with
    `predict` is a model by itself."""
    max_handler_setup_s: float = 120.0
    """Seconds that the start of a handler's process may take: its imports and `setup`."""
    allow_missing: bool = False
    """Start although a model that is named here can't be served: the others are, and this one from
    the first look on at which it can be. Without it the server ends, with the reason."""
    allow_handlers: bool = False
    """Run the handler.py of a version in the repository, which is code."""

    def __post_init__(self) -> None:
        for name, kind in (("device", Device), ("precision", Precision)):
            value = getattr(self, name)
            _require(value in get_args(kind), name, value, "one of " + ", ".join(get_args(kind)))
        is_list = _VERSIONS.fullmatch(self.versions) is not None
        _require(is_list, "versions", self.versions, "latest, all, or numbers such as 3,4")
        _require(0 <= self.canary <= 1, "canary", self.canary, "0 to 1")
        if self.version is not None and (self.versions != "latest" or self.canary):
            raise ConfigurationError("version pins one: versions and canary have no effect then")
        _require(0 <= self.threads <= _MAX_THREADS, "threads", self.threads, f"0 to {_MAX_THREADS}")
        _require(self.max_model_bytes >= 1, "max_model_bytes", self.max_model_bytes, "at least 1")
        if self.served_name is not None:
            require_name("served_name", self.served_name)
        most_s = self.max_handler_setup_s
        _require(0 < most_s <= 1e6, "max_handler_setup", most_s, "more than 0, up to 1e6")
        for each in self.batch:
            is_known = each.rpartition("=")[0] and each.rpartition("=")[2] in get_args(BatchingMode)
            _require(bool(is_known), "batch", each, "NAME=auto, NAME=always or NAME=never")
        names = [each.rpartition("=")[0] for each in self.batch]
        for name in names:
            _require(names.count(name) == 1, "batch", f"{name} twice", "given once for each model")

    def batching_of(self, name: str) -> BatchingMode | None:
        """Return how the command line wants a model batched; None if it does not say."""
        modes = dict(each.rpartition("=")[::2] for each in self.batch)
        return cast(BatchingMode | None, modes.get(name))

    def require_batched(self, names: Collection[str]) -> None:
        """Check that there are the models that `batch` is about.

        Raises:
            ConfigurationError: there is none of a name.
        """
        for each in self.batch:
            there = ", ".join(sorted(names)[:8])
            _require(each.rpartition("=")[0] in names, "batch", each, f"about a model: {there}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityConfig:
    """TLS and tokens; without any the port is plaintext and open to everyone who reaches it."""

    tls_cert: Path | None = None
    """PEM certificate chain: enables TLS; reloaded when it changes."""
    tls_key: Path | None = None
    """PEM key of the certificate."""
    tls_client_ca: Path | None = None
    """PEM authorities: clients need a certificate from one of them (mTLS)."""
    token_file: Path | None = None
    """File of bearer tokens, one a line, all valid. It is reloaded when it changes. SERVING_TOKEN
    can be set instead."""
    tokens: str | None = field(default=None, repr=False)
    """The tokens themselves, one a line, if there is no file."""

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
    """How the server listens, reloads and stops."""

    host: str = "127.0.0.1"
    """Address to listen on; a public one needs TLS or a private network."""
    port: int = 50_051
    """TCP port; 0 lets the kernel choose."""
    metrics_host: str = "127.0.0.1"
    """Address of /metrics, /healthz and /readyz, without TLS and tokens."""
    metrics_port: int | None = 9_090
    """TCP port of /metrics, /healthz and /readyz. 0 lets the kernel choose. off, in Python None,
    disables them. auto takes 9090, or the next one that is free."""
    http_host: str = "127.0.0.1"
    """Address of HTTP."""
    http_port: int | None = None
    """TCP port of HTTP: pictures, tensors as JSON, and a page to draw on. 0 lets the kernel choose.
    off, in Python None, disables it. auto takes 8080, or the next one that is free."""
    http_host_names: tuple[str, ...] = ()
    """Names of this server in URLs, beside localhost and addresses; * is any."""
    http_allow_origins: tuple[str, ...] = ()
    """Sites whose pages may ask over HTTP, such as https://example.org."""
    max_json_bytes: int = 32 << 20
    """The longest JSON over HTTP, such as 4M: by default a picture of 640 x 640 x 3 floats."""
    max_buffered_bytes: int | None = None
    """Bytes of half-received messages, of all callers together, such as 512M. Callers of large ones
    wait for room. Without it, eight times the longest message or JSON, at most an eighth of the
    memory, of which each worker has its part, and at least 64 MiB."""
    usual_ports: tuple[str, ...] = ()
    """Which of http_port and metrics_port nobody has asked for: the next free one is taken in place
    of one that is in use."""
    transport: TransportName = "auto"
    """gRPC implementation; auto is h2."""
    workers: int = 1
    """Processes that share the port and divide the cores. One that dies is restarted. Limits such
    as the queue's are per worker."""
    drain_s: float = 30.0
    """Seconds for accepted requests to finish after SIGTERM or Ctrl-C."""
    max_connection_age_s: float = 0.0
    """Seconds after which callers are asked to reconnect, so that load balancers spread them; 0:
    never."""
    reload_interval_s: float = 0.0
    """Seconds between looks for new versions, labels and models; 0: only at SIGHUP."""
    self_test_interval_s: float = 10.0
    """Seconds between the golden samples that decide the state of health; 0: never."""
    access_log: float = 0.0
    """Share of the calls to log, such as 5%, besides all that fail; 0 logs none."""
    otlp_endpoint: str | None = None
    """OpenTelemetry collector that gets a span for each call, such as http://127.0.0.1:4317 (extra
    otel)."""
    reflection: bool = False
    """List services and messages to callers such as grpcurl."""
    allow_repository_control: bool = False
    """Let callers load and unload models."""
    input: str = "tensors"
    """image: treat models without a manifest as classifiers of pictures; the graph gives the size,
    a classifier.json beside the model the rest."""
    labels: tuple[str, ...] = ()
    """The names of their classes."""
    log_level: LogLevel = "info"
    """Least level of the log lines on stderr."""
    log_format: LogFormat = "text"
    """Format of the log lines on stderr and of the ready line on stdout."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """TLS and tokens."""

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65_535, "port", self.port, "0 to 65535")
        for name in ("metrics_port", "http_port"):
            port = getattr(self, name) or 0
            _require(0 <= port <= 65_535, name, port, "0 to 65535")
        self._require_different_ports()
        self._require_addresses()
        _require(self.max_json_bytes >= 1, "max_json_bytes", self.max_json_bytes, "at least 1")
        most = self.max_buffered_bytes
        _require(most is None or most >= 1, "max_buffered_bytes", most, "at least 1")
        is_image = self.input == "image"
        _require(is_image or self.input == "tensors", "input", self.input, "tensors or image")
        _require(is_image or not self.labels, "labels", self.labels[:3], "given with input image")
        _require(self.workers >= 1, "workers", self.workers, "at least 1")
        _require(0 <= self.access_log <= 1, "access_log", self.access_log, "0 to 1")
        for name in ("drain", "max_connection_age", "reload_interval", "self_test_interval"):
            _require_seconds(name, getattr(self, f"{name}_s"))

    def ports_to_try(self, name: str) -> list[int]:
        """Return the ports of a listener in their order: several if nobody has asked for one.

        Args:
            name: http_port or metrics_port.
        """
        port: int = getattr(self, name)
        if name not in self.usual_ports:
            return [port]
        names = {"port", "http_port", "metrics_port"} - {*self.usual_ports}
        others = {getattr(self, other) for other in names}
        return [each for each in range(port, port + _NUM_NEAR_PORTS) if each not in others]

    def _require_addresses(self) -> None:
        """Raise ConfigurationError for a Unix socket where only a port can be."""
        for name in ("metrics_host", "http_host"):
            host = getattr(self, name)
            is_port = not host.startswith(_UNIX)
            _require(is_port, name, host, "an address: only host may be a Unix socket")
        if self.workers > 1 and self.host.startswith(_UNIX):
            raise ConfigurationError(
                f"host {self.host}: a Unix socket serves one process: leave out --workers"
            )

    def _require_different_ports(self) -> None:
        """Raise ConfigurationError if two of the three ports can't be open at the same time."""
        places = {
            "port": (self.host, self.port),
            "metrics_port": (self.metrics_host, self.metrics_port),
            "http_port": (self.http_host, self.http_port),
        }
        places = {name: place for name, place in places.items() if name not in self.usual_ports}
        for (name, one), (other, another) in combinations(places.items(), 2):
            is_same = one[0] == another[0] or not _EVERY.isdisjoint({one[0], another[0]})
            if one[1] == another[1] and one[1] and is_same and not one[0].startswith(_UNIX):
                raise ConfigurationError(f"{name} and {other} must be different, got {one[1]}")


def as_seconds(
    name: str, value: object, error: type[InvalidRequest | ConfigurationError] = InvalidRequest
) -> float:
    """Return a time that a program names, in seconds.

    Raises:
        InvalidRequest: it is no number; or another error, if one is given.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value):
        return float(value)
    raise error(f"{name}: expected seconds, such as 0.5, got {value!r}")


def require_name(field: str, name: str) -> None:
    """Raise ConfigurationError if a model can't have this name."""
    _require(bool(_NAME.fullmatch(name)), field, name, "1 to 128 visible characters, no blank or =")


def _require_seconds(name: str, value_s: float) -> None:
    _require(0 <= value_s <= 1e6, name, value_s, "0 to 1e6")  # the longest that timers can wait


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name} must be {expected}, got {value!r}")
