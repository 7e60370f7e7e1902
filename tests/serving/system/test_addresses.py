"""Addresses as texts, and the first port that is free."""

import errno

import pytest

from serving.errors import ConfigurationError
from serving.system.addresses import cannot_listen, first_free, is_named, is_target, reached


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("a:1", True), ("[::1]:50051", True), ("a:1, b:2", True), ("dns:///a:1", True),
     ("unix:/run/it", True), ("unix:it", True), ("ipv4:10.0.0.1:5,10.0.0.2:5", True), ("a", False),
     ("a:", False), (":1", False), ("a:x", False), ("a:1,b", False), ("", False), (",", False),
     ("s3://a/b:1", False), ("./a:1", False), ("dns", False), ("models/a", False)],
)  # fmt: skip
def test_targets_are_told_from_paths(text, is_one):
    assert is_target(text) is is_one


@pytest.mark.parametrize(
    ("address", "names", "called"),
    [
        ("unix:/run/it", ("a",), "unix:/run/it"),
        ("127.0.0.1:5", (), "127.0.0.1:5"),
        ("0.0.0.0:5", (), "127.0.0.1:5"),
        ("[::]:5", (), "localhost:5"),
        ("[::1]:5", ("::1",), "[::1]:5"),
        ("10.0.0.1:5", ("a.org",), "a.org:5"),
        ("10.0.0.1:5", ("10.0.0.2", "a.org", "localhost"), "a.org:5"),
        ("10.0.0.1:5", ("10.0.0.2",), "10.0.0.2:5"),
        ("10.0.0.1:5", ("fe80::1",), "[fe80::1]:5"),
        ("10.0.0.1:5", ("10.0.0.1", "a.org"), "10.0.0.1:5"),
        ("0.0.0.0:5", ("a.org", "localhost"), "localhost:5"),
        ("127.0.0.1:5", ("a.org", "localhost"), "localhost:5"),
        ("127.0.0.1:5", ("a.org",), "a.org:5"),
        ("[::1]:5", ("a.org", "127.0.0.1", "localhost"), "localhost:5"),
        ("0.0.0.0:5", ("*.a.org",), "<name>.a.org:5"),
    ],
)
def test_addresses_are_called_by_a_name_of_the_certificate(address, names, called):
    assert reached(address, names) == called


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("a.org", True), ("A.org:8080", True), ("b.org", False), ("b.org:8080", False),
     ("10.0.0.1", True), ("10.0.0.1:80", True), ("[::1]:80", True), ("[::1]", True), ("", False),
     ("[a.org]", True), ("[b.org]", False)],
)  # fmt: skip
def test_hosts_are_addresses_or_named(host, is_ours):
    assert is_named(host, {"a.org"}) is is_ours
    assert is_named(host, {"a.org", "*"})


class Ports:
    """Ports of which some are taken, or can't be had."""

    def __init__(self, taken=(), forbidden=()):
        self.taken, self.forbidden, self.tried = taken, forbidden, []

    def open(self, port):
        self.tried.append(port)
        numbers = {**dict.fromkeys(self.taken, errno.EADDRINUSE),
                   **dict.fromkeys(self.forbidden, errno.EACCES)}  # fmt: skip
        if port in numbers:
            error = OSError(numbers[port], "no")
            raise cannot_listen("::1", port, error) from error
        return f"port {port}"


def test_first_free_port_is_opened(caplog):
    ports = Ports()
    assert first_free(ports.open, (80, 81), "--port") == "port 80"
    assert (ports.tried, caplog.messages) == ([80], [])
    ports = Ports(taken=(80, 81))
    assert first_free(ports.open, (80, 81, 82, 83), "--port") == "port 82"
    assert ports.tried == [80, 81, 82]
    assert caplog.messages == ["port 80 is taken: using 82; choose with --port"]


@pytest.mark.parametrize(
    ("ports", "tried", "text"),
    [
        (Ports(taken=(80, 81)), [80, 81], r"can't listen on \[::1\]:81: the port is taken"),
        (Ports(taken=(80,), forbidden=(81,)), [80, 81], r"\[::1\]:81: permission denied, ports "
         "below 1024 need root or CAP_NET_BIND_SERVICE"),
        (Ports(forbidden=(80,)), [80], r"\[::1\]:80: permission denied, ports below 1024"),
    ],
    ids=["all taken", "last forbidden", "first forbidden"],
)  # fmt: skip
def test_ports_that_cannot_be_had_are_an_error(ports, tried, text):
    with pytest.raises(ConfigurationError, match=text):
        first_free(ports.open, (80, 81), "--port")
    assert ports.tried == tried


@pytest.mark.parametrize("scheme", ["dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds"])
def test_schemes_of_grpc_are_targets(scheme):
    assert is_target(f"{scheme}:it")
    assert is_target(f"{scheme}:///it/is")
    assert not is_target(scheme)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_certificate_for_this_machine_is_called_by_its_name(name):
    called = f"[{name}]:5" if ":" in name else f"{name}:5"
    for bound in ("0.0.0.0:5", "[::]:5", "127.0.0.1:5", "[::1]:5", "localhost:5"):
        assert reached(bound, ("a.org", name)) == called
    assert reached("10.0.0.1:5", (name, "a.org")) == ("localhost:5" if name == "localhost"
                                                      else "a.org:5")  # fmt: skip


@pytest.mark.parametrize(
    ("number", "port", "reason"),
    [
        (errno.EADDRINUSE, 80, "the port is taken"),
        (errno.EADDRNOTAVAIL, 80, "this machine has no such address"),
        (errno.EAFNOSUPPORT, 80, "this machine has no such kind of address"),
        (errno.EACCES, 1024, "permission denied"),
        (errno.EACCES, 1023, "permission denied, ports below 1024 need root or "
         "CAP_NET_BIND_SERVICE"),
        (errno.EPERM, 80, "Operation not permitted"),
    ],
)  # fmt: skip
def test_reason_of_a_port_that_cannot_be_had_is_in_plain_words(number, port, reason):
    error = cannot_listen("10.0.0.1", port, OSError(number, "of the system"))
    assert str(error) == f"can't listen on 10.0.0.1:{port}: {reason}"
