"""Processes that decode pictures: a crash costs one picture."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from serving.images import Images
from serving.pictures.files import processes
from serving.scoring.scorer import decode
from serving.system.processes.pool import CRASH, Processes
from tests.serving.cli.test_classify import end_process
from tests.serving.scoring.conftest import picture


@pytest.fixture
def decoders() -> Iterator[Processes]:
    decoders = processes(2)
    yield decoders
    decoders.close()


class Deadly(bytes):
    """Content that ends the process which unpickles it, as a fault of a decoder would."""

    def __reduce__(self) -> tuple[object, ...]:
        return end_process, (bytes(self),)


def test_picture_that_kills_its_decoder_costs_no_other_its_answer(
    decoders: Processes, images: Images
) -> None:
    contents = [picture(image) for image in images[:40]]
    contents[5] = contents[30] = Deadly()
    decoded = decode(decoders, contents)
    assert [number for number, each in enumerate(decoded) if isinstance(each, str)] == [5, 30]
    assert decoded[5] == CRASH
    np.testing.assert_array_equal(decoded[6], images[6:7])
    after = decode(decoders, contents[:5])
    np.testing.assert_array_equal(np.concatenate([*map(np.asarray, after)]), images[:5])


def test_remarks_of_decoders_stay_off_stderr(
    decoders: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    Image.new("L", (40, 40)).save(stream, "tiff", compression="tiff_lzw")
    content = stream.getvalue()
    (error,) = decode(decoders, [content[:8] + b"\xff" * 22 + content[30:]])
    assert error == "cannot be read: decoder error -2"
    assert capfd.readouterr().err == ""
