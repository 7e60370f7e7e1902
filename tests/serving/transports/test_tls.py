"""TLS and mTLS with certificates made here: who is let in, who is not, and how they are renewed."""

import asyncio
import datetime
import logging
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from digit_classifier import AsyncClassifier, Classifier
from serving import AsyncClient, Client
from serving.__main__ import main
from serving.config import SecurityConfig, ServerConfig
from serving.errors import ConfigurationError, DeadlineExceeded, Unavailable
from serving.security.certificates import server_context
from serving.security.exposure import warn_if_exposed
from serving.security.tls import Tls
from serving.transports.grpcio_credentials import server_credentials
from tests.support.h2_server import server_inside
from tests.support.servers import connected, on_both

TIMEOUT_S = 10.0
YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@dataclass
class Files:
    """A certificate, its key, and the authority that signed it, as PEM files."""

    folder: Path
    ca: Path
    cert: Path
    key: Path

    def replace(self, certificate):
        """Renew the certificate, then the key: in between they don't match."""
        self.replace_cert(certificate)
        certificate.private_key_pem.write_to_path(self.key)

    def replace_cert(self, certificate):
        self.cert.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))


def write(folder, authority, certificate):
    folder.mkdir()
    files = Files(folder, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(files.ca)
    files.replace(certificate)
    return files


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def good(folder, authority):
    return write(folder / "good", authority, authority.issue_cert("localhost", "127.0.0.1"))


@pytest.fixture(scope="module")
def stranger(folder):
    """Certificates of another authority."""
    other = trustme.CA()
    return write(folder / "stranger", other, other.issue_cert("localhost", "127.0.0.1"))


@pytest.fixture(scope="module")
def expired(folder, authority):
    leaf = authority.issue_cert("localhost", "127.0.0.1", not_after=YESTERDAY)
    return write(folder / "expired", authority, leaf)


def secured(classifier, files, **more):
    """A server of this process with a certificate."""
    authority, transport = more.pop("authority", None), more.pop("transport", "h2")
    security = SecurityConfig(tls_cert=files.cert, tls_key=files.key, tls_client_ca=authority)
    return server_inside(classifier, transport=transport, security=security, **more)


@pytest.fixture(scope="module")
def tls(classifier, good, transport):
    with secured(classifier, good, transport=transport) as server:
        yield server


@pytest.fixture(scope="module")
def mtls(classifier, good, transport):
    with secured(classifier, good, transport=transport, authority=good.ca) as server:
        yield server


def is_let_in(server, **options):
    """Some of those that are not let in would try again for as long as they may: once is enough."""
    with (
        pytest.MonkeyPatch.context() as patch,
        Classifier.connect(server.address, timeout_s=TIMEOUT_S, **options) as client,
    ):
        patch.setattr("serving.client.retries._SHORTEST_BACKOFF_S", 3600.0)  # past any deadline
        try:
            return client.describe().name == "digits"
        except (Unavailable, DeadlineExceeded):
            return False


@on_both
@pytest.mark.usefixtures("client_transport")
def test_client_that_knows_the_authority_is_answered(tls, good, images):
    with Classifier.connect(tls.address, tls_ca=good.ca) as client:
        assert len(client.classify(images[:300])) == 300


@pytest.mark.usefixtures("client_transport")
def test_client_trusts_the_authorities_of_the_system(tls, good, stranger, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(good.ca))
    assert is_let_in(tls, tls_ca="system")
    assert main(["info", "--json", "--target", tls.address, "--tls-ca", "system"]) == 0
    assert main(["health", "--target", tls.address, "--tls-ca", "system"]) == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(stranger.ca))
    assert not is_let_in(tls, tls_ca="system")


@pytest.mark.usefixtures("client_transport")
async def test_async_client_speaks_tls(tls, good, images):
    async with AsyncClassifier.connect(tls.address, tls_ca=good.ca) as client:
        assert len(await client.classify(images[:2])) == 2


@pytest.mark.usefixtures("client_transport")
def test_client_that_knows_another_authority_refuses_the_server(tls, stranger):
    assert not is_let_in(tls, tls_ca=stranger.ca)


@on_both
@pytest.mark.parametrize("library", ["h2", "grpcio"])
def test_side_that_speaks_no_tls_is_named(tls, server, good, library):
    pairs = ((tls, {}, "speaks TLS: tls_ca"), (server, {"tls_ca": good.ca}, "does not speak TLS"))

    async def awaited(address, options):
        async with AsyncClient(address, transport=library, **options) as client:
            await client.models()

    for there, options, words in pairs:
        with (
            Client(there.address, transport=library, **options) as client,
            pytest.raises(Unavailable, match=words),
        ):
            client.models()
        with pytest.raises(Unavailable, match=words):
            asyncio.run(awaited(there.address, options))


@pytest.mark.parametrize("kind", ["expired", "wrong host", "wrong CA"])
@pytest.mark.usefixtures("client_transport")
def test_server_with_a_bad_certificate_is_refused_by_clients(
    classifier, tmp_path, authority, good, expired, stranger, kind
):
    other_host = authority.issue_cert("example.org")
    files = {"expired": expired, "wrong CA": stranger}.get(kind) or write(
        tmp_path / "other-host", authority, other_host
    )
    with secured(classifier, files) as server:
        assert not is_let_in(server, tls_ca=good.ca)


@on_both
@pytest.mark.usefixtures("client_transport")
def test_mtls_lets_in_only_who_has_a_certificate(mtls, good):
    assert is_let_in(mtls, tls_ca=good.ca, tls_cert=good.cert, tls_key=good.key)
    assert not is_let_in(mtls, tls_ca=good.ca)


@pytest.mark.parametrize("kind", ["expired", "stranger"])
def test_mtls_refuses_who_has_a_bad_one(mtls, good, request, kind):
    own: Files = request.getfixturevalue(kind)
    assert not is_let_in(mtls, tls_ca=good.ca, tls_cert=own.cert, tls_key=own.key)


def test_two_hundred_failed_handshakes_leave_the_server_well(mtls, good, stranger):
    context = ssl.create_default_context(cafile=str(stranger.ca))

    def fail(number):
        """Fail in one of four ways; True if the server let us in."""
        with connected(mtls.address, TIMEOUT_S) as connection:
            if number % 4 == 0:  # leave in the middle of the handshake
                connection.sendall(b"\x16\x03\x01\x02\x00\x01")
                return False
            if number % 4 == 1:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
            elif number % 4 == 2:
                connection.sendall(bytes(range(256)))
            else:
                try:
                    context.wrap_socket(connection, server_hostname="localhost")
                except (ssl.SSLError, OSError):
                    return False
            return is_answered(connection)

    with ThreadPoolExecutor(16) as pool:
        assert not any(pool.map(fail, range(200)))
    assert is_let_in(mtls, tls_ca=good.ca, tls_cert=good.cert, tls_key=good.key)


def is_answered(connection):
    """Read to the end: True if anything but a TLS alert came; a hang is a timeout."""
    try:
        data = connection.recv(1 << 16)
    except ConnectionError:
        return False
    return bool(data) and not data.startswith(b"\x15\x03")


def served_serial(server):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        connected(server.address, TIMEOUT_S) as connection,
        context.wrap_socket(connection) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def serial(certificate):
    return x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).serial_number


def test_renewed_certificate_is_served_without_a_restart(classifier, folder, authority):
    first, second, third = (authority.issue_cert("localhost", "127.0.0.1") for _ in range(3))
    files = write(folder / "renewed", authority, first)
    with (
        secured(classifier, files) as server,
        Classifier.connect(server.address, tls_ca=files.ca) as client,
    ):
        assert served_serial(server) == serial(first)
        files.replace_cert(second)  # its key has not come yet
        assert served_serial(server) == serial(first)
        files.replace(second)
        assert served_serial(server) == serial(second)
        files.cert.write_text("nonsense")
        assert served_serial(server) == serial(second)
        files.replace(third)
        assert served_serial(server) == serial(third)
        assert client.describe().version == "1"  # on its old connection, or a new one


@pytest.mark.parametrize("broken", ["missing", "nonsense", "foreign key", "encrypted key"])
def test_files_that_cannot_be_used_are_named(folder, good, stranger, broken, tmp_path):
    cert, key = good.cert, good.key
    if broken == "missing":
        key = tmp_path / "none.pem"
    elif broken == "nonsense":
        cert = tmp_path / "cert.pem"
        cert.write_text("nonsense")
    elif broken == "foreign key":
        key = stranger.key
    else:
        key = tmp_path / "encrypted.pem"
        key.write_bytes(encrypted(good.key.read_bytes()))
    with pytest.raises(ConfigurationError, match=key.name if broken == "missing" else cert.name):
        server_credentials(SecurityConfig(tls_cert=cert, tls_key=key))


def encrypted(pem):
    """A key that only a passphrase opens."""
    return serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_bad_client_authority_is_named(good, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("nonsense")
    config = SecurityConfig(tls_cert=good.cert, tls_key=good.key, tls_client_ca=path)
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        server_credentials(config)


def test_command_line_asks_by_tls(tls, good):
    command = ["info", "--json", "--target", tls.address]
    assert main([*command, "--tls-ca", str(good.ca)]) == 0
    assert main([*command, "--tls-ca", str(good.folder / "none.pem")]) == 2


def test_public_address_without_protection_is_warned_about(good, caplog):
    tls = SecurityConfig(tls_cert=good.cert, tls_key=good.key)
    mtls = SecurityConfig(tls_cert=good.cert, tls_key=good.key, tls_client_ca=good.ca)
    with caplog.at_level(logging.WARNING):
        for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9", "unix:/run/digits"):
            warn_if_exposed(ServerConfig(host=host))
        warn_if_exposed(ServerConfig(host="0.0.0.0", security=mtls))
        warn_if_exposed(ServerConfig(http_host="0.0.0.0"))  # HTTP is off
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        warn_if_exposed(ServerConfig(host="0.0.0.0"))
        warn_if_exposed(ServerConfig(host="::", security=tls))
        warn_if_exposed(ServerConfig(http_host="0.0.0.0", http_port=0))
    assert "without TLS and tokens" in caplog.messages[0]
    assert "without tokens" in caplog.messages[1]
    assert "0.0.0.0 without TLS and tokens" in caplog.messages[2]


@pytest.mark.parametrize("record_bytes", [100, 16_384])
def test_records_of_any_size_are_read_at_once(good, record_bytes):
    """Also those that lie in OpenSSL because one read did not take them."""
    context = ssl.create_default_context(cafile=str(good.ca))
    context.set_alpn_protocols(["h2"])
    make = server_context(SecurityConfig(tls_cert=good.cert, tls_key=good.key), "h2")
    assert make is not None
    ours, theirs = Tls(make()), Tls(context, "localhost")
    with pytest.raises(ssl.SSLError):
        Tls(make()).decrypt(b"POST / HTTP/1.1\r\n")
    while not theirs.is_done:
        theirs.shake_hands(ours.encrypt(b""))
        ours.decrypt(theirs.encrypt(b""))
    data = bytes(range(256)) * 2048
    sent = [theirs.encrypt(data[i : i + record_bytes]) for i in range(0, len(data), record_bytes)]
    assert ours.decrypt(b"".join(sent)) == data
