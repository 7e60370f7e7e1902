import pytest

from tests.training.data.mirror import idx_bytes
from training.data import idx
from training.data.idx import DataError


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected an IDX file"),
        (b"\0\0\x08", "expected an IDX file"),
        (b"\0\0\x0d\1\0\0\0\0", "expected an IDX file of bytes .* got 00 00 0d 01"),
        (b"\x1f\x8b\x08\x00", "expected an IDX file"),
        (b"\0\0\x08\3\0\0\0\1\0\0", "expected 16 .* got 10"),
        (idx_bytes(3, 2)[:-1], r"expected 12 \+ 3 x 2 bytes of IDX, got 17"),
        (idx_bytes(3, 2) + b"\0", r"expected 12 \+ 3 x 2 bytes of IDX, got 19"),
    ],
)
def test_malformed_idx_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        idx.parse(content)


def test_idx_of_any_shape_is_parsed() -> None:
    assert idx.parse(idx_bytes(3, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]
