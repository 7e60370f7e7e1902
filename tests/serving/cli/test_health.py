"""`digit-serving health`, as an exec probe runs it."""

import socket
import subprocess
import sys

import pytest

from serving.__main__ import main
from tests.support.raw import TIMEOUT_S
from tests.support.servers import paced_server, running_server, wait_until
from tests.test_boundaries import HEAVY, modules_after


def test_serving_is_0_and_one_line(server, run):
    assert run("health", "--target", server.address) == (0, [f"{server.address}: SERVING"], [])


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("127.0.0.1:1", "can't connect: Connection refused"),
        ("unix:/no/such/socket", "can't connect: No such file or directory"),
        ("no-such-host.invalid:1", "the name no-such-host.invalid can't be resolved"),
    ],
)
def test_nobody_there_is_1_and_one_line(target, reason, run):
    expected = (1, [], [f"digit-serving: {target}: {reason}"])
    assert run("health", "--target", target) == expected


def test_server_that_says_nothing_is_given_up_in_time(run):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        code, _, err = run("health", "--target", target, "--timeout", "50ms")
    assert (code, err) == (1, [f"digit-serving: {target}: no answer within 0.05 s"])


def test_health_of_a_model(server, run):
    target = ("health", "--target", server.address, "--model")
    assert run(*target, "digits").out == [f"{server.address}: model digits: SERVING"]
    code, _, err = run(*target, "x" * 200)
    expected = f"digit-serving: {server.address}: model {'x' * 200}: there is no such model"
    assert (code, err) == (1, [expected])


def test_server_that_hangs_is_1(run):
    with paced_server(self_test_interval_s=0.3) as server:
        server.tell("hold")
        wait_until(lambda: run("health", "--target", server.address).code == 1)
        err = run("health", "--target", server.address).err
        assert err == [f"digit-serving: {server.address}: NOT_SERVING"]
        server.tell("release")


def test_tls_and_tokens(models, tmp_path, run):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = {
        "server": authority.issue_cert("digits.test"),
        "client": authority.issue_cert("c.test"),
    }
    for name, cert in issued.items():
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long-enough-to-be-one\n")
    serving = ("--tls-cert", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key",
               "--tls-client-ca", tmp_path / "ca.pem", "--token-file", token)  # fmt: skip
    named = ("--tls-ca", tmp_path / "ca.pem", "--tls-server-name", "digits.test",
             "--token-file", token)  # fmt: skip
    own = ("--tls-cert", tmp_path / "client.pem", "--tls-key", tmp_path / "client.key")
    with running_server(models, *map(str, serving)) as server:
        target = ("--target", server.address)
        assert run("health", *target, *named, *own)[0] == 0
        assert run("health", *target, *named)[0] == 1, "no certificate of its own"
        assert run("health", *target, "--tls-ca", tmp_path / "ca.pem", *own)[0] == 1
        assert run("health", *target).err == [
            f"digit-serving: {server.address}: the server speaks TLS: tls_ca (--tls-ca) names the "
            "authorities of its certificate"
        ]
    with running_server(models) as server:
        target = ("--target", server.address, "--tls-ca", tmp_path / "ca.pem")
        assert run("health", *target).err == [
            f"digit-serving: {server.address}: the server does not speak TLS: leave out tls_ca "
            "(--tls-ca)"
        ]


NEED_CA = "tls_cert, tls_key and tls_server_name need tls_ca"
MISSING = "can't read no-such-file: No such file or directory"


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--tls-cert", "a.pem", "--tls-key", "a.key"), NEED_CA),
     (("--tls-server-name", "digits.test"), NEED_CA),
     (("--tls-ca", "no-such-file"), MISSING), (("--token-file", "no-such-file"), MISSING)],
)  # fmt: skip
def test_options_that_cannot_be_used_are_2(options, message, run):
    assert run("health", *options) == (2, [], [f"digit-serving: {message}"])


@pytest.mark.parametrize("target", ["foo", "foo:", ":50051", "http://foo", "a:1,b"])
def test_target_without_a_port_is_a_usage_error(target, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["health", "--target", target])
    assert ended.value.code == 2
    assert f"argument --target: expected HOST:PORT, got {target!r}; see" in capsys.readouterr().err


def test_probe_imports_little():
    loaded = modules_after("import serving.__main__, serving.cli.probe")
    assert not loaded & {*HEAVY, "numpy", "google.protobuf", "tomllib", "importlib.metadata"}


def test_probe_runs_as_a_command(server):
    command = [sys.executable, "-m", "serving", "health", "--target", server.address]
    assert subprocess.run(command, timeout=TIMEOUT_S, capture_output=True).returncode == 0
