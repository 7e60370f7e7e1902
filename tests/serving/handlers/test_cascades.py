"""Handlers that call handlers: no circle, and at most four that call one another."""

import random
from itertools import pairwise

import pytest

from serving.handlers.cascades import MAX_DEPTH, trouble_of


def walks(name, uses, path):
    """Each way from a model; one that comes back to itself ends there."""
    yield path
    for other in uses.get(name, ()):
        if other in path:
            yield (*path, other)
        else:
            yield from walks(other, uses, (*path, other))


@pytest.mark.parametrize("seed", range(60))
def test_circles_and_long_ways_are_found_and_no_others(seed):
    draw = random.Random(seed)
    names = "abcdefgh"[: draw.randrange(2, 9)]
    uses = {
        name: tuple(other for other in names if draw.random() < draw.choice([0.1, 0.3]))
        for name in names
    }
    if draw.random() < 0.7:  # mostly without circles
        uses = {
            name: tuple(each for each in others if each > name) for name, others in uses.items()
        }
    for name in names:
        found = trouble_of(name, uses)
        ways = [*walks(name, uses, (name,))]
        circles = [way for way in ways if way[-1] in way[:-1]]
        is_long = max(map(len, ways)) > MAX_DEPTH + 1
        assert (found is None) == (not circles and not is_long)
        if found is not None:
            reason, _, way = found.partition(": ")
            path = tuple(way.split(" -> "))
            assert path[0] == name
            assert all(other in uses[each] for each, other in pairwise(path))
            if path in circles:
                assert reason == "handlers call one another in a circle"
            else:
                assert reason == "more than 4 models call one another"
                assert len(path) == MAX_DEPTH + 2
