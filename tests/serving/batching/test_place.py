"""The table of who executes rows, as a table."""

import pytest

from serving.batching.place import Cost, Place, place

INLINE, SMALL, LARGE = Place
SHORT = Cost.of(inline_rows=512, most_rows=512, num_runners=1)
SHORT_ON_CORES = Cost.of(inline_rows=512, most_rows=512, num_runners=4)
FEW = Cost.of(inline_rows=20, most_rows=512, num_runners=1)
LONG = Cost.of(inline_rows=0, most_rows=512, num_runners=1)


@pytest.mark.parametrize(("cost", "num_rows", "idle", "busy"), [
    (SHORT, 1, INLINE, INLINE), (SHORT, 128, INLINE, INLINE), (SHORT, 129, LARGE, LARGE),
    (SHORT_ON_CORES, 63, INLINE, INLINE), (SHORT_ON_CORES, 64, INLINE, LARGE),
    (SHORT_ON_CORES, 128, INLINE, LARGE), (SHORT_ON_CORES, 129, LARGE, LARGE),
    (FEW, 1, INLINE, SMALL), (FEW, 16, INLINE, SMALL), (FEW, 17, INLINE, LARGE),
    (FEW, 20, INLINE, LARGE), (FEW, 21, LARGE, LARGE),
    (LONG, 1, SMALL, SMALL), (LONG, 16, SMALL, SMALL), (LONG, 17, LARGE, LARGE),
])  # fmt: skip
def test_who_executes_rows(cost, num_rows, idle, busy):
    assert place(num_rows, cost, is_busy=False) is idle
    assert place(num_rows, cost, is_busy=True) is busy


@pytest.mark.parametrize(("inline_rows", "most_rows", "always"), [
    (127, 512, 0), (128, 512, 128), (64, 64, 64), (63, 64, 0), (512, 16, 128), (0, 1, 0),
])  # fmt: skip
def test_all_batches_must_be_short_for_the_owner_to_run_them_while_it_is_busy(
    inline_rows, most_rows, always
):
    assert Cost.of(inline_rows, most_rows, 1).always_rows == always
