"""Loads that wait for a busy machine."""

import pytest

SHORT_S = 0.1


def until_answered(ask):
    """Take longer and longer, since a busy machine may answer nothing in a tenth of a second."""
    for seconds in (SHORT_S, 10 * SHORT_S, 100 * SHORT_S):
        trace = ask(seconds)
        if len(trace.latencies_s):
            return trace
    pytest.fail("no call was answered")
