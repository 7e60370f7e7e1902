"""Which fields HTTP/2 allows, and which blocks are of one kind."""

import pytest

from serving.http2 import events, frames
from serving.http2.client import ClientConnection
from serving.http2.frames import END_HEADERS, HEADERS, ErrorCode
from serving.http2.headers import HeaderReader, is_valid
from serving.http2.hpack import encode_literally
from serving.http2.limits import Limits
from tests.http2.frames import of, setting

ALLOWED = [
    (b"te", b"trailers"), (b"content-length", b"0"), (b"content-length", b"9" * 19),
    (b":status", b"200"), (b":status", b"999"), (b":path", b"/"), (b":path", b"*"),
    (b"x", b""), (b"x", b"a b\tc"), (b"x", b"\x80\xff"), (b"!#$%&'*+-.^_`|~09az", b"x"),
]  # fmt: skip
REFUSED = [
    (b"te", b"gzip"), (b"te", b"trailers, gzip"), (b"te", b""),
    (b"content-length", b""), (b"content-length", b"9" * 20), (b"content-length", b"-1"),
    (b"content-length", b"1a"), (b":status", b""), (b":status", b"20"), (b":status", b"2000"),
    (b":status", b"2x0"), (b":path", b""), (b"connection", b"close"), (b"proxy-connection", b"x"),
    (b"keep-alive", b"1"), (b"transfer-encoding", b"chunked"), (b"upgrade", b"h2c"),
    (b"", b"x"), (b"X", b"x"), (b"a b", b"x"), (b"a:", b"x"), (b"x", b" a"), (b"x", b"a "),
    (b"x", b"a\0b"), (b"x", b"a\rb"), (b"x", b"a\nb"), (b"x", b"\x7f"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "expected"),
    [*((each, True) for each in ALLOWED), *((each, False) for each in REFUSED)],
)  # fmt: skip
def test_field_is_allowed_or_not(field, expected):
    assert is_valid(field) is expected


@pytest.mark.parametrize("status", [b"20", b"2x0", b"2000"])
def test_answer_without_a_status_of_three_digits_is_reset(status):
    client = ClientConnection(Limits())
    stream = client.request(REQUEST, b"")
    headers = of(HEADERS, encode_literally(((b":status", status),)), END_HEADERS)
    (event,) = client.receive(setting() + headers, 0.0)
    assert isinstance(event, events.StreamReset)
    assert (event.stream, event.code) == (stream, ErrorCode.PROTOCOL_ERROR)
    assert frames.frame(frames.RST_STREAM, 0, stream, frames.word(ErrorCode.PROTOCOL_ERROR)) in (
        client.data_to_send()
    )


REQUEST = (
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"x:1"),
)  # fmt: skip


def kinds_of(*blocks, of_requests=True, **options):
    reader = HeaderReader(Limits(), of_requests=of_requests, **options)
    return [reader.read(encode_literally(block)).kind for block in blocks]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (b":method", (b"PUT", b"PATCH")), (b":scheme", (b"one", b"two")),
        (b":path", (b"/a", b"/b")), (b":authority", (b"x:1", b"y:2")),
        (b"content-length", (b"1", b"2")), (b":status", (b"201", b"202")), (b"own", (b"1", b"2")),
    ],
)  # fmt: skip
def test_values_that_count_make_a_kind_of_their_own(name, values):
    """The application reads the fields of a kind once, for all its blocks."""
    rest = () if name == b":status" else REQUEST
    blocks = [tuple({**dict(rest), name: value}.items()) for value in values]
    options = {"of_requests": name != b":status", "counting": frozenset((b"own",))}
    first, second, again = kinds_of(*blocks, blocks[0], **options)
    assert first is not second
    assert again is first
    assert (first.fields, second.fields) == (blocks[0], blocks[1])


def test_blocks_that_differ_in_other_values_are_of_one_kind():
    first, second = ((*REQUEST, (b"x-id", value), (b"x-own", b"1")) for value in (b"1", b"2"))
    reader = HeaderReader(Limits(), of_requests=True)
    block = reader.read(encode_literally(first))
    assert (block.is_repeated, block.kind.is_repeated) == (False, False)
    other = reader.read(encode_literally(second))
    assert other.kind is block.kind
    assert (other.is_repeated, block.kind.is_repeated) == (False, True)
    assert other.kind.fields == REQUEST
    assert other.changing == [(b"x-id", b"2"), (b"x-own", b"1")]
    assert other.fields == second
    again = reader.read(encode_literally(second))
    assert again is other
    assert again.is_repeated


def test_kinds_are_read_again_once_all_is_forgotten():
    reader = HeaderReader(Limits(), of_requests=True)
    first = reader.read(encode_literally(REQUEST))
    reader.clear()
    assert (reader.blocks, reader.kinds) == ({}, {})
    again = reader.read(encode_literally(REQUEST))
    assert again is not first
    assert again.kind is not first.kind
    assert not again.is_repeated


@pytest.mark.parametrize(
    "fields",
    [
        *(tuple(each for each in REQUEST if each[0] != name) for name in (
            b":method", b":scheme", b":path")),
        (*REQUEST, (b":status", b"200")), (*REQUEST, (b":method", b"POST")),
        ((b"x", b"1"), *REQUEST), (*REQUEST, (b"x", b"1"), (b":x", b"1")),
        (*REQUEST, (b"content-length", b"1"), (b"content-length", b"1")),
        (*REQUEST, (b"connection", b"close")),
    ],
)  # fmt: skip
def test_request_of_another_shape_is_malformed(fields):
    (kind,) = kinds_of(fields)
    assert kind.is_malformed
    assert kind.content_length is None


@pytest.mark.parametrize(
    ("fields", "is_malformed"),
    [
        (((b":status", b"200"),), False), ((), True), (((b"x", b"1"),), True), (REQUEST, True),
        (((b":status", b"200"), (b":path", b"/")), True),
        (((b":status", b"200"), (b":status", b"200")), True),
    ],
)  # fmt: skip
def test_answer_has_a_status_and_no_other_field_of_the_protocol(fields, is_malformed):
    (kind,) = kinds_of(fields, of_requests=False)
    assert kind.is_malformed is is_malformed


def test_promised_length_is_a_number():
    known, unknown = kinds_of((*REQUEST, (b"content-length", b"17")), REQUEST)
    assert (known.content_length, known.is_malformed) == (17, False)
    assert (unknown.content_length, unknown.is_malformed) == (None, False)


@pytest.mark.parametrize(
    ("fields", "is_good"),
    [
        (((b"grpc-status", b"0"),), True), ((), True), (((b":path", b"/"),), False),
        (((b"grpc-status", b"0"), (b"connection", b"close")), False), (((b"X", b"1"),), False),
    ],
)  # fmt: skip
def test_trailers_have_no_field_of_the_protocol(fields, is_good):
    reader = HeaderReader(Limits(), of_requests=True)
    assert reader.read_trailers(encode_literally(fields)) == (fields if is_good else None)


class Cleared:
    """A recogniser that finds nothing, and counts how often it has to forget all."""

    def __init__(self):
        self.number = 0

    def read(self, raw):
        return None

    def learn(self, block, literals):
        pass

    def clear(self):
        self.number += 1


def test_what_is_recognised_is_forgotten_with_the_blocks():
    """Once a block changes the table, the bytes of others mean something else."""
    reader = HeaderReader(Limits(), of_requests=True)
    reader.recogniser = recogniser = Cleared()
    inserting = b"\x40\x01a\x01b"
    reader.read(encode_literally(REQUEST))
    assert (len(reader.blocks), recogniser.number) == (1, 0)
    reader.read(encode_literally(REQUEST) + inserting)
    assert (reader.blocks, recogniser.number) == ({}, 1)
    reader.read(encode_literally(REQUEST) + inserting)
    assert recogniser.number == 1, "there was nothing to forget"
    reader.clear()
    assert recogniser.number == 2


@pytest.mark.parametrize("is_kept", [True, False])
def test_block_that_nobody_shares_gives_its_bytes_and_fields_back(is_kept):
    reader = HeaderReader(Limits(), of_requests=True)
    raw = encode_literally((*REQUEST, (b"x-id", b"1"))) + b"\x40\x01a\x01b" * (not is_kept)
    block = reader.read(raw)
    fields, changing = block.fields, block.changing
    assert (block.is_kept, (b"x-id", b"1") in changing) == (is_kept, True)
    block.shrink()
    expected = (fields, changing, raw) if is_kept else ((), (), b"")
    assert (block.fields, block.changing, block.raw) == expected
