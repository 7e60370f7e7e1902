"""The question of a probe and its answer in words, with a channel that the test plays."""

from typing import Any

import grpc
import pytest

from serving.cli import probe
from serving.cli.probe import trouble
from serving.errors import ConfigurationError

NO_TLS = (None, None, None)


class Failed(grpc.RpcError):
    """A call that ended so."""

    def __init__(self, code, details="a\n  text"):
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details


class Channel:
    """Notes what is asked, and answers, or fails."""

    def __init__(self, answer=b"\x08\x01"):
        self.answer, self.asked, self.made = answer, [], []
        self.is_closed = False

    def __call__(self, *made):
        self.made.append(made)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.is_closed = True

    def unary_unary(self, path):
        def call(request, timeout, metadata):
            self.asked.append((path, request, timeout, metadata))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return call


@pytest.fixture
def channel(monkeypatch):
    channel = Channel()
    monkeypatch.setattr(grpc, "insecure_channel", channel)
    return channel


def asked(service="", token=None, timeout_s=2.5, tls=NO_TLS, server_name=None):
    return trouble(
        "host:7", timeout_s, service=service, token=token, tls=tls, server_name=server_name
    )


@pytest.mark.parametrize(
    ("service", "request_bytes"),
    [("", b""), ("digits", b"\x0a\x06digits"), ("é", b"\x0a\x02\xc3\xa9"),
     ("x" * 127, b"\x0a\x7f" + b"x" * 127), ("x" * 128, b"\x0a\x80\x01" + b"x" * 128),
     ("x" * 20_000, b"\x0a\xa0\x9c\x01" + b"x" * 20_000)],
    ids=["server", "digits", "umlaut", "127", "128", "20000"],
)  # fmt: skip
@pytest.mark.parametrize("token", [None, "secret"])
def test_health_is_asked_for_once(service, request_bytes, token, channel):
    assert asked(service, token) is None
    metadata = () if token is None else (("authorization", "Bearer secret"),)
    assert channel.asked == [("/grpc.health.v1.Health/Check", request_bytes, 2.5, metadata)]
    assert (channel.made, channel.is_closed) == ([("host:7",)], True)


@pytest.mark.parametrize("answer", [b"", b"\x08\x00", b"\x08\x02", b"\x08\x03"])
def test_any_other_answer_is_not_serving(answer, channel):
    channel.answer = answer
    assert asked() == "NOT_SERVING"


CODES = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (CODES.NOT_FOUND, "there is no such model"),
        (CODES.DEADLINE_EXCEEDED, "no answer within 2.5 s"),
        (CODES.UNAUTHENTICATED, "UNAUTHENTICATED: a text"),
        (CODES.UNAVAILABLE, "can't connect: a reason"),
        (CODES.INTERNAL, "INTERNAL: a text"),
    ],
)
def test_call_that_fails_is_a_line(code, text, channel, monkeypatch):
    monkeypatch.setattr(probe, "tls_mismatch", lambda *_, **__: None)
    monkeypatch.setattr(probe, "_unreachable", lambda *_: "can't connect: a reason")
    channel.answer = Failed(code)
    assert asked() == text


@pytest.mark.parametrize("has_tls", [False, True])
def test_server_that_speaks_otherwise_is_named_before_all_else(has_tls, channel, monkeypatch):
    seen: list[Any] = []

    def mismatch(*given, **options):
        seen.append((given, options))
        return "it speaks TLS"

    monkeypatch.setattr(probe, "tls_mismatch", mismatch)
    monkeypatch.setattr(probe, "_channel", lambda *_: channel)
    monkeypatch.setattr(probe, "_unreachable", lambda *_: pytest.fail("it is known"))
    channel.answer = Failed(CODES.UNAVAILABLE)
    assert asked(tls=("ca.pem", None, None) if has_tls else NO_TLS) == "it speaks TLS"
    assert seen == [(("host:7", 2.5), {"is_tls": has_tls})]


def test_socket_that_is_not_there_is_said(channel, tmp_path):
    channel.answer = Failed(CODES.UNAVAILABLE)
    found = trouble(
        f"unix:{tmp_path / 'no'}", 2.5, service="", token=None, tls=NO_TLS, server_name=None
    )
    assert found == "can't connect: No such file or directory"


def test_server_that_is_there_and_unavailable_says_why_itself(channel, monkeypatch):
    monkeypatch.setattr(probe, "tls_mismatch", lambda *_, **__: None)
    monkeypatch.setattr(probe, "_unreachable", lambda *_: None)
    channel.answer = Failed(CODES.UNAVAILABLE)
    assert asked() == "UNAVAILABLE: a text"


def test_certificates_are_those_of_the_files(monkeypatch, tmp_path):
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "key", "cert")}
    for name, file in files.items():
        file.write_bytes(name.encode())
    channel, seen = Channel(), []

    def credentials(*given):
        seen.append(given)
        return "credentials"

    monkeypatch.setattr(grpc, "secure_channel", channel)
    monkeypatch.setattr(grpc, "ssl_channel_credentials", credentials)
    monkeypatch.setattr(probe, "read_authorities", lambda path: path.read_bytes())
    assert asked(tls=(files["ca"], files["key"], files["cert"]), server_name="a.test") is None
    assert asked(tls=(files["ca"], None, None)) is None
    assert seen == [(b"ca", b"key", b"cert"), (b"ca", None, None)]
    name = [("grpc.ssl_target_name_override", "a.test")]
    assert channel.made == [("host:7", "credentials", name), ("host:7", "credentials", [])]


@pytest.mark.parametrize(
    ("tls", "server_name", "text"),
    [
        ((None, "key", "cert"), None, "tls_cert, tls_key and tls_server_name need tls_ca"),
        ((None, None, "cert"), None, "tls_cert, tls_key and tls_server_name need tls_ca"),
        (NO_TLS, "a.test", "tls_cert, tls_key and tls_server_name need tls_ca"),
        (("ca", "key", None), None, "tls_cert and tls_key go together"),
        (("ca", None, "cert"), None, "tls_cert and tls_key go together"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tls, server_name, text, channel):
    with pytest.raises(ConfigurationError) as caught:
        asked(tls=tls, server_name=server_name)
    assert str(caught.value) == text
    assert channel.asked == []
