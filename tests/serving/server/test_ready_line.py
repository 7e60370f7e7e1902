"""The lines to try: where a caller on this machine reaches the server, and what it needs."""

import json

import pytest

from serving.config import BatchingConfig, SecurityConfig, ServerConfig
from serving.oip.examples import Access
from serving.server.ready_line import access_of, announce
from serving.system.addresses import reached
from serving.system.usage import Usage
from serving.telemetry.metrics import Counts, Report, Served
from tests.support.certificates import self_signed

MODELS = (
    Served("a", "1", "cpu", "fp32", "h2", "default", 10, max_batch_size=8, max_request_rows=64),
    Served("a", "2", "cpu", "fp32", "h2", "canary", 10, max_batch_size=9, max_request_rows=64),
    Served("b", "5", "cpu", "int8", "h2", "default", 0, max_batch_size=0),
)
FACTS = {
    "model": "a,b", "version": "1,5", "precision": "fp32,int8", "device": "cpu", "transport": "h2",
    "address": "127.0.0.1:1", "metrics": "127.0.0.1:2", "max_request_rows": "64,none",
    "max_batch_size": "8,0", "http": "http://0.0.0.0:3", "waiting": "b/6", "missing": "c",
}  # fmt: skip
"""All facts of a ready line, in its order."""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_ready_line_has_each_fact(log_format, capsys):
    report = Report(
        MODELS, BatchingConfig(), {}, 0, True, Usage(), Counts(), request="curl ...",
        waiting={"b/6": "corrupt"}, missing={"c": "not found"},
    )  # fmt: skip
    config = ServerConfig(log_format=log_format)
    announce(report, "127.0.0.1:1", "127.0.0.1:2", config, http="http://0.0.0.0:3")
    line, *others = capsys.readouterr().out.splitlines()
    if log_format == "json":
        assert list(json.loads(line).items()) == [("message", "serving"), *FACTS.items()]
        assert others == []
    else:
        assert line == " ".join(["serving", *(f"{name}={each}" for name, each in FACTS.items())])
        assert others == ["try it: http://127.0.0.1:3", "try it: curl ..."]


@pytest.mark.parametrize(
    ("address", "names", "expected"),
    [
        ("127.0.0.1:1", (), "127.0.0.1:1"),
        ("0.0.0.0:1", (), "127.0.0.1:1"),
        ("[::]:1", (), "localhost:1"),
        ("10.0.0.7:1", (), "10.0.0.7:1"),
        ("unix:/run/a.sock", ("a",), "unix:/run/a.sock"),
        ("127.0.0.1:1", ("127.0.0.1",), "127.0.0.1:1"),
        ("127.0.0.1:1", ("a.example", "localhost"), "localhost:1"),
        ("0.0.0.0:1", ("a.example", "10.0.0.7"), "a.example:1"),
        ("10.0.0.7:1", ("a.example", "localhost"), "a.example:1"),
        ("10.0.0.7:1", ("10.0.0.8",), "10.0.0.8:1"),
        ("10.0.0.7:1", ("*.example",), "<name>.example:1"),
        ("0.0.0.0:1", ("::1",), "[::1]:1"),
    ],
)
def test_address_is_one_to_call(address, names, expected):
    assert reached(address, names) == expected


def test_self_signed_certificate_is_its_own_authority(tmp_path):
    pytest.importorskip("cryptography")
    file = self_signed(tmp_path, "localhost", "10.0.0.7")
    access = access_of(SecurityConfig(tls_cert=file, tls_key=file), "0.0.0.0:1")
    assert (access.grpc, access.tls_ca) == ("localhost:1", str(file))
    assert not access.needs_certificate


def test_what_is_not_known_stands_in_angle_brackets(tmp_path):
    authority, file = pytest.importorskip("trustme").CA(), tmp_path / "both.pem"
    authority.issue_cert("a.example").private_key_and_cert_chain_pem.write_to_path(file)
    security = SecurityConfig(tls_cert=file, tls_key=file, tls_client_ca=file, tokens="t" * 20)
    access = access_of(security, "127.0.0.1:1")
    assert access.grpc == "a.example:1"
    assert access.tls_ca == "<authority of the certificate>.pem"
    assert access.needs_certificate
    assert access.has_tokens


def test_certificate_that_callers_refuse_changes_nothing(tmp_path):
    pytest.importorskip("cryptography")
    file = self_signed(tmp_path, "localhost", days=-1)
    access = access_of(SecurityConfig(tls_cert=file, tls_key=file), "127.0.0.1:1")
    assert access.grpc == "127.0.0.1:1"


def test_access_has_all_that_callers_need(tmp_path):
    pytest.importorskip("cryptography")
    file, tokens = self_signed(tmp_path, "localhost"), tmp_path / "tokens"
    whole = SecurityConfig(tls_cert=file, tls_key=file, tls_client_ca=file, token_file=tokens)
    assert access_of(whole, "127.0.0.1:1") == Access(
        "localhost:1", tls_ca=str(file), needs_certificate=True, has_tokens=True,
        token_file=str(tokens),
    )  # fmt: skip
    assert access_of(SecurityConfig(), "127.0.0.1:1") == Access("127.0.0.1:1")
