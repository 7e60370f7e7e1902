"""HPACK against python-hyper's, both ways."""

from contextlib import suppress

import hpack
import pytest

from serving.http2.headers import is_valid
from serving.http2.hpack import (
    DEFAULT_TABLE,
    INSERT,
    Decoder,
    Encoder,
    Field,
    HpackError,
    _integer,
    _write_integer,
    literal,
)
from serving.http2.hpack import encode_literally as encode
from serving.http2.huffman import decode_huffman

HUFFMAN = hpack.huffman.HuffmanEncoder(
    hpack.huffman_constants.REQUEST_CODES, hpack.huffman_constants.REQUEST_CODES_LENGTH
)


def decoder(max_list_bytes=1 << 20, max_fields=1000):
    return Decoder(max_list_bytes, max_fields, is_valid)


def random_fields(generator):
    names = [b":path", b"te", b"x-request-id", b"grpc-timeout", b"user-agent", b"traceparent"]
    return tuple(
        (generator.choice(names), generator.randbytes(generator.choice((0, 1, 8, 60, 300))))
        for _ in range(generator.randint(0, 12))
    )


def test_blocks_of_hypers_encoder_mean_the_same(generator):
    theirs, ours = hpack.Encoder(), decoder()
    for _ in range(3000):
        if generator.random() < 0.05:
            theirs.header_table_size = generator.randrange(DEFAULT_TABLE + 1)
        fields = random_fields(generator)
        block = theirs.encode(fields, huffman=generator.random() < 0.5)
        assert ours.decode(block) == fields


def test_hypers_decoder_reads_our_blocks(generator):
    theirs, ours = hpack.Decoder(), Encoder()
    theirs.max_allowed_table_size = DEFAULT_TABLE
    usual = [random_fields(generator) for _ in range(20)]
    usual += [((b"x-%02d" % number, bytes(28)),) for number in range(6)] * 5  # of 64 bytes each
    usual += [tuple((b"%02d" % number, b"") for number in range(110))] * 5  # indices over 127
    for _ in range(3000):
        if generator.random() < 0.05:
            size = generator.choice((0, 100, 255, 511, 1000, DEFAULT_TABLE, 1 << 20))
            ours.resize(size)
        fields = generator.choice(usual)
        block = encode(fields) if generator.random() < 0.2 else ours.encode(fields)
        block, ours.resized = ours.resized + block, b""
        assert tuple(theirs.decode(block, raw=True)) == fields


def test_block_changes_the_table_if_fields_come_or_go():
    ours, large = decoder(), literal((b"a", bytes(DEFAULT_TABLE)), INSERT)
    blocks = literal((b"a", b"b"), INSERT), b"\xbe", large, large, b"\x3f\x01", large
    changed = []
    for block in blocks:
        ours.decode(block)
        changed.append(ours.has_changed)
    assert changed == [True, False, True, False, True, False]


def test_encoder_inserts_nothing_that_does_not_fit():
    theirs, ours = hpack.Decoder(), Encoder()
    ours.resize(100)
    small, large = ((b"a", b"b"),), ((b"a", bytes(100)),)
    for fields in (small, large, small, large, small):
        block, ours.resized = ours.resized + ours.encode(fields), b""
        assert tuple(theirs.decode(block, raw=True)) == fields
    assert len(ours.encode(small)) == 1


def test_repeated_fields_take_a_byte_each():
    ours = Encoder()
    fields = ((b":status", b"200"), (b"content-type", b"application/grpc"))
    assert ours.repeated(fields) is None
    assert len(ours.encode(fields)) > 2
    assert ours.repeated(fields) == ours.encode(fields) == b"\x88\xbe"
    ours.resize(0)
    assert ours.repeated(fields) is None


def test_blocks_of_256_sets_of_fields_are_kept():
    ours = Encoder(frozenset([b"x"]))
    for number in range(600):
        block = ours.encode(((b"x", b"%d" % number),))
        assert len(ours.blocks) == number % 256 + 1
        assert ours.encode(((b"x", b"%d" % number),)) is block


def test_every_string_survives_huffmans_code(generator):
    for number in range(2000):
        text = bytes((number % 256,)) + generator.randbytes(generator.randrange(40))
        assert decode_huffman(HUFFMAN.encode(text)) == text


@pytest.mark.parametrize(
    "encoded", ["ff", "1e", "ffffffff", "1c64ff", "f8ffff", "ffffffffff", "ffffffff00"],
    ids=["8-bits", "no-padding", "end-of-string", "long-padding", "longer-padding",
         "ones behind the end", "zeros behind the end"],
)  # fmt: skip
def test_wrong_ends_of_huffmans_code_are_refused(encoded):
    data = bytes.fromhex(encoded)
    with pytest.raises(hpack.HPACKDecodingError):
        hpack.huffman_table.decode_huffman(data)
    with pytest.raises(ValueError, match=r"padding|end"):
        decode_huffman(data)


@pytest.mark.parametrize(
    "block",
    ["ff80", "ffffffffffffffff7f", "4005", "400161", "0085ff"],
    ids=["cut-integer", "long-integer", "cut-name", "no-value", "cut-string"],
)
def test_malformed_block_is_refused(block):
    """Beside those of test_frames.py."""
    with pytest.raises(HpackError):
        decoder().decode(bytes.fromhex(block))


def test_blocks_that_unpack_to_too_much_are_refused():
    ours = decoder(max_list_bytes=64 << 10, max_fields=256)
    bomb = ours.decode(b"\x40\x01a\x7f\xa1\x1e" + bytes(4000).replace(b"\0", b"x"))
    assert len(bomb[0][1]) == 4000
    with pytest.raises(HpackError, match="more header fields"):
        ours.decode(b"\xbe" * 17)


def string(text, *, is_coded):
    text = HUFFMAN.encode(text) if is_coded else text
    length = hpack.hpack.encode_integer(len(text), 7)
    length[0] |= is_coded << 7
    return bytes(length) + text


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("is_coded", [False, True])
@pytest.mark.parametrize("num_fields", [1, 2, 255])
def test_names_and_values_have_a_limit_together(num_fields, is_coded, more):
    """Each field counts 32 bytes more; Huffman's code is shorter than its text."""
    limit, name = 64 << 10, b"aa"
    sizes = [(limit + more) // num_fields - 34] * num_fields
    sizes[0] += (limit + more) % num_fields
    fields = [b"\0" + string(name, is_coded=is_coded) + string(b"a" * size, is_coded=is_coded)
              for size in sizes]  # fmt: skip
    ours = decoder(max_list_bytes=limit, max_fields=256)
    if more > 0:
        with pytest.raises(HpackError, match="more header fields"):
            ours.decode(b"".join(fields))
        return
    assert [len(value) for _, value in ours.decode(b"".join(fields))] == sizes


def test_fields_have_a_number():
    ours = decoder(max_list_bytes=64 << 10, max_fields=256)
    assert len(ours.decode(b"\x82" * 256)) == 256
    with pytest.raises(HpackError, match="more header fields"):
        ours.decode(b"\x82" * 257)


@pytest.mark.parametrize("most", [0x0F, 0x1F, 0x3F, 0x7F])
def test_integers_are_read_as_hypers_are_written(most):
    bits = most.bit_length()
    values = {0, 1, most - 1, most, most + 1, most + 127, most + 128, 65_535, 1 << 28}
    for value in values:
        written = b"?" + bytes(hpack.hpack.encode_integer(value, bits))
        assert _integer(written + b"!", 1, most) == (value, len(written))
        assert _write_integer(value, bits, 0) == written[1:]
        with pytest.raises(IndexError):
            _integer(written[:-1], 1, most)
    longest = bytes((most,)) + b"\xff" * 4 + b"\x7f"
    assert _integer(longest, 0, most) == (most + (1 << 35) - 1, 6)
    with pytest.raises(HpackError, match="an integer that is too long"):
        _integer(bytes((most,)) + b"\xff" * 5 + b"\0", 0, most)


def test_invalid_fields_do_not_have_the_table_searched():
    class Unsearched(list[Field]):
        def __iter__(self):
            raise AssertionError

    ours = Decoder(1 << 20, 1000, lambda field: field[1] != b"bad")
    ours._table.fields = Unsearched(ours._table.fields)
    assert len(ours.decode(b"\x40\x01a\x03bad" * 3)) == 3
    assert ours.has_invalid
    ours.decode(b"\x40\x01a\x04good")
    assert not ours.has_invalid
    assert ours.decode(b"\xbf") == ((b"a", b"bad"),)
    assert ours.has_invalid


def test_random_bytes_raise_nothing_else(generator):
    for _ in range(20_000):
        ours = decoder()
        with suppress(HpackError):
            ours.decode(generator.randbytes(generator.randrange(1, 40)))


def test_new_size_of_the_table_changes_it():
    """So the blocks that were kept mean nothing any more."""
    ours = decoder()
    ours.decode(b"\x82")
    assert not ours.has_changed
    ours.decode(b"\x20\x82")
    assert ours.has_changed
    ours.decode(b"\x82")
    assert not ours.has_changed


def test_blocks_are_kept_until_the_encoders_table_changes():
    ours, static, own = Encoder(), ((b":method", b"GET"),), ((b"a", b"b"),)
    assert ours.encode(static) == b"\x82"
    assert ours.blocks == {static: b"\x82"}
    first = ours.encode(own)
    assert ours.blocks == {}, "indices have moved"
    assert ours.encode(own) == b"\xbe" != first
    assert ours.encode(static) == b"\x82"
    assert [*ours.blocks] == [own, static]
    ours.resize(100)
    assert ours.blocks == {}
    assert ours.resized == b"\x20\x3f\x45"
    assert ours.encode(own) == first
    assert ours.encode(own) == b"\xbe", "a smaller table has room, too"
