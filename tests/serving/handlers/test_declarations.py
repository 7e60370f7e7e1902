"""What a handler's class may declare, where it is found, and what is said about others."""

# ruff: noqa: RUF012

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import serving
from serving.handlers.cascades import trouble_of
from serving.handlers.instance import Instance, at_once
from serving.handlers.kinds import Array, Bytes, Json, Picture, Text, WrongValue
from serving.handlers.loading import (
    HandlerSource,
    assigned,
    imported_beside,
    load,
    named_sources,
    require_no_import,
)
from serving.handlers.signature import HandlerSignature, arguments_of, signature_of
from serving.tensors import Tensor, TensorSignature
from tests.serving.handlers import behaviours
from tests.serving.handlers.conftest import FILE

HERE = re.escape("test_declarations.py:")
TEXTS = {"text": Text()}


def test_kinds_have_the_protocols_types():
    tensors = [
        kind.tensor("x")
        for kind in (Text(), Bytes(), Picture(), Array("float32"), Array("int64", (2, -1)))
    ]
    assert [str(each) for each in tensors] == [
        "x BYTES [N]", "x BYTES [N]", "x BYTES [N]", "x FP32 [N]", "x INT64 [N, 2, ?]",
    ]  # fmt: skip
    assert [each.content for each in tensors] == ["text", "bytes", "picture", "", ""]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "expected one of bool, int8"),
        (("float32", (0,)), "sizes from 1"),
        (("float32", "ab"), "sizes from 1"),
        (("object",), "expected one of"),
        (("float32", 0), "sizes from 1"),
    ],
)
def test_arrays_have_a_type_and_a_shape(arguments, words):
    with pytest.raises(serving.ConfigurationError, match=words):
        Array(*arguments)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Text(), ["a", "b"], ["a", "b"]),
        (Text(), np.array(["a", "b"]), ["a", "b"]),
        (Bytes(), (b"a", b""), [b"a", b""]),
        (Text((-1,)), [["a"], ["b"]], [["a"], ["b"]]),
        (Json(), [{"a": np.float32(0.5)}, "\ud800"], ['{"a": 0.5}', '"\\ud800"']),
        (Array("float32"), [1, 2.5], [1, 2.5]),
        (Array("float32"), np.array([1.5, 2]), [1.5, 2]),
        (Array("int64"), np.array([1, 2], np.int8), [1, 2]),
        (Array("uint8", (1,)), [[1], [2]], [[1], [2]]),
        (Array("float32", (-1,)), np.zeros((2, 3)), [[0] * 3] * 2),
    ],
)
def test_values_that_fit_become_arrays(kind, value, expected):
    found = kind.returned("x", value, 2)
    assert found.tolist() == expected
    assert found.dtype == kind.tensor("x").dtype


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Text((2,)), ["a", "b"], "expected the shape [2, 2], got [2]"),
        (Text((2,)), [["a", 1]] * 2, "expected x BYTES [N, 2], got list"),
        (Text((1,)), [["a"], [b"b"]], "expected texts (str), got b'b'"),
        (Json(), {"a": 1}, "expected a list of 2 values of JSON, got dict"),
        (Json(), [1], "expected a list of 2 values of JSON, got 1"),
        (Json(), [1, {2}], "row 1 can't be JSON: set is no JSON"),
        (Text(), "ab", "expected a list of 2 texts (str), got str"),
        (Text(), ["a"], "expected 2 texts (str), one for each row, got 1"),
        (Text(), ["a", 1], "expected texts (str), got 1"),
        (Text(), ["a", None], "expected texts (str), got None"),
        (Bytes(), ["a", "b"], "expected bytes, got 'a'"),
        (Bytes(), None, "expected a list of 2 bytes, got NoneType"),
        (Array("float32"), ["a", "b"], "expected x FP32 [N], got str"),
        (Array("float32"), [1], "expected the shape [2], got [1]"),
        (Array("float32", (3,)), [[1, 2]] * 2, "expected the shape [2, 3], got [2, 2]"),
        (Array("float32", (-1,)), [1, 2], "expected the shape [2, any], got [2]"),
        (Array("float32"), [[1], [1, 2]], "expected x FP32 [N], got list"),
        (Array("int64"), [0.5, 1], "expected x INT64 [N], got float64"),
        (Array("uint8"), [1, 256], "expected x UINT8 [N], got int64"),
        (Array("float32"), None, "expected x FP32 [N], got object"),
        (Picture(), [], "a picture can't be an output"),
    ],
)
def test_other_values_are_named(kind, value, words):
    with pytest.raises(WrongValue, match=re.escape(words)):
        kind.returned("x", value, 2)


def test_signature_survives_json():
    for name in (
        "Behaviours",
        "Around",
        "Crops",
        "Joined",
        "Facts",
        "Sizes",
        "Cascade",
        "Documents",
        "Pairs",
    ):
        found = signature_of(getattr(behaviours, name))
        assert HandlerSignature.of(found.document()) == found
    assert signature_of(behaviours.Around).options == ("state",)
    assert signature_of(behaviours.Facts).options == ("parameters", "metadata")
    assert signature_of(behaviours.Sizes).has_pictures
    assert not signature_of(behaviours.Sizes).needs_model


class Nothing(serving.Handler):
    inputs = outputs = TEXTS


class Both(Nothing):
    def predict(self, text): ...
    def preprocess(self, text): ...


class NoInputs(serving.Handler):
    outputs = TEXTS

    def predict(self): ...


class NoOutputs(serving.Handler):
    inputs = TEXTS

    def predict(self, text): ...


class OtherNames(Nothing):
    def predict(self, words, more): ...


class Spans(serving.Handler):
    """For a model with the outputs start and end."""

    outputs = {"length": Array("int64")}


def spans(method):
    """Return a subclass of `Spans` with this function."""
    return type("Spans", (Spans,), {"postprocess": method})


@pytest.mark.parametrize(
    ("method", "names", "expected"),
    [
        (lambda self, start, end: 0, ("start", "end"), ("start", "end")),
        (lambda self, end, start: 0, ("start", "end"), ("start", "end")),
        (lambda self, end, *, start, state: 0, ("start", "end"), ("start", "end")),
        (lambda self, scores: 0, ("logits",), None),
        (lambda self, Identity_1_0, Identity_0: 0, ("Identity:0", "Identity_1:0"),  # noqa: N803
         ("Identity_0", "Identity_1_0")),
        (lambda self, first, second: 0, ("Identity:0", "Identity_1:0"), None),
        (lambda self, _0, class_: 0, ("0", "class"), ("_0", "class_")),
        (lambda self, **outputs: 0, ("a:0", "b"), ("a:0", "b")),
        (lambda self, a_0, **outputs: 0, ("a:0", "b"), ("a_0", "b")),
        (lambda self, *outputs: 0, ("a:0", "a_0"), None),
        (lambda self, first, second: 0, ("a:0", "a.0"), None),
        (lambda self, start, end, /: 0, ("start", "end"), None),
        (lambda self, start, more=1: 0, ("start",), ("start",)),
    ],
)  # fmt: skip
def test_values_come_by_name(method, names, expected):
    assert arguments_of(spans(method), "postprocess", names) == expected


@pytest.mark.parametrize(
    ("method", "names", "line"),
    [
        (lambda self, end, strat: 0, ("start", "end"), "postprocess(self, start, end)"),
        (lambda self, end, start, /: 0, ("start", "end"), "postprocess(self, start, end)"),
        (lambda self, start, state: 0, ("start", "end"), "postprocess(self, start, end, state)"),
        (lambda self, a, b: 0, ("Identity:0", "end"), "postprocess(self, Identity_0, end)"),
        (lambda self, b, a_0: 0, ("a:0", "b:0"), "postprocess(self, a_0, b_0)"),
        (lambda self, a, a_0: 0, ("a:0", "a_0"), "postprocess(self, *values)"),
    ],
)
def test_argument_of_another_name_is_refused_with_the_line_to_write(method, names, line):
    with pytest.raises(serving.ConfigurationError, match=re.escape(f": write def {line}")):
        arguments_of(spans(method), "postprocess", names)


def test_values_arrive_under_the_names_of_the_arguments():
    class Named(Spans):
        def postprocess(self, b_0, **more):
            return {"length": [b_0[0] - more["a"][0]]}

    shape = tuple(Tensor(name, "INT64", (-1,)) for name in ("a", "b:0"))
    instance = Instance(Named, TensorSignature(shape, shape, is_batchable=True), None)
    (found,) = at_once(instance.postprocess([np.array([1]), np.array([7])], 1, {}))
    assert found.tolist() == [6]


class Parts(Nothing):
    def predict(self, text):
        yield text


class JoinedParts(Parts):
    batching = True


class PartsBefore(serving.Handler):
    inputs = TEXTS

    def preprocess(self, text):
        yield text


class PartsOfSetup(Nothing):
    def setup(self, folder):
        yield

    def predict(self, text): ...


class NoConcurrency(Parts):
    max_concurrency = 0


class Async(Nothing):
    async def predict(self, text): ...


class AsyncParts(Nothing):
    async def predict(self, text):
        yield text


class JoinedAsyncParts(AsyncParts):
    batching = True


class AsyncPartsBefore(serving.Handler):
    inputs = TEXTS

    async def preprocess(self, text):
        yield text


class OtherNamesAsync(serving.Handler):
    inputs = outputs = TEXTS

    async def predict(self, words, more): ...


class AsyncSetup(Nothing):
    async def setup(self, folder): ...

    def predict(self, text): ...


class FewAtATime(Async):
    max_concurrency = 3


class AwaitedSetup(Async):
    async def setup(self, folder): ...


class WrongKind(serving.Handler):
    inputs: ClassVar[Any] = {"text": str}
    outputs = TEXTS

    def predict(self, text): ...


class Reserved(serving.Handler):
    inputs = {"parameters": Text()}
    outputs = TEXTS

    def predict(self, parameters): ...


class PictureOut(serving.Handler):
    inputs = TEXTS
    outputs = {"picture": Picture()}

    def predict(self, text): ...


class WrongBatching(Nothing):
    batching = "yes"

    def predict(self, text): ...


class WrongUses(Nothing):
    uses = "digits"

    def predict(self, text): ...


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (Nothing, "Nothing: expected preprocess, postprocess, or predict, got none of them"),
        (Both, "Both: expected preprocess, postprocess, or predict, got preprocess and predict"),
        (NoInputs, "NoInputs: predict needs inputs"),
        (NoOutputs, "NoOutputs: predict needs outputs"),
        (OtherNames, "OtherNames: predict: expected to be given more, words, there is text"),
        (WrongKind, "WrongKind: inputs: text: expected serving.Text("),
        (Reserved, "Reserved: inputs: 'parameters' can't be a name"),
        (PictureOut, "PictureOut: outputs: picture: a picture can't be an output"),
        (WrongBatching, "WrongBatching: batching: expected True or False, got 'yes'"),
        (
            JoinedParts,
            "JoinedParts: predict: a generator (it has `yield`) answers each call alone: "
            "write batching = False",
        ),
        (
            PartsBefore,
            "PartsBefore: preprocess: a generator (it has `yield`) can't be served here: "
            "write return, and yield the parts in postprocess",
        ),
        (PartsOfSetup, "PartsOfSetup: setup: a generator (it has `yield`) can't be served here"),
        (NoConcurrency, "NoConcurrency: max_concurrency: expected a number of calls, got 0"),
        (
            JoinedAsyncParts,
            "JoinedAsyncParts: predict: a generator (it has `yield`) answers each call alone: "
            "write batching = False",
        ),
        (
            AsyncPartsBefore,
            "AsyncPartsBefore: preprocess: a generator (it has `yield`) can't be served here: "
            "write return, and yield the parts in postprocess",
        ),
        (
            AsyncSetup,
            "AsyncSetup: setup: `async def` needs a method that is `async def`, too: write def",
        ),
        (
            OtherNamesAsync,
            "OtherNamesAsync: predict: expected to be given more, words, there is text: "
            "write async def predict(self, text)",
        ),
        (WrongUses, "WrongUses: uses: expected a tuple of models' names, got 'digits'"),
    ],
)
def test_class_that_cannot_be_used_is_one_line_with_its_place(handler, words):
    with pytest.raises(serving.ConfigurationError, match=rf"^{HERE}\d+: {re.escape(words)}"):
        signature_of(handler)


def test_generator_answers_in_parts():
    found = signature_of(Parts)
    assert found.in_parts
    assert found.max_concurrency == 64
    assert found.tensors(None).in_parts
    assert HandlerSignature.of(found.document()) == found
    assert not signature_of(behaviours.Behaviours).in_parts


@pytest.mark.parametrize(
    ("handler", "in_parts", "is_async", "num_jobs"),
    [
        (Async, False, True, 64),
        (AsyncParts, True, True, 64),
        (FewAtATime, False, True, 3),
        (AwaitedSetup, False, True, 64),
        (Parts, True, False, 1),
    ],
)
def test_async_methods_have_many_calls_in_hand(handler, in_parts, is_async, num_jobs):
    found = signature_of(handler)
    assert (found.in_parts, found.is_async, found.num_jobs) == (in_parts, is_async, num_jobs)
    assert HandlerSignature.of(found.document()) == found


def test_handler_is_found_by_its_class_or_its_file():
    assert HandlerSource.of(behaviours.Around) == (FILE, "Around")
    assert HandlerSource.of(FILE) == (FILE, "")
    assert HandlerSource.of(f"{FILE}:Around") == (FILE, "Around")
    assert load(HandlerSource(FILE, "Around")) is behaviours.Around  # as part of its package


def test_class_without_a_file_is_refused():
    names = {}
    text = "import serving\nclass Typed(serving.Handler):\n    def predict(self): ..."
    exec(compile(text, "<stdin>", "exec"), {"__name__": "typed_in"}, names)

    class Inner(serving.Handler):
        pass

    for handler, words in (
        (names["Typed"], "Typed has no file"),
        (Inner, "is defined inside of another"),
        (str, "expected a subclass of serving.Handler, got str"),
        ("nothing.py", "there is no file"),
        ("model.onnx", "expected FILE.py or FILE.py:CLASS, got 'model.onnx'"),
    ):
        with pytest.raises(serving.ConfigurationError, match=words):
            HandlerSource.of(handler)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_there", "bad.py:1: ModuleNotFoundError: No module named 'nothing_there'"),
        ("x = 1\n\ndef f(:", "bad.py:3: SyntaxError"),
        ("import sys\nsys.exit(3)", "bad.py:2: SystemExit: 3"),
        ("def f():\n    1 / 0\n\nf()", "bad.py:2: ZeroDivisionError"),
        ("", "bad.py:1: expected one subclass of serving.Handler, got none"),
        (
            "import serving\nclass A(serving.Handler): ...\nclass B(serving.Handler): ...",
            "expected one subclass of serving.Handler, got A, B: name one as bad.py:CLASS",
        ),
    ],
)
def test_file_that_cannot_be_imported_is_one_line_with_its_place(tmp_path, text, words):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(serving.ConfigurationError, match=re.escape(words)):
        load(HandlerSource(file))


def test_error_of_a_file_that_a_handler_imports_names_that_file(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "stems.py").write_text("def stem(word):\n    return word[9]\n")
    file = tmp_path / "deep.py"
    file.write_text("from words.stems import stem\n\nstem('a')\n")
    expected = "words/stems.py:2: IndexError: string index out of range (by deep.py:3)"
    with pytest.raises(serving.ConfigurationError, match=f"^{re.escape(expected)}$"):
        load(HandlerSource(file))


def test_handlers_are_given_to_models():
    first, second = f"{FILE}:Around", f"{FILE}:Joined"
    sources = named_sources([first, f"b={second}"])
    assert assigned(sources, ["model"]) == {"model": (FILE, "Around"), "b": (FILE, "Joined")}
    assert assigned(sources, []) == {"behaviours": (FILE, "Around"), "b": (FILE, "Joined")}
    with pytest.raises(serving.ConfigurationError, match=r"expected NAME=.*behaviours.py, of a, c"):
        assigned(sources, ["a", "c"])
    with pytest.raises(serving.ConfigurationError, match="two of them for behaviours, write NAME="):
        named_sources([first, second])
    here = f"{Path(__file__)}:Parts"
    sources = named_sources([first, here])
    assert sources == {
        "behaviours": (FILE, "Around"),
        "test_declarations": (Path(__file__), "Parts"),
    }
    assert assigned(sources, ["model"]) == sources


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        ({"a": ("b",), "b": ()}, None),
        ({"a": ("a",)}, "in a circle: a -> a"),
        ({"a": ("b", "c"), "b": (), "c": ("d",), "d": ("a",)}, "a -> c -> d -> a"),
        ({"a": ("b",), "b": ("c",), "c": ("d",), "d": ("e",)}, None),
        ({"a": ("b",), "b": ("c",), "c": ("d",), "d": ("e",), "e": ("f",)}, "more than 4"),
    ],
)
def test_circles_and_long_ways_are_found(uses, expected):
    found = trouble_of("a", uses)
    assert found is None if expected is None else expected in str(found)


class Everything(serving.Handler):
    """The first line.

    And more.
    """

    inputs = {
        "text": Text(), "pair": Text((2,)), "document": Json(), "sound": Bytes(),
        "picture": Picture(), "row": Array("float32", (2, -1)),
    }  # fmt: skip
    outputs = {"number": Array("int64")}
    batching = True
    uses = ("one", "two")
    max_concurrency = 7

    async def predict(self, *values, metadata, parameters): ...


def test_signature_is_sent_whole():
    found = signature_of(Everything)
    document = {
        "name": "Everything", "text": "The first line.",
        "inputs": {"text": "Text", "pair": ["text", [2]], "document": "Json", "sound": "Bytes",
                   "picture": "Picture", "row": ["float32", [2, -1]]},
        "outputs": {"number": ["int64", []]}, "methods": ("predict",),
        "options": ("parameters", "metadata"), "batching": True, "uses": ("one", "two"),
        "in_parts": False, "is_async": True, "max_concurrency": 7,
    }  # fmt: skip
    assert found.document() == document
    assert HandlerSignature.of(json.loads(json.dumps(document))) == found
    tensors = found.tensors(None)
    shown = [(str(each), each.content) for each in tensors.inputs]
    assert shown == [
        ("text BYTES [N]", "text"), ("pair BYTES [N, 2]", ""), ("document BYTES [N]", "json"),
        ("sound BYTES [N]", "bytes"), ("picture BYTES [N]", "picture"),
        ("row FP32 [N, 2, ?]", ""),
    ]  # fmt: skip
    assert [str(each) for each in tensors.outputs] == ["number INT64 [N]"]
    assert (tensors.is_batchable, tensors.in_parts) == (True, False)


def test_signature_that_says_little_is_this():
    plain = HandlerSignature(name="H", inputs=None, outputs=None, methods=("postprocess",))
    assert plain.document() == {
        "name": "H", "text": "", "inputs": None, "outputs": None, "methods": ("postprocess",),
        "options": (), "batching": False, "uses": (), "in_parts": False, "is_async": False,
        "max_concurrency": 64,
    }  # fmt: skip
    assert (plain.needs_model, plain.num_jobs, plain.has_pictures) == (True, 1, False)
    sides = (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 3)),)
    for is_batchable in (True, False):
        network = TensorSignature(*sides, is_batchable)
        assert plain.tensors(network) == network
        own = replace(plain, inputs=TEXTS, methods=("preprocess",))
        assert own.tensors(network).is_batchable, "rows are the handler's"
        assert own.tensors(network).outputs == network.outputs


def test_error_in_a_file_leaves_no_file_in_import(tmp_path):
    """Else a program that goes on could start no server any more."""
    file = tmp_path / "starts.py"
    file.write_text(
        "from serving.handlers.loading import require_no_import\n\nrequire_no_import('Server')\n"
    )
    for _ in range(2):
        require_no_import("Server")
        expected = "starts.py:3: Server starts a server whenever the file is imported"
        with pytest.raises(serving.ConfigurationError, match=f"^{re.escape(expected)}"):
            load(HandlerSource(file))
    require_no_import("Server")


def test_handler_in_a_package_is_imported_as_part_of_it(tmp_path):
    package = tmp_path / "shop_of_words" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package.parent / "words.py").write_text("WORD = 'once'\n")
    file = package / "teller.py"
    file.write_text(
        "import serving\nfrom ..words import WORD\n\nclass Teller(serving.Handler):\n"
        "    inputs = outputs = {'x': serving.Text()}\n    word = WORD\n\n"
        "    def predict(self, x):\n        return x\n"
    )
    found = load(HandlerSource(file))
    assert (found.__module__, found.word) == ("shop_of_words.inner.teller", "once")  # type: ignore[attr-defined]
    assert imported_beside(file) == [
        package.parent / "__init__.py", package / "__init__.py", package.parent / "words.py",
    ]  # fmt: skip
    assert load(HandlerSource(file, "Teller")) is found


def test_methods_get_the_options_that_they_name_and_the_state_of_their_call():
    class Options(serving.Handler):
        inputs = {"text": Text()}
        outputs = {"found": Text()}

        def preprocess(self, text, metadata):
            return [[1]], (text[0], metadata["tenant"])

        def postprocess(self, y, state, parameters):
            return [f"{y[0]} {state} {parameters}"]

    x, y = Tensor("x", "INT64", (-1, 1)), Tensor("y", "INT64", (-1,))
    instance = Instance(Options, TensorSignature((x,), (y,), is_batchable=True), None)
    options = {"parameters": {"top": 1}, "metadata": {"tenant": "a"}}
    arrays, state = at_once(instance.preprocess([np.array(["b"], object)], options))
    assert ([each.tolist() for each in arrays], state) == ([[[1]]], ("b", "a"))
    (found,) = at_once(instance.postprocess([np.array([7])], 1, options, state))
    assert found.tolist() == ["7 ('b', 'a') {'top': 1}"]
    (found,) = at_once(instance.postprocess([np.array([7])], 1, {}))
    assert found.tolist() == ["7 None {}"]
