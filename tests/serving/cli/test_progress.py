"""The bar of a long command: on a terminal, elsewhere, and from several threads."""

import io

import pytest

from serving.commandline import progress
from serving.commandline.progress import Bar
from tests.support.fakes import FakeClock, Terminal
from tests.support.locks import KeptLock, handed_in, waits


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(progress, "time", type("", (), {"monotonic": staticmethod(clock)}))
    return clock


def test_bar_of_a_terminal_is_drawn_at_once_and_ten_times_a_second(clock):
    terminal = Terminal()
    bar = Bar(4, terminal, "never seen")
    for seconds, num in (2.0, 1), (0.09, 1), (0.02, 1), (1.0, 1):
        clock.advance(seconds)
        bar.advance(num)
    bar.clear()
    bar.clear()
    assert terminal.getvalue() == (
        "\r[#######.......................] 1 of 4, 6 s left\x1b[K"
        "\r[######################........] 3 of 4, 1 s left\x1b[K"
        "\r[##############################] 4 of 4, 0 s left\x1b[K\r\x1b[K"
    )


def test_other_streams_get_a_line_each_ten_seconds(clock):
    stream = io.StringIO()
    bar = Bar(100, stream, "scored {} of {} rows")
    for seconds, num in (9.0, 2), (1.5, 1), (9.0, 50), (1.5, 7):
        clock.advance(seconds)
        bar.advance(num)
    bar.clear()
    assert stream.getvalue() == (
        "scored 3 of 100 rows, 340 s left\nscored 60 of 100 rows, 3/s, 14 s left\n"
    )


@pytest.mark.parametrize(
    ("total", "stream"), [(9, io.StringIO()), (1, Terminal())], ids=["no line", "of one"]
)
def test_nothing_is_written_without_a_terminal_or_a_line(total, stream, clock):
    bar = Bar(total, stream)
    clock.advance(60.0)
    bar.advance()
    bar.clear()
    assert stream.getvalue() == ""


def test_bar_counts_without_a_stream(clock):
    bar = Bar(9, None, "a line")
    clock.advance(60.0)
    bar.advance()
    bar.clear()


def test_threads_wait_for_one_another(clock):
    lock, terminal = KeptLock(), Terminal()
    with handed_in(lock):
        bar = Bar(4, terminal)
    assert waits(lock, bar.advance)
    assert waits(lock, bar.clear)
    clock.advance(1.0)
    bar.advance()
    assert "1 of 4" in terminal.getvalue()


def test_what_is_drawn_is_flushed(clock):
    """Else it stays in the stream's buffer until the end."""
    seen = []

    class Buffered(Terminal):
        def flush(self):
            seen.append(self.getvalue())

    terminal = Buffered()
    bar = Bar(4, terminal, "never seen")
    clock.advance(1.0)
    bar.advance(1)
    assert seen[-1] == terminal.getvalue() != ""
    bar.clear()
    assert seen[-1] == terminal.getvalue()
