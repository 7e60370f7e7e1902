"""Pictures that would take too much are refused before they are decoded, by each way."""

import io
import logging
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidRequest, TooLarge
from serving.pictures import decoder, reader
from serving.pictures.decoder import read_bytes, read_colours, read_page, read_pixels
from serving.pictures.reader import read_or_reason
from tests.support.pictures import encoded


def read_fixed(source):
    return read_pixels(source, (8, 8), 3, "stretch", invert=False)


WAYS = {"page": read_page, "fixed size": read_fixed, "colours": read_colours}
way = pytest.mark.parametrize("read", WAYS.values(), ids=WAYS)


def file_of(mode="RGB", size=(20, 10), kind="PNG"):
    return io.BytesIO(encoded(Image.new(mode, size), kind))


@way
@pytest.mark.parametrize(
    ("mode", "pixel_bytes"), [("L", 1), ("1", 1), ("P", 1), ("I;16", 2), ("RGB", 4), ("RGBA", 4)]
)
def test_picture_fits_in_memory_before_it_is_decoded(read, mode, pixel_bytes, monkeypatch):
    monkeypatch.setattr(decoder, "free_bytes", lambda: 200 * pixel_bytes)
    read(file_of(mode))
    monkeypatch.setattr(decoder, "free_bytes", lambda: 200 * pixel_bytes - 1)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(TooLarge, match=r"^its 20 x 10 pixels take too much memory$"):
        read(file_of(mode))


@way
def test_pixels_are_bounded(read, monkeypatch):
    monkeypatch.setattr(decoder, "MAX_PIXELS", 200)
    read(file_of())
    with pytest.raises(TooLarge, match=r"^expected at most 200 pixels, got 21 x 10$"):
        read(file_of(size=(21, 10)))


@way
@pytest.mark.parametrize("is_pipe", [False, True])
def test_bytes_are_bounded(read, is_pipe, monkeypatch):
    def source(content):
        file = io.BytesIO(content)
        file.seek(3)  # it is read from its begin
        if is_pipe:
            file.seek(0)
            file.seekable = lambda: False
        return file

    content = file_of().getvalue()
    monkeypatch.setattr(decoder, "MAX_BYTES", len(content))
    read(source(content))
    assert read_bytes(source(content)) == content
    for each in read, read_bytes:
        with pytest.raises(TooLarge, match=rf"^expected at most {len(content)} bytes$"):
            each(source(content + b"x"))


@way
def test_pieces_are_bounded(read, monkeypatch):
    monkeypatch.setattr(decoder, "MAX_READS", 2)
    with pytest.raises(TooLarge, match=r"^expected a picture in fewer chunks$"):
        read(file_of())


@way
def test_other_files_are_refused_in_a_line(read, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_bytes(b"no picture")
    cut = file_of(size=(300, 300)).getvalue()[:-80]
    for source, text in (
        (tmp_path / "none", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "fifo", "cannot be read: not a regular file"),
        (tmp_path / "text", "expected a picture (PNG, JPEG, "),
        (io.BytesIO(b""), "expected a picture (PNG, JPEG, "),
        (io.BytesIO(cut), "cannot be read: "),
    ):
        with pytest.raises(InvalidRequest) as caught:
            read(source)
        assert str(caught.value).startswith(text)
        assert read_or_reason(read, source) == str(caught.value)


@way
@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MemoryError(), TooLarge, "it takes too much memory"),
        (Image.DecompressionBombError("a\nbomb"), TooLarge,
         "expected at most 80000000 pixels: a bomb"),
        (OSError("broken\x00"), InvalidRequest, "cannot be read: broken "),
        (SyntaxError("x" * 300), InvalidRequest, "damaged picture: " + "x" * 200),
        (TypeError(), InvalidRequest, "damaged picture: TypeError"),
        (TooLarge("own"), TooLarge, "own"),
    ],
    ids=["memory", "bomb", "os", "syntax", "type", "own"],
)  # fmt: skip
def test_anything_that_a_decoder_raises_is_a_line(read, error, kind, text, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(kind) as caught:
        read(file_of())
    assert (type(caught.value), str(caught.value)) == (kind, text)


def test_reason_of_a_reader_without_memory():
    def fail(_):
        raise MemoryError

    assert read_or_reason(fail, "x") == "cannot be read: out of memory"


def test_colours_are_those_of_the_picture_upright():
    levels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    picture = Image.fromarray(levels)
    np.testing.assert_array_equal(read_colours(io.BytesIO(encoded(picture, "PNG"))), levels)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_colours(io.BytesIO(encoded(picture, "PNG", exif=exif)))
    np.testing.assert_array_equal(turned, np.rot90(levels, -1))


@pytest.mark.parametrize(("orientation", "size"), [(1, (20, 10)), (3, (20, 10)), (6, (10, 20))])
def test_page_has_the_size_of_the_picture_upright(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    page = read_page(io.BytesIO(encoded(Image.new("L", (20, 10), 7), "PNG", exif=exif)))
    assert (page.width, page.height) == size
    assert page.grey.shape == size[::-1]
    assert page.grey.dtype == np.float32
    assert (page.grey == 7).all()


def test_pieces_are_counted_one_by_one(monkeypatch):
    monkeypatch.setattr(decoder, "MAX_READS", 2)
    bounded = decoder._Bounded(io.BytesIO(b"abc"))
    assert [bounded.read(1), bounded.read(1)] == [b"a", b"b"]
    with pytest.raises(TooLarge):
        bounded.read(1)
    assert bounded.tell() == 2


class Vast(io.BytesIO):
    """A file that has so many bytes, of which none is there."""

    size = 0

    def seek(self, at, whence=0):
        return self.size if whence == io.SEEK_END else super().seek(at, whence)


def test_limits_are_those_of_the_page():
    """80 million pixels, 256 MiB, 50,000 pieces; a side of 256 or 1,024 of them is looked at."""
    assert (decoder.MAX_PIXELS, decoder.MAX_READS) == (80_000_000, 50_000)
    file = Vast()
    file.size = 256 << 20
    assert read_bytes(file) == b""
    file.size += 1
    with pytest.raises(TooLarge, match=r"^expected at most 268435456 bytes$"):
        read_bytes(file)
    assert read_page(file_of("L", (2048, 4))).grey.shape == (2, 1024)
    assert read_page(file_of("L", (2048, 8)), decoder.MAX_SIDE).grey.shape == (1, 256)


def test_formats_are_those_that_this_pillow_reads(monkeypatch):
    """In their order, and no others."""
    known = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
    monkeypatch.setattr(Image, "init", lambda: None)
    monkeypatch.setattr(decoder, "find_spec", lambda name: None)
    for lacking in ("", *known):
        readable = dict.fromkeys({"ICO", "EPS", *known} - {lacking})
        monkeypatch.setattr(Image, "OPEN", readable)
        found = decoder.formats.__wrapped__()
        assert found == tuple(each for each in known if each != lacking)


def test_suffixes_of_pictures_in_a_folder():
    assert {*reader.SUFFIXES} == {
        ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp",
        ".avif", ".heic", ".heif",
    }  # fmt: skip


def test_remarks_of_pillow_alone_are_silenced():
    logger = logging.getLogger("PIL")
    before = logger.level
    with warnings.catch_warnings():
        reader.silence_pillow()
        action, _, category, module, _ = warnings.filters[0]
    assert (action, category, logger.level) == ("ignore", Warning, logging.CRITICAL)
    assert module.match("PIL.Image")
    assert not module.match("serving.pictures")
    logger.setLevel(before)


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_colours_have_every_pixel_of_a_large_picture(mode):
    levels = np.arange(4100, dtype=np.uint16) % 250
    picture = Image.fromarray(np.stack([levels, levels]) * (1 if mode == "L" else 257))
    picture = picture.convert("L") if mode == "L" else picture
    pixels = read_colours(io.BytesIO(encoded(picture, "PNG")))
    assert pixels.shape == (2, 4100, 3)
    np.testing.assert_array_equal(pixels, np.stack([levels, levels])[..., None].repeat(3, -1))
