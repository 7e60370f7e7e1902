"""Parts of rules: shapes of tensors that meet, and where their rows are."""

from collections.abc import Callable, Iterable, Sequence

from serving.proof.elements import items_of
from serving.proof.sizes import ONE, Size
from serving.proof.values import Mixes, Node, Value

Rule = Callable[[Node], list[Value]]
Shape = tuple[Size, ...]


def axis_at(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    if not -rank <= axis < rank:
        raise Mixes(f"it has no axis {axis}")
    return axis % rank


def targets(node: Node, index: int) -> Shape:
    """Return the sizes that an input asks for."""
    sizes = tuple(items_of(node, index).reshape(-1))
    if any(each.varies and not each.fits() for each in sizes):
        raise Mixes("a size is computed from the number of rows, or may overflow")
    return sizes


def size_in(node: Node, index: int) -> Size:
    """Return the one size that an input asks for."""
    vector = node.value(index).vector
    return vector[0] if vector and len(vector) == 1 else node.new_size()


def replaced(shape: Shape, axis: int, size: Size) -> Shape:
    """Return a shape with another size along an axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def same(node: Node) -> Value:
    """Return an output of the first input's shape, with its rows in their places."""
    return Value(node.value(0).shape, node.value(0).axis)


def require_alike(*values: Value) -> None:
    """Raise Mixes unless all hold the same rows along the same axis."""
    first = values[0]
    for other in values:
        if other.axis != first.axis or other.rank != first.rank:
            raise Mixes("rows meet others than their own")
        if first.is_rows and other.rows != first.rows:
            raise Mixes("rows meet parts of rows")


def require_rows(node: Node, axes: dict[int, int]) -> Size | None:
    """Return how many rows inputs have, each along its axis; None if none of them holds rows.

    Raises:
        Mixes: an input has other rows, or the same ones along another axis.
    """
    found = {index: node.value(index) for index in axes if node.has(index)}
    holding = [index for index, each in found.items() if each.is_rows]
    if not holding:
        return None
    for index, value in found.items():
        if value.axis != axes[index]:
            place = "no rows" if value.axis is None else f"its rows along axis {value.axis}"
            raise Mixes(f"its input {index} has {place}, not along axis {axes[index]}")
    counts = {found[index].rows for index in holding}
    if len(counts) > 1:
        raise Mixes("rows meet parts of rows")
    return counts.pop()


def met(node: Node, sizes: Iterable[Size]) -> Size:
    """Return the size of an axis where others meet, of which some may be 1."""
    others = {each for each in sizes if each != ONE}
    # The smaller of 512 and L meets L only where both are equal.
    others = {each for each in others if node.unknowns.end_of(each) not in others}
    known = [each for each in others if each.number is not None]
    if len(others) <= 1:
        return others.pop() if others else ONE
    if len(known) > 1:
        raise Mixes("its sizes don't fit")
    if known:
        return known[0]
    mark = "*" if all(each.is_positive for each in others) else "?"
    return node.unknowns.of("met", *sorted(others, key=str), mark=mark)


def broadcast(node: Node, values: Sequence[Value]) -> Value:
    """Return the shape of values beside each other: rows must meet the same rows."""
    rank = max(each.rank for each in values)
    holding = [each for each in values if each.axis is not None]
    axes = {rank - each.rank + (each.axis or 0) for each in holding}
    if len(axes) > 1:
        raise Mixes("rows meet other rows")
    axis = axes.pop() if axes else None
    aligned = [(ONE,) * (rank - each.rank) + each.shape for each in values]
    sizes = [met(node, (shape[at] for shape in aligned)) for at in range(rank)]
    if axis is None:
        return Value(tuple(sizes))
    counts = {each.rows for each in holding}
    if len(counts) > 1:
        raise Mixes("rows meet parts of rows")
    sizes[axis] = counts.pop()
    for shape, each in zip(aligned, values, strict=True):
        if each.axis is None and shape[axis] != ONE:
            raise Mixes("a constant has an element for each row")
    return Value(tuple(sizes), axis)


def without_axes(value: Value, axes: set[int]) -> Value:
    """Return a value without some axes, none of which is that of rows."""
    shape = tuple(size for at, size in enumerate(value.shape) if at not in axes)
    axis = value.axis
    return Value(shape, axis if axis is None else axis - sum(at < axis for at in axes))


def with_axes_in(value: Value, order: Sequence[int]) -> Value:
    """Return a value with its axes in another order."""
    if sorted(order) != list(range(value.rank)):
        raise Mixes("its order of axes is malformed")
    axis = None if value.axis is None else list(order).index(value.axis)
    return Value(tuple(value.shape[at] for at in order), axis)
