"""Which tests are to notice a change of a line: those that run it, the fastest first."""

import ast
import re
from itertools import chain

OWN_S, NEAR_S, FAR_S = 25.0, 45.0, 40.0
"""How long the chosen tests took together when they were recorded.

Near ones that run the line, these and near ones that start processes, which may run it there, and
far ones.
"""
ROW = re.compile(r"(?m)^\| (`(?:serving|digit_classifier)[^|]*) \| `(tests/[^|`]*)` \|")


def nearest(page):
    """Return the nearest tests of each package and module that a page's table names.

    Args:
        page: the text of docs/tour.md.
    """
    return {
        package: tests.split()
        for packages, tests in ROW.findall(page)
        for package in re.findall(r"`([^`]*)`", packages)
    }


def package_of(path, packages):
    """Return the package or module of the table that a file is of, the longest; None: of none."""
    return max(filter(path.startswith, packages), key=len, default=None)


def statement(source, line):
    """Return the first and last line of the smallest statement at a line, or of its head."""
    best = (line, line)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt):
            continue
        body = getattr(node, "body", None)
        last = body[0].lineno - 1 if body else node.end_lineno
        if node.lineno <= line <= last:
            best = (node.lineno, last)
    return best


def near(records, source, path, line):
    """List the tests of a package that run a line, the fastest first, then what starts processes.

    Args:
        records: those of `recording.py` of the package's own tests.
        source: the text of the file.
        path: its name.
        line: from 1.
    """
    seconds = merged(records, "seconds")
    tests = running(records, source, path, line)
    starting = {each for record in records for each in record["processes"]} - tests
    own = sorted(tests, key=seconds.get)
    if is_of_an_import(records, source, path, line):
        # What an import defines is also read by tests that run no line of the file.
        own += sorted(seconds.keys() - tests - starting, key=seconds.get)
    own = within_budget(own, seconds, OWN_S)
    left_s = NEAR_S - sum(map(seconds.get, own))
    return [*own, *within_budget(sorted(starting, key=seconds.get), seconds, left_s)]


def far(records, source, path, line, besides):
    """List the tests that run a line and start no process, the fastest first, without some."""
    seconds = merged(records, "seconds")
    starting = {each for record in records for each in record["processes"]}
    tests = running(records, source, path, line) - starting - {*besides}
    return within_budget(sorted(tests, key=seconds.get), seconds, FAR_S)


def running(records, source, path, line):
    """Return the tests that run a line.

    Of a line that only an import runs, such as a constant, and of one that no test runs here, those
    of its file are returned: they may use it, or run it in other processes.
    """
    first, last = statement(source, line)
    return in_records(records, path, range(first, last + 1)) or in_records(records, path, None)


def is_of_an_import(records, source, path, line):
    """Whether imports have run a line, and no test."""
    first, last = statement(source, line)
    contexts = [contexts_of(each, path, range(first, last + 1)) for each in records]
    return {*chain(*contexts)} == {""}


def in_records(records, path, numbers):
    """Return the tests that ran lines of a file; None: any of them."""
    return {
        test for record in records for test in tests_in(record, contexts_of(record, path, numbers))
    }


def contexts_of(record, path, numbers):
    lines = record["lines"].get(path, {})
    ran = lines if numbers is None else map(str, numbers)
    return {record["contexts"][at] for number in ran for at in lines.get(number, ())}


def tests_in(record, contexts):
    """Return the tests that passed among contexts, and those that use a fixture among them."""
    tests = {test for context in contexts for test in record["uses"].get(context, [context])}
    return tests & record["seconds"].keys()


def merged(records, name):
    return {key: value for record in records for key, value in record[name].items()}


def within_budget(tests, seconds, budget_s):
    """Return the first tests, as many as take no longer together; at least one."""
    total_s = 0.0
    for number, test in enumerate(tests):
        total_s += seconds[test]
        if number and total_s > budget_s:
            return tests[:number]
    return tests
