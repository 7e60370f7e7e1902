"""Tokens: which headers are let in, which files are read, and when they are read again."""

import logging
import os

import pytest

from serving.config import SecurityConfig, ServerConfig
from serving.errors import ConfigurationError
from serving.security.exposure import warn_if_exposed
from serving.security.tokens import parse_tokens, token_check
from serving.security.watched_files import WatchedFiles, read_bytes

FIRST, SECOND = b"first-token-of-16", b"second-token-of-17"


def check_of(tokens):
    check = token_check(SecurityConfig(tokens=tokens))
    assert check is not None
    return check


@pytest.mark.parametrize(
    ("values", "is_let_in"),
    [
        ([b"Bearer " + FIRST], True),
        ([b"bEARER " + SECOND], True),
        ([b"Bearer " + FIRST[:-1]], False),
        ([b"Bearer " + FIRST + b" "], False),
        ([b"Bearer  " + FIRST], False),
        ([b"Basic " + FIRST], False),
        ([FIRST], False),
        ([b"Bearer "], False),
        ([b"Bearer # a comment"], False),
        ([], False),
        ([b"Bearer " + FIRST] * 2, False),
    ],
    ids=lambda value: b", ".join(value).decode() if isinstance(value, list) else None,
)
def test_one_bearer_token_is_let_in(values, is_let_in):
    assert check_of(f"{FIRST.decode()}\n{SECOND.decode()}\n").accepts(values) is is_let_in


def test_without_tokens_there_is_no_check():
    assert token_check(SecurityConfig()) is None


def test_lines_are_tokens():
    data = b"\n# of the team\n  " + FIRST + b"  \r\n\n#" + SECOND + b"\n" + SECOND
    assert parse_tokens(data, "here") == [FIRST, SECOND]
    assert parse_tokens(b"x" * 16, "here") == [b"x" * 16]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "here holds no token: one a line is expected"),
        (b"# " + FIRST, "here holds no token: one a line is expected"),
        (FIRST + b"\n" + b"x" * 15, "token 2 in here has 15 characters, at least 16 expected: "
         "`openssl rand -hex 32` makes a good one"),
        (b"x" * 8 + b" " + b"x" * 8, "token 1 in here has a space or a character outside of ASCII"),
        ("ä".encode() * 8, "token 1 in here has a space or a character outside of ASCII"),
        (b"x" * 16 + b"\x7f", "token 1 in here has a space or a character outside of ASCII"),
    ],
    ids=["empty", "comment", "short", "space", "letter", "control"],
)  # fmt: skip
def test_bad_lines_are_named_by_number(data, text):
    with pytest.raises(ConfigurationError) as caught:
        parse_tokens(data, "here")
    assert str(caught.value) == text


# Files that change


def write(path, content, at_ns):
    path.write_bytes(content)
    os.utime(path, ns=(at_ns, at_ns))


def test_files_are_read_once_for_each_change(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first, second = tmp_path / "first", tmp_path / "second"
    write(first, b"a", 1)
    write(second, b"b", 1)
    reads = []

    def read():
        reads.append(None)
        found = read_bytes(first) + read_bytes(second)
        if b"!" in found:
            raise ConfigurationError("it has a !")
        return found

    files = WatchedFiles((first, second), read)
    assert [files.get(), files.get(), len(reads)] == [b"ab", b"ab", 1]
    write(second, b"c", 1)  # of the same size and time: not seen
    write(first, b"d", 2)
    assert [files.get(), files.get(), len(reads)] == [b"dc", b"dc", 2]
    write(second, b"ef", 1)
    assert [files.get(), len(reads)] == [b"def", 3]
    assert caplog.messages == [f"reloaded {first}, {second}"] * 2

    caplog.clear()
    write(second, b"!", 3)
    assert [files.get(), files.get(), len(reads)] == [b"def", b"def", 4]
    second.unlink()
    assert [files.get(), files.get(), len(reads)] == [b"def", b"def", 5]
    kept = "not reloaded, the previous content stays in use: "
    lost = f"can't read {second}: No such file or directory"
    assert caplog.messages == [f"{kept}it has a !", f"{kept}{lost}"]
    write(second, b"g", 4)
    assert files.get() == b"dg"


def test_file_that_changes_while_it_is_read_is_read_again(tmp_path):
    """Whether at first or later."""
    path = tmp_path / "it"
    write(path, b"0", 0)
    changes = [1, None, 2, None]

    def read():
        found = read_bytes(path)
        if (change := changes.pop(0)) is not None:
            write(path, b"%d" % change, change)
        return found

    files = WatchedFiles((path,), read)
    assert files.get() == b"1"
    write(path, b"9", 9)
    assert [files.get(), files.get(), files.get()] == [b"9", b"2", b"2"]


def test_replaced_file_is_read(tmp_path):
    path, other = tmp_path / "it", tmp_path / "other"
    write(path, b"a", 1)
    files = WatchedFiles((path,), lambda: read_bytes(path))
    write(other, b"b", 1)
    other.replace(path)
    assert files.get() == b"b"


def test_file_that_is_missing_at_first_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"can't read .*/none: No such file or directory"):
        WatchedFiles((tmp_path / "none",), lambda: read_bytes(tmp_path / "none"))


# Ports that others reach

TOKENS, TLS = {"tokens": FIRST.decode()}, {"tls_cert": "cert.pem", "tls_key": "key.pem"}


@pytest.mark.parametrize(
    ("facts", "security", "lacking"),
    [
        ({"host": "127.0.0.1"}, {}, {}),
        ({"host": "::1"}, {}, {}),
        ({"host": "localhost"}, {}, {}),
        ({"host": "unix:/run/it"}, {}, {}),
        ({"host": "0.0.0.0"}, {}, {"0.0.0.0": "TLS and tokens"}),
        ({"host": "example.org"}, TOKENS, {"example.org": "TLS"}),
        ({"host": "::"}, TLS, {"::": "tokens"}),
        ({"host": "::"}, TLS | TOKENS, {}),
        ({"host": "::"}, TLS | {"tls_client_ca": "ca.pem"}, {}),
        ({"http_host": "0.0.0.0", "http_port": None}, {}, {}),
        ({"http_host": "0.0.0.0", "http_port": 0}, {}, {"0.0.0.0": "TLS and tokens"}),
        ({"http_host": "::", "host": "0.0.0.0", "http_port": 0}, TOKENS,
         {"0.0.0.0": "TLS", "::": "TLS"}),
    ],
)  # fmt: skip
def test_ports_that_others_reach_are_warned_about(facts, security, lacking, caplog):
    warn_if_exposed(ServerConfig(security=SecurityConfig(**security), **facts))
    assert caplog.messages == [
        f"other machines can reach {host} without {what}: see SECURITY.md"
        for host, what in lacking.items()
    ]


def test_tokens_of_a_file_are_those_that_it_has_now(tmp_path):
    path = tmp_path / "tokens"
    write(path, FIRST, 1)
    check = token_check(SecurityConfig(token_file=path))
    assert check is not None
    both = [b"Bearer " + FIRST], [b"Bearer " + SECOND]
    assert [check.accepts(each) for each in both] == [True, False]
    before = check.digests()
    assert check.digests() is before
    write(path, SECOND, 2)
    assert [check.accepts(each) for each in both] == [False, True]
    assert check.digests() is not before, "calls that are known are read again"
