"""The check of a proof by a run: right proofs pass, and planted faults of rules end the proof."""

import itertools
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from onnx.backend.test.case.node import collect_testcases

from serving import Model
from serving.model.judging import UnchangedSession
from serving.model.onnx_runtime import NO_WEIGHTS, runtime
from serving.proof import Mixes, prove, walk
from serving.proof.check import MAX_BYTES, Check, Graph, NotRun
from serving.proof.onnx_file import parse_model
from serving.proof.sizes import ONE, Size
from serving.proof.table import TABLE, is_pointwise, outputs_of
from serving.proof.values import Value, computed, sizes_of
from tests.proof.cases import with_rows
from tests.proof.models import CONSTANTS, RULES, graph
from tests.proof.test_graphs import PROVED
from tests.support.fakes import TIMEOUT_S


def checked(
    onnx_model, samples=None, clock=time.thread_time, session=UnchangedSession, max_bytes=MAX_BYTES
):
    """Prove a model, and check the proof by a run."""
    data = onnx_model.SerializeToString()
    message = parse_model(data)
    new_session = partial(session, NO_WEIGHTS, runtime().RunOptions())
    proved = Graph(message, data, samples), prove(message, RULES)
    return Check(*proved, new_session, clock, max_bytes).run()


@pytest.fixture(autouse=True)
def constants(monkeypatch):
    """More constants that graphs name."""
    for name, array in {
        "least": np.array([-(2**63)]), "odd": np.array([0, 7, 11]), "huge": np.float32(1e9),
        "one_row": np.array([1, 4]), "most": np.int64(2**62),
    }.items():  # fmt: skip
        monkeypatch.setitem(CONSTANTS, name, array)


@pytest.mark.parametrize("name", PROVED)
def test_right_proof_agrees_with_runs(name):
    entry = PROVED[name]
    body, options = entry if isinstance(entry, tuple) else (entry, {})
    try:
        found = checked(graph(body, **options))
    except NotRun:
        pytest.skip("it takes no drawn input")
    assert found.num_tensors
    assert not found.num_omitted


def larger(rule, axis, more=1):
    """A rule that is off by some along an axis."""

    def wrong(node):
        first, *others = rule(node)
        shape = list(first.shape)
        shape[axis] += Size.of(more)
        return [replace(first, shape=tuple(shape)), *others]

    return wrong


def same(node):
    return [replace(node.value(0), items=None, data=None)]


def constant(node):
    return [Value(())]


def without_axis(node):
    return [Value(node.value(0).shape, varies=True)]


def shape_plus_one(node):
    return [computed(sizes_of(each + ONE for each in node.value(0).shape))]


POOL = "a = Unsqueeze(x, second); p = MaxPool<kernel_shape=[2]>(a); y = Flatten(p)"
FAULTS = {
    # name: (graph, operator, its wrong rule, the contradiction)
    "an axis that is squeezed stays": (
        "a = Unsqueeze(x, second); b = Squeeze(a, second); y = Neg(b)", "Squeeze", same,
        "b (Squeeze): in a run, tensor b has 2 axes, expected 3, in a run of 3 rows"),
    "a window more": (
        POOL, "MaxPool", larger(TABLE["MaxPool"].rule, 2),
        "p (MaxPool): in a run, tensor p has size 3 along axis 2, expected 4"),
    "a window less": (
        POOL, "MaxPool", larger(TABLE["MaxPool"].rule, 2, -1),
        "p (MaxPool): in a run, tensor p has size 3 along axis 2, expected 2"),
    "a broadcast that forgets an axis": (
        "a = Unsqueeze(x, second); b = Add(a, three_rows); y = Flatten(b)", "Add", same,
        "b (Add): in a run, tensor b has size 3 along axis 1, expected 1"),
    "softmax over rows": (
        "y = Softmax<axis=0>(x)", "Softmax", same,
        "y (Softmax): in a run, tensor y has a row that differs by"),
    "sum of the rows before": (
        "y = CumSum(x, zero)", "CumSum", same,
        "y (CumSum): in a run, tensor y has a row that differs by"),
    "sum of the rows after": (
        "y = CumSum<reverse=1, exclusive=1>(x, zero)", "CumSum", same,
        "y (CumSum): in a run, tensor y has a row that changes with the rows beside it"),
    "length of a column": (
        "y = LpNormalization<axis=0>(x)", "LpNormalization", same,
        "y (LpNormalization): in a run, tensor y has a row that differs by"),
    "rows in reverse": (
        "y = Slice(x, last, least, first, last)", "Slice", same,
        "y (Slice): in a run, tensor y has a row that differs by"),
    "a number of rows that counts as a constant": (
        "n = Size(x); f = Cast<to=1>(n); y = Div(x, f)", "Size", constant,
        "n (Size): in a run, tensor n changes with the rows, expected a constant"),
    "rows that count as a constant": (
        "m = ReduceMax<keepdims=0>(x, both); y = Sub(x, m)", "ReduceMax", constant,
        "m (ReduceMax): in a run, tensor m changes with the rows, expected a constant"),
    "rows that count as a size": (
        "a = Neg(x); b = Shape(a); y = Reshape(x, b)", "Neg", without_axis,
        "a (Neg): in a run, tensor a changes with values, expected sizes alone"),
    "a wrong element": (
        "s = Shape<start=1>(x); f = Cast<to=1>(s); y = Mul(x, f)", "Shape",
        lambda node: [computed(sizes_of([Size.of(5)]))],
        "s (Shape): in a run, tensor s has element 4, expected 5"),
    "random numbers": (
        "r = RandomUniformLike(x); y = Add(x, r)", "RandomUniformLike", same,
        "r (RandomUniformLike): in a run, tensor r has a row that differs by"),
    "rows that stand more often one after another": (
        "a = Neg(x); y = Neg(a)", "Neg",
        lambda node: [replace(node.value(0), outer=Size.of(6) - node.value(0).outer)],
        "a (Neg): in a run, tensor a has size 3 along axis 0, expected 5 times all rows"),
    "an axis of rows that is another": (
        "t = Transpose(x); y = Transpose(t)", "Transpose", same,
        "t (Transpose): in a run, tensor t has size 4 along axis 0, expected 3"),
}  # fmt: skip


def plant(monkeypatch, operator, rule):
    """Replace the rule of an operator."""
    right = outputs_of
    monkeypatch.setattr(
        walk, "outputs_of", lambda node: rule(node) if node.op == operator else right(node)
    )


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_of_a_rule_is_named(name, monkeypatch):
    body, operator, rule, expected = FAULTS[name]
    plant(monkeypatch, operator, rule)
    with pytest.raises(Mixes) as caught:
        checked(graph(body))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(("x", "body", "axis"), [
    ("float[N,L] x, float[N,M] z", "y = Concat<axis=1>(x, z)", 1),
    ("float[N,L,M,K] x", "y = Transpose<perm=[0,2,1,3]>(x)", 1),
    ("float[N,L,M,K] x", "y = Transpose<perm=[0,1,3,2]>(x)", 2),
])  # fmt: skip
def test_open_axes_of_two_names_are_not_taken_for_one(x, body, axis, monkeypatch):
    """Where all axes are as long, a rule that confuses them is right."""

    def confused(node):
        value = node.value(0)
        shape = list(value.shape)
        shape[axis] *= Size.of(len(node.inputs))
        return [replace(value, shape=tuple(shape))]

    plant(monkeypatch, body.split("<")[0].split()[-1], confused)
    with pytest.raises(Mixes, match=rf"tensor y has size \d+ along axis {axis}, expected \d+"):
        checked(graph(body, x=x), clock=lambda: 0.0)


def test_rounding_that_later_nodes_enlarge_is_no_contradiction(monkeypatch):
    """Sums of a batch are rounded otherwise than those of a row, as a matrix product's are."""

    class Rounding(UnchangedSession):
        def run(self, names, feeds):
            factor = np.float32(1 + 1e-6 * (len(feeds["x"]) == 3)) if "x" in feeds else 1
            return super().run(names, {name: each * factor for name, each in feeds.items()})

    enlarged = graph("a = Identity(x); b = Mul(a, huge); y = Sin(b)")
    assert checked(enlarged, session=Rounding).num_tensors == 3
    plant(monkeypatch, "CumSum", same)
    summed = graph("a = Identity(x); b = Mul(a, huge); c = Sin(b); y = CumSum(c, zero)")
    with pytest.raises(Mixes, match=r"y \(CumSum\): in a run, tensor y has a row that differs by"):
        checked(summed, session=Rounding)


@pytest.mark.parametrize(
    ("kind", "allowed", "refused"),
    [("float16", 5e-3, 2e-2), ("float", 5e-5, 2e-4), ("double", 5e-7, 2e-6)],
)
def test_rows_differ_by_rounding_in_batches_of_other_sizes_and_no_more(kind, allowed, refused):
    """The node by itself differs, too: only what is allowed is taken for rounding."""

    class Rounding(UnchangedSession):
        error: float

        def run(self, names, feeds):
            found = super().run(names, feeds)
            if len(next(iter(feeds.values()))) == 3:
                return found
            with np.errstate(all="ignore"):
                return [(each * (1 + self.error)).astype(each.dtype) for each in found]

    model = graph("y = Neg(x)", x=f"{kind}[N,4] x", y=f"{kind}[N,4] y")
    Rounding.error = allowed
    assert checked(model, session=Rounding).num_tensors == 1
    Rounding.error = refused
    with pytest.raises(Mixes, match=r"y \(Neg\): in a run, tensor y has a row that differs by"):
        checked(model, session=Rounding)


def test_end_of_a_run_from_outside_ends_the_check():
    """In the first run, and where a node runs again by itself."""

    class Ending(UnchangedSession):
        num_left = 0

        def run(self, names, feeds):
            Ending.num_left -= 1
            if Ending.num_left < 0:
                raise TimeoutError("ended")
            factor = np.float32(1 + 1e-3 * (len(feeds["x"]) == 3)) if "x" in feeds else 1
            return super().run(names, {name: each * factor for name, each in feeds.items()})

    for num_runs in range(5):  # a batch, a row, the inputs of a node in both, the node
        Ending.num_left = num_runs
        with pytest.raises(TimeoutError, match="ended"):
            checked(graph("a = Identity(x); y = Neg(a)"), session=Ending)


def test_graph_that_takes_no_drawn_input_is_not_checked():
    with pytest.raises(NotRun):
        checked(graph("y = Reshape(x, odd)", x="float[N,L] x"))


def test_row_that_fails_alone_is_no_contradiction():
    """Indices of a table of 10 rows: those beyond it fail, alone and beside others."""
    assert checked(graph("y = Gather(table, x)", x="int64[N,L] x")).num_tensors == 1


def test_batch_that_fails_is_a_contradiction(monkeypatch):
    plant(monkeypatch, "Reshape", same)
    with pytest.raises(Mixes, match="a batch of 3 rows fails, and each of them runs alone"):
        checked(graph("y = Reshape(x, one_row)"))


def test_large_tensors_are_compared_in_pieces(monkeypatch):
    body = "a = Neg(x); b = Neg(a); c = Neg(b); y = Neg(c)"
    room = 4 * 20  # one tensor of a batch and of a row
    found = checked(graph(body), max_bytes=room)
    assert (found.num_tensors, found.num_omitted) == (4, 0)
    plant(monkeypatch, "Neg", larger(same, 1))
    with pytest.raises(Mixes, match="tensor a has size 4 along axis 1, expected 5"):
        checked(graph(body), max_bytes=room)
    with pytest.raises(NotRun):
        checked(graph("y = Abs(x)"), max_bytes=16)


def test_pieces_that_there_is_no_time_for_are_counted():
    now_s = iter(range(1_000_000))
    body = "a = Neg(x); b = Neg(a); c = Neg(b); y = Neg(c)"
    found = checked(graph(body), clock=lambda: float(next(now_s)), max_bytes=4 * 16)
    assert found.num_tensors + found.num_omitted == 4
    assert 0 < found.num_omitted < 4


def test_tensors_that_are_not_element_by_element_come_first_where_room_and_time_are_short():
    seen = []

    class Seen(UnchangedSession):
        def run(self, names, feeds):
            seen.append((names, len(feeds["x"])))
            return super().run(names, feeds)

    now_s = iter(range(1_000_000))
    body = "a = Neg(x); b = Transpose(a); c = Neg(b); d = Transpose(c); y = Neg(d)"
    found = checked(
        graph(body), session=Seen, clock=lambda: float(next(now_s)), max_bytes=3 * 3 * 16
    )
    assert seen == [(["b", "d", "y"], 2), (["b", "d", "y"], 1)]
    assert (found.num_tensors, found.num_omitted) == (3, 2)


@pytest.mark.parametrize(("x", "num_draws"), [("float[N,4] x", 2), ("float[N,L] x", 4)])
def test_draws_of_several_sizes_are_compared_where_axes_are_open(x, num_draws):
    """Each with three rows, the last of them alone, and seven other batches."""
    found = checked(graph("a = Neg(x); y = Abs(a)", x=x), clock=lambda: 0.0)
    assert (found.num_tensors, found.num_omitted, found.num_runs) == (2, 0, 9 * num_draws)


def test_time_that_is_spent_ends_the_check_after_a_batch_and_a_row(monkeypatch):
    now_s = iter(range(1_000_000))
    found = checked(graph("y = Neg(x)"), clock=lambda: float(next(now_s)))
    assert (found.num_tensors, found.num_runs) == (1, 2)


@pytest.mark.parametrize(
    ("build_s", "run_s", "num_runs"),
    [(0.0, 0.03, 4), (0.1, 0.03, 4), (0.0, 0.09, 2), (1.0, 0.06, 9), (1.0, 0.3, 2), (9.0, 0.1, 18)],
)  # fmt: skip
def test_further_runs_have_a_tenth_of_a_second_or_half_the_time_of_the_build(
    build_s, run_s, num_runs
):
    """The one that is on its way then is the last; two draws have nine each, of fixed sizes."""
    now_s = 0.0

    class Slow(UnchangedSession):
        def __init__(self, *args):
            nonlocal now_s
            super().__init__(*args)
            now_s += build_s

        def run(self, names, feeds):
            nonlocal now_s
            now_s += run_s
            return super().run(names, feeds)

    found = checked(graph("y = Neg(x)"), session=Slow, clock=lambda: now_s)
    assert found.num_runs == num_runs


def test_runs_that_take_too_long_are_ended(tmp_path, monkeypatch, caplog):
    """No loop is proved, so a long way of large products."""
    monkeypatch.setattr("serving.model.loading._CHECK_LIMIT_S", 0.1)
    monkeypatch.setattr("serving.model.time_limit.SLOW_S", 0.0)
    monkeypatch.setitem(CONSTANTS, "square", np.full((256, 256), 0.01, np.float32))
    names = ["x", *(f"a{number}" for number in range(800)), "y"]
    products = "; ".join(f"{b} = MatMul({a}, square)" for a, b in itertools.pairwise(names))
    onnx = graph(products, "float[N,256,256] x", "float[N,256,256] y").SerializeToString()
    path = tmp_path / "endless.onnx"
    path.write_bytes(onnx)
    with caplog.at_level("DEBUG", "serving"), Model.load(path, device="cpu") as loaded:
        assert not loaded.served.tensors.is_batchable
    assert "model endless version 1: the check by a run goes on after 0 s" in caplog.text
    assert "the check by a run is not ready after 0.1 s of processor time" in caplog.text
    for thread in threading.enumerate():
        if thread.name == "model-loader":
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_proofs_of_the_cases_of_onnx_agree_with_runs():
    """ONNX's own cases of each operator, any of their inputs as rows: no tensor is otherwise."""
    state = runtime().capi.onnxruntime_pybind11_state
    unable = state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented
    num_tensors, contradictions = 0, []
    for case in collect_testcases(None):
        for model, rows in with_rows(case):
            count = len(next(iter(rows.values())))
            if not count:
                continue
            order = np.resize(np.arange(count), 8)
            taken = {name: array[order] for name, array in rows.items()}
            try:
                num_tensors += checked(model, samples=taken).num_tensors
            except Mixes as err:
                if "in a run" in str(err) or "a batch of" in str(err):
                    contradictions.append(f"{case.name}: {err}")
            except (NotRun, *unable):  # ONNX Runtime lacks the operator, or refuses shapes
                continue
    assert not contradictions
    assert num_tensors > 1000


def test_graph_that_takes_nothing_is_tried_with_axes_of_all_sizes():
    """Unlike ones of two names first, then all of one size."""
    seen = []

    class Refusing(UnchangedSession):
        def run(self, names, feeds):
            seen.append(feeds["x"].shape)
            raise RuntimeError("none of these")

    with pytest.raises(NotRun):
        checked(graph("y = Neg(x)", x="float[N,L,M] x"), session=Refusing)
    assert {shape[0] for shape in seen} == {1, 3}
    assert [*dict.fromkeys(shape[1:] for shape in seen)] == [
        (32, 64), (16, 16), (32, 32), (8, 8), (1, 1), (64, 64), (512, 512),
    ]  # fmt: skip


LABELS = (
    'y = ai.onnx.ml.LabelEncoder<keys_strings=["0", "1"], values_floats=[1.5, 2.5],'
    " default_float=3.5>(x)"
)


@pytest.mark.parametrize(
    "kind",
    ["float", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16",
     "double", "uint32", "uint64"],
)  # fmt: skip
def test_node_by_itself_takes_inputs_of_each_type(kind):
    """Rounding of the whole graph alone is excused by it, whatever it reads."""
    built = []

    class Rounding(UnchangedSession):
        def __init__(self, *given):
            super().__init__(*given)
            built.append(self)

        def run(self, names, feeds):
            found = super().run(names, feeds)
            if self is not built[0] or len(next(iter(feeds.values()))) == 3:
                return found
            return [each * np.float32(1.001) for each in found]

    body = LABELS if kind == "string" else "y = Cast<to=1>(x)"
    found = checked(graph(body, x=f"{kind}[N,4] x"), session=Rounding)
    assert (found.num_tensors, found.num_omitted) == (1, 0)
    assert len(built) > 1


def test_wrong_elements_are_named_where_a_constant_is_wrong_too(monkeypatch):
    wrong = replace(computed(sizes_of([Size.of(5)])), data=np.array([5]))
    plant(monkeypatch, "Shape", lambda node: [wrong])
    with pytest.raises(Mixes, match=r"tensor s has element 4, expected 5, in a run of 3 rows$"):
        checked(graph("s = Shape<start=1>(x); f = Cast<to=1>(s); y = Mul(x, f)"))


@pytest.mark.parametrize(
    ("operator", "is_last"),
    [("Add", True), ("Relu", True), ("Cast", True), ("PRelu", False), ("Softmax", False),
     ("Nobody", False)],
)  # fmt: skip
def test_operator_that_computes_element_by_element_is_known(operator, is_last):
    assert is_pointwise(operator) == is_last
