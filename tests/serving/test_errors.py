"""Each error arrives as itself, whatever its text, over both transports of each side and HTTP."""

import re
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from digit_classifier.methods import FILE
from serving import Client, applications
from serving.errors import (
    ConfigurationError,
    Overloaded,
    RequestError,
    ServerError,
    ServingError,
    Unavailable,
)
from serving.protocols.method import Unary
from serving.protocols.status import PUSHBACK, TABLE, Status, StatusCode
from serving.transports.http_routing import Endpoint, problem
from tests.serving.http.peer import HttpPeer
from tests.support.h2_server import server_inside

TEXT = "connections to all backends: the queue is full, handshake, UNIMPLEMENTED"
"""Words by which a client could be misled; the first ones are gRPC's for servers out of reach."""


def test_error_that_refines_another_has_its_status():
    class Refined(ConfigurationError):
        """As a module may define one for itself."""

    class Stray(ServingError):
        """Of no branch."""

    assert Status.of(Refined("x")) == Status.of(ConfigurationError("x"))
    assert problem(Refined("x")) == problem(ConfigurationError("x"))
    assert Status.of(Stray("x")).code is StatusCode.INTERNAL


PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_ROW = re.compile(
    r"(?m)^\| `(\w+)`(?:, an? `(\w+)`)? \| (request|server) \| ([A-Z_]+)"
    r"(?: (with|without) a pause)? \| `([A-Z_]+)` \| (\d{3})[^|]* \| ([^|]*) \| [^|]+ \|$"
)


def test_page_of_clients_has_the_table():
    rows = _ROW.findall(PAGE.read_text("utf-8"))
    assert [row[0] for row in rows] == [error.__name__ for error in TABLE]
    branches = {"request": RequestError, "server": ServerError}
    for (_, base, branch, code, pause, reason, http, clients), error in zip(
        rows, TABLE, strict=True
    ):
        own = TABLE[error]
        assert (code, reason, int(http)) == (own.code.name, own.reason, own.http)
        assert ("send again" in clients) == own.is_retried
        assert issubclass(error, branches[branch])
        assert error.__base__.__name__ == (base or branches[branch].__name__)
        if pause:  # two errors have the code
            trailers = dict(Status.of(error("x")).metadata)
            assert (PUSHBACK in trailers) == (pause == "with")


def refuse(error, _):
    raise error(TEXT)


async def refuse_http(error, _):
    raise error(TEXT)


SERVICE = SimpleNamespace(
    SERVICE="test.Errors",
    FILE=FILE,
    model_name=lambda router: "",
    methods=lambda router, transport: [
        Unary(path=f"/test.Errors/{error.__name__}", name="other", answer=partial(refuse, error))
        for error in TABLE
    ],
)
PATHS = SimpleNamespace(
    MODULES=(),
    PAGES={},
    FILES=Path(__file__).parent / "http",
    routes=lambda router, config: [
        Endpoint("POST", f"/v1/errors/{name}", partial(refuse_http, error), name=name)
        for error in TABLE
        if (name := error.__name__)
    ],
    describe=lambda router, config: ({}, {}),
)


@contextmanager
def refusing(classifier, monkeypatch, **options):
    """A server with a method, and a path, for each error."""
    groups = {applications.GRPC: {"errors": SERVICE}, applications.HTTP: {"errors": PATHS}}
    found = applications.installed
    monkeypatch.setattr(applications, "installed", lambda group: groups.get(group) or found(group))
    with server_inside(classifier, **options) as server:
        yield server


@pytest.mark.parametrize("client_side", ["h2", "grpcio"])
@pytest.mark.parametrize("server_side", ["h2", "grpcio"])
def test_each_error_arrives_as_itself(client_side, server_side, classifier, monkeypatch):
    with (
        refusing(classifier, monkeypatch, transport=server_side) as server,
        Client(server.address, transport=client_side) as client,
    ):
        for error in TABLE:
            with pytest.raises(error) as caught:
                client.call(f"/test.Errors/{error.__name__}", b"", timeout_s=0.05)
            assert type(caught.value) is error
            assert TEXT in str(caught.value)
            if isinstance(caught.value, Overloaded | Unavailable):
                assert caught.value.retry_after_s == 0.1


def test_each_error_has_its_reason_and_status_over_http(classifier, monkeypatch):
    with refusing(classifier, monkeypatch, http_port=0) as server:
        peer = HttpPeer(server.http_url)
        for error, row in TABLE.items():
            reply = peer.post(f"/v1/errors/{error.__name__}", b"")
            assert (reply.status, reply.json["reason"]) == (row.http, row.reason)
            assert ("retry-after" in reply.headers) == (error in (Overloaded, Unavailable))
        assert peer.get("/v1/nothing").json["reason"] == "NOT_FOUND"


def test_calls_are_counted_by_the_code_of_their_error_over_http_too(classifier, monkeypatch):
    """Errors of one HTTP status are not one: 501 is a caller's mistake, or the operator's."""
    with refusing(classifier, monkeypatch, http_port=0) as server:
        peer = HttpPeer(server.http_url)
        for error in TABLE:
            peer.post(f"/v1/errors/{error.__name__}", b"")
        peer.get("/v2/logging")
        models = server.report().counts.models
        counted = sum((each.requests for each in models.values()), Counter())
        for error, row in TABLE.items():
            assert counted[error.__name__, row.code.name] == 1
        assert {code for method, code in counted if method.startswith("Http")} == {"UNIMPLEMENTED"}
