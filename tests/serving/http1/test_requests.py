"""The table of bytes in and answers out, by the engine alone, however its reads are cut."""

import pytest

from serving.http1.requests import BadRequest, RequestReader
from tests.corpus.requests import CASES, CLOSED, LIVE, MAX_INDEX_BYTES, MAX_QUERY_BYTES, OPEN, WAITS

WHOLE = "a whole request"


def conversation(data, read_bytes):
    """Have an engine read data; return what it makes of it, and the connection's end."""
    reader, found, request = RequestReader(), [], None
    try:
        for at in range(0, len(data), read_bytes):
            reader.receive(data[at : at + read_bytes])
            while request is not None or (request := reader.read_head()) is not None:
                is_index = request.target.endswith("/index")
                most = MAX_INDEX_BYTES if is_index else MAX_QUERY_BYTES
                if reader.read_body(request, most) is None:
                    break
                found.append(WHOLE)
                if request.is_last:
                    return found, CLOSED
                request = None
    except BadRequest as err:
        return [*found, f"{err.status.value} {err.text}"], CLOSED
    return found, OPEN if request is None and not reader.num_waiting else WAITS


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(case):
    """Answers that are no refusals of the engine's are a whole request each.

    Also behind another request: every head of a connection is bounded.
    """
    is_refused = case.end == CLOSED and case.answers[-1] != "200" and not case.is_routed
    num_whole = len(case.answers) - is_refused
    expected = case._replace(
        answers=(WHOLE,) * num_whole + case.answers[num_whole:],
        end=OPEN if case.is_routed else case.end,
    )
    second = expected._replace(answers=(WHOLE, *expected.answers))
    for read_bytes in (1, 7, 1000, len(case.data)):
        assert not expected.fault(*conversation(case.data, read_bytes))
        assert not second.fault(*conversation(LIVE + case.data, read_bytes))


@pytest.mark.parametrize(("size", "is_taken"), [(10, True), (11, False)])
def test_body_in_chunks_has_its_limit_though_it_comes_at_once(size, is_taken):
    reader = RequestReader()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader.receive(head + b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size))
    request = reader.read_head()
    assert request is not None
    if is_taken:
        assert reader.read_body(request, 10) == b"x" * size
    else:
        with pytest.raises(BadRequest, match=r"^expected a body of at most 10 bytes, got more$"):
            reader.read_body(request, 10)


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data):
    """Have an engine read the begin of a body in chunks; return it, and the body if it is whole."""
    reader = RequestReader()
    reader.receive(HEAD)
    request = reader.read_head()
    assert request is not None
    assert request.num_bytes == -1
    reader.receive(data)
    return reader, reader.read_body(request, 1 << 20)


@pytest.mark.parametrize(("number", "is_taken"), [(2_040, True), (4_000, False)])
def test_framing_of_chunks_has_eight_kibibytes_beside_the_bodys_size(number, is_taken):
    """Else a body of a megabyte would cost its reader as many chunks of one byte."""
    data = b"1\r\nx\r\n" * number
    if is_taken:
        reader, body = chunked(data)
        assert (body, reader.num_waiting) == (None, len(data))
    else:
        with pytest.raises(BadRequest, match=r"^expected chunks of more bytes$"):
            chunked(data)


@pytest.mark.parametrize(("size", "is_taken"), [(8_000, True), (9_000, False)])
def test_head_of_a_chunk_has_eight_kibibytes(size, is_taken):
    if is_taken:
        assert chunked(b"1;" + b"x" * size)[1] is None
    else:
        with pytest.raises(BadRequest, match=r"^malformed HTTP: "):
            chunked(b"1;" + b"x" * size)


def test_body_in_chunks_leaves_nothing_behind():
    reader, body = chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n" + LIVE)
    assert (body, reader.num_waiting) == (b"abcde", len(LIVE))
    request = reader.read_head()
    assert request is not None
    assert (request.method, reader.read_body(request, 10), reader.num_waiting) == ("GET", b"", 0)


def test_head_that_comes_again_is_found_wherever_reads_end():
    reader, found = RequestReader(), []
    for byte in LIVE * 4:
        reader.receive(bytes((byte,)))
        request = reader.read_head()
        if request is not None:
            found.append(request)
    assert len(found) == 4
    assert all(each is found[0] for each in found), "it is not read again"
    assert (reader.head, reader.num_waiting) == (LIVE, 0)


def test_lengths_of_bodies_may_differ_between_heads_that_are_else_the_same():
    reader, found = RequestReader(), []
    for size in (3, 12, 3):
        reader.receive(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        reader.receive(b"x" * size)
        request = reader.read_head()
        assert request is not None
        found.append(request)
        assert reader.around_length == (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ", b"\r\n\r\n")  # fmt: skip
        assert reader.read_body(request, 20) == b"x" * size
    assert all(each is found[0] for each in found)
