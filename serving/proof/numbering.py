"""Rows that are taken by their own numbers, as transformers' masks are: row i takes from row i.

Exports write `mask[batch, column]` with `batch = Range(0, N)`, as Gather from a flat tensor at
`batch * columns + column`, or as GatherND at pairs. Such a tensor of numbers depends on the number
of rows, and on the place of a row in the batch; nothing but these two may meet rows with it.
"""

from dataclasses import replace

from serving.proof.shapes import axis_at
from serving.proof.sizes import ONE, ROWS
from serving.proof.values import Node, Numbers, Value


def numbered(node: Node, value: Value) -> Value:
    """Return an operator's first output with what is known of its numbers, if it has some."""
    if any(each.dtype != "int64" for each in node.given):
        return value  # an int32 would overflow
    found = _FOUND[node.op](node, value) if node.op in _FOUND else None
    return value if found is None else replace(value, numbers_of=found)


def counted(node: Node) -> Value | None:
    """Return rows that are taken by their own numbers, or pairs of such numbers; else None."""
    return _paired(node) if node.op == "Concat" else _taken(node)


def _taken(node: Node) -> Value | None:
    if node.op not in ("Gather", "GatherND") or not node.has(1):
        return None
    data, places = node.value(0), node.value(1).numbers_of
    if places is None or places.along is None or data.axis != 0 or data.outer != ONE:
        return None
    shape, along = node.value(1).shape, places.along
    if shape[along] != ROWS:
        return None
    if node.op == "Gather":
        is_own = not places.is_tuple and data.shape[0].per_row == places.times
        if not is_own or axis_at(node.number("axis", 0), data.rank) != 0:
            return None
        return Value((*shape, *data.shape[1:]), along)
    depth = shape[-1].number
    if not places.is_tuple or data.shape[0] != ROWS:
        return None
    if depth is None or not 0 < depth <= data.rank or along == len(shape) - 1:
        return None
    return Value((*shape[:-1], *data.shape[depth:]), along)


def _range(node: Node, value: Value) -> Numbers | None:
    start, limit, step = (node.value(index) for index in range(3))
    (size,) = value.shape
    if start.numbers != (0,) or step.numbers != (1,) or limit.vector != (size,):
        return None
    if size == ROWS:
        return Numbers(ONE, along=0, is_exact=True)
    return None if size.varies or not size.is_positive else Numbers(size)


def _moved(node: Node, value: Value) -> Numbers | None:
    """Unsqueeze and Expand: the numbers are repeated, or stay as they are."""
    numbers = node.value(0).numbers_of
    if numbers is None or numbers.along is None or numbers.is_tuple:
        return numbers if numbers is not None and not numbers.is_tuple else None
    rank = node.value(0).rank
    if node.op == "Expand":
        along = numbers.along + value.rank - rank
    else:
        added = {axis_at(each, value.rank) for each in node.numbers("axes", 1) or ()}
        along = [at for at in range(value.rank) if at not in added][numbers.along]
    return replace(numbers, along=along) if value.shape[along] == ROWS else None


def _multiplied(node: Node, value: Value) -> Numbers | None:
    for first, second in ((0, 1), (1, 0)):
        numbers, factor = node.value(first).numbers_of, node.value(second).vector
        if numbers is not None and numbers.is_exact and factor and len(factor) == 1:
            if factor[0].varies or not factor[0].is_positive:
                return None
            times = numbers.times * factor[0]
            return _aligned(node.value(first), value, replace(numbers, times=times))
    return None


def _added(node: Node, value: Value) -> Numbers | None:
    for first, second in ((0, 1), (1, 0)):
        numbers, less = node.value(first).numbers_of, node.value(second).numbers_of
        if numbers is None or less is None or not numbers.is_exact or less.along is not None:
            continue
        if numbers.times == less.times and not less.is_tuple:
            return _aligned(node.value(first), value, replace(numbers, is_exact=False))
    return None


def _aligned(value: Value, output: Value, numbers: Numbers) -> Numbers | None:
    if numbers.along is None:
        return None
    along = numbers.along + output.rank - value.rank
    is_whole = output.shape[along] == ROWS and numbers.times.fits()
    return replace(numbers, along=along) if is_whole else None


def _paired(node: Node) -> Value | None:
    """Concat of a row's number and of constants, along the last axis."""
    first, rank = node.value(0), node.value(0).rank
    numbers, others = first.numbers_of, node.given[1:]
    if numbers is None or numbers.times != ONE or not numbers.is_exact or numbers.is_tuple:
        return None
    if not others or axis_at(node.number("axis", 0), rank) != rank - 1 or first.shape[-1] != ONE:
        return None
    # A constant that is repeated for each row counts as rows, and has the same elements in each.
    for each in others:
        if each.numbers_of is None or each.numbers_of.along is not None:
            return None
        if each.shape[:-1] != first.shape[:-1] or each.dtype != "int64":
            return None
    depth = sum((each.shape[-1] for each in others), ONE)
    pairs = replace(numbers, is_tuple=True)
    return Value((*first.shape[:-1], depth), varies=True, numbers_of=pairs)


_FOUND = {
    "Add": _added,
    "Expand": _moved,
    "Mul": _multiplied,
    "Range": _range,
    "Unsqueeze": _moved,
}
