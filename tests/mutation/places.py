"""Where code can be mutated, and how: by Cosmic Ray, without what changes nothing.

Not mutated are annotations, protocols, the code under `if TYPE_CHECKING`, decorators and keywords
that only declare (`overload`, `frozen=True`, `strict=True`), and `==` to `is`, which differ by what
the interpreter shares.
"""

import ast
from dataclasses import dataclass
from functools import cache

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

DECLARING_DECORATORS = {"abstractmethod", "final", "overload", "override", "runtime_checkable"}
DECLARING_KEYWORDS = {"frozen", "kw_only", "slots", "strict"}
SKIPPED = (
    "Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq",
    "VariableReplacer", "VariableInserter", "NoOp",
)  # fmt: skip

Position = tuple[int, int]
"""Line, from 1, and column, from 0, as bytes would not count it."""


@dataclass(frozen=True, order=True)
class Place:
    """A piece of a file that operators can change."""

    path: str
    begin: Position
    end: Position
    ways: tuple[tuple[str, int], ...]
    """Names of operators, and which of the occurrences in the file each one would change."""


@cache
def operators():
    names = [name for name in operator_names() if not name.endswith(SKIPPED)]
    return {name: get_operator(name)() for name in sorted(names)}


def places(root, path):
    """List the places of a file that is not all declarations."""
    source = (root / path).read_text("utf-8")
    declared = declarations(ast.parse(source))
    found: dict[tuple[Position, Position], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators().items():
        occurrence = -1
        for node in nodes:
            for begin, end in operator.mutation_positions(node):
                occurrence += 1
                if is_star(node) or any(first <= begin < last for first, last in declared):
                    continue
                found.setdefault((begin, end), []).append((name, occurrence))
    return [Place(path, begin, end, tuple(ways)) for (begin, end), ways in found.items()]


def is_star(node):
    """Whether it is the `*` or `/` of a signature, which a binary operator is taken for."""
    return node.type == "operator" and node.parent.type in {"parameters", "lambdef"}


def declarations(tree):
    """List the pieces that only declare: from where to where."""
    pieces = []
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as piece) | ast.AnnAssign(annotation=piece):
                pieces.append(piece)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pieces.append(node)
            case ast.ClassDef(bases=[*_, ast.Name(id="Protocol")]):
                pieces.append(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                pieces += [each for each in node.decorator_list if declares(each)]
                if getattr(node, "returns", None):
                    pieces.append(node.returns)
            case ast.keyword(arg=name) if name in DECLARING_KEYWORDS:
                pieces.append(node)
    return [
        ((piece.lineno, max(0, piece.col_offset - 1)), (piece.end_lineno, piece.end_col_offset))
        for piece in pieces
    ]


def declares(decorator):
    """Whether a decorator only declares. Its place begins at its `@`."""
    return (
        getattr(decorator, "attr", None) in DECLARING_DECORATORS
        or getattr(decorator, "id", None) in DECLARING_DECORATORS
    )


def mutant(root, place, generator):
    """Return the file's text, changed at a place in one of its ways; None: none compiles."""
    source = (root / place.path).read_text("utf-8")
    ways = list(place.ways)
    generator.shuffle(ways)
    for name, occurrence in ways:
        text = mutate_code(source, operators()[name], occurrence)
        try:
            compile(text, place.path, "exec")
        except SyntaxError:
            continue
        return text
    return None
