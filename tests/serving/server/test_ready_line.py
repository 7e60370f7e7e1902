"""The lines to try: where a caller on this machine reaches the server, and what it needs."""

import pytest

from serving.config import SecurityConfig
from serving.server.ready_line import access_of
from serving.system.addresses import reached
from tests.support.certificates import self_signed


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
