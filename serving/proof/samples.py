"""Rules of operators that compute each sample by itself: of pictures, of sequences, of tables."""

from collections.abc import Callable, Sequence

from serving.proof.shapes import (
    Rule,
    Shape,
    broadcast,
    require_rows,
    same,
)
from serving.proof.sizes import ONE, Size, product
from serving.proof.values import Mixes, Node, Value


def by_sample(shape: Callable[[Node], Sequence[Size]], others: Sequence[int] = ()) -> Rule:
    """Each sample of the first axis is computed by itself, with constants.

    Args:
        shape: the sizes of an output's other axes.
        others: inputs that have one element for each sample, too.
    """

    def rule(node: Node) -> list[Value]:
        value = node.value(0)
        require_rows(node, dict.fromkeys((0, *others), 0))
        if not value.rank:
            raise Mixes("it has no sample")
        return node.outputs(Value((value.shape[0], *shape(node)), value.axis))

    return rule


def convolved(weights_at: int) -> Callable[[Node], Shape]:
    """Return the shape of a convolution: a channel for each of the weights, and windows."""

    def shape(node: Node) -> Shape:
        weights = node.value(weights_at).shape
        if len(weights) != node.value(0).rank:
            raise Mixes("its weights have another number of axes")
        return weights[0], *_windows(node, [each.number for each in weights[2:]], least=1)

    return shape


def widened(node: Node) -> Shape:
    """Return the shape of a transposed convolution."""
    sizes, weights = node.value(0).shape[2:], node.value(1).shape
    if len(weights) != len(sizes) + 2:
        raise Mixes("its weights have another number of axes")
    channels = weights[1] * Size.of(node.number("group", 1))
    rank = len(sizes)
    if node.text("auto_pad") not in ("", "NOTSET") or node.numbers("output_shape") is not None:
        return channels, *(node.new_size("*") for _ in sizes)
    strides, dilations = (node.numbers(name) or (1,) * rank for name in ("strides", "dilations"))
    pads = node.numbers("pads") or (0,) * 2 * rank
    extra = node.numbers("output_padding") or (0,) * rank
    spatial = []
    for at, (size, window) in enumerate(zip(sizes, weights[2:], strict=True)):
        more = extra[at] + 1 - strides[at] - pads[at] - pads[at + rank]
        new = size * Size.of(strides[at]) + Size.of(more)
        new += (window - ONE) * Size.of(dilations[at])
        # ONNX Runtime refuses a size of less than 1.
        spatial.append(new if new.is_positive else node.new_size("*"))
    return channels, *spatial


def pooled(node: Node) -> Shape:
    """Return the shape of a pool. Indices, its second output, would count over all samples."""
    kernel = node.numbers("kernel_shape")
    if kernel is None:
        raise Mixes("it has no kernel_shape")
    return node.value(0).shape[1], *_windows(node, kernel, least=0)


def _windows(node: Node, kernel: Sequence[int | None], *, least: int) -> list[Size]:
    """Return how many times a window fits along each axis.

    Args:
        node: a convolution or a pool.
        kernel: the size of the window along each axis; None where it is unknown.
        least: the smallest number that ONNX Runtime answers; it refuses what has less.
    """
    sizes = node.value(0).shape[2:]
    rank = len(sizes)
    strides, dilations = (node.numbers(name) or (1,) * rank for name in ("strides", "dilations"))
    pads = node.numbers("pads") or (0,) * 2 * rank
    padding = node.text("auto_pad") or "NOTSET"
    if not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == rank:
        raise Mixes("its windows have another number of axes")
    if min((*strides, *dilations), default=1) < 1:
        raise Mixes("its windows are malformed")
    if node.number("ceil_mode", 0) and pads[:rank] != pads[rank:]:
        # A last window that begins in the border behind is left out, in front it is not.
        raise Mixes("`ceil_mode=1` with unequal pads: no rule")
    result = []
    for at, (size, window) in enumerate(zip(sizes, kernel, strict=True)):
        is_same = padding.startswith("SAME")
        if is_same and size.number is not None and dilations[at] == 1:
            result.append(Size.of(-(-size.number // strides[at])))
            continue
        if is_same or window is None:  # in a pool, ONNX Runtime dilates windows, not their padding
            is_positive = least or (dilations[at] == 1 and size.is_positive)
            result.append(node.new_size("*" if is_positive else "?"))
            continue
        front, extra = pads[at], pads[at] + pads[at + rank]
        if padding == "VALID":
            front = extra = 0
        more = extra - dilations[at] * (window - 1) - 1
        if node.number("ceil_mode", 0):
            result.append(_fitting_up(node, size, more, front, strides[at]))
        else:
            result.append(_fitting(node, size, more, strides[at], least=least))
    return result


def _fitting(node: Node, size: Size, more: int, stride: int, *, least: int) -> Size:
    """Return (size + more) / stride + 1, which C rounds to 0 where it is negative."""
    number = size.number
    if number is not None and number + more >= 0:
        return Size.of((number + more) // stride + 1)
    exact = size + Size.of(more + 1)
    if stride == 1 and exact.is_positive:
        return exact
    # For a size of 1 it is at least 1 if this holds, and it grows with the size.
    is_positive = least or (size.is_positive and 1 + more > -stride)
    is_smaller = (size.name or "")[:1] == "+" and more < 0
    mark = "+" if is_smaller else "*"
    if not is_positive:
        mark = "?"
    return node.unknowns.of(("windows", more, stride, least), size, mark=mark)


def _fitting_up(node: Node, size: Size, more: int, front: int, stride: int) -> Size:
    """Return the same rounded up, without a last window that begins in the border behind."""
    number = size.number
    if number is not None and number + more >= 0:
        windows = -(-(number + more) // stride) + 1
        return Size.of(windows - ((windows - 1) * stride >= number + front))
    is_smaller = (size.name or "")[:1] == "+" and more < 0
    is_positive = size.is_positive and 1 + more > -stride
    mark = ("+" if is_smaller else "*") if is_positive else "?"
    return node.unknowns.of(("windows up", more, front, stride), size, mark=mark)


def one_each(node: Node) -> Shape:
    """Return the shape of a pool over all of a picture."""
    shape = node.value(0).shape
    return (*shape[1:2], *[ONE] * (len(shape) - 2))


def sampled(node: Node) -> Shape:
    """Return the shape of pictures that are sampled at the places of grids."""
    return (node.value(0).shape[1], *node.value(1).shape[1:-1])


def depth_to_space(node: Node) -> Shape:
    """Return the shape of pictures whose channels become pixels."""
    channels, *sizes = node.value(0).shape[1:]
    block = Size.of(node.number("blocksize", 1))
    fewer = channels.divided(block * block) or node.new_size()
    return fewer, *(each * block for each in sizes)


def recurrent(node: Node) -> list[Value]:
    """Sequences of the batch are run beside each other, with constant weights."""
    value = node.value(0)
    if value.rank != 3:
        raise Mixes("it has no batch")
    require_rows(node, {0: 1, 4: 0, 5: 1, 6: 1})
    directions = Size.of(2 if node.text("direction") == "bidirectional" else 1)
    hidden = node.number("hidden_size", 0)
    units = Size.of(hidden) if hidden else node.value(2).shape[2]
    turns, rows, _ = value.shape
    all_turns = Value((turns, directions, rows, units), 2 if value.is_rows else None)
    last = Value((directions, rows, units), 1 if value.is_rows else None)
    return node.outputs(all_turns, last, *[last] * (node.op == "LSTM"))


def self_attention(node: Node) -> list[Value]:
    """Each sequence of the first axis attends to itself, with constant weights."""
    value = node.value(0)
    if value.axis != 0 or value.rank != 3 or node.has(4):
        raise Mixes("it has no rule for these inputs")
    if node.has(3) and node.value(3).shape[:1] != (value.rows,):
        raise Mixes("its mask has no rule")
    require_rows(node, {0: 0, 3: 0})
    return node.outputs(Value((*value.shape[:2], node.new_size()), 0))


def embedded(node: Node) -> list[Value]:
    """Tokens of a row are looked up in tables, and normalized; its mask says how many it has."""
    tokens = node.value(0)
    # Places that are the same for each row are of one.
    is_of_one = node.has(8) and node.value(8).shape[:1] == (ONE,) and not node.value(8).is_rows
    require_rows(node, {0: 0, 1: 0, 7: 0} | ({} if is_of_one else {8: 0}))
    if tokens.rank != 2 or not tokens.is_rows:
        raise Mixes("it has no rule for these inputs")
    result = Value((*tokens.shape, node.value(2).shape[1]), tokens.axis)
    return node.outputs(result, Value(tokens.shape[:1], tokens.axis), result)


def attention(node: Node) -> list[Value]:
    """Queries of the first axis attend to keys and values of their own row."""
    query, key, value = (node.value(index) for index in range(3))
    require_rows(node, {0: 0, 1: 0, 2: 0})
    if any(node.has(index) for index in (4, 5, 6)) or not query.rank == key.rank == value.rank:
        raise Mixes("it has no rule for these inputs")
    if node.has(3):
        mask = node.value(3)
        if mask.rank < 4 and mask.is_rows:
            raise Mixes("its mask has no rule")
        broadcast(node, [Value((query.shape[0], ONE, ONE, ONE), query.axis), mask])
    if query.rank == 4:
        return node.outputs(Value((*query.shape[:3], value.shape[3]), query.axis))
    return node.outputs(Value((*query.shape[:2], node.new_size()), query.axis))


def reversed_sequences(node: Node) -> list[Value]:
    """Each row is reversed in time, by its own length."""
    batch, time = node.number("batch_axis", 1), node.number("time_axis", 0)
    if time == batch:
        raise Mixes("its axes are one")
    require_rows(node, {0: batch, 1: 0})
    return node.outputs(same(node))


def short_fourier(node: Node) -> Shape:
    """Return the shape of a signal's spectra.

    Where it has two parts, real and imaginary, ONNX Runtime before 1.28 reads the row beside.
    """
    if node.value(0).shape[2:] not in ((), (ONE,)):
        raise Mixes("its signal is not real: no rule")
    return node.new_size(), node.new_size(), Size.of(2)


# Classical models (ai.onnx.ml): tables of rows.


def _table(node: Node, index: int = 0) -> Value:
    value = node.value(index)
    if value.rank != 2 or value.axis not in (None, 0):
        raise Mixes("it is no table of rows")  # of one axis, all is one row
    return value


def columns(node: Node) -> list[Value]:
    """Each row of a table is scaled or filled by constants."""
    _table(node)
    return node.outputs(same(node))


def classified(count: Callable[[Node], int | None]) -> Rule:
    """Each row of a table gets a label, and scores; `count` says how many, if that is known."""

    def rule(node: Node) -> list[Value]:
        value, number = _table(node), count(node)
        if node.text("post_transform") == "PROBIT":
            raise Mixes("with PROBIT, ONNX Runtime leaves scores as the memory was")
        size = node.new_size("*") if number is None else Size.of(number)
        rows = value.shape[0]
        return node.outputs(Value((rows,), value.axis), Value((rows, size), value.axis))

    return rule


def unknown_classes(node: Node) -> None:
    """Return no number: a score may be one for each class, or for each pair of classes."""


def classes_of_trees(node: Node) -> int | None:
    """Return the number of classes, if there are several."""
    number = _num_labels(node, "classlabels_int64s")
    return number if number > 1 else None


def classes_of_lines(node: Node) -> int | None:
    """Return the number of classes, if each has an intercept, or one decides between two."""
    number = _num_labels(node, "classlabels_ints")
    intercepts = node.attributes.get("intercepts")
    num_lines = 0 if intercepts is None else len(intercepts.floats)
    expected = 1 if number == 2 else number
    return number if number > 1 and num_lines == expected else None


def _num_labels(node: Node, name: str) -> int:
    labels = [node.attributes.get(each) for each in (name, "classlabels_strings")]
    return sum(len(each.ints) + len(each.strings) for each in labels if each is not None)


def scored(attribute: str, default: int) -> Rule:
    """Each row of a table gets its numbers."""

    def rule(node: Node) -> list[Value]:
        value, number = _table(node), node.number(attribute, default)
        size = Size.of(number) if number else node.new_size("*")
        return node.outputs(Value((value.shape[0], size), value.axis))

    return rule


def one_hot_encoded(node: Node) -> list[Value]:
    """It adds an axis to each element, with a column for each category."""
    value = node.value(0)
    categories = [node.attributes.get(name) for name in ("cats_int64s", "cats_strings")]
    number = sum(len(each.ints) + len(each.strings) for each in categories if each)
    return node.outputs(Value((*value.shape, Size.of(number)), value.axis))


def extracted(node: Node) -> list[Value]:
    """It takes columns by number, or each row takes an element of a constant."""
    value, indices = node.value(0), node.value(1)
    shape, number = value.shape[:-1] or (ONE,), product(indices.shape)
    if indices.is_rows:
        if value.is_rows or indices.axis != 0:
            raise Mixes("rows take from all rows")
        return node.outputs(Value((*shape, number), len(shape)))
    if value.is_rows and (value.rank < 2 or value.axis == value.rank - 1):
        raise Mixes("it takes rows by number")
    return node.outputs(Value((*shape, number), value.axis))


def texts(node: Node) -> list[Value]:
    """Without words to leave out it changes each text by itself."""
    if node.value(0).rank != 1:
        raise Mixes("it is no list of texts")
    return node.outputs(same(node))
