"""Which tests are to notice a change of a line: those that run it, the fastest first."""

import ast

BUDGET_S = 25.0
"""How long the chosen tests took together when they were recorded."""


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


def chosen(record, tree, path, line):
    """List the tests that run a line, the fastest first.

    A line that only an import runs, such as a constant, may matter to any test of the package. Of a
    line that no test runs here, those of its file are chosen: they may run it in other processes.

    Args:
        record: of `recording.py`.
        tree: the folder of the code.
        path: a file in it.
        line: from 1.
    """
    seconds, lines = record["seconds"], record["lines"].get(path, {})
    first, last = statement((tree / path).read_text("utf-8"), line)
    own = contexts_of(lines, map(str, range(first, last + 1)))
    tests = tests_in(record, own)
    if not tests:
        tests = {*seconds} if "" in own else tests_in(record, contexts_of(lines, lines))
    return within_budget(sorted(tests, key=seconds.get), seconds)


def contexts_of(lines, numbers):
    return {context for number in numbers for context in lines.get(number, ())}


def tests_in(record, contexts):
    """Return the tests that passed among contexts, and those that use a fixture among them."""
    tests = {test for context in contexts for test in record["uses"].get(context, [context])}
    return tests & record["seconds"].keys()


def within_budget(tests, seconds):
    """Return the first tests, as many as take no longer together; at least one."""
    total_s = 0.0
    for number, test in enumerate(tests):
        total_s += seconds[test]
        if number and total_s > BUDGET_S:
            return tests[:number]
    return tests
