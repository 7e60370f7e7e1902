"""The faults of a tired maintainer: what is left out, swapped, moved, or of another unit.

A slip that the linter or mypy would find is none: a name without a value, an argument without a
default.
"""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

EARLY = (ast.Return, ast.Raise, ast.Continue, ast.Break)
UNMOVED = (*EARLY, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Pass,
           ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DECLARING = {"frozen", "kw_only", "name", "slots", "strict"}
"""Arguments that only declare, or name a thread for who looks at it."""
FIRST = {"__init__", "__new__", "__post_init__"}
"""Where a state gets its first value: no reset."""
QUANTITY = re.compile(r"(?i)_(s|ms|us|ns|bytes|rows|size|values)$|^(MAX|MIN)_")
FACTORING = (ast.Mult, ast.Div, ast.FloorDiv)
POWERS = {10.0**power for power in range(-9, 13)} | {60.0, 1024.0, 2.0**20, 2.0**30}
LOCK = re.compile(r"(?i)lock|mutex|condition|semaphore|guard|exclusive|_changed")
EMPTY = {"deque", "dict", "list", "set", "Counter"}


@dataclass(frozen=True, order=True)
class Slip:
    """A change of a file: by which hand, and what stands instead of which lines."""

    operator: str
    first: int
    """The first line, from 1."""
    last: int
    lines: tuple[str, ...]
    """The new ones."""


class File:
    """A file, its tree, and what is around each node."""

    def __init__(self, source):
        self.source = source
        self.lines = source.splitlines()
        self.tree = ast.parse(source)
        self.parent = {
            child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)
        }

    def around(self, node):
        """Yield the nodes around one, from the inside."""
        while node := self.parent.get(node):
            yield node

    def function(self, node):
        return next((each for each in self.around(node) if isinstance(each, FUNCTIONS)), None)

    def declares(self, node):
        """Whether it is of a protocol, or of what only a type checker reads."""
        return node in self._declared

    @cached_property
    def _declared(self):
        return {each for node in ast.walk(self.tree) if is_declaration(node)
                for each in ast.walk(node)}  # fmt: skip

    @cached_property
    def blocks(self):
        """The statements of each block inside a function, without docstrings."""
        found = []
        for node in ast.walk(self.tree):
            if not isinstance(node, FUNCTIONS) and self.function(node) is None:
                continue
            if isinstance(node, ast.ClassDef) or self.declares(node):
                continue
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and block and not is_elif(self, node, name):
                    found.append(block[1:] if is_text(block[0]) else block)
        return [block for block in found if block]

    def text(self, node):
        return tuple(self.lines[first_line(node) - 1 : node.end_lineno])

    def replaced(self, node, text):
        """Return the lines of a node with another text in its place."""
        head = self.lines[node.lineno - 1].encode()[: node.col_offset].decode()
        tail = self.lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        return node.lineno, node.end_lineno, tuple((head + text + tail).splitlines())

    def cut(self, nodes, index):
        """Return the lines without one of several nodes that commas divide."""
        node = nodes[index]
        begin = position(node) if index == 0 else end(nodes[index - 1])
        stop = end(node) if index else (position(nodes[1]) if len(nodes) > 1 else end(node))
        head = self.lines[begin[0] - 1].encode()[: begin[1]].decode()
        tail = self.lines[stop[0] - 1].encode()[stop[1] :].decode()
        if index == 0 and len(nodes) == 1:
            tail = tail.removeprefix(",")
        return begin[0], stop[0], tuple((head + tail).splitlines())


def is_declaration(node):
    match node:
        case ast.If():
            return ast.unparse(node.test) == "TYPE_CHECKING"
        case ast.ClassDef():
            return "Protocol" in map(ast.unparse, node.bases)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return "overload" in map(ast.unparse, node.decorator_list)
    return False


def is_elif(file, node, name):
    """Whether a block is an `elif`, which has no lines of its own."""
    if name != "orelse" or not isinstance(node, ast.If) or len(node.orelse) != 1:
        return False
    other = node.orelse[0]
    return isinstance(other, ast.If) and file.lines[other.lineno - 1].lstrip().startswith("elif")


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def position(node):
    return node.lineno, node.col_offset


def end(node):
    return node.end_lineno, node.end_col_offset


def first_line(node):
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


def indented(file, node, text):
    line = file.lines[node.lineno - 1]
    return line[: len(line) - len(line.lstrip())] + text


def names(nodes, context):
    """Give the dotted names that nodes read or write."""
    return {
        ast.unparse(each)
        for node in nodes
        for each in ast.walk(node)
        if isinstance(each, ast.Name | ast.Attribute) and isinstance(each.ctx, context)
    }


def binds(node):
    """Give the local names that a statement gives a value."""
    return {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }


def is_bound_elsewhere(file, node):
    """Whether each local name of a statement has another value somewhere in the function."""
    own = binds(node)
    if not own or isinstance(node, ast.AugAssign):
        return True
    function = file.function(node)
    within = {*ast.walk(node)}
    others = {
        each.arg if isinstance(each, ast.arg) else each.id
        for each in ast.walk(function)
        if (isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store) and each not in within)
        or isinstance(each, ast.arg)
    }
    return own <= others


def acts(node):
    """Whether a statement does more than give local names values."""
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(not isinstance(each, ast.Name | ast.Tuple) for each in targets)
    return any(
        isinstance(each, ast.Call | ast.Await | ast.Yield | ast.Delete | ast.Raise | ast.Return)
        for each in ast.walk(node)
    )


def left_out(file, _):
    """A statement is left out."""
    for block in file.blocks:
        for node in block:
            if isinstance(node, ast.Pass | ast.Global | ast.Nonlocal | ast.Import | ast.ImportFrom):
                continue
            if is_text(node) or not (acts(node) or isinstance(node, ast.AugAssign | ast.Assign)):
                continue
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)) or not is_bound_elsewhere(file, node):
                continue
            if isinstance(node, ast.AnnAssign) and node.value is None:
                continue
            if isinstance(node, ast.Return) and node in file.function(node).body:
                continue
            rest = () if len(block) > 1 else (indented(file, node, "pass"),)
            yield first_line(node), node.end_lineno, rest


def is_guard(node):
    return isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], EARLY)


def order_matters(first, second):
    """Whether two statements may differ when swapped, and all their names keep values."""
    if binds(first) & names([second], ast.Load) or binds(second) & names([first], ast.Load):
        return False
    wrote, written = names([first], ast.Store), names([second], ast.Store)
    read, reads = names([first], ast.Load), names([second], ast.Load)
    if wrote & written or wrote & reads or written & read:
        return True
    calls = [
        any(isinstance(each, ast.Call | ast.Await | ast.Yield) for each in ast.walk(node))
        for node in (first, second)
    ]
    return (all(calls) or (is_guard(first) and is_guard(second))) and acts(first) and acts(second)


def swapped(file, _):
    """Two neighbouring statements are swapped."""
    for block in file.blocks:
        for first, second in pairwise(block):
            pair = (first, second)
            if any(isinstance(node, UNMOVED) or is_text(node) for node in pair):
                continue
            if is_guard(first) != is_guard(second) or not order_matters(first, second):
                continue
            between = tuple(file.lines[first.end_lineno : first_line(second) - 1])
            lines = (*file.text(second), *between, *file.text(first))
            yield first_line(first), second.end_lineno, lines


def moved(file, _):
    """A statement moves behind the early return that follows it."""
    for block in file.blocks:
        for node, guard in pairwise(block):
            if isinstance(node, UNMOVED) or is_text(node) or is_guard(node) or not acts(node):
                continue
            if not is_guard(guard) or binds(node) & names([guard], ast.Load):
                continue
            between = tuple(file.lines[node.end_lineno : first_line(guard) - 1])
            lines = (*file.text(guard), *between, *file.text(node))
            yield first_line(node), guard.end_lineno, lines


def keyword(file, optional):
    """A keyword argument that may be left out is left out."""
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call) or file.declares(node):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if isinstance(file.parent[node], ast.ClassDef) or is_decorator(file, node):
            continue
        for each in node.keywords:
            if each.arg in {None, *DECLARING} or each.arg not in optional.get(name, {each.arg}):
                continue
            parts = sorted([*node.args, *node.keywords], key=position)
            yield file.cut(parts, parts.index(each))


def is_decorator(file, node):
    return node in getattr(file.parent[node], "decorator_list", ())


def field(file, _):
    """A field of an answer is left out."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Dict) and file.function(node) and not file.declares(node):
            for index, (key, value) in enumerate(zip(node.keys, node.values, strict=True)):
                if key is None:
                    continue
                firsts = [one or two for one, two in zip(node.keys, node.values, strict=True)]
                yield without(file, node, firsts[index], value)


def row(file, _):
    """A row of a module's table is left out."""
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
            continue
        if file.function(node) or isinstance(getattr(node, "ctx", None), ast.Store):
            continue
        statement = next(each for each in file.around(node) if isinstance(each, ast.stmt))
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or file.declares(node):
            continue
        value = statement.value
        inside = value.args if isinstance(value, ast.Call) else [value]
        if node not in inside or is_unpacked(statement):
            continue
        if names([statement], ast.Store) & {"__all__", "__slots__"}:
            continue
        rows = node.values if isinstance(node, ast.Dict) else node.elts
        keys = node.keys if isinstance(node, ast.Dict) else rows
        if len(rows) > 1:
            for key, each in zip(keys, rows, strict=True):
                yield without(file, node, key or each, each)


def is_unpacked(statement):
    return isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Tuple)


def without(file, node, first, last):
    """Return the lines of a display without the entry between two nodes, and its comma."""
    begin, stop = position(first), end(last)
    line = file.lines[stop[0] - 1].encode()
    tail = re.sub(r"^\s*,\s?", "", line[stop[1] :].decode())
    head = file.lines[begin[0] - 1].encode()[: begin[1]].decode()
    lines = (head + tail,) if (head + tail).strip() else ()
    return begin[0], stop[0], lines


def unit(file, _):
    """A quantity is of another unit, or ten times what it was."""
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float):
            continue
        if (
            not node.value
            or isinstance(node.value, bool)
            or file.declares(node)
            or not is_quantity(file, node)
        ):
            continue
        for factor in (10, 1000, 0.001):
            value = node.value * factor
            whole = isinstance(node.value, int)
            if not whole or value >= 1:
                yield file.replaced(node, repr(int(value) if whole else float(value)))


def is_quantity(file, node):
    """Whether a number has a unit: by the name that it gets, or as a factor between two."""
    parent = file.parent[node]
    is_factor = isinstance(parent, ast.BinOp) and isinstance(parent.op, FACTORING)
    if is_factor and float(node.value) in POWERS - {1.0}:
        return True
    around = parent
    while isinstance(around, ast.BinOp | ast.Tuple):
        around = file.parent[around]
    match around:
        case ast.keyword(arg=str(name)):
            return bool(QUANTITY.search(name))
        case ast.Assign() | ast.AnnAssign():
            targets = around.targets if isinstance(around, ast.Assign) else [around.target]
            return any(QUANTITY.search(ast.unparse(each).strip("()")) for each in targets)
        case ast.arguments():
            return any(QUANTITY.search(name) for name, value in defaults(around) if value is node)
    return False


def guard(file, _):
    """A lock is not taken, or what is done in any case is done only in the good one."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.With | ast.AsyncWith) and len(node.items) == 1:
            item = node.items[0]
            if item.optional_vars is None and LOCK.search(ast.unparse(item.context_expr)):
                last = node.body[0].lineno - 1
                if last >= node.lineno:
                    yield node.lineno, last, (indented(file, node, "if True:"),)
        if isinstance(node, ast.Try) and node.finalbody and node.finalbody[0].lineno:
            line = next(
                number for number in range(node.finalbody[0].lineno, node.lineno, -1)
                if file.lines[number - 1].strip().startswith("finally:")
            )  # fmt: skip
            lines = [*file.lines[node.lineno - 1 : line]]
            lines[-1] = lines[-1].replace("finally:", "if True:")
            if not node.handlers:
                lines[0] = lines[0].replace("try:", "if True:")
            yield node.lineno, line, tuple(lines)


def defaults(arguments):
    """List the names of a function's arguments with their defaults."""
    positional = [*arguments.posonlyargs, *arguments.args]
    late = positional[len(positional) - len(arguments.defaults) :]
    pairs = [*zip(late, arguments.defaults, strict=True),
             *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]  # fmt: skip
    return [(each.arg, value) for each, value in pairs if value is not None]


def default(file, _):
    """A default is another one."""
    for node in ast.walk(file.tree):
        values = []
        if isinstance(node, ast.arguments):
            values = [value for _, value in defaults(node)]
        elif isinstance(node, ast.AnnAssign) and isinstance(file.parent[node], ast.ClassDef):
            values = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get"):
            values = node.args[1:]
        for value in values:
            if isinstance(value, ast.Constant) and not file.declares(value):
                if isinstance(value.value, bool):
                    yield file.replaced(value, repr(not value.value))
                elif isinstance(value.value, int | float):
                    other = value.value * 10 if value.value else 1
                    yield file.replaced(value, repr(type(value.value)(other)))


def is_reset(node):
    """Whether a statement sets an attribute to a constant or to something empty, or clears it."""
    match node:
        case ast.Assign(targets=[ast.Attribute()], value=value):
            return (
                isinstance(value, ast.Constant)
                or (isinstance(value, ast.List | ast.Tuple | ast.Set) and not value.elts)
                or (isinstance(value, ast.Dict) and not value.keys)
                or (
                    isinstance(value, ast.Call)
                    and not value.args
                    and ast.unparse(value.func).partition("[")[0] in EMPTY
                )
            )
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="clear"))):
            return True
    return False


def reset(file, _):
    """A state is not reset."""
    for block in file.blocks:
        for node in block:
            if is_reset(node) and file.function(node).name not in FIRST:
                rest = () if len(block) > 1 else (indented(file, node, "pass"),)
                yield node.lineno, node.end_lineno, rest


HANDS = (left_out, swapped, moved, keyword, field, row, unit, guard, default, reset)


def slips(source, optional):
    """Give each slip of each hand in a file, in the order of the file.

    Args:
        source: the file's text.
        optional: the arguments that a call of each name may leave out, as `optional_arguments`
            gives them.
    """
    file = File(source)
    found = {
        Slip(hand.__name__, first, last, tuple(lines))
        for hand in HANDS
        for first, last, lines in hand(file, optional)
    }
    return sorted(found)


def slipped(source, slip):
    """Return the text of a file after a slip."""
    lines = source.splitlines()
    lines[slip.first - 1 : slip.last] = slip.lines
    return "\n".join(lines) + "\n"


def optional_arguments(sources):
    """Give the arguments with a default, of all functions and classes of a name in some texts."""
    found = defaultdict(set)
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, FUNCTIONS):
                found[node.name].update(name for name, _ in defaults(node.args))
            elif isinstance(node, ast.ClassDef):
                found[node.name].update(
                    each.target.id for each in node.body
                    if isinstance(each, ast.AnnAssign) and each.value is not None
                )  # fmt: skip
                for each in node.body:
                    if isinstance(each, FUNCTIONS) and each.name == "__init__":
                        found[node.name].update(name for name, _ in defaults(each.args))
    return dict(found)
