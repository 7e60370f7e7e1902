"""Tokens: no method answers without one, found by walking the descriptors; health's two do."""

from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from digit_classifier import Classifier
from digit_classifier.pb.digits.v1 import digits_pb2
from serving.__main__ import main
from serving.config import SecurityConfig
from serving.errors import ConfigurationError, Unauthenticated
from serving.oip import inference_pb
from serving.security.tokens import token_check
from tests.support.h2_server import server_inside
from tests.support.raw import GET_MODEL, HEALTH, TIMEOUT_S, WATCH, status_of
from tests.support.servers import on_both, running_server

OLD, NEW, WRONG = "old-token-0123456789", "new-token-0123456789", "wrong-token-01234567"
OPEN = {HEALTH, WATCH}


def services():
    """Every service that the server has."""
    files = [digits_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    found = [service for file in files for service in file.services_by_name.values()]
    return [*found, inference_pb.pool.FindServiceByName(inference_pb.SERVICE)]


METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for service in services()
    for method in service.methods
}


def ending(channel, path, token):
    """How a call without content ends; OK for one that answers at all."""
    metadata = None if token is None else (("authorization", token),)
    answers = channel.stream_stream(path)(iter([b""]), timeout=TIMEOUT_S, metadata=metadata)
    try:
        next(answers)
    except StopIteration:
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as err:
        return err.code(), err.details() or ""
    answers.cancel()
    return grpc.StatusCode.OK, ""


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# old one goes in June\n{OLD}\n\n{NEW}\n")
    return path


@pytest.fixture(scope="module")
def guarded(classifier, token_file, transport):
    security = SecurityConfig(token_file=token_file)
    with server_inside(
        classifier, transport=transport, reflection=True, security=security
    ) as server:
        yield server


@pytest.fixture
def channel(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        yield channel


def test_descriptors_name_every_method():
    assert len(METHODS) >= 15
    assert set(METHODS) >= OPEN


@on_both
@pytest.mark.parametrize(
    "token", [None, "", f"Bearer {WRONG}", "Bearer", OLD, f"Basic {OLD}", f"Bearer {OLD}x"]
)
def test_no_method_answers_without_a_valid_token(channel, token):
    refused = (grpc.StatusCode.UNAUTHENTICATED, "a valid bearer token is needed")
    for path in [*METHODS, "/digits.v1.DigitClassifier/Nope", "/nope"]:
        expected = (grpc.StatusCode.OK, "") if path in OPEN else refused
        assert ending(channel, path, token) == expected, path


@on_both
@pytest.mark.parametrize("token", [f"Bearer {OLD}", f"Bearer {NEW}", f"bearer {NEW}"])
def test_every_valid_token_is_let_in_everywhere(channel, token):
    codes = {path: ending(channel, path, token)[0] for path in METHODS}
    assert grpc.StatusCode.UNAUTHENTICATED not in codes.values()
    assert codes[GET_MODEL] is grpc.StatusCode.OK


def test_two_tokens_in_one_call_are_refused(channel):
    metadata = (("authorization", f"Bearer {OLD}"), ("authorization", f"Bearer {WRONG}"))
    call = channel.unary_unary(GET_MODEL)
    code, _ = status_of(lambda: call(b"", timeout=TIMEOUT_S, metadata=metadata))
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_client_shows_its_token(guarded, images):
    with Classifier.connect(guarded.address, token=NEW) as client:
        assert len(client.classify(images[:300])) == 300
    with Classifier.connect(guarded.address) as client, pytest.raises(Unauthenticated):
        client.classify(images[:1])


def test_tokens_are_read_again_when_the_file_changes(classifier, tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(OLD)
    with (
        server_inside(classifier, security=SecurityConfig(token_file=path)) as server,
        Classifier.connect(server.address, token=OLD) as old,
        Classifier.connect(server.address, token=NEW) as new,
    ):
        old.describe()
        path.write_text("")  # half-written: the tokens before stay valid
        old.describe()
        path.write_text(f"{NEW}\n")
        new.describe()
        with pytest.raises(Unauthenticated):
            old.describe()
    assert "holds no token" in caplog.text
    assert OLD not in caplog.text
    assert NEW not in caplog.text


def test_token_comes_from_the_environment(models, monkeypatch, capsys):
    monkeypatch.setenv("SERVING_TOKEN", f"{OLD}\n{NEW}")
    with running_server(models) as server:
        command = ["info", "--json", "--target", server.address]
        assert main(command) == 0
        monkeypatch.setenv("SERVING_TOKEN", WRONG)
        assert main(command) == 1
        assert "a valid bearer token is needed" in capsys.readouterr().err
        command_line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert OLD.encode() not in command_line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no token"),
        ("# only a comment\n", "holds no token"),
        ("short\n", "token 1 in .* has 5 characters, at least 16 expected"),
        (f"{OLD}\nwith a space in the middle\n", "token 2 in .* has a space"),
        ("täglich-frisches-brot\n", "has a space or a character outside of ASCII"),
    ],
)
def test_bad_token_file_is_refused_and_never_shown(tmp_path, content, message):
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        token_check(SecurityConfig(token_file=path))
    assert not any(line and line in str(caught.value) for line in content.splitlines())


def test_secrets_are_not_in_the_configurations_text():
    assert OLD not in repr(SecurityConfig(tokens=OLD))
