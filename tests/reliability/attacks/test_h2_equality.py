"""Ten thousand generated calls to `h2` and to `grpcio`, with equal outcomes."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hyperframe.frame import DataFrame, SettingsFrame, WindowUpdateFrame

import serving
from serving.images import Images
from serving.protocols.digits_v1.wire import encode_request
from serving.protocols.oip import inference_pb
from tests.serving.transports.test_bad_requests import mutate
from tests.support.h2_connection import Connection, Reply, message, request_headers
from tests.support.inference_peer import raw_request, typed_request
from tests.support.servers import RunningServer, running_server

MODELS = Path(serving.__file__).parent / "pretrained"
TIMEOUT_S = 0.5
NUM_CALLS = int(os.environ.get("EQUALITY_CALLS", "10000"))
CALLS_ON_A_CONNECTION = 50
DIGITS = "/digits.v1.DigitClassifier/"
INFERENCE = f"/{inference_pb.SERVICE}/"
HEALTH = "/grpc.health.v1.Health/Check"
PATHS = (
    *(DIGITS + name for name in ("Classify", "ClassifyStream", "GetModel", "Nope")),
    *(INFERENCE + name for name in (
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
        "ModelConfig", "ModelStatistics", "RepositoryIndex", "ModelStreamInfer")),
    HEALTH, "/", "/x/Classify",
)  # fmt: skip


class Call(NamedTuple):
    kind: str
    """What is odd about it."""
    headers: dict[str, str | None]
    body: bytes


class Outcome(NamedTuple):
    status: str
    body: bytes


def generate(generator: random.Random, images: Images) -> Call:
    path = generator.choice(PATHS)
    body = message(valid(path, generator, images))
    headers: dict[str, str | None] = {"__path": path}
    kind = generator.choice(("good", "message"))
    if generator.random() < 0.05:
        kind = generator.choice(("framing", "header", "timeout"))
    if kind == "message":
        data = body[5:]
        body = message(mutate(data, generator) if len(data) > 16 else generator.randbytes(9))
    elif kind == "framing":
        name = generator.choice(sorted(FRAMINGS))
        kind, body = name, FRAMINGS[name](body)
    elif kind == "header":
        name = generator.choice(sorted(HEADERS))
        value = generator.choice(HEADERS[name])
        kind, headers = (
            f"{name}: {value}",
            headers | {name.replace("-", "_").replace(":", "__"): value},
        )
    elif kind == "timeout":
        value = generator.choice(TIMEOUTS)
        kind, headers = f"timeout {value}", headers | {"grpc_timeout": value}
    return Call(kind, headers, body)


FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "no body": lambda body: b"",
    "two messages": lambda body: body * 2,
    "more": lambda body: body + b"\0",
    "compressed": lambda body: b"\1" + body[1:],
    "flag": lambda body: b"\7" + body[1:],
    "long": lambda body: b"\0\xff\xff\xff\xff" + body[5:],
}
HEADERS: dict[str, tuple[str | None, ...]] = {
    "content-type": ("application/grpc+proto", "application/grpc;x=y", "text/html", None),
    "te": (None,),
    ":method": ("GET", "PUT"),
    ":scheme": ("https", "ftp"),
    ":authority": ("example.com", None),
    "x-custom": ("", "a" * 3000),
    "x-custom-bin": ("////", "!"),
    "grpc-encoding": ("gzip", "identity", "nope"),
    "grpc-accept-encoding": ("gzip", "nope"),
    "user-agent": ("x",),
    "authorization": ("Bearer x",),
    "grpc-status": ("0",),
}  # fmt: skip
TIMEOUTS = (
    "1H",
    "99999999S",
    "10000m",
    "60000000u",
    "99999999n",
    "1",
    "S",
    "",
    "-1S",
    "123456789S",
    "1x",
    "1.5S",
)


def valid(path: str, generator: random.Random, images: Images) -> bytes:
    some = images[generator.randrange(300) :][: generator.choice((1, 1, 2, 5, 18))]
    if path.startswith(DIGITS):
        return b"" if path.endswith("GetModel") else encode_request(some.tobytes())
    if "Infer" in path:
        if generator.random() < 0.3:
            return bytes(typed_request(some[:2]).SerializeToString())
        return bytes(raw_request(some, id=generator.choice(("", "a"))).SerializeToString())
    named = {"model_name": "digits", "name": "digits", "version": generator.choice(("", "1"))}
    request = getattr(inference_pb, path.rpartition("/")[2] + "Request", None)
    if request is None:
        return b""
    fields = {name: named[name] for name in request.DESCRIPTOR.fields_by_name if name in named}
    return bytes(request(**fields).SerializeToString())


def outcomes(server: RunningServer, calls: list[Call]) -> list[Outcome]:
    found: list[Outcome] = []
    while len(found) < len(calls):
        with Connection(server.address, TIMEOUT_S) as connection:
            connection.open(INITIAL_WINDOW_SIZE=2**31 - 1)
            connection.send(WindowUpdateFrame(0, window_increment=1 << 30))
            connection.receive()
            connection.send(SettingsFrame(0, flags=["ACK"]))
            streams = range(1, 2 * CALLS_ON_A_CONNECTION, 2)
            for stream, call in zip(streams, calls[len(found) :], strict=False):
                found.append(outcome(connection, stream, call))
                if found[-1].status == "closed" or call.kind not in ("good", "message"):
                    break  # grpcio remembers a header that it could not read, with HPACK's table
    return found


def outcome(connection: Connection, stream: int, call: Call) -> Outcome:
    reply = connection.replies[stream] = Reply()
    data = DataFrame(stream, call.body, flags=["END_STREAM"])
    connection.send(connection.headers(stream, request_headers(**call.headers)), data)
    try:
        while not reply.is_over:
            connection.receive()
    except (AssertionError, OSError):
        return Outcome("closed", b"")
    http = reply.headers.get(":status", "200")
    if http != "200":
        return Outcome(f"HTTP {http}", b"")
    return Outcome("reset" if reply.status is None else str(reply.status), reply.body)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[RunningServer, RunningServer]]:
    with (
        running_server(MODELS, "--transport", "h2") as ours,
        running_server(MODELS, "--transport", "grpcio") as reference,
    ):
        yield ours, reference


VARYING = ("GetModel", "ModelStatistics", "ModelMetadata", "ServerMetadata", "RepositoryIndex",
           "ModelConfig")  # fmt: skip
"""What differs by transport or by time, or whose maps have no order."""


@pytest.mark.timeout(600)
def test_generated_calls_have_the_same_outcome_on_both_transports(
    servers: tuple[RunningServer, RunningServer], generator: random.Random, images: Images
) -> None:
    calls = [generate(generator, images) for _ in range(NUM_CALLS)]
    ours, reference = (outcomes(server, calls) for server in servers)
    differences: Counter[tuple[str, str, str]] = Counter()
    for call, mine, other in zip(calls, ours, reference, strict=True):
        path = str(call.headers["__path"])
        is_equal = other.status in (mine.status, "closed")
        if is_equal and not path.endswith(VARYING):
            is_equal = mine.body == other.body
        if not is_equal:
            kind = call.kind if call.kind not in ("good", "message") else f"{call.kind} {path}"
            differences[kind.partition(" ")[0], mine.status, other.status] += 1
    print(Counter(outcome.status for outcome in ours))
    for (kind, mine_, other_), number in sorted(differences.items()):
        print(f"{number:5} {kind}: h2 {mine_}, grpcio {other_}")
    # What breaks gRPC's framing or headers grpcio treats in ways of its own: INTERNAL, or silence.
    assert not [kind for kind, *_ in differences if kind in ("good", "message")]
