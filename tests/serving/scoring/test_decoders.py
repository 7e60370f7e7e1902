"""Processes that decode pictures: a crash costs one picture."""

import io
import os

import pytest
from PIL import Image

from serving.digits.pictures.files import processes
from serving.scoring.scorer import decode


@pytest.fixture
def decoders():
    decoders = processes(2)
    yield decoders
    decoders.close()


def test_process_stays_for_the_next_picture():
    stream = io.BytesIO()
    Image.new("L", (28, 28)).save(stream, "png")
    one = processes(1)
    worker = one.submit("", os.getpid).result()
    decode(one, [stream.getvalue()])
    assert one.submit("", os.getpid).result() == worker
    one.close()


def test_remarks_of_decoders_stay_off_stderr(decoders, capfd):
    stream = io.BytesIO()
    Image.new("L", (40, 40)).save(stream, "tiff", compression="tiff_lzw")
    content = stream.getvalue()
    (error,) = decode(decoders, [content[:8] + b"\xff" * 22 + content[30:]])
    assert error == "cannot be read: decoder error -2"
    assert capfd.readouterr().err == ""
