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
    """List the tests that run a line, the fastest first; if none does, those of its file.

    Args:
        record: of `recording.py`.
        tree: the folder of the code.
        path: a file in it.
        line: from 1.
    """
    lines = record["lines"].get(path, {})
    first, last = statement((tree / path).read_text("utf-8"), line)
    for numbers in (map(str, range(first, last + 1)), lines):
        contexts = {context for number in numbers for context in lines.get(number, ())}
        tests = {test for context in contexts for test in record["uses"].get(context, [context])}
        if known := tests & record["seconds"].keys():
            return within_budget(sorted(known, key=record["seconds"].get), record["seconds"])
    return []


def within_budget(tests, seconds):
    """Return the first tests, as many as take no longer together; at least one."""
    total_s = 0.0
    for number, test in enumerate(tests):
        total_s += seconds[test]
        if number and total_s > BUDGET_S:
            return tests[:number]
    return tests
