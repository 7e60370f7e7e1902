"""TLS without a port: a handshake of two sides in memory, and which files and reasons there are."""

import socket
import ssl
from types import SimpleNamespace

import pytest
import trustme

from serving.config import SecurityConfig
from serving.errors import ConfigurationError
from serving.security import authorities, certificates
from serving.security.authorities import read_authorities
from serving.security.certificates import files_of, load, server_tls
from serving.security.own_certificate import OwnCertificate, own_certificate
from serving.security.tls import NO_HTTP2, Plain, Tls
from serving.security.tls_probe import PLAINTEXT_SERVER, is_plaintext, tls_mismatch
from tests.support.certificates import self_signed


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def config(authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    files = {name: folder / f"{name}.pem" for name in ("tls_cert", "tls_key", "ca")}
    its = authority.issue_cert("localhost")
    its.cert_chain_pems[0].write_to_path(files["tls_cert"])
    its.private_key_pem.write_to_path(files["tls_key"])
    authority.cert_pem.write_to_path(files["ca"])
    return SecurityConfig(tls_cert=files["tls_cert"], tls_key=files["tls_key"])


@pytest.fixture
def sides(authority, config):
    """A client and a server, and a function that has them exchange their bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    authority.configure_trust(context)
    client, server = Tls(context, "localhost"), Tls(load(config))
    return client, server


def exchange(client, server, number=8):
    """Take the bytes of both sides to the other; return what each has read."""
    if not client.is_done:
        client.shake_hands(b"")
    read = {client: b"", server: b""}
    for _ in range(number):
        for one, other in ((client, server), (server, client)):
            if sent := one.encrypt(b""):
                read[other] += other.decrypt(sent)
    return read[client], read[server]


def test_bytes_before_the_handshake_are_sent_behind_it_once(sides):
    client, server = sides
    assert not client.shake_hands(b"")
    flight = client.encrypt(b"early ")
    assert server.encrypt(b"hello ") == b""
    assert server.decrypt(flight) == b""
    assert (client.is_done, server.is_done) == (False, False)
    hello, early = exchange(client, server)
    assert (client.is_done, server.is_done) == (True, True)
    assert (hello, early) == (b"hello ", b"early ")
    data = client.encrypt(b"late")
    assert data not in (b"", b"late")
    assert server.decrypt(data) == b"late"
    assert exchange(client, server) == (b"", b"")


def test_records_that_are_cut_are_read_once_whole(sides):
    client, server = sides
    exchange(client, server)
    data = client.encrypt(bytes(1 << 20))
    found = b"".join(server.decrypt(data[at : at + 5000]) for at in range(0, len(data), 5000))
    assert found == bytes(1 << 20)
    assert server.decrypt(b"") == b""


def test_plaintext_request_is_answered_in_plaintext(sides):
    _, server = sides
    with pytest.raises(ssl.SSLError):
        server.decrypt(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    words = b"this port speaks TLS: call it by https://\n"
    assert server.encrypt(b"") == (
        b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n"
        b"content-length: 42\r\n\r\n" + words
    )


def test_server_without_http2_is_refused(authority, config):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    authority.configure_trust(context)
    client, server = Tls(context, "localhost"), Tls(load(config, "http/1.1"))
    with pytest.raises(ssl.SSLError, match=NO_HTTP2):
        exchange(client, server)


def test_without_encryption_bytes_are_as_they_are():
    assert (Plain().encrypt(b"a"), Plain().decrypt(b"b")) == (b"a", b"b")


def test_context_is_for_tls_1_2_and_asks_for_certificates_where_they_are_wanted(config):
    context = load(config)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    ca = config.tls_cert.parent / "ca.pem"
    both = SecurityConfig(tls_cert=config.tls_cert, tls_key=config.tls_key, tls_client_ca=ca)
    assert load(both).verify_mode == ssl.CERT_REQUIRED
    assert load(both).get_ca_certs()
    assert files_of(config) == (config.tls_cert, config.tls_key)
    assert files_of(both) == (config.tls_cert, config.tls_key, ca)
    assert server_tls(SecurityConfig(), "h2") is None
    make = server_tls(config, "h2")
    assert make is not None
    assert isinstance(make(), Tls)


@pytest.mark.parametrize("name", ["cert", "key", "ca"])
def test_file_that_cannot_be_used_is_named_with_the_reason(name, config, tmp_path):
    wrong = tmp_path / "wrong.pem"
    files = {"tls_cert": config.tls_cert, "tls_key": config.tls_key,
             "tls_client_ca": config.tls_cert.parent / "ca.pem"}  # fmt: skip
    files[{"cert": "tls_cert", "key": "tls_key", "ca": "tls_client_ca"}[name]] = wrong
    broken = SecurityConfig(**files)
    with pytest.raises(
        ConfigurationError, match=rf"^can't read {wrong}: No such file or directory$"
    ):
        certificates.load(broken)
    wrong.write_text("nonsense")
    subject = wrong if name == "ca" else f"{files['tls_cert']} with {files['tls_key']}"
    with pytest.raises(ConfigurationError, match=f"^can't use {subject}: "):
        certificates.load(broken)


# Authorities

BUNDLES = [
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
]  # fmt: skip


@pytest.mark.parametrize("first", [*range(5), None])
def test_authorities_of_the_system_are_the_first_file_that_there_is(first, monkeypatch):
    """OpenSSL's own, or that of Debian, Fedora, SUSE, or of others."""
    places = ["/own.pem", *BUNDLES]
    there = set() if first is None else {*places[first:]}
    paths = SimpleNamespace(cafile="/own.pem")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setattr(authorities, "read_bytes", lambda path: path.name.encode())
    monkeypatch.setattr(
        authorities, "Path",
        lambda path: SimpleNamespace(name=path, is_file=lambda: path in there),
    )  # fmt: skip
    if first is None:
        with pytest.raises(ConfigurationError, match=r"^tls_ca: the system has no authorities: "
                           "install ca-certificates, or set SSL_CERT_FILE$"):  # fmt: skip
            read_authorities("system")
    else:
        assert read_authorities("system") == places[first].encode()
    paths.cafile = None
    if first == 0:
        assert read_authorities("system") == BUNDLES[0].encode()
    assert read_authorities("./system") == b"./system"


# Reasons


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("WRONG_VERSION_NUMBER", True), ("RECORD_LAYER_FAILURE", True),
        ("PACKET_LENGTH_TOO_LONG", True), ("HTTP_REQUEST", True),
        ("CERTIFICATE_VERIFY_FAILED", False), ("TLSV13_ALERT_CERTIFICATE_REQUIRED", False),
        (None, False),
    ],
)  # fmt: skip
def test_reason_shows_that_the_peer_speaks_no_tls(reason, expected):
    error = ssl.SSLError(1, "text")
    if reason is not None:
        error.reason = reason
    assert is_plaintext(error) is expected


TLS_SERVER = "the server speaks TLS: tls_ca (--tls-ca) names the authorities of its certificate"


@pytest.mark.parametrize(
    ("reason", "if_tls", "if_plain"),
    [
        ("", None, TLS_SERVER), ("WRONG_VERSION_NUMBER", PLAINTEXT_SERVER, None),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", None, TLS_SERVER), ("OTHER", None, None),
        ("gone", None, None),
    ],
)  # fmt: skip
def test_side_that_speaks_tls_alone_is_named(reason, if_tls, if_plain, monkeypatch):
    asked = []

    def connect(address, timeout_s):
        asked.append((address, timeout_s))
        if reason == "gone":
            raise ConnectionRefusedError
        ours, its = socket.socketpair()
        its.close()
        return ours

    def wrap(context, sock):
        if reason:
            error = ssl.SSLError(1, "text")
            error.reason = reason
            raise error
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    assert tls_mismatch("[::1]:5,b:6", 1.5, is_tls=True) == if_tls
    assert tls_mismatch("a:7", 2.5, is_tls=False) == if_plain
    assert asked == [(("::1", 5), 1.5), (("a", 7), 2.5)]


# A server's own certificate


def test_own_certificate_is_for_its_names_and_by_whom_it_is(config, authority, tmp_path):
    assert own_certificate(config) == OwnCertificate(("localhost",), False)
    file = self_signed(tmp_path, "a.example", "10.0.0.7")
    security = SecurityConfig(tls_cert=file, tls_key=file)
    assert own_certificate(security) == OwnCertificate(("a.example", "10.0.0.7"), True)
    late = tmp_path / "late"
    late.mkdir()
    file = self_signed(late, "localhost", days=-1)
    security = SecurityConfig(tls_cert=file, tls_key=file)
    assert own_certificate(security) == OwnCertificate((), False), "nobody would trust it"


def test_certificate_is_for_the_host_that_is_called(authority, config):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    authority.configure_trust(context)
    with pytest.raises(ssl.SSLCertVerificationError, match="other"):
        exchange(Tls(context, "other.example"), Tls(load(config)))


def test_nobody_is_asked_for_a_password(config, monkeypatch):
    """On a terminal the server would wait for one."""
    given = []

    def load_cert_chain(context, cert, key, **options):
        given.append((cert, key, options["password"]()))

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_cert_chain)
    load(config)
    assert given == [(config.tls_cert, config.tls_key, "")]
