"""Settings: each default, the last values that each takes, and the first that it refuses."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from serving.config import (
    BatchingConfig,
    ModelConfig,
    SecurityConfig,
    ServerConfig,
    as_seconds,
    require_name,
)
from serving.errors import ConfigurationError, InvalidRequest

MIB, GIB = 1 << 20, 1 << 30


def test_defaults_are_these():
    assert asdict(BatchingConfig()) == {
        "max_batch_size": 512, "max_queue_delay_s": 0.0, "queue_capacity": 16_384,
        "slo_s": math.inf, "max_run_s": 60.0, "max_request_rows": 4096,
        "max_response_bytes": 256 * MIB, "spot_checks": "on", "handler_processes": 0,
        "max_handler_s": 60.0, "max_handler_bytes": 0,
    }  # fmt: skip
    assert asdict(ModelConfig()) == {
        "models": Path("models"), "url": None, "model_cache": None, "model": "", "names": None,
        "files": (), "version": None, "versions": "latest", "canary": 0.0, "served_name": None,
        "device": "auto", "precision": "fp32", "threads": 0, "max_model_bytes": 2 * GIB,
        "batch": (), "handler": (), "max_handler_setup_s": 120.0, "allow_missing": False,
        "allow_handlers": False,
    }  # fmt: skip
    security = {
        "tls_cert": None, "tls_key": None, "tls_client_ca": None, "token_file": None,
        "tokens": None,
    }  # fmt: skip
    assert asdict(SecurityConfig()) == security
    assert asdict(ServerConfig()) == {
        "host": "127.0.0.1", "port": 50051, "metrics_host": "127.0.0.1", "metrics_port": 9090,
        "http_host": "127.0.0.1", "http_port": None, "http_host_names": (),
        "http_allow_origins": (), "max_json_bytes": 32 * MIB, "max_buffered_bytes": None,
        "usual_ports": (), "transport": "auto", "workers": 1, "drain_s": 30.0,
        "max_connection_age_s": 0.0, "reload_interval_s": 0.0, "self_test_interval_s": 10.0,
        "access_log": 0.0, "otlp_endpoint": None, "reflection": False,
        "allow_repository_control": False, "input": "tensors", "labels": (), "log_level": "info",
        "log_format": "text", "security": security,
    }  # fmt: skip


LIMITS: list[Any] = [
    # The configuration, a field, the least and the most that it takes, its neighbours, and why not.
    (BatchingConfig, "max_batch_size", [1, 16_384], [0], "at least 1"),
    (BatchingConfig, "max_batch_size", [16_384], [16_385], "at most 16384"),
    (BatchingConfig, "queue_capacity", [4096], [0], "at least 1"),
    (BatchingConfig, "queue_capacity", [4096], [4095], "at least max_request_rows (4096)"),
    (BatchingConfig, "max_request_rows", [1, 16_384], [0, -1], "at least 1"),
    (BatchingConfig, "max_queue_delay_s", [0, 1e6], [-0.001, 1e6 + 1, math.inf, math.nan],
     "0 to 1e6"),
    (BatchingConfig, "max_response_bytes", [1, 2 * GIB - MIB], [0, 2 * GIB - MIB + 1],
     "1 to 2146435072"),
    (BatchingConfig, "slo_s", [0.001, math.inf], [0, -1, math.nan], "more than 0"),
    (BatchingConfig, "max_run_s", [0.001, 1e6], [0, 1e6 + 1], "more than 0, up to 1e6"),
    (BatchingConfig, "max_handler_s", [0.001, 1e6], [0, 1e6 + 1], "more than 0, up to 1e6"),
    (BatchingConfig, "handler_processes", [0, 99], [-1], "at least 0"),
    (BatchingConfig, "max_handler_bytes", [0, 99 * GIB], [-1], "at least 0"),
    (ModelConfig, "device", ["auto", "cpu", "cuda"], ["gpu", ""], "one of auto, cpu, cuda"),
    (ModelConfig, "precision", ["fp32", "int8"], ["fp16", ""], "one of fp32, int8"),
    (ModelConfig, "versions", ["latest", "all", "3", "3,4", "999999999"],
     ["newest", "", "0", "03", "3,", "3, 4", "1000000000", "1,1000000000"],
     "latest, all, or numbers such as 3,4"),
    (ModelConfig, "canary", [0, 0.05, 1], [-0.001, 1.001, math.nan], "0 to 1"),
    (ModelConfig, "threads", [0, 1024], [-1, 1025], "0 to 1024"),
    (ModelConfig, "max_model_bytes", [1], [0], "at least 1"),
    (ModelConfig, "served_name", ["a", "x" * 128, "!", "~", "a/b:c", None],
     ["", "x" * 129, "two words", "a=b", "é", "a\n"], "1 to 128 visible characters, no blank or ="),
    (ModelConfig, "max_handler_setup_s", [0.001, 1e6], [0, 1e6 + 1], "more than 0, up to 1e6"),
    (ServerConfig, "port", [0, 65_535], [-1, 65_536], "0 to 65535"),
    (ServerConfig, "metrics_port", [None, 0, 65_535], [-1, 65_536], "0 to 65535"),
    (ServerConfig, "http_port", [None, 0, 65_535], [-1, 65_536], "0 to 65535"),
    (ServerConfig, "max_json_bytes", [1], [0], "at least 1"),
    (ServerConfig, "max_buffered_bytes", [None, 1], [0], "at least 1"),
    (ServerConfig, "input", ["tensors", "image"], ["picture", ""], "tensors or image"),
    (ServerConfig, "labels", [()], [("cat", "dog")], "given with input image"),
    (ServerConfig, "workers", [1, 99], [0], "at least 1"),
    (ServerConfig, "access_log", [0, 1], [-0.001, 1.001, math.nan], "0 to 1"),
    *((ServerConfig, f"{name}_s", [0, 1e6], [-0.001, 1e6 + 1, math.inf, math.nan], "0 to 1e6")
      for name in ("drain", "max_connection_age", "reload_interval", "self_test_interval")),
    (ServerConfig, "metrics_host", ["::", "a.example"], ["unix:/a"],
     "an address: only host may be a Unix socket"),
    (ServerConfig, "http_host", ["::", "a.example"], ["unix:/a"],
     "an address: only host may be a Unix socket"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field", "good", "bad", "expected"),
    LIMITS,
    ids=[f"{field} {expected}" for _, field, _, _, expected in LIMITS],
)
def test_first_value_past_a_limit_is_refused_and_the_last_one_is_not(
    kind, field, good, bad, expected
):
    for value in good:
        others = {"queue_capacity": 16_384} if field == "max_request_rows" else {}
        assert getattr(kind(**{field: value}, **others), field) == value
    for value in bad:
        with pytest.raises(ConfigurationError) as caught:
            kind(**{field: value})
        assert str(caught.value) == f"{field.removesuffix('_s')} must be {expected}, got {value!r}"


def refusal(kind, **fields):
    """Why a configuration can't be; None if it can."""
    try:
        kind(**fields)
    except ConfigurationError as err:
        return str(err)
    return None


def test_version_is_pinned_without_a_choice_of_others():
    pinned = "version pins one: versions and canary have no effect then"
    assert refusal(ModelConfig, version="1") is None
    assert refusal(ModelConfig, version="1", versions="all") == pinned
    assert refusal(ModelConfig, version="1", canary=0.5) == pinned


def test_batching_of_a_model_is_a_word_for_its_name():
    config = ModelConfig(batch=("a=auto", "b=always", "c=d=never"))
    found = [config.batching_of(name) for name in ("a", "b", "c=d", "d", "")]
    assert found == ["auto", "always", "never", None, None]
    for each in ("a=on", "=never", "never", "a=", ""):
        assert refusal(ModelConfig, batch=(each,)) == (
            f"batch must be NAME=auto, NAME=always or NAME=never, got {each!r}"
        )
    twice = refusal(ModelConfig, batch=("a=never", "b=auto", "a=never"))
    assert twice == "batch must be given once for each model, got 'a twice'"


def test_batching_is_of_models_that_are_there():
    config = ModelConfig(batch=("a=auto", "b=never"))
    config.require_batched({"c", "b", "a"})
    with pytest.raises(ConfigurationError) as caught:
        config.require_batched(["k", *"ajihgfedc"])
    assert str(caught.value) == (
        "batch must be about a model: a, c, d, e, f, g, h, i, got 'b=never'"
    )


CERT, KEY, CA = Path("cert"), Path("key"), Path("ca")


def test_certificate_and_key_go_together_and_an_authority_with_them():
    pair = refusal(SecurityConfig, tls_cert=CERT)
    assert pair == "tls_key must be given together with tls_cert, got None"
    assert refusal(SecurityConfig, tls_key=KEY) == (
        f"tls_key must be given together with tls_cert, got {KEY!r}"
    )
    assert refusal(SecurityConfig, tls_client_ca=CA) == (
        f"tls_client_ca must be given together with tls_cert, got {CA!r}"
    )
    own = SecurityConfig(tls_cert=CERT, tls_key=KEY, tls_client_ca=CA)
    assert (own.has_tls, own.has_tokens) == (True, False)
    for options in ({"token_file": Path("tokens")}, {"tokens": "secret"}, {"tokens": ""}):
        config = SecurityConfig(**options)
        assert (config.has_tls, config.has_tokens) == (False, True)
        assert "secret" not in repr(config)
    assert not SecurityConfig().has_tokens


@pytest.mark.parametrize("every", ["", "0.0.0.0", "::"])
def test_port_of_every_address_is_that_of_each_address(every):
    for name, host in (("http", "127.0.0.1"), ("http", every), ("metrics", "10.0.0.1")):
        for one, other in ((every, host), (host, every)):
            options = {"host": one, "port": 7001, f"{name}_host": other, f"{name}_port": 7001}
            assert refusal(ServerConfig, **options) == (
                f"port and {name}_port must be different, got 7001"
            )
    hosts = {"metrics_host": every, "http_host": "127.0.0.1"}
    assert refusal(ServerConfig, **hosts, metrics_port=7001, http_port=7001) == (
        "metrics_port and http_port must be different, got 7001"
    )


def test_ports_of_several_addresses_may_be_the_same():
    ports = {"port": 7001, "http_port": 7001, "metrics_port": 7001}
    hosts = {"host": "127.0.0.1", "http_host": "127.0.0.2", "metrics_host": "127.0.0.3"}
    assert refusal(ServerConfig, **ports, **hosts) is None
    chosen = {"port": 0, "http_port": 0, "metrics_port": 0}
    assert refusal(ServerConfig, **chosen) is None, "the kernel chooses others"
    assert refusal(ServerConfig, port=7001, http_port=None, metrics_port=None) is None
    socket = {"host": "unix:/a", "port": 7001, "metrics_host": "", "metrics_port": 7001}
    assert refusal(ServerConfig, **socket) is None, "a socket has no port"
    usual = ("metrics_port", "http_port")
    assert refusal(ServerConfig, **ports, usual_ports=usual) is None, "others are tried"


def test_socket_of_several_workers_is_refused():
    assert refusal(ServerConfig, host="unix:/a") is None
    assert refusal(ServerConfig, host="unix:/a", workers=2) == (
        "host unix:/a: a Unix socket serves one process: leave out --workers"
    )


def test_labels_are_of_pictures():
    assert ServerConfig(input="image", labels=("cat",)).labels == ("cat",)
    many = refusal(ServerConfig, labels=("a", "b", "c", "d"))
    assert many == "labels must be given with input image, got ('a', 'b', 'c')"


def test_hundred_ports_are_tried_from_a_usual_one_on_without_those_of_others():
    config = ServerConfig(port=9092, http_port=9095, usual_ports=("metrics_port",))
    expected = [9090, 9091, 9093, 9094, *range(9096, 9190)]
    assert config.ports_to_try("metrics_port") == expected
    assert config.ports_to_try("http_port") == [9095]
    both = ServerConfig(http_port=9091, usual_ports=("metrics_port", "http_port"))
    assert both.ports_to_try("metrics_port") == [*range(9090, 9190)]
    assert both.ports_to_try("http_port") == [*range(9091, 9191)]


@pytest.mark.parametrize("value", [0, 1.5, math.inf, -3])
def test_seconds_are_numbers(value):
    found = as_seconds("timeout_s", value)
    assert (found, type(found)) == (float(value), float)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, [1]])
def test_anything_else_is_no_number_of_seconds(value):
    expected = f"timeout_s: expected seconds, such as 0.5, got {value!r}"
    for options in ((), (ConfigurationError,)):
        kind = options[0] if options else InvalidRequest
        with pytest.raises(kind) as caught:
            as_seconds("timeout_s", value, *options)
        assert str(caught.value) == expected


def test_name_is_of_the_field_that_was_wrong():
    require_name("the name", "digits")
    with pytest.raises(ConfigurationError, match=r"^the name must be 1 to 128 visible characters"):
        require_name("the name", "two words")


def test_first_thing_that_is_wrong_is_said():
    """A share that can't be, before it is said that it has no effect."""
    assert refusal(ModelConfig, version="1", canary=1.5) == "canary must be 0 to 1, got 1.5"
    assert refusal(ServerConfig, host="unix:/a", workers=2, http_host="unix:/b") == (
        "http_host must be an address: only host may be a Unix socket, got 'unix:/b'"
    )
    assert refusal(ServerConfig, port=7, metrics_port=7, http_host="unix:/b") == (
        "port and metrics_port must be different, got 7"
    )
    assert refusal(ServerConfig, http_port=-1, metrics_port=-1) == (
        "metrics_port must be 0 to 65535, got -1"
    )


MENDED = {
    BatchingConfig: "max_batch_size queue_capacity max_request_rows max_queue_delay_s "
    "max_response_bytes slo_s max_run_s max_handler_s handler_processes max_handler_bytes",
    ModelConfig: "device precision versions canary threads max_model_bytes served_name "
    "max_handler_setup_s batch",
    ServerConfig: "port metrics_port http_port metrics_host http_host max_json_bytes "
    "max_buffered_bytes input labels workers access_log drain_s max_connection_age_s "
    "reload_interval_s self_test_interval_s",
}
"""The order in which somebody hears of settings all of which are wrong, as he mends them."""


@pytest.mark.parametrize("kind", MENDED, ids=lambda kind: kind.__name__)
def test_settings_that_are_wrong_are_said_one_after_the_other(kind):
    wrong = {field: bad[0] for each, field, _, bad, _ in reversed(LIMITS) if each is kind}
    wrong |= {"batch": ("a",)} if kind is ModelConfig else {}
    said = []
    while (reason := refusal(kind, **wrong)) is not None:
        name = reason.split()[0]
        said.append(name if name in wrong else f"{name}_s")
        del wrong[said[-1]]
    assert said == MENDED[kind].split()


def test_capacity_of_a_queue_is_compared_with_requests_between_two_other_settings():
    wrong = {"max_batch_size": 16_385, "queue_capacity": 4095, "max_queue_delay_s": -1}
    assert str(refusal(BatchingConfig, **wrong)).startswith("max_batch_size must be at most")
    del wrong["max_batch_size"]
    assert str(refusal(BatchingConfig, **wrong)).startswith("queue_capacity must be at least max")
