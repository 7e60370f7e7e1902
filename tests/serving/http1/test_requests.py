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
