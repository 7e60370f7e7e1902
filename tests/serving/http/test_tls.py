"""HTTPS with the certificates of gRPC, and client certificates."""

import ssl
import urllib.request
from urllib.error import URLError

import pytest
import trustme

from serving.config import SecurityConfig
from tests.support.h2_server import server_inside

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def url(classifier, authority, tmp_path_factory):
    """A server that asks for client certificates."""
    folder = tmp_path_factory.mktemp("certificates")
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    both, ca = folder / "both.pem", folder / "ca.pem"
    security = SecurityConfig(tls_cert=both, tls_key=both, tls_client_ca=ca)
    with server_inside(classifier, http_port=0, security=security) as server:
        yield str(server.http_url)


def status_of(url, context):
    with urllib.request.urlopen(f"{url}/v2", timeout=TIMEOUT_S, context=context) as reply:
        return int(reply.status)


def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_caller_with_a_certificate_is_answered(url, authority):
    assert url.startswith("https://")
    context = trusting(authority)
    authority.issue_cert("a-client").configure_cert(context)
    assert status_of(url, context) == 200


def test_caller_without_a_certificate_is_not(url, authority):
    with pytest.raises((URLError, ssl.SSLError, ConnectionError)):
        status_of(url, trusting(authority))


def test_caller_without_tls_is_not(url):
    with pytest.raises((URLError, ConnectionError)):
        status_of(url.replace("https", "http"), None)
